"""An application's SQLite database, read through a private copy."""

import contextlib
import hashlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pgchroma.errors import SourceChangedError, SourceError
from pgchroma.migrate.sqlite_files import Stamp, copy_database, files_of, private_folder, stamp
from pgchroma.migrate.tables import formatting
from pgchroma.migrate.tables.catalog import Table, describe
from pgchroma.migrate.tables.kinds import Kind

_PREFIX: Final = "pgchroma-tables-"
_ATTEMPTS: Final = 5
_PAUSE_SECONDS: Final = 0.5
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Database:
    """The private copy: a connection to it, what it holds, and whether the source still is what was copied.

    Attributes:
        copy: its file.
        fitting: (table, column, kind) of which every value is known to fit; the copy never changes, so one look is enough.
    """

    path: Path
    copy: Path
    connection: sqlite3.Connection
    fingerprint: str
    bytes: int
    tables: tuple[Table, ...]
    not_moved: tuple[str, ...]
    _stamp: Stamp
    fitting: set[tuple[str, str, Kind]] = field(default_factory=set)

    def require_unchanged(self) -> None:
        """Raise SourceChangedError when the source holds something else than when it was copied."""
        if stamp(files_of(self.path.resolve())) == self._stamp:
            return
        # A file that was written to may hold what it did: closing a database moves its write-ahead log into it.
        if not self.path.exists() or self._fingerprint_now() != self.fingerprint:
            raise SourceChangedError(
                f"{self.path} was written to while it was copied; the copy in PostgreSQL holds what was there before",
                hint="stop the application and migrate anew into an empty schema",
            )

    def _fingerprint_now(self) -> str:
        again = self.copy.with_name("again.sqlite3")
        with _explained(self.path):
            _take(self.path, again)
            try:
                return _digest(again)
            finally:
                again.unlink()


@contextlib.contextmanager
def open_database(path: Path, work_folder: Path | None = None) -> Iterator[Database]:
    """Copy the database, which is locked only meanwhile and never written to, and describe the copy.

    Args:
        path: the application's file; its folder may be mounted read-only.

    Raises:
        SourceError: the file is missing, no SQLite database, damaged, or cannot be read.
        SourceChangedError: an application keeps writing to it.
    """
    _require_database(path)
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(_PREFIX, work_folder))
        except OSError as error:
            raise SourceError(
                f"cannot make a private copy of {path}: {error.strerror}",
                hint="name a folder with room for the database by --work-folder",
            ) from error
        with _explained(path):
            _require_room(path, folder)
            copy = folder / "copy.sqlite3"
            taken = _take(path, copy)
            connection = stack.enter_context(reopened(copy))
            # Three looks at all of the copy, of which only the last needs this process's attention.
            beside = stack.enter_context(ThreadPoolExecutor(2, thread_name_prefix="looking through a copy"))
            digest, soundness = beside.submit(_digest, copy), beside.submit(_require_sound, copy, path)
            try:
                tables, not_moved = describe(connection)
            finally:
                # Damage is the better reason for whatever went wrong meanwhile.
                soundness.result()
        yield Database(path, copy, connection, digest.result(), copy.stat().st_size, tables, not_moved, taken)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what goes wrong with copying and describing into errors for the operator."""
    try:
        yield
    except sqlite3.Error as error:
        raise SourceError(
            f"cannot read {path}: {error}",
            hint="check it with `sqlite3 FILE 'PRAGMA integrity_check'`, and that no application holds it locked",
        ) from error
    except OSError as error:
        raise SourceError(
            f"cannot copy {path}: {error.strerror}", hint="make room, or name --work-folder"
        ) from error


def _require_room(path: Path, folder: Path) -> None:
    needed = sum(file.stat().st_size for file in files_of(path.resolve()) if file.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise SourceError(
            f"the private copy of {path} needs {needed:,} bytes, {folder.parent} has {free:,} left",
            hint="name a folder with room by --work-folder or TMPDIR",
        )


def _take(path: Path, copy: Path) -> Stamp:
    """Copy a database and return the stamp of what was copied; in the copy journals are gone through and done with."""
    # SQLite keeps journals beside the file itself, not beside a link to it.
    database, pause = path.resolve(), threading.Event()
    for attempt in range(_ATTEMPTS):
        pause.wait(_PAUSE_SECONDS * attempt)
        if taken := copy_database(database, copy):
            break
    else:
        raise SourceChangedError(
            f"an application keeps writing to {path}: {_ATTEMPTS} attempts to copy it at rest failed",
            hint="stop the application that uses it, then run again",
        )
    with contextlib.closing(sqlite3.connect(copy)) as connection:
        # Nobody needs the copy after a crash.
        connection.execute("PRAGMA synchronous = OFF")
        # Rolled back or replayed, so that what counts is all in one file.
        connection.execute("PRAGMA journal_mode = DELETE").fetchone()
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return taken


@contextlib.contextmanager
def reopened(copy: Path) -> Iterator[sqlite3.Connection]:
    """Open a private copy, in whatever process, with the functions that its values are looked at by."""
    with contextlib.closing(
        sqlite3.connect(copy.as_uri() + "?mode=ro", uri=True, check_same_thread=False)
    ) as connection:
        formatting.register(connection)
        yield connection


def _require_database(path: Path) -> None:
    if not path.is_file():
        raise SourceError(
            f"{path} is no file" if path.exists() else f"{path} does not exist",
            hint="name the application's SQLite file",
        )
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror}", hint="run as a user that may read it"
        ) from error
    if head != b"SQLite format 3\x00":
        raise SourceError(
            f"{path} is not an SQLite database", hint="it is empty, encrypted, damaged, or something else"
        )


def _require_sound(copy: Path, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(copy.as_uri() + "?mode=ro", uri=True)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA quick_check(5)")]
    if found != ["ok"]:
        raise SourceError(
            f"{path} is damaged: {'; '.join(found)}",
            hint="restore it from a backup, or save what can be read with `sqlite3 FILE .recover`",
        )


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        first = bytearray(file.read(_CHUNK_BYTES))
        # The header's change counter, version-valid-for and library version differ between copies of the same data.
        first[18:20], first[24:28], first[92:100] = bytes(2), bytes(4), bytes(8)
        digest.update(first)
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
