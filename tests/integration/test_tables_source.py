"""An application's SQLite file as it is found: in write-ahead-log mode, left by a crash, in use; it is never written to."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.sqlite_files import files_of, stamp
from support.tables import run, tables


@pytest.fixture
def target(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


def application_folder(path: Path, mode: str = "DELETE") -> Path:
    """Make a database in a folder of its own; what is beside it afterwards, something has put there."""
    path.mkdir()
    source = path / "app.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute(f"PRAGMA journal_mode = {mode}")
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT)")
        connection.executemany("INSERT INTO t (name) VALUES (?)", [[f"row {n}"] for n in range(2_000)])
    return source


def names(target: Any) -> list[str]:
    return [row[0] for row in target.execute("SELECT name FROM app.t ORDER BY id").fetchall()]


def test_nothing_appears_beside_a_database_with_a_write_ahead_log(tmp_path: Path) -> None:
    source = application_folder(tmp_path / "application", "WAL")
    before, content = stamp(files_of(source)), source.read_bytes()
    assert [path.name for path in source.parent.iterdir()] == ["app.db"]
    assert tables("plan", source).code == 0
    assert [path.name for path in source.parent.iterdir()] == ["app.db"]
    assert (stamp(files_of(source)), source.read_bytes()) == (before, content)


def test_rows_that_are_only_in_the_write_ahead_log_arrive(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = application_folder(tmp_path / "application", "WAL")
    with contextlib.closing(sqlite3.connect(source)) as application:
        application.execute("INSERT INTO t (name) VALUES ('only in the log')")
        application.commit()
        before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
        assert "app.db-wal" in before
        done = run(source, database_url, tmp_path)
        assert done.code == 0, done.stderr
        assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before
    assert names(target)[-1] == "only in the log"
    # Closing it has moved the log into the file, which thereby is another one with the same content.
    assert [path.name for path in source.parent.iterdir()] == ["app.db"]
    again = tables("verify", tmp_path / "receipt.json", "--database-url", database_url, "--format", "json")
    assert (again.code, again.json["source_changed"]) == (0, False)


_DIES_HALF_WAY = """
import os, signal, sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("PRAGMA cache_size = 1")
connection.execute("UPDATE t SET name = 'half ' || name")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_crash_left_half_written_is_rolled_back_in_the_copy_only(
    database_url: str, target: Any, tmp_path: Path
) -> None:
    source = application_folder(tmp_path / "application")
    whole = source.read_bytes()
    subprocess.run([sys.executable, "-c", _DIES_HALF_WAY, source], check=False)
    before = {path.name: path.read_bytes() for path in source.parent.iterdir()}
    assert before.keys() == {"app.db", "app.db-journal"}
    assert before["app.db"] != whole
    done = run(source, database_url, tmp_path)
    assert done.code == 0, done.stderr
    assert names(target) == [f"row {n}" for n in range(2_000)]
    assert {path.name: path.read_bytes() for path in source.parent.iterdir()} == before


def test_a_file_that_was_only_touched_counts_as_unchanged(database_url: str, tmp_path: Path) -> None:
    source = application_folder(tmp_path / "application")
    touch = f"import os\nfrom pgchroma.migrate.tables import ddl\nddl.set_identity = lambda *_: os.utime({str(source)!r}, (1, 1))\n"
    done = run(source, database_url, tmp_path, prelude=touch)
    assert done.code == 0, done.stderr


def test_the_copy_that_a_killed_run_left_is_removed_by_the_next(database_url: str, tmp_path: Path) -> None:
    source, work = application_folder(tmp_path / "application"), tmp_path / "work"
    work.mkdir()
    prelude = "import os, signal\nfrom pgchroma.migrate.tables import ddl\nddl.set_identity = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
    killed = run(source, database_url, tmp_path, "--work-folder", work, prelude=prelude)
    assert killed.code == -9
    (left,) = work.iterdir()
    assert (left / "copy.sqlite3").exists()
    # Younger ones may belong to a process that is just beginning.
    os.utime(left, (time.time() - 3600, time.time() - 3600))
    assert tables("plan", source, "--work-folder", work).code == 0
    assert list(work.iterdir()) == []


def test_a_copy_without_room_is_refused_before_it_is_made(tmp_path: Path, monkeypatch: Any) -> None:
    source = application_folder(tmp_path / "application")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    refused = tables("plan", source)
    assert refused.code == ExitCode.SOURCE_UNREADABLE
    assert "has 10 left" in refused.stderr


_TELLS_ITS_MEMORY = """
import atexit, re, resource, sys

@atexit.register
def tell():
    with open("/proc/self/status") as file:
        own = int(re.search(r"VmHWM:\\s+(\\d+)", file.read())[1])
    other = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(f"peak kB: {max(own, other)}", file=sys.stderr)
"""


def test_memory_does_not_grow_with_the_size_of_rows(database_url: str, target: Any, tmp_path: Path) -> None:
    source = tmp_path / "large.db"
    with contextlib.closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, more BLOB)")
        rows = ((f"{n:06d} " * 15_000, bytes([n % 256]) * 100_000) for n in range(300))
        connection.executemany("INSERT INTO t (name, more) VALUES (?, ?)", rows)
        # Many small ones behind them: what suits these must not be held of those.
        connection.executemany("INSERT INTO t (name) VALUES (?)", ([f"row {n}"] for n in range(5_000)))
    assert source.stat().st_size > 60_000_000
    done = run(source, database_url, tmp_path, prelude=_TELLS_ITS_MEMORY)
    assert done.code == 0, done.stderr
    assert int(done.stderr.split("peak kB: ")[1]) < 180_000
