"""What is newer than a receipt goes back to the old side; what was put aside can be recovered; the report stands alone."""

import asyncio
import json
import random
import re
import shutil
import signal
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.migrate import places
from pgchroma.migrate.places import Place
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.folder import ChromaProcess
from pgchroma.store import Store
from pgchroma.types import Filter, RecordBatch
from support import chroma
from support.command import Outcome, pgchroma, within


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to move."""
    return chroma.extract("1.5.9", tmp_path)


def run(source: object, target: object, receipt: Path, *more: object) -> Outcome:
    return within("migrate", "run", source, "--to", target, "--receipt", receipt, "--format", "json", *more)


async def use(url: str) -> None:
    """Do what applications do after a migration: to each kind of record something."""
    async with await Store.open(url) as store:
        odd = await store.get_collection("default_tenant", "default_database", "odd")
        vectors = np.random.default_rng(5).normal(size=(40, 16)).astype(np.float32)
        await store.delete(odd.id, Filter(ids=["plain-1", "plain-2", "types"]))
        await store.add(
            odd.id, RecordBatch([f"born-{n}" for n in range(30)], vectors[:30], documents=["new"] * 30)
        )
        await store.add(odd.id, RecordBatch(["plain-1"], vectors[30:31], metadatas=[{"again": True}]))
        await store.update(odd.id, RecordBatch(["plain-3"], metadatas=[{"n": None, "other": 1.0}]))
        await store.upsert(odd.id, RecordBatch(["plain-4", "plain-5"], vectors[31:33]))
        await store.update(odd.id, RecordBatch(["none"], documents=["text at last"]))
        handbook = await store.get_collection("default_tenant", "default_database", "handbook")
        await store.delete(handbook.id, Filter(where={"chapter": "backup"}))
        fresh = await store.create_collection("default_tenant", "default_database", "fresh")
        await store.add(fresh.id, RecordBatch(["first"], vectors[33:34]))


def test_what_is_newer_than_the_receipt_goes_back_into_the_folder(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    asyncio.run(use(database_url))
    assert within("migrate", "verify", folder, "--to", database_url).code == ExitCode.VERIFICATION_FAILED

    done = run(database_url, folder, tmp_path / "back.json", "--since", tmp_path / "there.json")
    assert done.code == ExitCode.OK, done.stderr
    odd = next(item for item in done.json["increment"] if item["collection"].endswith("/odd"))
    assert (odd["born"], odd["changed"], odd["deleted"]) == (31, 4, 2)
    assert next(item for item in done.json["increment"] if item["collection"].endswith("/fresh"))["created"]
    assert within("migrate", "verify", database_url, "--to", folder).code == ExitCode.OK
    assert Path(done.json["replaced"]).is_dir()

    # The next increment starts from this one's receipt and finds nothing to do.
    again = run(database_url, folder, tmp_path / "more.json", "--since", tmp_path / "back.json")
    assert again.code == ExitCode.OK, again.stderr
    assert sum(item["born"] + item["changed"] + item["deleted"] for item in again.json["increment"]) == 0


async def change_what_old_chroma_can_be_told(url: str, *, lose_a_key: bool = False) -> None:
    """Change records, descriptions and collections in every way that a release before 1.0 can be told of, or in one more."""
    async with await Store.open(url) as store:
        odd = await store.get_collection("default_tenant", "default_database", "odd")
        vectors = np.random.default_rng(5).normal(size=(5, 16)).astype(np.float32)
        await store.delete(odd.id, Filter(ids=["plain-1", "types"]))
        await store.add(
            odd.id, RecordBatch(["plain-1", "born"], vectors[:2], metadatas=[{"again": True}, None])
        )
        await store.update(odd.id, RecordBatch(["plain-3"], metadatas=[{"other": 1.0}]))
        await store.upsert(odd.id, RecordBatch(["plain-4"], vectors[2:3]))
        if lose_a_key:
            await store.update(odd.id, RecordBatch(["plain-5"], metadatas=[{"n": None}]))
        handbook = await store.get_collection("default_tenant", "default_database", "handbook")
        await store.modify_collection(
            handbook.id, new_name="manual", new_metadata={"owner": "docs", "n": 2.5}
        )
        # Two that exchange their names within a database.
        empty = await store.get_collection("default_tenant", "default_database", "empty")
        for ident, name in ((odd.id, "on-the-way"), (empty.id, "odd"), (odd.id, "empty")):
            await store.modify_collection(ident, new_name=name)
        await store.delete_collection("north", "trial", "notes")


@pytest.mark.parametrize("version", ["1.5.9", "0.5.23"])
def test_descriptions_names_and_deleted_collections_go_back_too(
    version: str, database_url: str, tmp_path: Path
) -> None:
    folder = chroma.extract(version, tmp_path)
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    asyncio.run(change_what_old_chroma_can_be_told(database_url))
    done = run(database_url, folder, tmp_path / "back.json", "--since", tmp_path / "there.json")
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["collections_gone"] == ["north/trial/notes"]
    default = "default_tenant/default_database"
    assert {(item["from"], item["to"]) for item in done.json["collections_renamed"]} == {
        (f"{default}/{old}", f"{default}/{new}") for old, new in (("handbook", "manual"), ("odd", "empty"), ("empty", "odd"))
    }  # fmt: skip
    described = {item["collection"]: item["described"] for item in done.json["increment"]}
    assert described[f"{default}/manual"] == ["metadata"]
    assert "was renamed to" in Path(done.json["report"]).read_text()
    # The other way round, too: nothing is left in the folder that the database does not have.
    same = within("migrate", "verify", database_url, "--to", folder, "--format", "json")
    assert same.code == ExitCode.OK, same.stderr
    assert same.json["only_in_target"] == []
    with places.open_source(Place("chroma-folder", str(folder)), places.Options()) as source:
        manual = next(item for item in source.collections() if item.name == "manual")
    assert {"owner": "docs", "n": 2.5}.items() <= (manual.metadata or {}).items()

    again = run(database_url, folder, tmp_path / "more.json", "--since", tmp_path / "back.json")
    assert again.code == ExitCode.OK, again.stderr
    assert sum(item["born"] + item["changed"] + item["deleted"] for item in again.json["increment"]) == 0


def test_what_old_chroma_cannot_be_told_is_refused_before_anything_is_changed(
    database_url: str, tmp_path: Path
) -> None:
    folder = chroma.extract("0.5.23", tmp_path)
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    asyncio.run(change_what_old_chroma_can_be_told(database_url, lose_a_key=True))
    refused = run(database_url, folder, tmp_path / "back.json", "--since", tmp_path / "there.json")
    assert refused.code == ExitCode.REFUSED
    assert "'plain-5' has lost the metadata keys n" in refused.stderr
    assert (
        within("migrate", "verify", tmp_path / "there.json", "--against", "receipt", "--side", "source").code
        == ExitCode.OK
    )


def test_a_collection_that_only_the_target_has_is_named(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    done = run(folder, tmp_path / "part.jsonl", tmp_path / "p.json", "--scope", "south")
    assert done.code == ExitCode.OK, done.stderr
    compared = within("migrate", "verify", tmp_path / "part.jsonl", "--to", database_url, "--format", "json")
    assert compared.code == ExitCode.OK, compared.stderr
    assert "north/live/notes" in compared.json["only_in_target"]
    shown = within("migrate", "verify", tmp_path / "part.jsonl", "--to", database_url)
    assert "only in the target: north/live/notes" in shown.stdout
    scoped = within("migrate", "verify", folder, "--to", database_url, "--scope", "south", "--format", "json")
    assert scoped.json["only_in_target"] == []


@pytest.mark.parametrize("name", ["all.jsonl.zst", "all.parquet"])
def test_an_export_is_brought_up_to_date(folder: Path, database_url: str, tmp_path: Path, name: str) -> None:
    export = tmp_path / name
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    assert run(database_url, export, tmp_path / "first.json").code == ExitCode.OK
    asyncio.run(use(database_url))

    # The receipt of the migration is about the folder, not about these files.
    other = run(database_url, export, tmp_path / "x.json", "--since", tmp_path / "there.json")
    assert other.code == ExitCode.REFUSED
    assert "is not about" in other.stderr

    done = run(database_url, export, tmp_path / "second.json", "--since", tmp_path / "first.json")
    assert done.code == ExitCode.OK, done.stderr
    odd = next(item for item in done.json["increment"] if item["collection"].endswith("/odd"))
    assert (odd["born"], odd["changed"], odd["deleted"]) == (31, 4, 2)
    assert next(item for item in done.json["increment"] if item["collection"].endswith("/fresh"))["created"]
    assert Path(done.json["replaced"]).exists()
    assert within("migrate", "verify", database_url, "--to", export).code == ExitCode.OK

    again = run(database_url, export, tmp_path / "third.json", "--since", tmp_path / "second.json")
    assert again.code == ExitCode.OK, again.stderr
    assert sum(item["born"] + item["changed"] + item["deleted"] for item in again.json["increment"]) == 0
    # Files that are not what the receipt left are not replaced.
    stale = run(database_url, export, tmp_path / "x.json", "--since", tmp_path / "first.json")
    assert stale.code == ExitCode.SOURCE_CHANGED


def test_a_folder_that_was_used_meanwhile_is_not_overwritten(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute("DELETE FROM embeddings WHERE embedding_id = 'plain-1'")
    database.close()
    done = run(database_url, folder, tmp_path / "back.json", "--since", tmp_path / "there.json")
    assert done.code == ExitCode.SOURCE_CHANGED
    assert "odd: records was 114, is 113" in done.stderr


def test_a_release_that_would_change_the_folders_layout_is_refused(database_url: str, tmp_path: Path) -> None:
    old = chroma.extract("1.0.21", tmp_path)
    assert run(old, database_url, tmp_path / "there.json").code == ExitCode.OK
    since = ("--since", tmp_path / "there.json")
    newer = run(database_url, old, tmp_path / "back.json", *since, "--chromadb-version", "1.5.9")
    assert newer.code == ExitCode.REFUSED
    assert "turns the layout" in newer.stderr
    assert not old.with_name(f"{old.name}.partial").exists()
    # Of a layout between the measured ones nobody knows which release wrote it.
    with sqlite3.connect(old / "chroma.sqlite3") as database:
        database.execute("DELETE FROM migrations WHERE dir = 'sysdb' AND version = 9")
    database.close()
    unknown = run(database_url, old, tmp_path / "back.json", *since)
    assert unknown.code == ExitCode.REFUSED
    assert "--chromadb-version" in unknown.stderr


def test_another_databases_receipt_is_refused(folder: Path, database_url: str, tmp_path: Path) -> None:
    assert run(folder, database_url, tmp_path / "there.json").code == ExitCode.OK
    told = json.loads((tmp_path / "there.json").read_text())
    told["horizon"]["system"] = "1"
    (tmp_path / "there.json").write_text(json.dumps(told))
    done = run(database_url, folder, tmp_path / "back.json", "--since", tmp_path / "there.json")
    assert done.code == ExitCode.REFUSED
    assert "another cluster" in done.stderr


def test_what_was_put_aside_is_kept_whole(folder: Path, database_url: str, tmp_path: Path) -> None:
    vector = np.full(64, np.nan, dtype="<f4")
    vector[:2] = 1.5, np.inf
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute(
            "UPDATE embeddings_queue SET vector = ? WHERE id = 'south-backup-02'", (vector.tobytes(),)
        )
        (document,) = database.execute(
            "SELECT string_value FROM embedding_metadata m JOIN embeddings e USING (id) "
            "WHERE embedding_id = 'south-backup-02' AND key = 'chroma:document'"
        ).fetchone()
    database.close()
    done = run(folder, database_url, tmp_path / "r.json", "--policy", "vector-not-finite=quarantine", "--policy", "nul=quarantine")  # fmt: skip
    assert done.code == ExitCode.OK, done.stderr
    assert {item["code"] for item in done.json["skipped"]} == {"vector-not-finite", "nul"}
    shown = within("migrate", "quarantine", "--database-url", database_url, "--format", "json").json
    kept = next(item for item in shown if item["id"] == "south-backup-02")
    assert kept["document"] == document
    assert np.array_equal(np.array(kept["embedding"], np.float32), vector, equal_nan=True)
    odd = next(item for item in shown if item["code"] == "nul")
    assert odd["id"] == "nul\0id"
    assert json.loads(odd["metadata"]) == {"nul\0key": "nul\0value", "plain": "x"}
    with psycopg.connect(database_url) as connection:
        row = connection.execute(
            "SELECT count(*), sum(cardinality(embedding)) FROM pgchroma.migration_quarantine"
        )
        assert row.fetchone() == (len(shown), 64 + 16 * (len(shown) - 1))
    # The proof knows that they are not to be there, also later.
    verified = within("migrate", "verify", "--receipt", tmp_path / "r.json", "--to", database_url)
    assert verified.code == ExitCode.OK, verified.stderr


@pytest.mark.parametrize(("action", "records"), [("report", 463), ("quarantine", 463), ("convert", 465)])
def test_records_that_chroma_lost_are_what_the_policy_makes_of_them(
    folder: Path, database_url: str, tmp_path: Path, action: str, records: int
) -> None:
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        # A row of the log, and a vector that only the index still holds.
        database.execute("DELETE FROM embeddings WHERE embedding_id IN ('south-backup-02', 'plain-1')")
    database.close()
    done = run(folder, database_url, tmp_path / "r.json", "--policy", f"record-lost={action}")
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["records"] == records
    assert sorted(item["id"] for item in done.json["skipped"]) == (
        ["plain-1", "south-backup-02"] if action == "quarantine" else []
    )
    if action == "convert":
        wanted = next(
            row for row in chroma.expected("1.5.9")["south/live/notes"].rows if row["id"] == "south-backup-02"
        )

        async def found() -> tuple[str | None, bytes | None]:
            async with await Store.open(database_url) as store:
                notes = await store.get_collection("south", "live", "notes")
                rows = [record async for page in store.iter_records(notes) for record in page]
            assert rows[-1].id == "south-backup-02"
            assert rows[-1].metadata == wanted["metadata"]
            return rows[-1].document, rows[-1].embedding.tobytes() if rows[-1].embedding is not None else None

        assert asyncio.run(found()) == (
            wanted["document"],
            np.array(wanted["embedding"], np.float32).tobytes(),
        )
    refused = run(folder, tmp_path / "x.jsonl", tmp_path / "f.json", "--policy", "record-lost=fail")
    assert refused.code == ExitCode.SOURCE_UNREADABLE


def lose_a_record_with_half_a_surrogate_pair(folder: Path) -> dict[str, str]:
    """Leave a record in the log alone, as Chroma does where SQLite refuses its texts; return its metadata."""
    metadata = {"chroma:document": "half \ud800", "k\udc00": "v\udc01"}
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute("DELETE FROM embeddings WHERE embedding_id = 'south-backup-02'")
        database.execute(
            "UPDATE embeddings_queue SET metadata = ? WHERE id = 'south-backup-02'", (json.dumps(metadata),)
        )
    database.close()
    return metadata


def test_a_lost_record_whose_text_is_no_unicode_is_kept_as_it_is(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    lose_a_record_with_half_a_surrogate_pair(folder)
    chosen = ("--policy", "record-lost=quarantine")
    done = run(folder, database_url, tmp_path / "r.json", *chosen)
    assert done.code == ExitCode.OK, done.stderr
    shown = within("migrate", "quarantine", "--database-url", database_url, "--format", "json")
    (kept,) = shown.json
    assert kept["document"] == "half \ud800"
    assert json.loads(kept["metadata"]) == {"k\udc00": "v\udc01"}
    assert within("migrate", "quarantine", "--database-url", database_url).code == ExitCode.OK

    # What no database keeps stands beside the receipt, and only once when the receipt's name is used again.
    for _ in range(2):
        done = run(folder, tmp_path / "x.jsonl", tmp_path / "x.json", *chosen)
        assert done.code == ExitCode.OK, done.stderr
        (tmp_path / "x.jsonl").unlink()
    (line,) = (tmp_path / "x.quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["document"] == "half \ud800"
    assert [item["id"] for item in done.json["skipped"]] == ["south-backup-02"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet"])
def test_a_lost_record_whose_text_is_no_unicode_is_moved_only_when_repaired(
    folder: Path, tmp_path: Path, name: str
) -> None:
    lose_a_record_with_half_a_surrogate_pair(folder)
    chosen = ("--policy", "record-lost=convert")
    plan = within("migrate", "plan", folder, *chosen, "--format", "json").json
    assert plan["runnable"] is False
    refused = run(folder, tmp_path / name, tmp_path / "r.json", *chosen)
    assert refused.code == ExitCode.SOURCE_UNREADABLE
    assert "text-not-unicode=convert" in refused.stderr
    done = run(folder, tmp_path / name, tmp_path / "r.json", *chosen, "--policy", "text-not-unicode=convert")
    assert done.code == ExitCode.OK, done.stderr
    with places.open_source(Place(places.kind_of(name), str(tmp_path / name)), places.Options()) as source:
        notes = next(item for item in source.collections() if item.path == "south/live/notes")
        last = [record for page in source.records(notes) for record in page][-1]
    assert (last.document, last.metadata) == ("half \ufffd", {"k\ufffd": "v\ufffd"})


def test_the_report_needs_nothing_but_itself(folder: Path, database_url: str, tmp_path: Path) -> None:
    done = run(folder, database_url, tmp_path / "r.json")
    assert done.code == ExitCode.OK, done.stderr
    page = Path(done.json["report"]).read_text()
    assert "Every record is equal on both sides" in page
    assert page.count("<svg") >= 3
    assert "handbook" in page
    outside = re.compile(r"""(?:https?:)?//[\w.-]|@import|<script|<link|src=|url\(""")
    assert not outside.search(page), outside.search(page)


