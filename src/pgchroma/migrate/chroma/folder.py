"""The source `Chroma folder`: records put together from SQLite's rows, the HNSW files and the log."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma import catalog, dangers, hnsw, layout, log, snapshot
from pgchroma.migrate.chroma.hnsw import HnswIndex, IndexMetadata
from pgchroma.migrate.chroma.log import LogOverlay
from pgchroma.migrate.model import SHOWN_IDS, Json, Problem, SourceCollection, describe_changes
from pgchroma.types import MetadataValue, Record

PAGE_RECORDS = 2_000
PAGE_BYTES = 16 * 1024 * 1024

_DOCUMENT, _URI = "chroma:document", "chroma:uri"
# What follows the last row of metadata: no record has this number.
_NO_VALUE: tuple[int, str, Any, Any] = (-1, "", None, None)


def digest_of(collections: Sequence[SourceCollection], found: layout.Layout) -> str:
    """Return the fingerprint of a folder, from the state of its collections."""
    whole = {"layout": found.name, "collections": {item.path: item.state for item in collections}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _all_sound(vectors: list[NDArray[np.float32] | None], dimension: int | None) -> bool:
    """Whether a page's vectors are all there, of one length and finite: one look at all of them instead of one at each."""
    whole = [vector for vector in vectors if vector is not None and len(vector) == dimension]
    return len(whole) == len(vectors) and bool(np.isfinite(np.stack(whole)).all())


