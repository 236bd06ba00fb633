"""Digests at a restore point: a copy restored there is equal, whatever was written meanwhile, and every damage is noticed."""

import asyncio
import contextlib
import functools
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pgchroma.backup import record, state
from pgchroma.errors import ConfigurationError, RefusedError
from pgchroma.store import Store, backups, bootstrap, digests, migrations, tables
from pgchroma.store.digests import Digests
from pgchroma.types import Filter, RecordBatch
from support.command import pgchroma
from support.recovery import DATABASE, ArchivingCluster
from support.store import batch, eventually, make

pytestmark = pytest.mark.anyio


async def digest(url: str) -> Digests:
    async with await backups.connect(url, "test") as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        return await digests.compute(connection)


@pytest.fixture
async def own_store(database_url: str) -> AsyncIterator[Store]:
    async with await Store.open(database_url) as opened:
        yield opened


class TestNoticing:
    """Any change of what a collection holds changes its digest, and says where."""

    @pytest.fixture
    async def filled(self, own_store: Store, database_url: str) -> str:
        first = await make(own_store, "first", space="cosine")
        values = np.random.default_rng(1).normal(size=(40, 3)).astype(np.float32)
        values[0] = 0.0
        records = RecordBatch(
            [f"r{number}" for number in range(40)],
            values,
            documents=[None if number % 3 else f"text {number}" for number in range(40)],
            metadatas=[
                {"whole": number, "half": number / 2, "exact": float("nan")} if number % 2 else None
                for number in range(40)
            ],
            uris=["" if number % 5 else None for number in range(40)],
        )
        await own_store.add(first.id, records)
        second = await make(own_store, "second")
        await own_store.add(second.id, batch(["a", "b"]))
        await make(own_store, "empty")
        return database_url

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ("DELETE FROM pgchroma_data.r1 WHERE seq = 7", "records: 39 rows instead of 40"),
            ("DELETE FROM pgchroma_data.v1 WHERE seq = 7", "vectors: 39 rows instead of 40"),
            (
                "UPDATE pgchroma_data.r1 SET document = document || ' ' WHERE seq = 1",
                "records: 40 rows, but their content differs",
            ),
            ("UPDATE pgchroma_data.r1 SET uri = NULL WHERE seq = 2", "content differs"),
            ("UPDATE pgchroma_data.r1 SET uri = '' WHERE seq = 1", "content differs"),
            ("UPDATE pgchroma_data.r1 SET document = uri, uri = document WHERE seq = 1", "content differs"),
            # jsonb itself calls these two equal.
            (
                'UPDATE pgchroma_data.r1 SET metadata = \'{"whole": 1.0, "half": 0.5, "exact": null}\' WHERE id = \'r1\'',
                "content differs",
            ),
            ("UPDATE pgchroma_data.r1 SET metadata_exact = '{}' WHERE seq = 2", "content differs"),
            (
                "UPDATE pgchroma_data.r1 SET vseq = CASE vseq WHEN 3 THEN 4 ELSE 3 END WHERE vseq IN (3, 4)",
                "content differs",
            ),
            # pgvector itself calls 0 and -0 equal.
            (
                "UPDATE pgchroma_data.v1 SET embedding = '[-0,0,0]' WHERE seq = 1",
                "vectors: 40 rows, but their content differs",
            ),
            (
                "UPDATE pgchroma.collections SET name = 'third' WHERE name = 'first'",
                "catalog: content differs",
            ),
            ("UPDATE pgchroma.collections SET metadata = '{\"a\": 1}' WHERE name = 'first'", "catalog"),
            ("DELETE FROM pgchroma.collections WHERE name = 'empty'", "is missing"),
            ("INSERT INTO pgchroma.tenants VALUES ('another')", "list: 2 rows instead of 1"),
            (
                "INSERT INTO pgchroma.tokens (id, name, digest, tenant, scope) VALUES ('a', 'b', sha256('x'), 'c', 'read')",
                "list: 1 rows instead of 0",
            ),
            ("DROP TABLE pgchroma_data.v1", "the table is missing"),
        ],
    )
    async def test_a_change_is_noticed(self, filled: str, change: str, told: str) -> None:
        before = await digest(filled)
        with psycopg.connect(filled) as connection:
            connection.execute(change.encode())
        after = await digest(filled)
        assert before.digest != after.digest
        (difference,) = digests.differences(before, after)
        assert told in difference.detail

    async def test_where_rows_lie_does_not_matter(self, filled: str) -> None:
        before = await digest(filled)
        with psycopg.connect(filled, autocommit=True) as connection:
            connection.execute("UPDATE pgchroma_data.r1 SET uri = uri WHERE seq < 20")
            connection.execute("CLUSTER pgchroma_data.v1 USING v1_pkey")
            connection.execute("VACUUM FULL pgchroma_data.r1")
        assert digests.differences(before, await digest(filled)) == []

    async def test_a_row_that_is_there_twice_is_noticed(self, filled: str) -> None:
        before = await digest(filled)
        with psycopg.connect(filled) as connection:
            connection.execute("ALTER TABLE pgchroma_data.v1 DROP CONSTRAINT v1_pkey")
            # Two more of the same: an exclusive-or would not see them.
            connection.execute(
                "INSERT INTO pgchroma_data.v1 SELECT * FROM pgchroma_data.v1 WHERE seq = 3 UNION ALL SELECT * FROM pgchroma_data.v1 WHERE seq = 3"
            )
        assert (await digest(filled)).digest != before.digest

    async def test_any_single_bit_of_a_vector_counts(self, filled: str) -> None:
        seen = {(await digest(filled)).collections[1].parts["vectors"]}
        original = np.array([0.75, -2.25, 3.125], dtype=">f4").tobytes()
        with psycopg.connect(filled, autocommit=True) as connection:
            # Sign, exponent and mantissa; these three numbers stay finite whichever bit is flipped.
            for bit in range(96):
                data = bytearray(original)
                data[bit // 8] ^= 1 << (bit % 8)
                value = np.frombuffer(bytes(data), ">f4")
                assert np.isfinite(value).all()
                connection.execute(
                    "UPDATE pgchroma_data.v1 SET embedding = %s::real[]::vector WHERE seq = 5",
                    [value.tolist()],
                )
                seen.add((await digest(filled)).collections[1].parts["vectors"])
        assert len(seen) == 97

    @given(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=6),
            min_size=2,
            max_size=2,
            unique=True,
        )
    )
    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_different_texts_have_different_digests(self, postgres: Any, texts: list[str]) -> None:
        with psycopg.connect(postgres.url()) as connection:
            rows = connection.execute(
                "SELECT sum(hash_record_extended(ROW(seq, word), 0)) FROM unnest(%s::text[], ARRAY[1, 1]::bigint[]) AS t (word, seq) GROUP BY word",
                [texts],
            ).fetchall()
        assert rows[0] != rows[1]