def test_the_log_file_and_the_plan_tell_the_operator(folder: Path, database_url: str, tmp_path: Path) -> None:
    plan = within("migrate", "plan", folder, "--to", database_url, "--format", "json").json
    assert plan["expected"]["seconds"] > 0
    assert plan["expected"]["disk_bytes"] > plan["bytes"]
    assert run(folder, database_url, tmp_path / "r.json", "--log-file", tmp_path / "log").code == ExitCode.OK
    log = (tmp_path / "log").read_text()
    assert "default_tenant/default_database/odd: 114 records copied" in log


_RANDOM_KILL = """
import os, random, signal, threading, time
import pgchroma.migrate.chroma.reading as reading
from pgchroma.migrate.sink import StoreSink
reading.PAGE_RECORDS = 15
write, first = StoreSink.write, True

async def instrumented(self, *arguments):
    global first
    if first:
        first = False
        def end():
            threading.Event().wait({delay})
            os.kill(os.getpid(), signal.SIGKILL)
        threading.Thread(target=end, daemon=True).start()
    return await write(self, *arguments)

StoreSink.write = instrumented

# A run that is quicker than the delay waits for its end: each is killed.
from pgchroma.migrate import receipt
write_receipt = receipt.write

def wait_to_be_killed(path, content):
    if "result" in content:
        threading.Event().wait(60)
    write_receipt(path, content)

receipt.write = wait_to_be_killed
"""


