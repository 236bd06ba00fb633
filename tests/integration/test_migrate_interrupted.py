"""Whatever is killed, and whenever: a resumed migration has every record once."""

import asyncio
import json
import signal
import sqlite3
import sys
from pathlib import Path

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.server.embedded import temporary_postgres
from pgchroma.store import Store
from pgchroma.types import Record, RecordBatch
from support import chroma
from support.command import Outcome, pgchroma
from support.postgres import Databases

# Small pages, so that there are many batches to be interrupted between and within.
_SMALL = "import pgchroma.migrate.chroma.reading as reading; reading.PAGE_RECORDS = 20\n"

_KILL = (
    _SMALL
    + """
import os, signal
from pgchroma.migrate.sink import StoreSink
from pgchroma.server.embedded import temporary_postgres
from pgchroma.store import Store
place, batch, what = {place!r}, {batch}, {signal}
count = 0

def reached():
    global count
    count += 1
    if count == batch:
        os.kill(os.getpid(), what)

write, copy_records = StoreSink.write, Store.copy_records

async def instrumented_write(self, *arguments):
    if place == "before":
        reached()
    result = await write(self, *arguments)
    if place == "after":
        reached()
    return result

async def instrumented_copy(self, *arguments):
    result = await copy_records(self, *arguments)
    if place == "uncommitted":
        reached()
    return result

StoreSink.write, Store.copy_records = instrumented_write, instrumented_copy
"""
)


_WRITING_APPLICATION = """
import os, sqlite3
from pgchroma.migrate.sink import StoreSink
write = StoreSink.write

async def write_beside_the_application(self, *arguments):
    with sqlite3.connect(os.environ["FOLDER"] + "/chroma.sqlite3") as database:
        database.execute("DELETE FROM embeddings WHERE embedding_id = 'plain-1'")
    database.close()
    return await write(self, *arguments)

StoreSink.write = write_beside_the_application
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to move."""
    return chroma.extract("1.5.9", tmp_path)


def interrupted(folder: Path, url: str, place: str, batch: int, number: int = signal.SIGKILL) -> Outcome:
    return pgchroma(
        "migrate",
        "run",
        folder,
        "--database-url",
        url,
        prelude=_KILL.format(place=place, batch=batch, signal=int(number)),
        # A killed process leaves its private copy behind; here it goes with the test.
        TMPDIR=str(folder.parent),
    )


def resume(url: str, receipt: Path, *more: object) -> Outcome:
    return pgchroma(
        "migrate", "resume", "--database-url", url, "--receipt", receipt, "--format", "json", *more
    )


def records(url: str) -> dict[str, list[Record]]:
    async def read() -> dict[str, list[Record]]:
        async with await Store.open(url) as store:
            return {
                item.path: [record async for page in store.iter_records(item) for record in page]
                for item in await store.list_collections()
            }

    return asyncio.run(read())


def require_everything_once(url: str) -> None:
    found = records(url)
    for path, wanted in chroma.expected("1.5.9").items():
        assert chroma.differences(found[path], wanted) == []


@pytest.mark.parametrize("place", ["before", "uncommitted", "after"])
@pytest.mark.parametrize("batch", [1, 9, 20])
def test_killed_and_resumed(folder: Path, database_url: str, tmp_path: Path, place: str, batch: int) -> None:
    killed = interrupted(folder, database_url, place, batch)
    assert killed.code == -signal.SIGKILL
    before = sum(map(len, records(database_url).values()))
    assert before < 465

    done = resume(database_url, tmp_path / "receipt.json")
    assert done.code == ExitCode.OK, done.stderr
    require_everything_once(database_url)
    receipt = json.loads((tmp_path / "receipt.json").read_text())
    assert receipt["resumed"] is True
    assert receipt["result"] == "equal"
    assert sum(item["written"] for item in receipt["collections"]) == 465
    # Nothing is left to resume.
    assert resume(database_url, tmp_path / "again.json").code == ExitCode.REFUSED


