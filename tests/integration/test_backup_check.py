"""`pgchroma backup check-restored`: what it says of a good copy, of a damaged one, and of one that is no copy."""

import asyncio
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from pgchroma.backup import check, record, state
from pgchroma.server.embedded import EmbeddedPostgres
from pgchroma.store import Store, bootstrap, migrations
from pgchroma.types import RecordBatch
from support.command import Outcome, pgchroma
from support.recovery import DATABASE, ArchivingCluster
from support.store import batch, make

pytestmark = pytest.mark.anyio


@dataclass(frozen=True, slots=True)
class Backed:
    """A cluster that was backed up, with a recorded point and something written since."""

    cluster: ArchivingCluster
    base: Path
    directory: Path

    @property
    def point(self) -> state.Recorded:
        return state.read_point(self.directory / "digests/latest.json")


async def _fill(url: str, directory: Path, cluster: ArchivingCluster) -> Path:
    async with await Store.open(url) as store:
        values = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float32)
        big = await make(store, "big", space="cosine")
        await store.add(big.id, RecordBatch([f"b{number}" for number in range(300)], values))
        small = await make(store, "small", space="ip")
        await store.add(small.id, batch(["a", "b"]))
        base = cluster.base_backup()
        await store.add(small.id, batch(["c"]))
        await record.record_digests(url, directory, name="the-point")
        await store.add(small.id, batch(["d"]))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_switch_wal()")
    return base


@pytest.fixture(scope="module")
def backed() -> Iterator[Backed]:
    with tempfile.TemporaryDirectory(prefix="pgchroma-") as name:
        cluster = ArchivingCluster(Path(name))
        with cluster.postgres as postgres:
            bootstrap.create_database(postgres.url(), DATABASE)
            bootstrap.create_extension(cluster.url)
            asyncio.run(migrations.upgrade(cluster.url))
            directory = Path(name) / "state"
            yield Backed(cluster, asyncio.run(_fill(cluster.url, directory, cluster)), directory)


@pytest.fixture(scope="module")
def copy(backed: Backed) -> Iterator[EmbeddedPostgres]:
    with backed.cluster.restored(backed.base, target_name="the-point") as found:
        yield found


def restored_check(backed: Backed, copy: EmbeddedPostgres, *arguments: object) -> Outcome:
    return pgchroma(
        "backup", "check-restored", "--database-url", copy.url(DATABASE), "--state-dir", backed.directory,
        "--format", "json", *arguments,
    )  # fmt: skip


def by_id(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for item in report["checks"]}


async def test_digests_of_another_cluster_are_not_accepted(
    backed: Backed, copy: EmbeddedPostgres, database_url: str, tmp_path: Path
) -> None:
    await record.record_digests(database_url, tmp_path, name="elsewhere")
    report = await check.check_restored(
        copy.url(DATABASE), state.read_point(tmp_path / "digests/elsewhere.json")
    )
    assert {"same-cluster", "restored-to-point", "digests"} <= {item.id for item in report.failed}


class TestCopy:
    def test_1_a_copy_restored_to_the_point_passes(self, backed: Backed, copy: EmbeddedPostgres) -> None:
        outcome = restored_check(backed, copy)
        assert outcome.code == 0, outcome.stdout + outcome.stderr
        report = outcome.json
        assert (report["result"], report["records"], report["collections"]) == ("ok", 303, 2)
        assert (
            by_id(report)["digests"]["detail"] == "303 records of 2 collections are as recorded at the-point"
        )
        assert by_id(report)["restored-to-point"]["status"] == "ok"
        assert by_id(report)["vector-queries"]["detail"] == (
            "8 stored vectors asked for, 8 found; recall 1.000 of 10 neighbours"
        )

    def test_2_what_is_lost_or_changed_is_named_by_collection(
        self, backed: Backed, copy: EmbeddedPostgres
    ) -> None:
        with psycopg.connect(copy.url(DATABASE)) as connection:
            connection.execute("DELETE FROM pgchroma_data.r2 WHERE id = 'c'")
            connection.execute("UPDATE pgchroma_data.v1 SET embedding = embedding + embedding WHERE seq = 5")
        outcome = restored_check(backed, copy)
        assert outcome.code == 8
        assert outcome.json["differences"] == [
            {
                "path": "default_tenant/default_database/big",
                "detail": "vectors: 300 rows, but their content differs",
            },
            {"path": "default_tenant/default_database/small", "detail": "records: 2 rows instead of 3"},
        ]
        assert "critical checks failed: digests" in outcome.stderr

    async def test_3_an_index_that_finds_nothing_is_noticed(
        self, backed: Backed, copy: EmbeddedPostgres
    ) -> None:
        with psycopg.connect(copy.url(DATABASE)) as connection:
            number = connection.execute(
                "SELECT table_number, id FROM pgchroma.collections WHERE name = 'big'"
            ).fetchone()
            assert number is not None
            # The catalog says that vectors are covered by an index; the tables hold others than those.
            connection.execute("UPDATE pgchroma_data.v1 SET seq = seq + 1000000 WHERE record_seq < 290")
            connection.execute("UPDATE pgchroma_data.r1 SET vseq = vseq + 1000000 WHERE seq < 290")
            connection.execute("DELETE FROM pgchroma_data.r1 WHERE seq < 200")
        report = await check.check_restored(copy.url(DATABASE), None)
        assert "vector-queries" in [item.id for item in report.failed]


async def test_a_copy_restored_to_another_time_is_told_so(backed: Backed) -> None:
    with backed.cluster.restored(backed.base) as copy:
        report = await check.check_restored(copy.url(DATABASE), backed.point)
    found = {item.id: item for item in report.checks}
    assert found["restored-to-point"].detail.startswith("restored beyond the-point")
    assert [(item.path, item.detail) for item in report.differences] == [
        (
            "default_tenant/default_database/small",
            "records: 4 rows instead of 3; vectors: 4 rows instead of 3",
        )
    ]


def test_a_cluster_in_use_is_not_touched(backed: Backed) -> None:
    outcome = restored_check(backed, backed.cluster.postgres)
    assert outcome.code == 9
    assert "archives its WAL" in outcome.stderr
    outcome = restored_check(backed, backed.cluster.postgres, "--in-place", "--no-digests")
    assert outcome.code == 0, outcome.stderr
    assert by_id(outcome.json)["digests"]["status"] == "failed"
    assert by_id(outcome.json)["digests"]["severity"] == "warning"


def test_a_missing_digest_file_is_named(backed: Backed, tmp_path: Path) -> None:
    outcome = restored_check(backed, backed.cluster.postgres, "--digests", tmp_path / "none.json")
    assert outcome.code == 3
    assert "none.json" in outcome.stderr


def test_a_database_that_does_not_answer_is_a_failed_check(backed: Backed, tmp_path: Path) -> None:
    outcome = pgchroma(
        "backup", "check-restored", "--database-url", f"postgresql:///x?host={tmp_path}", "--state-dir", backed.directory
    )  # fmt: skip
    assert outcome.code == 8
    assert "database-reachable" in outcome.stderr