@pytest.mark.parametrize("number", range(3))
def test_killed_at_a_random_moment(folder: Path, database_url: str, tmp_path: Path, number: int) -> None:
    """A tenth of `make kill-migrate`, which does it ten times and more."""
    delay = random.Random(number).uniform(0.005, 0.4)
    killed = pgchroma(
        "migrate", "run", folder, "--database-url", database_url, "--receipt", tmp_path / "r.json",
        prelude=_RANDOM_KILL.format(delay=delay), TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert killed.code == -signal.SIGKILL, killed.stderr
    resumed = within("migrate", "resume", "--database-url", database_url, "--receipt", tmp_path / "r.json")
    assert resumed.code == ExitCode.OK, resumed.stderr
    assert within("migrate", "verify", folder, "--to", database_url).code == ExitCode.OK


async def _disk_full(store: Store) -> None:
    raise psycopg.errors.DiskFull("could not extend file: No space left on device")


async def _connection_lost(store: Store) -> None:
    async with store.transaction() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgchroma migrate' "
            "AND pid <> pg_backend_pid()"
        )


@pytest.mark.parametrize(
    ("fault", "message"), [(_disk_full, "No space left on device"), (_connection_lost, "was interrupted")]
)
def test_what_fails_on_the_way_is_resumed(
    folder: Path,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Store], Awaitable[None]],
    message: str,
) -> None:
    copy, calls = Store.copy_records, []

    async def failing(store: Store, *arguments: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            await fault(store)
        return await copy(store, *arguments)

    with monkeypatch.context() as broken:
        broken.setattr(Store, "copy_records", failing)
        stopped = run(folder, database_url, tmp_path / "r.json")
    assert stopped.code == ExitCode.INTERRUPTED, stopped.stderr
    assert message in stopped.stderr
    assert "pgchroma migrate resume" in stopped.stderr
    done = within("migrate", "resume", "--database-url", database_url, "--receipt", tmp_path / "r.json")
    assert done.code == ExitCode.OK, done.stderr
    assert within("migrate", "verify", folder, "--to", database_url).code == ExitCode.OK


def test_a_dry_run_into_files_writes_none(folder: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    for name in ("x.jsonl", "x.parquet"):
        assert run(folder, tmp_path / name, tmp_path / "r.json", "--dry-run").code == ExitCode.OK
    assert sorted(tmp_path.iterdir()) == before


def test_a_server_gets_what_is_newer(folder: Path, database_url: str, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "served")
    process = ChromaProcess(versions.program("1.5.9"), tmp_path / "served", tmp_path / "log")
    try:
        scopes = ("--scope", "default_tenant")
        assert run(process.url, database_url, tmp_path / "there.json", *scopes).code == ExitCode.OK
        asyncio.run(use(database_url))
        done = run(database_url, process.url, tmp_path / "back.json", "--since", tmp_path / "there.json")
        assert done.code == ExitCode.OK, done.stderr
        assert sum(item["deleted"] for item in done.json["increment"]) > 10
        stale = run(database_url, process.url, tmp_path / "x.json", "--since", tmp_path / "there.json")
        assert stale.code == ExitCode.SOURCE_CHANGED
        assert "something has written to it since" in stale.stderr
    finally:
        process.stop()


_KILL_WHILE_APPLYING = """
import os, signal
from pgchroma.migrate.since import Applier
Applier._change = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_increment_that_was_interrupted_half_way_says_what_to_do(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "served")
    process = ChromaProcess(versions.program("1.5.9"), tmp_path / "served", tmp_path / "log")
    since = ("--since", tmp_path / "there.json")
    try:
        scopes = ("--scope", "default_tenant")
        assert run(process.url, database_url, tmp_path / "there.json", *scopes).code == ExitCode.OK
        asyncio.run(use(database_url))
        killed = pgchroma(
            "migrate", "run", database_url, "--to", process.url, "--receipt", tmp_path / "back.json", *since,
            prelude=_KILL_WHILE_APPLYING,
        )  # fmt: skip
        assert killed.code == -signal.SIGKILL
        again = run(database_url, process.url, tmp_path / "again.json", *since)
        assert again.code == ExitCode.SOURCE_CHANGED
        assert "back.journal.json" in again.stderr
        assert "without --since" in again.stderr
    finally:
        process.stop()