_KILL_BEFORE_RECEIPT = """
import os, signal
from pgchroma.migrate import receipt
write = receipt.write

def write_no_receipt(path, content):
    if "result" in content:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, content)

receipt.write = write_no_receipt
"""


def test_killed_between_the_last_proof_and_the_receipt(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    arguments = ("migrate", "run", folder, "--database-url", database_url)
    killed = pgchroma(*arguments, prelude=_KILL_BEFORE_RECEIPT, TMPDIR=str(tmp_path))
    assert killed.code == -signal.SIGKILL
    # Without naming the run: it is not through before its receipt is there.
    done = resume(database_url, tmp_path / "receipt.json")
    assert done.code == ExitCode.OK, done.stderr
    require_everything_once(database_url)
    assert json.loads((tmp_path / "receipt.json").read_text())["result"] == "equal"
    assert resume(database_url, tmp_path / "again.json").code == ExitCode.REFUSED


def test_killed_when_the_folder_is_in_its_place_and_the_receipt_is_not(folder: Path, tmp_path: Path) -> None:
    back, receipt = tmp_path / "back", tmp_path / "receipts" / "back.json"
    arguments = ("--to", back, "--chromadb-python", sys.executable, "--receipt", receipt)
    killed = pgchroma(
        "migrate", "run", folder, *arguments, prelude=_KILL_BEFORE_RECEIPT, TMPDIR=str(tmp_path)
    )
    assert killed.code == -signal.SIGKILL, killed.stderr
    assert back.is_dir()
    assert not receipt.exists()

    done = pgchroma("migrate", "resume", *arguments, "--format", "json")
    assert done.code == ExitCode.OK, done.stderr
    assert json.loads(receipt.read_text())["result"] == "equal"
    with open_folder(back) as source:
        assert sum(item.count for item in source.collections()) == 465
    assert pgchroma("migrate", "resume", *arguments).code != ExitCode.OK


_POWER_OFF = (
    _SMALL
    + """
import os, signal
from pgchroma.migrate.sink import StoreSink
write, left = StoreSink.write, {batches}

async def write_until_the_power_fails(self, *arguments):
    global left
    done = await write(self, *arguments)
    left -= 1
    if not left:
        # SIGQUIT: the server ends at once, without writing anything out.
        os.kill(int(os.environ["POSTMASTER"]), signal.SIGQUIT)
        os.kill(os.getpid(), signal.SIGKILL)
    return done

StoreSink.write = write_until_the_power_fails
"""
)


def test_the_power_fails_under_the_database_and_the_migrator(folder: Path, tmp_path: Path) -> None:
    with temporary_postgres() as postgres, Databases(postgres).fresh() as url:
        killed = pgchroma(
            "migrate", "run", folder, "--database-url", url,
            prelude=_POWER_OFF.format(batches=9), TMPDIR=str(tmp_path), POSTMASTER=str(postgres.pid),
        )  # fmt: skip
        assert killed.code == -signal.SIGKILL, killed.stderr
        postgres.stop(immediate=True)
        postgres.start()
        # Batches are committed without waiting for the disk; each is there with its checkpoint, or neither is.
        with psycopg.connect(url) as connection:
            row = connection.execute("SELECT sum(records) FROM pgchroma.migration_status").fetchone()
        assert row is not None
        assert row[0] == sum(map(len, records(url).values()))
        done = resume(url, tmp_path / "receipt.json")
        assert done.code == ExitCode.OK, done.stderr
        require_everything_once(url)


def test_killed_again_and_again(folder: Path, database_url: str, tmp_path: Path) -> None:
    assert interrupted(folder, database_url, "uncommitted", 3).code == -signal.SIGKILL
    for place, batch in (("after", 1), ("uncommitted", 4), ("before", 2), ("after", 5)):
        prelude = _KILL.format(place=place, batch=batch, signal=int(signal.SIGKILL))
        again = pgchroma(
            "migrate", "resume", "--database-url", database_url, prelude=prelude, TMPDIR=str(tmp_path)
        )
        assert again.code == -signal.SIGKILL, again.stderr
    assert resume(database_url, tmp_path / "receipt.json").code == ExitCode.OK
    require_everything_once(database_url)


def test_sigterm_ends_between_batches_and_says_how_to_go_on(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    stopped = interrupted(folder, database_url, "before", 9, signal.SIGTERM)
    assert stopped.code == ExitCode.INTERRUPTED
    assert "pgchroma migrate resume" in stopped.stderr
    status = pgchroma("migrate", "status", "--database-url", database_url, "--format", "json").json
    assert {row["phase"] for row in status} == {"planned", "copying", "copied"}
    assert resume(database_url, tmp_path / "receipt.json").code == ExitCode.OK
    require_everything_once(database_url)


def test_a_second_process_of_the_same_run_writes_nothing_twice(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    assert interrupted(folder, database_url, "after", 3).code == -signal.SIGKILL
    # While one process is about to write a batch, another finishes the whole migration.
    overtaken = pgchroma(
        "migrate",
        "resume",
        "--database-url",
        database_url,
        prelude=_SMALL
        + f"""
import asyncio, sys
from pgchroma.migrate.sink import StoreSink
write, overtaken = StoreSink.write, False

async def slow_write(self, *arguments):
    global overtaken
    if not overtaken:
        overtaken = True
        other = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from pgchroma.cli.main import main; main()", "migrate", "resume",
            "--database-url", {database_url!r}, "--receipt", {str(tmp_path / "other.json")!r}, stdout=asyncio.subprocess.DEVNULL)
        assert await other.wait() == 0
    return await write(self, *arguments)

StoreSink.write = slow_write
""",
    )
    assert overtaken.code == ExitCode.REFUSED, overtaken.stderr
    assert "another process is working on migration" in overtaken.stderr
    require_everything_once(database_url)


def test_a_source_that_changed_since_is_refused(folder: Path, database_url: str, tmp_path: Path) -> None:
    interrupted(folder, database_url, "after", 9)
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute("DELETE FROM embeddings WHERE embedding_id = 'plain-1'")
    database.close()
    done = resume(database_url, tmp_path / "receipt.json")
    assert done.code == ExitCode.SOURCE_CHANGED
    assert "odd: records was 114, is 113" in done.stderr
    assert not (tmp_path / "receipt.json").exists()


def test_a_source_that_changes_during_the_run_is_told(
    folder: Path, database_url: str, tmp_path: Path
) -> None:
    done = pgchroma(
        "migrate",
        "run",
        folder,
        "--database-url",
        database_url,
        "--receipt",
        tmp_path / "receipt.json",
        FOLDER=str(folder),
        prelude=_SMALL + _WRITING_APPLICATION,
    )
    assert done.code == ExitCode.SOURCE_CHANGED
    assert "odd: records was 114, is 113" in done.stderr
    assert json.loads((tmp_path / "receipt.json").read_text())["result"] == "source-changed"
    # What was copied is the folder as it was when the migration began.
    require_everything_once(database_url)


def test_a_target_that_others_write_to_is_noticed(folder: Path, database_url: str, tmp_path: Path) -> None:
    interrupted(folder, database_url, "after", 9)

    async def add() -> None:
        async with await Store.open(database_url) as store:
            (handbook,) = [item for item in await store.list_collections() if item.name == "handbook"]
            rows = [record async for page in store.iter_records(handbook) for record in page][:1]
            assert rows[0].embedding is not None
            await store.add(handbook.id, RecordBatch(["stranger"], embeddings=rows[0].embedding[None, :]))

    asyncio.run(add())
    done = resume(database_url, tmp_path / "receipt.json")
    assert done.code == ExitCode.REFUSED
    assert "handbook" in done.stderr