class TestRecording:
    async def test_the_command_records_a_point(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        collection = await make(own_store, "kept")
        await own_store.add(collection.id, batch(["a", "b"]))
        outcome = pgchroma(
            "backup", "record-digests", "--database-url", database_url, "--state-dir", tmp_path / "state",
            "--backup-label", "20260131-010203F", "--backup-type", "full", "--format", "json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["records"] == 2
        # This cluster does not archive.
        assert outcome.json["archived"] is None
        found = state.read_point(tmp_path / "state/digests/latest.json")
        assert found.point == outcome.json["point"]
        assert state.read_point(Path(outcome.json["file"])).digests == found.digests
        assert (tmp_path / "state").stat().st_mode & 0o777 == 0o750
        assert digests.differences(found.digests, await digest(database_url)) == []
        async with await backups.connect(database_url, "test") as connection:
            (point,) = await backups.newest_points(connection)
        assert (point.name, point.records, point.backup_label) == (found.point, 2, "20260131-010203F")
        assert point.completed_at is not None
        async with await backups.connect(database_url, "test") as connection:
            await connection.execute("UPDATE pgchroma.backup_points SET completed_at = NULL")
            assert len(await backups.newest_points(connection)) == 1
            assert await backups.newest_points(connection, completed=True) == [], "it may never be"

    async def test_a_damaged_file_is_refused(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        await make(own_store, "kept")
        _, path = await record.record_digests(database_url, tmp_path)
        content = json.loads(path.read_text())
        content["collections"][0]["digest"] = "0" * 32
        path.write_text(json.dumps(content))
        with pytest.raises(ConfigurationError, match="is damaged"):
            state.read_point(path)
        path.write_text('{"format": "something else"}')
        with pytest.raises(ConfigurationError, match="not a file of the format"):
            state.read_point(path)

    async def test_impossible_and_taken_names_are_refused(self, database_url: str, tmp_path: Path) -> None:
        for name in ("a b", "x" * 64, "point;"):
            with pytest.raises(ConfigurationError, match="cannot be the name"):
                await record.record_digests(database_url, tmp_path, name=name)
        await record.record_digests(database_url, tmp_path, name="once")
        with pytest.raises(ConfigurationError, match="already"):
            await record.record_digests(database_url, tmp_path, name="once")

    async def test_a_directory_that_cannot_be_written_to_is_refused_first(
        self, database_url: str, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="cannot write"):
            await record.record_digests(database_url, tmp_path / "file")
        async with await backups.connect(database_url, "test") as connection:
            assert await backups.newest_points(connection) == []

    async def test_a_role_without_the_right_is_told_so(self, database_url: str, tmp_path: Path) -> None:
        with psycopg.connect(database_url) as connection:
            connection.execute("DROP ROLE IF EXISTS keep_app")
            connection.execute("CREATE ROLE keep_app LOGIN")
        await migrations.upgrade(database_url, app_role="keep_app")
        url = database_url.replace("postgres@", "keep_app@")
        outcome = pgchroma("backup", "record-digests", "--database-url", url, "--state-dir", tmp_path)
        with psycopg.connect(database_url) as connection:
            connection.execute("DROP OWNED BY keep_app")
            connection.execute("DROP ROLE keep_app")
        assert outcome.code == 5
        assert "permission denied for function pg_create_restore_point" in outcome.stderr
        assert "user=postgres" in outcome.stderr

    async def test_it_waits_for_a_write_that_is_open_and_gives_up_in_the_end(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        collection = await make(own_store, "busy")
        entered, leave = asyncio.Event(), asyncio.Event()

        async def slow_write() -> None:
            async with own_store.transaction() as connection:
                prepared = await own_store.prepare_copy(connection, collection, 2)
                await connection.execute(
                    sql.SQL("INSERT INTO {} VALUES (1, 1, 'late')").format(
                        tables.records(prepared.table_number or 0)
                    )
                )
                entered.set()
                await leave.wait()

        writing = asyncio.create_task(slow_write())
        await entered.wait()
        with pytest.raises(RefusedError, match="writes were under way"):
            await record.record_digests(database_url, tmp_path, patience_seconds=0)
        waiting = asyncio.create_task(record.record_digests(database_url, tmp_path))
        leave.set()
        await writing
        point, _ = await waiting
        assert point.digests.records == 1

    async def test_writes_go_on_after_a_recorder_was_killed(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        collection = await make(own_store, "after")
        prelude = (
            "import contextlib, os\nfrom pgchroma.store import backups\nreal = backups.barrier.hold\n"
            "@contextlib.asynccontextmanager\nasync def hold(*args):\n"
            "    async with real(*args):\n        os.kill(os.getpid(), 9)\n        yield\n"
            "backups.barrier.hold = hold\n"
        )
        outcome = pgchroma(
            "backup",
            "record-digests",
            "--database-url",
            database_url,
            "--state-dir",
            tmp_path,
            prelude=prelude,
        )
        assert outcome.code == -9
        await own_store.add(collection.id, batch(["a"]))
        assert await own_store.count(collection.id) == 1


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ArchivingCluster]:
    with tempfile.TemporaryDirectory(prefix="pgchroma-") as name:
        found = ArchivingCluster(Path(name))
        with found.postgres as postgres:
            bootstrap.create_database(postgres.url(), DATABASE)
            bootstrap.create_extension(found.url)
            asyncio.run(migrations.upgrade(found.url))
            yield found


@contextlib.asynccontextmanager
async def writers(store: Store, count: int = 4) -> AsyncIterator[list[int]]:
    """Add, change and delete records all the time."""
    collections = [await make(store, f"busy-{number}") for number in range(count)]
    written = [0] * count
    stop = asyncio.Event()

    async def write(number: int) -> None:
        collection = collections[number]
        random = np.random.default_rng(number)
        while not stop.is_set():
            names = [f"w{value}" for value in random.integers(0, 400, size=20)]
            embeddings = random.normal(size=(20, 2)).astype(np.float32)
            await store.upsert(
                collection.id, RecordBatch(names, embeddings, documents=[f"{written[number]}"] * 20)
            )
            await store.delete(collection.id, Filter(ids=names[:3]))
            written[number] += 1

    tasks = [asyncio.create_task(write(number)) for number in range(count)]
    try:
        yield written
    finally:
        stop.set()
        await asyncio.gather(*tasks)


async def _reached(written: list[int], total: int) -> bool:
    return sum(written) >= total


class TestRestoring:
    async def test_a_copy_restored_to_the_point_is_equal_although_writes_never_paused(
        self, cluster: ArchivingCluster, tmp_path: Path
    ) -> None:
        base = cluster.base_backup()
        async with await Store.open(cluster.url) as store, writers(store) as written:
            files = []
            for number in range(4):
                before = sum(written)
                point, path = await record.record_digests(cluster.url, tmp_path, name=f"busy-{number}")
                assert point.archived is True
                files.append(path)
                await eventually("further writes", functools.partial(_reached, written, before + 8))
        for path in files[1::2]:
            recorded = state.read_point(path)
            with cluster.restored(base, target_name=recorded.point) as copy:
                assert digests.differences(recorded.digests, await digest(copy.url(DATABASE))) == []
        # The opposite: at the end of the archive there is more than at the point, and the comparison says so.
        recorded = state.read_point(files[0])
        with cluster.restored(base) as copy:
            told = digests.differences(recorded.digests, await digest(copy.url(DATABASE)))
        assert {item.path.rpartition("/")[2] for item in told} == {f"busy-{number}" for number in range(4)}
