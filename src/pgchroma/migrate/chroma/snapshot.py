"""A private copy of a Chroma folder, taken in moments, so that the source is neither written to nor kept locked.

Chroma (and SQLite) allow no long reader: while one is open, the application's writes and even its start hang. So the database
is copied while SQLite holds a shared lock, which is let go of as soon as the copy is there, and the HNSW files are copied beside it.
"""

import contextlib
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from pgchroma.errors import SourceChangedError, SourceError
from pgchroma.migrate.chroma import hnsw
from pgchroma.migrate.sqlite_files import (
    Stamp,
    copy_files,
    copy_locked,
    files_of,
    is_plain,
    private_folder,
    stamp,
)

DATABASE = "chroma.sqlite3"

_PREFIX = "pgchroma-snapshot-"

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5

_VECTOR_SEGMENTS = "SELECT id FROM segments WHERE scope = 'VECTOR' ORDER BY id"


def require_folder(folder: Path) -> None:
    """Raise SourceError unless the folder exists and holds a chroma.sqlite3 that may be read."""
    if not folder.exists():
        raise SourceError(
            f"{folder} does not exist",
            hint="name the folder that the application gives to chromadb.PersistentClient",
        )
    if not folder.is_dir():
        raise SourceError(
            f"{folder} is not a folder", hint=f"name the folder that holds {DATABASE}, not a file in it"
        )
    database = folder / DATABASE
    try:
        with database.open("rb") as file:
            head = file.read(16)
    except FileNotFoundError as error:
        raise SourceError(
            f"{folder} holds no {DATABASE}",
            hint="name the folder that the application gives to chromadb.PersistentClient",
        ) from error
    except OSError as error:
        raise SourceError(
            f"cannot read {database}: {error.strerror}",
            hint="run as a user that may read the folder",
        ) from error
    if head != b"SQLite format 3\x00":
        raise SourceError(
            f"{database} is not an SQLite database",
            hint="the file is damaged or encrypted; restore the folder from a backup",
        )


def _index_files(folder: Path, segments: list[str]) -> list[Path]:
    return [folder / segment / name for segment in segments for name in hnsw.FILES]


def _copy_indexes(folder: Path, copy: Path, segments: list[str]) -> None:
    for segment in segments:
        if not (folder / segment).is_dir():
            continue
        (copy / segment).mkdir(exist_ok=True)
        for name in hnsw.FILES:
            (copy / segment / name).unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):
                shutil.copyfile(folder / segment / name, copy / segment / name)


def _damaged(what: object) -> SourceError:
    return SourceError(
        f"{DATABASE} is damaged: {what}",
        hint="restore the folder from a backup, or recover the file with `sqlite3 chroma.sqlite3 .recover`",
    )


def connect(copy: Path) -> sqlite3.Connection:
    """Open a copied database; a journal copied with it is rolled back or replayed now.

    Raises:
        SourceError: that cannot be done.
    """
    connection = sqlite3.connect(copy / DATABASE, check_same_thread=False)
    try:
        # Nobody needs the copy after a crash.
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA journal_mode = MEMORY")
    except sqlite3.DatabaseError as error:
        connection.close()
        raise _damaged(error) from error
    return connection


def require_sound(connection: sqlite3.Connection) -> None:
    """Have SQLite look through the tables of a database and their indexes; SourceError names the first damage."""
    try:
        # The full-text tables are derived from the documents and not read here, so their damage does not matter.
        tables = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'embedding_fulltext%'"
        ).fetchall()
        for (name,) in tables:
            quoted = str(name).replace('"', '""')
            for (line,) in connection.execute(f'PRAGMA quick_check("{quoted}")'):
                if line != "ok":
                    raise _damaged(line)
    except sqlite3.DatabaseError as error:
        raise _damaged(error) from error


class Snapshot:
    """A copy of a folder in a temporary folder of its own.

    Attributes:
        path: the copy's folder.
        connection: the copied database; the copy is ours, so indexes may be added to it.
    """

    def __init__(self, folder: Path, path: Path, connection: sqlite3.Connection, taken: Stamp) -> None:
        self.folder = folder
        self.path = path
        self.connection = connection
        self._stamp = taken

    @contextlib.contextmanager
    def beside(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection of its own to the copy, for a thread that looks at it while others read."""
        with contextlib.closing(connect(self.path)) as connection:
            yield connection

    def files_unchanged(self) -> bool:
        """Whether no file of the source has another size or time than when the copy was taken."""
        return stamp([Path(name) for name in self._stamp]) == self._stamp


@contextlib.contextmanager
def take(folder: Path, work_folder: Path | None = None) -> Iterator[Snapshot]:
    """Copy a Chroma folder for as long as the context lasts.

    Args:
        folder: the folder that holds chroma.sqlite3; it may be mounted read-only.
        work_folder: where to put the copy; the system's temporary folder when None.

    Raises:
        SourceError: the folder cannot be read, or there is no room for the copy.
        SourceChangedError: an application keeps writing to it.
    """
    require_folder(folder)
    try:
        with private_folder(_PREFIX, work_folder) as copy:
            _require_room(folder, copy)
            snapshot = _take(folder, copy)
            try:
                yield snapshot
            finally:
                snapshot.connection.close()
    except PermissionError as error:
        raise SourceError(
            f"cannot read {error.filename}: {error.strerror}", hint="run as a user that may read the folder"
        ) from error


def _require_room(folder: Path, work_folder: Path) -> None:
    needed = sum(
        path.stat().st_size
        for path in [*folder.glob("*/*"), *files_of(folder / DATABASE)]
        if path.is_file() and path.name != "link_lists.bin"
    )
    free = shutil.disk_usage(work_folder).free
    if needed > free:
        raise SourceError(
            f"the private copy of {folder} needs {needed:,} bytes, {work_folder.parent} has {free:,} left",
            hint="name a folder with room by --work-folder or TMPDIR",
        )


def _segments(connection: sqlite3.Connection, folder: Path) -> list[str]:
    """Return the names of the live HNSW folders; SourceError where the database does not say."""
    try:
        return [str(name) for (name,) in connection.execute(_VECTOR_SEGMENTS)]
    except sqlite3.DatabaseError as error:
        raise SourceError(
            f"{folder / DATABASE} is not a Chroma database: {error}",
            hint="name the folder that the application gives to chromadb.PersistentClient",
        ) from error


def _take(folder: Path, copy: Path) -> Snapshot:
    pause = threading.Event()
    database, target = folder / DATABASE, copy / DATABASE
    for attempt in range(_ATTEMPTS):
        if attempt:
            pause.wait(_PAUSE_SECONDS * attempt)
        taken = (copy_locked(database, target) if is_plain(database) else None) or copy_files(
            database, target
        )
        if taken is None:
            continue
        connection = connect(copy)
        try:
            segments = _segments(connection, folder)
        except SourceError:
            connection.close()
            raise
        index_files = _index_files(folder, segments)
        # The copy of the database is older than these; what the log holds beyond them is applied again, which is harmless.
        before = stamp(index_files)
        _copy_indexes(folder, copy, segments)
        # The log must not have been purged into index files that were copied earlier, so both must have stood still.
        if stamp(index_files) == before and stamp(files_of(database)) == taken:
            return Snapshot(folder, copy, connection, {**taken, **before})
        connection.close()
        target.unlink()
    raise SourceChangedError(
        f"an application keeps writing to {folder}: {_ATTEMPTS} attempts to copy it at rest failed",
        hint="stop the application that uses the folder, then run again",
    )
