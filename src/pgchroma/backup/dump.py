"""Dumping collections into a folder, in one snapshot; an interrupted dump is continued and is then as consistent as a fresh one."""

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

import pgchroma
from pgchroma.backup import container, state
from pgchroma.backup.container import ChunkEntry, CollectionEntry, Journal, Manifest
from pgchroma.errors import ConfigurationError, NotFoundError, RefusedError
from pgchroma.store import StoreSettings, dumps, failures
from pgchroma.store.connection import conninfo
from pgchroma.store.dumps import Catalogued, Snapshot

Advance = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Scope:
    """What to dump: a tenant, one of its databases, or one collection of that."""

    tenant: str
    database: str | None = None
    collection: str | None = None

    @property
    def path(self) -> str:
        """`tenant`, `tenant/database` or `tenant/database/name`."""
        return "/".join(part for part in (self.tenant, self.database, self.collection) if part)


@dataclass(frozen=True, slots=True)
class Dumped:
    """What a dump did.

    Attributes:
        reused: records in chunks that an interrupted attempt had written and that are still true.
    """

    manifest: Manifest
    reused: int


def dump(database_url: str, scope: Scope, folder: Path, *, with_tokens: bool, advance: Advance) -> Dumped:
    """Write a dump into `folder`, which must be empty, missing or hold an unfinished dump of the same.

    Memory stays bounded by the size of a chunk (16 MiB of records and as much of vectors) whatever a collection's size.

    Raises:
        ConfigurationError: the folder cannot be written to.
        NotFoundError: there is nothing of that name.
        RefusedError: the folder holds something else, or a finished dump, or another dump writes to it.
        SourceChangedError: a collection was deleted meanwhile, or is damaged.
    """
    if scope.collection and not scope.database:
        raise ConfigurationError("a collection is named without its database", hint="add --database")
    with _alone(folder):
        return _dump(database_url, scope, folder, with_tokens=with_tokens, advance=advance)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and hold its lock: two dumps would write chunks under the same names.

    What it made is removed again when the dump fails before it has written anything there.
    """
    made: list[Path] = []
    try:
        made += (path for path in (folder, *folder.parents) if not path.exists())
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        _remove_empty(made)
        raise _unusable(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"another dump writes to {folder}", hint="wait until it has ended, or name another folder"
            ) from error
        try:
            yield
        except BaseException:
            _remove_empty(made)
            raise
    finally:
        os.close(descriptor)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the innermost first, up to one that holds something."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _unusable(folder: Path, error: OSError) -> ConfigurationError:
    return ConfigurationError(
        f"cannot use {folder}: {error.strerror}",
        hint=state.remedy(error, "name a folder that can be written to"),
    )


def _dump(database_url: str, scope: Scope, folder: Path, *, with_tokens: bool, advance: Advance) -> Dumped:
    journal, is_begun = _examine(folder, scope)
    settings = StoreSettings(statement_timeout_seconds=0, application_name="pgchroma backup dump")
    try:
        with Snapshot(conninfo(database_url, settings)) as snapshot:
            databases = snapshot.databases(scope.tenant, scope.database)
            catalogued = snapshot.collections(scope.tenant, scope.database, scope.collection)
            if not databases or (scope.collection and not catalogued):
                raise NotFoundError(
                    f"{scope.path} does not exist", hint="see `pgchroma status` for what there is"
                )
            if not is_begun:
                journal.start([_head(scope)])
            earlier = _still_true(snapshot, folder, catalogued, journal)
            found = [
                _collection(snapshot, folder, number, item, earlier.get(item.id, []), journal, advance)
                for number, item in enumerate(catalogued, 1)
            ]
            manifest = Manifest(
                state.now().isoformat(),
                pgchroma.__version__,
                asdict(scope),
                databases,
                snapshot.tokens(scope.tenant) if with_tokens else [],
                found,
            )
    except psycopg.Error as error:
        raise failures.explained(error) from error
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {folder}: {error.strerror}",
            hint="make room or name another folder; run the same command again to continue",
        ) from error
    container.write_manifest(folder, manifest)
    _remove_others(folder, manifest)
    return Dumped(manifest, sum(entry["chunk"]["rows"] for entries in earlier.values() for entry in entries))


def _head(scope: Scope) -> dict[str, Any]:
    return {"format": container.FORMAT, "scope": asdict(scope)}


def _examine(folder: Path, scope: Scope) -> tuple[Journal, bool]:
    """Return the folder's journal, and whether it is of an attempt at the same dump; writes nothing yet."""
    journal = Journal(folder)
    try:
        begun = list(journal.read())
        names = {item.name for item in folder.iterdir()}
    except OSError as error:
        raise _unusable(folder, error) from error
    if container.MANIFEST in names:
        raise RefusedError(
            f"{folder} holds a finished dump already", hint="name another folder, or remove it"
        )
    written = names - {container.JOURNAL}
    if not begun and written:
        raise RefusedError(f"{folder} is not empty", hint="name an empty folder or one that does not exist")
    is_begun = begun[:1] == [_head(scope)]
    # One that has written nothing but its name keeps nobody from another dump.
    if begun and not is_begun and (written or len(begun) > 1):
        raise RefusedError(
            f"{folder} holds an unfinished dump of something else",
            hint="finish that one, or name another folder",
        )
    return journal, is_begun


