"""Private copies of SQLite databases in use, taken without writing to the source or keeping it locked.

A database is its file and the journals beside it. It is copied under a shared lock where SQLite needs to write nothing for that; where
a write-ahead log or a journal would have to be gone through first, that is done in the copy.
"""

import contextlib
import fcntl
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeAlias

_SIDE_FILES = ("-wal", "-journal")
_LOCK = "in-use"
# A copy this young may belong to a process that has not locked it yet.
_YOUNG_SECONDS = 60.0
_BUSY_SECONDS = 30.0
# SQLite's file header: bytes 18 and 19 are 2 in write-ahead-log mode.
_WAL_MODE = b"\x02\x02"

# size and modification time in ns of every file that was looked at; None for one that does not exist
Stamp: TypeAlias = dict[str, tuple[int, int] | None]


def stamp(paths: Iterable[Path]) -> Stamp:
    """Return what changes whenever one of the files is written to, made or removed."""
    found: Stamp = {}
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            found[str(path)] = None
        else:
            found[str(path)] = (status.st_size, status.st_mtime_ns)
    return found


def files_of(database: Path) -> list[Path]:
    """Return a database's file and the names of its journals, whether they exist or not."""
    return [database, *(database.with_name(database.name + suffix) for suffix in _SIDE_FILES)]


def _uses_wal(database: Path) -> bool:
    with database.open("rb") as file:
        file.seek(18)
        return file.read(2) == _WAL_MODE


def is_plain(database: Path) -> bool:
    """Whether SQLite can open a database read-only where it is: no write-ahead log, no journal left by a crash."""
    return not _uses_wal(database) and not any(path.exists() for path in files_of(database)[1:])


def copy_locked(database: Path, copy: Path) -> Stamp | None:
    """Copy a database under a shared lock and return its stamp; None where SQLite would have to write beside it, or cannot read it."""
    # A percent sign, question mark or hash in the path would be read as part of the URI.
    uri = f"{database.resolve().as_uri()}?mode=ro"
    try:
        with contextlib.closing(
            sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as source:
            source.execute("BEGIN")
            # The lock is taken by the first read. No writer gets past it, so the file is as it is between two transactions.
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            taken = stamp(files_of(database))
            # Closing the file lets go of the process's lock on it: nothing is read through SQLite after this.
            shutil.copyfile(database, copy)
    except sqlite3.DatabaseError:
        copy.unlink(missing_ok=True)
        return None
    return taken


def copy_files(database: Path, copy: Path) -> Stamp | None:
    """Copy a database with its journals as files and return their stamp; None when they changed meanwhile: the copy may be torn."""
    files = files_of(database)
    before = stamp(files)
    for path, target in zip(files, files_of(copy), strict=True):
        target.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path, target)
    return before if stamp(files) == before else None


def copy_database(database: Path, copy: Path) -> Stamp | None:
    """Copy a database in use and return the stamp of what was copied; None when it could not be caught between two writes.

    A journal beside it may be a living writer's, which a reader waits for, or a dead one's, which needs a rollback that must not
    happen in the source: then, and in write-ahead-log mode, all its files are copied as they are.
    """
    return (None if _uses_wal(database) else copy_locked(database, copy)) or copy_files(database, copy)


@contextlib.contextmanager
def private_folder(prefix: str, work_folder: Path | None) -> Iterator[Path]:
    """Make a folder for a copy, removed at the end; what killed processes left under the same prefix is removed now.

    Args:
        work_folder: where to put it; the system's temporary folder when None.
    """
    _sweep(Path(work_folder or tempfile.gettempdir()), prefix)
    with (
        tempfile.TemporaryDirectory(prefix=prefix, dir=work_folder) as name,
        (Path(name) / _LOCK).open("wb") as lock,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def _sweep(work_folder: Path, prefix: str) -> None:
    """Remove the copies that killed processes left; a living process holds a lock on its own."""
    for left in work_folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with (left / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)
