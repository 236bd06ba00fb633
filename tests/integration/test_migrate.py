"""A Chroma folder moved into PostgreSQL: every record arrives, and whatever is in the way is named."""

import asyncio
import json
import shutil
import sqlite3
import stat
from pathlib import Path

import numpy as np
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.store import Store
from pgchroma.types import Collection, Filter, Record, RecordBatch
from support import chroma
from support.command import Outcome, pgchroma
from support.postgres import Databases


@pytest.fixture(scope="session", params=chroma.EXTREMES)
def version(request: pytest.FixtureRequest) -> str:
    """A version of chromadb that wrote a folder."""
    return str(request.param)


@pytest.fixture
def folder(version: str, tmp_path: Path) -> Path:
    """The folder of that version."""
    return chroma.extract(version, tmp_path)


@pytest.fixture
def newest(tmp_path: Path) -> Path:
    """A folder, where the version does not matter."""
    return chroma.extract("1.5.9", tmp_path)


def run(folder: Path, url: str, receipt: Path, *more: str) -> Outcome:
    return pgchroma(
        "migrate", "run", folder, "--database-url", url, "--receipt", receipt, "--format", "json", *more
    )


def contents(url: str) -> dict[str, tuple[Collection, list[Record]]]:
    """Return everything a database holds, by collection path."""

    async def read() -> dict[str, tuple[Collection, list[Record]]]:
        async with await Store.open(url) as store:
            return {
                item.path: (item, [record async for page in store.iter_records(item) for record in page])
                for item in await store.list_collections()
            }

    return asyncio.run(read())


def damage(folder: Path) -> None:
    """Put NaN into the vector of one record."""
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute(
            "UPDATE embeddings_queue SET vector = ? WHERE id = 'south-backup-02'",
            (np.full(64, np.nan, dtype="<f4").tobytes(),),
        )
    database.close()


