"""The files of a logical backup: docs/LOGICAL_BACKUPS.md describes them byte by byte."""

import contextlib
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import zstandard

from pgchroma.backup.state import sync_directory, write_atomically
from pgchroma.errors import SourceError
from pgchroma.store.dumps import Chunk

FORMAT: Final = "pgchroma-dump/1"
MANIFEST: Final = "manifest.json"
JOURNAL: Final = "journal.jsonl"
_MAGIC: Final = b"PGCDUMP1"
# Magic, rows, bytes of records, bytes of vectors.
_HEADER: Final = struct.Struct("<8sIQQ")
# Vectors hardly shrink, whatever the effort; texts do at the first level already.
_LEVEL: Final = 1
# A dump holds everything the collections do, and hashes of tokens.
_MODE: Final = 0o600
_READER: Final = "run it as a user that may read it; a dump belongs to the one that made it"


@dataclass(frozen=True, slots=True)
class ChunkEntry:
    """One chunk in the manifest.

    Attributes:
        file: relative to the dump's folder.
        bytes, sha256: of the file.
        content_sha256: of the records and vectors in it, the same for the same records wherever they are.
    """

    file: str
    rows: int
    bytes: int
    sha256: str
    content_sha256: str


@dataclass(frozen=True, slots=True)
class CollectionEntry:
    """One collection in the manifest; JSON fields are PostgreSQL's own text."""

    id: str
    tenant: str
    database: str
    name: str
    metadata: str | None
    metadata_exact: str | None
    configuration: str
    schema: str
    dimension: int | None
    chunks: list[ChunkEntry] = field(default_factory=list)

    @property
    def path(self) -> str:
        """`tenant/database/name`."""
        return f"{self.tenant}/{self.database}/{self.name}"

    @property
    def records(self) -> int:
        """How many records it has."""
        return sum(chunk.rows for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a dump holds.

    Attributes:
        scope: what was asked for: tenant and, unless null, database and collection.
        databases: of the tenant, those without collections too.
        tokens: of the tenant, as stored; empty unless asked for.
    """

    created_at: str
    pgchroma_version: str
    scope: dict[str, str | None]
    databases: list[str]
    tokens: list[dict[str, Any]]
    collections: list[CollectionEntry]

    @property
    def records(self) -> int:
        """Records of all collections."""
        return sum(item.records for item in self.collections)

    @property
    def digest(self) -> str:
        """SHA-256 over everything the manifest says, chunks' checksums included."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def content_digest(chunk: Chunk) -> str:
    """Return the SHA-256 of a chunk's records and vectors."""
    digest = hashlib.sha256(_header(chunk))
    digest.update(chunk.lengths.astype("<u4").tobytes())
    digest.update(chunk.records)
    digest.update(chunk.vectors)
    return digest.hexdigest()


def _header(chunk: Chunk) -> bytes:
    return _HEADER.pack(_MAGIC, chunk.rows, len(chunk.records), len(chunk.vectors))


def write_chunk(folder: Path, file: str, chunk: Chunk) -> ChunkEntry:
    """Write a chunk so that under its name there is never half of one, and so that it outlives a crash of the machine."""
    content = b"".join((_header(chunk), chunk.lengths.astype("<u4").tobytes(), chunk.records, chunk.vectors))
    packed = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True).compress(content)
    path = folder / file
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700)
        sync_directory(folder)
    partial = path.with_suffix(".part")
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb") as target:
        target.write(packed)
        target.flush()
        os.fsync(target.fileno())
    partial.replace(path)
    sync_directory(path.parent)
    return ChunkEntry(
        file, chunk.rows, len(packed), hashlib.sha256(packed).hexdigest(), hashlib.sha256(content).hexdigest()
    )