class _Vectors:
    """Finds the vectors of one collection: the log's last word, else the HNSW files'."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, collection: SourceCollection) -> None:
        segments = catalog.segments_of(connection, collection.id)
        self.damage: str | None = None
        self.index: HnswIndex | None = None
        position = segments.vector_position
        index_folder = folder / (segments.vector or "-")
        if (index_folder / hnsw.PICKLE).is_file():
            metadata = self._read_pickle(index_folder / hnsw.PICKLE)
            if position is None:
                position = metadata.max_seq_id
            self.index = HnswIndex(index_folder, cosine=collection.space == "cosine", metadata=metadata)
            self.damage = self.damage or self.index.damage
            self.index.damage = self.damage
        elif position:
            self.damage = f"the HNSW files in {segments.vector} are missing"
            self.index = HnswIndex(index_folder, cosine=False, metadata=IndexMetadata({}, None))
            self.index.damage = self.damage
        base = self.index
        if self.damage and log.is_complete(connection):
            # Chroma 0.4 kept every write in its log: then the files are not needed at all.
            base, position = None, 0
        self.overlay = LogOverlay(connection, collection.id, position or 0, base)

    def _read_pickle(self, path: Path) -> IndexMetadata:
        try:
            return hnsw.read_pickle(path)
        except SourceError as error:
            self.damage = error.message
            return IndexMetadata({}, None)

    def fetch(self, ids: list[str]) -> list[NDArray[np.float32] | None]:
        """Return the vector of each id, None where there is none."""
        last = self.overlay.last
        logged = self.overlay.fetch([seq for name in ids if (seq := last.get(name)) is not None])
        vectors: list[NDArray[np.float32] | None] = [None] * len(ids)
        rest = []
        for place, name in enumerate(ids):
            if name in last:
                seq = last[name]
                vectors[place] = logged.get(seq) if seq is not None else None
            else:
                rest.append(place)
        if rest and self.index:
            matrix, found = self.index.fetch([ids[place] for place in rest])
            for row, place in enumerate(rest):
                if found[row]:
                    vectors[place] = matrix[row]
        return vectors

    def live_ids(self) -> Iterator[str]:
        """Yield every id that has a vector, whether or not it has a record."""
        yield from (name for name, seq in self.overlay.last.items() if seq is not None)
        if self.index:
            yield from (name for name in self.index.ids if name not in self.overlay.last)


class ChromaFolder:
    """A Chroma folder, read through a private copy; see model.Source.

    Use `open_folder`; the copy lives as long as that context.
    """

    frozen = True

    def __init__(self, taken: snapshot.Snapshot) -> None:
        self._snapshot = taken
        self._connection = taken.connection
        self.path = taken.folder
        self.layout = layout.detect(self._connection, str(taken.folder / snapshot.DATABASE))
        try:
            # The copy is ours: these make paging by collection cheap.
            self._connection.execute(
                "CREATE INDEX IF NOT EXISTS pgchroma_order ON embeddings (segment_id, id)"
            )
            log.prepare(self._connection)
            self._collections = catalog.read(self._connection, taken.path)
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error
        self._has_arrays = bool(layout.columns(self._connection, "embedding_metadata_array"))
        self._fingerprint = digest_of(self._collections, self.layout)
        self._vectors: tuple[UUID, _Vectors] | None = None

    def _unreadable(self, error: sqlite3.DatabaseError) -> SourceError:
        return SourceError(
            f"cannot read {self.path / snapshot.DATABASE}: {error}",
            hint="restore the folder from a backup, or recover the file with `sqlite3 chroma.sqlite3 .recover`",
        )

    @property
    def description(self) -> Json:
        """Kind, path and layout, for the receipt."""
        return {"kind": "chroma-folder", "path": str(self.path.resolve()), "layout": self.layout.name}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over layout, counts, sequence numbers, index files and descriptions."""
        return self._fingerprint

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections, ordered by tenant, database and name."""
        return self._collections

    def _vectors_of(self, collection: SourceCollection) -> _Vectors:
        # One at a time: the maps of ids are the only thing here that grows with a collection.
        if self._vectors is None or self._vectors[0] != collection.id:
            self._vectors = None
            self._vectors = (collection.id, _Vectors(self._connection, self._snapshot.path, collection))
        return self._vectors[1]

    def _segment(self, collection: SourceCollection) -> str | None:
        return catalog.segments_of(self._connection, collection.id).metadata

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order, each of at most 2,000 records and about 16 MiB.

        Args:
            collection: one of `collections()`.
            after: `Record.seq` (the row id in `embeddings`) of the last record already had.

        Raises:
            SourceError: the database turns out to be damaged.
        """
        try:
            vectors = self._vectors_of(collection)
            for page in self._pages(collection, after):
                if self._has_arrays:
                    self._add_arrays(page)
                found = vectors.fetch([record.id for record in page])
                for record, vector in zip(page, found, strict=True):
                    record.embedding = vector
                yield page
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error

    def _pages(self, collection: SourceCollection, after: int) -> Iterator[list[Record]]:
        boolean = (
            "m.bool_value"
            if "bool_value" in layout.columns(self._connection, "embedding_metadata")
            else "NULL"
        )
        # SQLite keeps the type of what coalesce() picks; only booleans look like integers and need a column of their own.
        values = self._connection.execute(
            f"SELECT m.id, m.key, coalesce(m.string_value, m.int_value, m.float_value), {boolean}"  # noqa: S608 - a name of our own
            " FROM embeddings e JOIN embedding_metadata m ON m.id = e.id WHERE e.segment_id = ? AND e.id > ? ORDER BY e.id",
            (self._segment(collection), after),
        )
        rows = self._connection.execute(
            "SELECT id, embedding_id FROM embeddings WHERE segment_id = ? AND id > ? ORDER BY id",
            (self._segment(collection), after),
        )
        vector_bytes = 4 * (collection.dimension or 0)
        page: list[Record] = []
        size = 0
        owner, key, value, flag = next(values, _NO_VALUE)
        for seq, name in rows:
            record = Record(seq, name, None)
            metadata: dict[str, MetadataValue] = {}
            while owner == seq:
                if flag is not None:
                    metadata[key] = bool(flag)
                elif key == _DOCUMENT:
                    record.document = value
                    size += len(value) if value is not None else 0
                elif key == _URI:
                    record.uri = value
                elif value is not None:
                    metadata[key] = value
                    if type(value) is str:
                        size += len(value)
                owner, key, value, flag = next(values, _NO_VALUE)
            if metadata:
                record.metadata = metadata
            page.append(record)
            size += vector_bytes
            if len(page) >= PAGE_RECORDS or size >= PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def _add_arrays(self, page: list[Record]) -> None:
        by_seq = {record.seq: record for record in page}
        values = catalog.typed_columns(self._connection, "embedding_metadata_array", "string_value")
        rows = self._connection.execute(
            f"SELECT id, key, {values} FROM embedding_metadata_array"  # noqa: S608 - names of our own
            " WHERE id BETWEEN ? AND ? ORDER BY id, rowid",
            (page[0].seq, page[-1].seq),
        )
        arrays: dict[tuple[int, str], list[MetadataValue]] = {}
        for seq, key, *cells in rows:
            if seq in by_seq:
                arrays.setdefault((seq, key), []).append(catalog.value_of(*cells))
        for (seq, key), items in arrays.items():
            record = by_seq[seq]
            if record.metadata is None:
                record.metadata = {}
            record.metadata[key] = items  # type: ignore[assignment]  # all of one type, as Chroma wrote them

    def _ids(self, collection: SourceCollection) -> Iterator[list[str]]:
        cursor = self._connection.execute(
            "SELECT embedding_id FROM embeddings WHERE segment_id = ? ORDER BY id",
            (self._segment(collection),),
        )
        while rows := cursor.fetchmany(PAGE_RECORDS):
            yield [str(name) for (name,) in rows]

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Look at every vector of a collection, and at what its files and its log say beyond its records."""
        try:
            vectors = self._vectors_of(collection)
            missing: list[str] = []
            unstorable: list[str] = []
            unequal: list[str] = []
            for ids in self._ids(collection):
                fetched = vectors.fetch(ids)
                if _all_sound(fetched, collection.dimension):
                    continue
                for name, vector in zip(ids, fetched, strict=True):
                    if vector is None:
                        missing.append(name)
                    elif collection.dimension is not None and len(vector) != collection.dimension:
                        unequal.append(name)
                    elif not np.isfinite(vector).all():
                        unstorable.append(name)
            orphans = self._without_record(collection, vectors)
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error
        found = []
        if vectors.damage:
            severity = "error" if missing else "notice"
            found.append(
                Problem(severity, "index-damaged", collection.path, vectors.damage)  # type: ignore[arg-type]
            )
        for code, message, ids in (
            ("vector-missing", "records whose vector is in neither the HNSW files nor the log", missing),
            (
                "vector-not-finite",
                "records whose vector holds NaN or infinity",
                unstorable,
            ),
            ("vector-dimension", "records whose vector is of another dimension than the collection", unequal),
        ):
            if ids:
                found.append(
                    Problem("error", code, collection.path, message, len(ids), tuple(ids[:SHOWN_IDS]))
                )
        if orphans:
            found.append(
                Problem(
                    "notice",
                    "record-lost",
                    collection.path,
                    "records that Chroma lost: it shows them no more, but its log or index still holds them",
                    len(orphans),
                    tuple(orphans[:SHOWN_IDS]),
                )
            )
        try:
            found += dangers.in_texts(self._connection, collection.path, self._segment(collection))
            if collection.id == self._collections[0].id:
                left = dangers.orphans(self._connection, self.path)
                found += [left] if left else []
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error
        return found

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield the records that Chroma lost, put together from its log and index files; their order is that of their ids."""
        vectors = self._vectors_of(collection)
        ids = self._without_record(collection, vectors)
        first = int(collection.state.get("last_embedding_id") or 0) + 1
        for start in range(0, len(ids), PAGE_RECORDS):
            part = ids[start : start + PAGE_RECORDS]
            page = list(dangers.lost_records(self._connection, collection.id, part, first + start))
            for record, vector in zip(page, vectors.fetch(part), strict=True):
                record.embedding = record.embedding if vector is None else vector
            yield page

    def _without_record(self, collection: SourceCollection, vectors: _Vectors) -> list[str]:
        lost = set(vectors.live_ids())
        for ids in self._ids(collection):
            lost.difference_update(ids)
        return sorted(lost)

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return the bytes of a collection's texts (as characters) and vectors."""
        (texts,) = self._connection.execute(
            "SELECT coalesce(sum(length(m.string_value)), 0) FROM embeddings e"
            " JOIN embedding_metadata m ON m.id = e.id WHERE e.segment_id = ?",
            (self._segment(collection),),
        ).fetchone()
        return int(texts) + 4 * (collection.dimension or 0) * collection.count

    def changes(self) -> list[str]:
        """Return what has changed in the folder since the copy was taken; empty when nothing has.

        Only when a file's size or time is new is the folder looked into again.
        """
        if self._snapshot.files_unchanged():
            return []
        try:
            with open_folder(self.path, self._snapshot.path) as now:
                if now.fingerprint == self.fingerprint:
                    return []
                before = {item.path: item.state for item in self.collections()}
                return describe_changes(before, {item.path: item.state for item in now.collections()}) or [
                    f"the layout was {self.layout.name}, is {now.layout.name}"
                ]
        except SourceError as error:
            return [error.message]


@contextlib.contextmanager
def open_folder(path: Path, work_folder: Path | None = None) -> Iterator[ChromaFolder]:
    """Open a Chroma folder as a source for as long as the context lasts.

    Args:
        path: the folder that holds chroma.sqlite3; may be read-only.
        work_folder: where to put the private copy; the system's temporary folder when None.

    Raises:
        SourceError: missing, damaged, or of an unknown layout.
        SourceChangedError: an application keeps writing to it.
    """
    with snapshot.take(path, work_folder) as taken:
        yield ChromaFolder(taken)