def test_every_record_arrives_and_is_proven(
    version: str, folder: Path, database_url: str, tmp_path: Path
) -> None:
    path = tmp_path / "receipts" / "receipt.json"
    done = run(folder, database_url, path)
    assert done.code == ExitCode.OK, done.stderr
    wanted = chroma.expected(version)
    found = contents(database_url)
    assert found.keys() == wanted.keys()
    for name, (collection, records) in found.items():
        assert chroma.differences(records, wanted[name]) == []
        assert collection.space == wanted[name].distance

    receipt = json.loads(path.read_text())
    assert receipt["result"] == "equal"
    assert receipt["records"] == sum(len(item.rows) for item in wanted.values())
    assert receipt["source"]["path"] == str(folder)
    assert {item["collection"]: item["records_target"] for item in receipt["collections"]} == {
        name: len(item.rows) for name, item in wanted.items()
    }
    assert all(item["digest_source"] == item["digest_target"] for item in receipt["collections"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(path.parent.iterdir()) == [path.with_suffix(".html"), path]

    status = pgchroma("migrate", "status", "--format", "json", PGCHROMA_DATABASE_URL=database_url).json
    assert {row["phase"] for row in status} == {"verified"}
    assert sum(row["records"] for row in status) == receipt["records"]
    assert {row["errors"] for row in status} == {0}


def test_collections_keep_their_ids_metadata_and_configuration(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    run(folder, database_url, tmp_path / "receipt.json")
    with sqlite3.connect(folder / "chroma.sqlite3") as source:
        ids = {ident for (ident,) in source.execute("SELECT id FROM collections")}
    source.close()
    found = contents(database_url)
    assert {str(item.id) for item, _ in found.values()} == ids
    handbook, _ = found["default_tenant/default_database/handbook"]
    assert handbook.metadata is not None
    assert (handbook.metadata["edition"], handbook.metadata["weight"]) == (3, 1.5)
    assert type(handbook.metadata["edition"]) is int
    assert handbook.configuration["hnsw"]["sync_threshold"] == 100
    assert handbook.space == "cosine"
    assert found["default_tenant/default_database/empty"][0].dimension is None


def test_the_password_is_in_no_receipt(newest: Path, database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    done = run(newest, f"{database_url}&password=very-secret", path)
    assert done.code == ExitCode.OK, done.stderr
    assert "very-secret" not in path.read_text() + done.stdout + done.stderr
    assert json.loads(path.read_text())["target"]["dbname"].startswith("test_")


def test_a_collection_in_use_is_refused_by_name(newest: Path, database_url: str, tmp_path: Path) -> None:
    assert run(newest, database_url, tmp_path / "one.json").code == ExitCode.OK
    before = contents(database_url)
    again = run(newest, database_url, tmp_path / "two.json")
    assert again.code == ExitCode.REFUSED
    assert "default_tenant/default_database/handbook" in again.stderr
    assert "delete or rename it" in again.stderr
    assert not (tmp_path / "two.json").exists()
    plan = pgchroma("migrate", "plan", newest, "--format", "json", PGCHROMA_DATABASE_URL=database_url)
    assert (plan.code, plan.json["records"]) == (ExitCode.REFUSED, 465)
    assert {name: len(records) for name, (_, records) in contents(database_url).items()} == {
        name: len(records) for name, (_, records) in before.items()
    }


def test_an_empty_collection_of_another_make_is_refused(
    newest: Path, database_url: str, tmp_path: Path
) -> None:
    async def create() -> None:
        async with await Store.open(database_url) as store:
            await store.create_collection("default_tenant", "default_database", "handbook")

    asyncio.run(create())
    done = run(newest, database_url, tmp_path / "receipt.json")
    assert done.code == ExitCode.REFUSED
    assert "its distance is l2, the source's cosine" in done.stderr


def test_plan_and_dry_run_write_nothing(newest: Path, database_url: str, tmp_path: Path) -> None:
    plan = pgchroma("migrate", "plan", newest, "--format", "json")
    assert plan.code == ExitCode.OK, plan.stderr
    handbook = next(item for item in plan.json["collections"] if item["collection"].endswith("/handbook"))
    assert (handbook["records"], handbook["dimension"], handbook["distance"]) == (315, 384, "cosine")
    assert handbook["bytes"] > 315 * 384 * 4
    dry = run(newest, database_url, tmp_path / "receipt.json", "--dry-run")
    assert dry.code == ExitCode.OK, dry.stderr
    assert dry.json["dry_run"] is True
    assert contents(database_url) == {}
    assert not (tmp_path / "receipt.json").exists()
    assert pgchroma("migrate", "status", "--format", "json", DATABASE_URL=database_url).json == []


def test_the_text_output_can_be_read(newest: Path, database_url: str, tmp_path: Path) -> None:
    plan = pgchroma("migrate", "plan", newest)
    assert "Chroma 1.5" in plan.stdout
    assert "nothing was written" in plan.stdout
    done = pgchroma(
        "migrate", "run", newest, "--database-url", database_url, "--receipt", tmp_path / "receipt.json"
    )
    assert "465 records moved and proven one by one, 0 put aside" in done.stdout
    assert done.stderr == ""
    assert "handbook" in pgchroma("migrate", "status", "--database-url", database_url).stdout


def test_what_cannot_be_stored_stops_a_run_unless_it_may_be_left_behind(
    folder: Path, version: str, database_url: str, tmp_path: Path
) -> None:
    damage(folder)
    plan = pgchroma("migrate", "plan", folder, "--format", "json").json
    (problem,) = [
        item for entry in plan["collections"] for item in entry["problems"] if item["severity"] == "error"
    ]
    assert (problem["code"], problem["ids"]) == ("vector-not-finite", ["south-backup-02"])
    assert plan["runnable"] is False

    refused = run(folder, database_url, tmp_path / "one.json")
    assert refused.code == ExitCode.SOURCE_UNREADABLE
    assert "south/live/notes" in refused.stderr
    assert "--policy vector-not-finite=quarantine" in refused.stderr
    assert contents(database_url) == {}

    done = run(folder, database_url, tmp_path / "two.json", "--skip-unreadable")
    assert done.code == ExitCode.OK, done.stderr
    receipt = json.loads((tmp_path / "two.json").read_text())
    (skipped,) = receipt["skipped"]
    assert (skipped["collection"], skipped["id"]) == ("south/live/notes", "south-backup-02")
    assert "NaN" in skipped["reason"]
    wanted = chroma.expected(version)
    wanted["south/live/notes"].rows = [
        row for row in wanted["south/live/notes"].rows if row["id"] != "south-backup-02"
    ]
    for name, (_, records) in contents(database_url).items():
        assert chroma.differences(records, wanted[name]) == []


def test_a_lost_index_is_left_behind_whole(newest: Path, database_url: str, tmp_path: Path) -> None:
    for path in newest.glob("*/data_level0.bin"):
        path.unlink()
    done = run(newest, database_url, tmp_path / "receipt.json", "--skip-unreadable")
    assert done.code == ExitCode.OK, done.stderr
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    # What lives in the log only is not touched by the loss.
    assert receipt["records"] + len(receipt["skipped"]) == 465
    assert {item["collection"] for item in receipt["skipped"]} == {
        "default_tenant/default_database/handbook",
        "default_tenant/default_database/odd",
    }


def test_a_migration_can_be_verified_later(newest: Path, database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    run(newest, database_url, path)

    def verify(*more: object) -> Outcome:
        return pgchroma(
            "migrate", "verify", "--receipt", path, "--database-url", database_url, "--format", "json", *more
        )

    for against in ("source", "receipt"):
        done = verify("--against", against)
        assert done.code == ExitCode.OK, done.stderr
        assert done.json["result"] == "equal"

    moved = Path(shutil.move(newest, tmp_path / "elsewhere"))
    assert verify().code == ExitCode.SOURCE_UNREADABLE
    assert verify("--source", moved).code == ExitCode.OK

    async def tamper() -> None:
        async with await Store.open(database_url) as store:
            odd = await store.get_collection("default_tenant", "default_database", "odd")
            await store.update(odd.id, RecordBatch(["types"], metadatas=[{"f": 1}]))
            await store.delete(odd.id, Filter(ids=["plain-1"]))

    asyncio.run(tamper())
    different = verify("--source", moved)
    assert different.code == ExitCode.VERIFICATION_FAILED
    found = next(item for item in different.json["collections"] if item["collection"].endswith("/odd"))
    assert {(item["what"], item["id"], item["detail"]) for item in found["differences"]} == {
        ("record", "types", "metadata: f"),
        ("missing", "plain-1", "in the source, not in the target"),
    }
    assert verify("--against", "receipt").code == ExitCode.VERIFICATION_FAILED

    with sqlite3.connect(moved / "chroma.sqlite3") as database:
        database.execute("DELETE FROM embeddings WHERE embedding_id = 'plain-1'")
    database.close()
    changed = verify("--source", moved)
    assert changed.code == ExitCode.SOURCE_CHANGED
    assert "odd: records was 114, is 113" in changed.stderr


def test_each_kind_of_failure_has_its_exit_code(newest: Path, databases: Databases, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    unset = pgchroma("migrate", "run", newest, "--receipt", receipt)
    assert (unset.code, "PGCHROMA_DATABASE_URL" in unset.stderr) == (ExitCode.CONFIGURATION, True)
    away = run(newest, f"postgresql:///nothing?host={tmp_path}", receipt)
    assert away.code == ExitCode.DATABASE_UNREACHABLE, away.stderr
    with databases.fresh(migrated=False) as url:
        unready = run(newest, url, receipt)
        assert (unready.code, "pgchroma db upgrade" in unready.stderr) == (ExitCode.DATABASE_NOT_READY, True)
    with databases.fresh() as url:
        assert run(tmp_path / "nothing", url, receipt).code == ExitCode.SOURCE_UNREADABLE
        assert (
            pgchroma("migrate", "resume", "--database-url", url, "--receipt", receipt).code
            == ExitCode.REFUSED
        )
        assert pgchroma("migrate", "run", "--database-url", url).code == ExitCode.USAGE
        unwritable = run(newest, url, Path("/proc/receipt.json"))
        assert (unwritable.code, "--receipt" in unwritable.stderr) == (ExitCode.CONFIGURATION, True)
        assert contents(url) == {}
    assert not receipt.exists()


def test_metadata_that_once_set_the_distance_does_not_contradict_the_schema(
    newest: Path, database_url: str, tmp_path: Path
) -> None:
    """chromadb 1.5 keeps `hnsw:space` in the metadata of a collection whose schema already says the same."""
    with sqlite3.connect(newest / "chroma.sqlite3") as database:
        database.execute(
            "INSERT INTO collection_metadata (collection_id, key, str_value) "
            "SELECT id, 'hnsw:space', 'ip' FROM collections WHERE name = 'odd'"
        )
    database.close()
    done = run(newest, database_url, tmp_path / "receipt.json")
    assert done.code == ExitCode.OK, done.stderr
    moved, _ = contents(database_url)["default_tenant/default_database/odd"]
    assert moved.space == "ip"
    assert (moved.metadata or {})["hnsw:space"] == "ip"