def read_chunk(folder: Path, entry: ChunkEntry, collection: CollectionEntry) -> Chunk:
    """Return a chunk; SourceError, naming file and collection, when it is missing, cut short, changed or not to be read."""

    def damaged(reason: str) -> SourceError:
        return SourceError(
            f"chunk {entry.file} of collection {collection.path} is damaged: {reason}",
            hint="nothing was loaded from it; take another copy of the dump, or dump again",
        )

    try:
        packed = (folder / entry.file).read_bytes()
    except PermissionError as error:
        raise SourceError(
            f"chunk {entry.file} of collection {collection.path} cannot be read: {error.strerror}",
            hint=_READER,
        ) from error
    except OSError as error:
        raise damaged(error.strerror or "it cannot be read") from error
    if len(packed) != entry.bytes:
        raise damaged(f"{len(packed):,} bytes instead of {entry.bytes:,}")
    if hashlib.sha256(packed).hexdigest() != entry.sha256:
        raise damaged("its SHA-256 is not that of the manifest")
    try:
        content = zstandard.ZstdDecompressor().decompress(packed)
        magic, rows, records, embeddings = _HEADER.unpack_from(content)
    except (zstandard.ZstdError, struct.error) as error:
        raise damaged(str(error)) from error
    begin = _HEADER.size + 4 * rows
    if magic != _MAGIC or rows != entry.rows or len(content) != begin + records + embeddings:
        raise damaged("its header does not fit its content")
    if hashlib.sha256(content).hexdigest() != entry.content_sha256:
        raise damaged("its content is not that of the manifest")
    lengths = np.frombuffer(content, "<u4", rows, _HEADER.size)
    return Chunk(lengths, content[begin : begin + records], content[begin + records :])


def check_chunk(folder: Path, entry: ChunkEntry, collection: CollectionEntry) -> None:
    """Raise SourceError as `read_chunk` does; reads the file and does not unpack it."""
    path = folder / entry.file
    digest = hashlib.sha256()
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError:
        size = -1
    if size != entry.bytes or digest.hexdigest() != entry.sha256:
        # Says what exactly is wrong.
        read_chunk(folder, entry, collection)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, which makes the dump complete, and remove the journal."""
    content = {"format": FORMAT, "digest": manifest.digest, **asdict(manifest)}
    write_atomically(folder / MANIFEST, json.dumps(content, indent=1, ensure_ascii=True) + "\n", _MODE)
    (folder / JOURNAL).unlink(missing_ok=True)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest; SourceError when the dump is incomplete or the manifest damaged."""
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        unfinished = (folder / JOURNAL).exists()
        raise SourceError(
            f"{folder} holds {'an unfinished dump' if unfinished else 'no dump'}: {MANIFEST} is missing",
            hint="finish it with the same `pgchroma backup dump` command"
            if unfinished
            else "name the folder that `pgchroma backup dump` wrote",
        ) from error
    except PermissionError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}", hint=_READER) from error
    except (OSError, ValueError) as error:
        raise SourceError(
            f"{path} cannot be read: {error}", hint="take another copy of the dump, or dump again"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise SourceError(
            f"{path} is not of the format {FORMAT}", hint="load it with the release of pgchroma that wrote it"
        )
    try:
        collections = [
            CollectionEntry(**{**item, "chunks": [ChunkEntry(**chunk) for chunk in item["chunks"]]})
            for item in content["collections"]
        ]
        fields = {name: content[name] for name in Manifest.__dataclass_fields__}
        manifest = Manifest(**{**fields, "collections": collections})
        if manifest.digest != content["digest"]:
            raise ValueError("its digest does not fit its content")
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(
            f"{path} is damaged: {error}", hint="take another copy of the dump, or dump again"
        ) from error
    for item in collections:
        for chunk in item.chunks:
            # A manifest from elsewhere must not make us read other files.
            if Path(chunk.file).is_absolute() or ".." in Path(chunk.file).parts:
                raise SourceError(f"{path} names a file outside the dump: {chunk.file}", hint="do not use it")
    return manifest


class Journal:
    """What a dump under way has written: a line for each chunk, flushed to disk after the chunk itself."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / JOURNAL

    def read(self) -> Iterator[dict[str, Any]]:
        """Yield the entries; a last line that was cut short is left out."""
        with contextlib.suppress(FileNotFoundError):
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    yield json.loads(line)
                except ValueError:
                    return

    def start(self, entries: list[dict[str, Any]]) -> None:
        """Replace the journal by these entries."""
        text = "".join(json.dumps(entry) + "\n" for entry in entries)
        write_atomically(self._path, text, _MODE)

    def append(self, entry: dict[str, Any]) -> None:
        """Add an entry."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
            file.flush()
            os.fsync(file.fileno())
