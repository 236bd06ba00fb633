"""A private copy of a Chroma folder, taken in moments, so that the source is neither written to nor kept locked.

Chroma (and SQLite) allow no long reader: while one is open, the application's writes and even its start hang. So the database
is copied while SQLite holds a shared lock, which is let go of as soon as the copy is there, and the HNSW files are copied beside it.
"""

import contextlib
import fcntl
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from pgchroma.errors import SourceChangedError, SourceError
from pgchroma.migrate.chroma import hnsw

DATABASE = "chroma.sqlite3"
_SIDE_FILES = ("-wal", "-journal")

_PREFIX = "pgchroma-snapshot-"
_LOCK = "in-use"
# A copy this young may belong to a process that has not locked it yet.
_YOUNG_SECONDS = 60.0

_ATTEMPTS = 5
_PAUSE_SECONDS = 0.5
_BUSY_SECONDS = 30.0
# SQLite's file header: bytes 18 and 19 are 2 in write-ahead-log mode.
_WAL_MODE = b"\x02\x02"

_VECTOR_SEGMENTS = "SELECT id FROM segments WHERE scope = 'VECTOR' ORDER BY id"

# size and modification time in ns of every file that was looked at; None for one that does not exist
Stamp = dict[str, tuple[int, int] | None]


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


def _stamp(paths: list[Path]) -> Stamp:
    stamp: Stamp = {}
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            stamp[str(path)] = None
        else:
            stamp[str(path)] = (status.st_size, status.st_mtime_ns)
    return stamp


def _database_files(folder: Path) -> list[Path]:
    return [folder / DATABASE, *(folder / (DATABASE + suffix) for suffix in _SIDE_FILES)]


def _index_files(folder: Path, segments: list[str]) -> list[Path]:
    return [folder / segment / name for segment in segments for name in hnsw.FILES]


def _is_plain(folder: Path) -> bool:
    """Whether SQLite can open the database read-only where it is: no write-ahead log, no journal left by a crash."""
    with (folder / DATABASE).open("rb") as file:
        file.seek(18)
        if file.read(2) == _WAL_MODE:
            return False
    return not any((folder / (DATABASE + suffix)).exists() for suffix in _SIDE_FILES)


def _backup(folder: Path, copy: Path) -> bool:
    """Copy the database under a shared lock; False where SQLite would have to write to the folder for it, or cannot read it."""
    database = (folder / DATABASE).resolve()
    # A percent sign, question mark or hash in the path would be read as part of the URI.
    uri = f"{database.as_uri()}?mode=ro"
    try:
        with contextlib.closing(
            sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as source:
            source.execute("BEGIN")
            # The lock is taken by the first read. No writer gets past it, so the file is as it is between two transactions.
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            # Closing the file lets go of the process's lock on it: nothing is read through SQLite after this.
            shutil.copyfile(database, copy)
    except sqlite3.DatabaseError:
        copy.unlink(missing_ok=True)
        return False
    return True


def _copy_database(folder: Path, copy: Path) -> bool:
    """Copy the database with its journals as files; False when they changed meanwhile, so that the copy may be torn."""
    files = _database_files(folder)
    before = _stamp(files)
    for path in files:
        target = copy.with_name(copy.name + path.name.removeprefix(DATABASE))
        target.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(path, target)
    return _stamp(files) == before


def copy_database(folder: Path, copy: Path) -> bool:
    """Copy the database of a folder in use; False when it could not be caught between two writes.

    A journal beside it may be a living writer's, which SQLite's backup call waits for, or a dead one's, which needs a rollback
    that must not happen in the source: then, and in write-ahead-log mode, all its files are copied as they are.
    """
    with (folder / DATABASE).open("rb") as file:
        file.seek(18)
        uses_wal = file.read(2) == _WAL_MODE
    return (not uses_wal and _backup(folder, copy)) or _copy_database(folder, copy)


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
    """Have SQLite look through a database; SourceError names the first damage."""
    try:
        # The full-text tables are derived from the documents and not read here, so their damage does not matter.
        damage = [
            str(line)
            for (line,) in connection.execute("PRAGMA quick_check(10)")
            if line != "ok" and "embedding_fulltext" not in str(line)
        ]
    except sqlite3.DatabaseError as error:
        raise _damaged(error) from error
    if damage:
        raise _damaged(damage[0])


class Snapshot:
    """A copy of a folder in a temporary folder of its own.

    Attributes:
        path: the copy's folder.
        connection: the copied database; the copy is ours, so indexes may be added to it.
    """

    def __init__(self, folder: Path, path: Path, connection: sqlite3.Connection, stamp: Stamp) -> None:
        self.folder = folder
        self.path = path
        self.connection = connection
        self._stamp = stamp

    @contextlib.contextmanager
    def beside(self) -> Iterator[sqlite3.Connection]:
        """Lend a connection of its own to the copy, for a thread that looks at it while others read."""
        with contextlib.closing(connect(self.path)) as connection:
            yield connection

    def files_unchanged(self) -> bool:
        """Whether no file of the source has another size or time than when the copy was taken."""
        return _stamp([Path(name) for name in self._stamp]) == self._stamp


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
        _sweep(Path(work_folder or tempfile.gettempdir()))
        with (
            tempfile.TemporaryDirectory(prefix=_PREFIX, dir=work_folder) as name,
            (Path(name) / _LOCK).open("wb") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            _require_room(folder, Path(name))
            snapshot = _take(folder, Path(name))
            try:
                yield snapshot
            finally:
                snapshot.connection.close()
    except PermissionError as error:
        raise SourceError(
            f"cannot read {error.filename}: {error.strerror}", hint="run as a user that may read the folder"
        ) from error


def _sweep(work_folder: Path) -> None:
    """Remove the copies that killed processes left; a living process holds a lock on its own."""
    for left in work_folder.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime < _YOUNG_SECONDS:
                continue
            with (left / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left)


def _require_room(folder: Path, work_folder: Path) -> None:
    needed = sum(
        path.stat().st_size
        for path in [*folder.glob("*/*"), *_database_files(folder)]
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
    for attempt in range(_ATTEMPTS):
        if attempt:
            pause.wait(_PAUSE_SECONDS * attempt)
        database_before = _stamp(_database_files(folder))
        if not (_is_plain(folder) and _backup(folder, copy / DATABASE)) and not _copy_database(
            folder, copy / DATABASE
        ):
            continue
        connection = connect(copy)
        try:
            segments = _segments(connection, folder)
        except SourceError:
            connection.close()
            raise
        index_files = _index_files(folder, segments)
        # The copy of the database is older than these; what the log holds beyond them is applied again, which is harmless.
        before = _stamp(index_files)
        _copy_indexes(folder, copy, segments)
        # The log must not have been purged into index files that were copied earlier, so both must have stood still.
        if _stamp(index_files) == before and _stamp(_database_files(folder)) == database_before:
            return Snapshot(folder, copy, connection, {**database_before, **before})
        connection.close()
        (copy / DATABASE).unlink()
    raise SourceChangedError(
        f"an application keeps writing to {folder}: {_ATTEMPTS} attempts to copy it at rest failed",
        hint="stop the application that uses the folder, then run again",
    )