def _still_true(
    snapshot: Snapshot, folder: Path, catalogued: list[Catalogued], journal: Journal
) -> dict[str, list[dict[str, Any]]]:
    """Return the chunks of an earlier attempt that hold what this snapshot shows, by collection, and note only those."""
    head, *entries = list(journal.read())
    tables = {item.id: item.table_number for item in catalogued}
    numbers = {item.id: number for number, item in enumerate(catalogued, 1)}
    kept: dict[str, list[dict[str, Any]]] = {}
    stale: set[str] = set()
    for entry in entries:
        ident = entry["collection"]
        table = tables.get(ident)
        if table is None or table != entry["table"] or ident in stale:
            continue
        chunk = ChunkEntry(**entry["chunk"])
        path = folder / chunk.file
        if (
            not chunk.file.startswith(_folder(numbers[ident]))
            or not path.exists()
            or path.stat().st_size != chunk.bytes
            or dumps.fingerprint(snapshot.embeddings, table, entry["after"], entry["last"])
            != entry["fingerprint"]
        ):
            # Those behind it are read again too: their places in the file names depend on it.
            stale.add(ident)
            continue
        kept.setdefault(ident, []).append(entry)
    journal.start([head, *(entry for found in kept.values() for entry in found)])
    return kept


def _folder(number: int) -> str:
    return f"c{number:05}/"


def _collection(
    snapshot: Snapshot,
    folder: Path,
    number: int,
    item: Catalogued,
    earlier: list[dict[str, Any]],
    journal: Journal,
    advance: Advance,
) -> CollectionEntry:
    chunks = [ChunkEntry(**entry["chunk"]) for entry in earlier]
    after = int(earlier[-1]["last"]) if earlier else 0
    advance(sum(chunk.rows for chunk in chunks))
    if item.table_number is not None and item.dimension is not None:
        for chunk in dumps.read(
            snapshot.records, snapshot.embeddings, item.table_number, item.dimension, after_seq=after
        ):
            entry = container.write_chunk(folder, f"{_folder(number)}{len(chunks) + 1:06}.zst", chunk)
            journal.append(
                {
                    "collection": item.id,
                    "table": item.table_number,
                    "after": after,
                    "last": chunk.last_seq,
                    "fingerprint": dumps.fingerprint(
                        snapshot.embeddings, item.table_number, after, chunk.last_seq
                    ),
                    "chunk": asdict(entry),
                }
            )
            chunks.append(entry)
            after = chunk.last_seq
            advance(chunk.rows)
    return CollectionEntry(
        item.id,
        item.tenant,
        item.database,
        item.name,
        item.metadata,
        item.metadata_exact,
        item.configuration,
        item.schema,
        item.dimension,
        chunks,
    )


def _remove_others(folder: Path, manifest: Manifest) -> None:
    """Remove what an earlier attempt left and the dump does not name."""
    named = {folder / chunk.file for item in manifest.collections for chunk in item.chunks}
    for path in folder.glob("c*/*"):
        if path not in named:
            path.unlink()
