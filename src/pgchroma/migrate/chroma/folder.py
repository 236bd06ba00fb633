"""The source `Chroma folder`: records put together from SQLite's rows, the HNSW files and the log."""

import contextlib
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import msgspec
import numpy as np

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma import catalog, dangers, layout, log, snapshot
from pgchroma.migrate.chroma.vectors import CollectionVectors, are_sound
from pgchroma.migrate.model import SHOWN_IDS, Json, Problem, SourceCollection, describe_changes
from pgchroma.types import MetadataValue, Record, RecordPage

PAGE_RECORDS = 2_000
PAGE_BYTES = 16 * 1024 * 1024

Found = TypeVar("Found")
_decode = msgspec.json.Decoder(dict[str, Any]).decode

_DOCUMENT, _URI = "chroma:document", "chroma:uri"


def digest_of(collections: Sequence[SourceCollection], found: layout.Layout) -> str:
    """Return the fingerprint of a folder, from the state of its collections."""
    whole = {"layout": found.name, "collections": {item.path: item.state for item in collections}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _record_query(columns: set[str]) -> tuple[str, str]:
    """Return (statement for a segment's records after a number, condition for the values that it leaves out: floats).

    SQLite puts each record's metadata together as JSON, which keeps text, integers and booleans apart, but not all of a float's bits.
    """
    flag = "bool_value" if "bool_value" in columns else "NULL"
    plain = f"({flag} IS NOT NULL OR string_value IS NOT NULL OR int_value IS NOT NULL)"
    typed = (
        f"CASE WHEN {flag} IS NULL THEN coalesce(string_value, int_value)"
        f" ELSE json(CASE {flag} WHEN 0 THEN 'false' ELSE 'true' END) END"
    )

    def of(key: str) -> str:
        return f"(SELECT string_value FROM embedding_metadata m WHERE m.id = e.id AND m.key = '{key}')"  # noqa: S608

    return (
        f"SELECT e.id, e.embedding_id, {of(_DOCUMENT)}, {of(_URI)}, (SELECT CAST(json_group_object(key, {typed}) AS BLOB)"  # noqa: S608
        f" FROM embedding_metadata m WHERE m.id = e.id AND m.key <> '{_DOCUMENT}' AND m.key <> '{_URI}' AND {plain})"
        " FROM embeddings e WHERE e.segment_id = ? AND e.id > ? ORDER BY e.id"
    ), f"float_value IS NOT NULL AND NOT {plain} AND key NOT IN ('{_DOCUMENT}', '{_URI}')"


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
        self._record_query, self._is_float = _record_query(
            layout.columns(self._connection, "embedding_metadata")
        )
        self._has_floats = self._connection.execute(
            f"SELECT 1 FROM embedding_metadata WHERE {self._is_float} LIMIT 1"  # noqa: S608 - names of our own
        ).fetchone()
        self._fingerprint = digest_of(self._collections, self.layout)
        self._vectors: tuple[UUID, CollectionVectors] | None = None
        # SQLite's look through the copy and ours through its texts need this process's attention only at their end.
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="looking through a folder")
        self._sound = self._beside.submit(self._with_own_connection, snapshot.require_sound)
        self._texts = self._beside.submit(self._with_own_connection, dangers.look_at)

    def _with_own_connection(self, work: Callable[[sqlite3.Connection], Found]) -> Found:
        with self._snapshot.beside() as connection:
            return work(connection)

    def close(self) -> None:
        """Wait for what is still looking at the copy."""
        self._beside.shutdown(cancel_futures=True)

    def require_sound(self) -> None:
        """Wait until SQLite has looked through the copy; SourceError when it is damaged."""
        self._sound.result()

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

    def _vectors_of(self, collection: SourceCollection) -> CollectionVectors:
        # One at a time: the maps of ids are the only thing here that grows with a collection.
        if self._vectors is None or self._vectors[0] != collection.id:
            self._vectors = None
            self._vectors = (
                collection.id,
                CollectionVectors(self._connection, self._snapshot.path, collection),
            )
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
                if self._has_floats:
                    self._add_floats(page)
                if self._has_arrays:
                    self._add_arrays(page)
                found = vectors.fetch([record.id for record in page])
                for record, vector in zip(page, found, strict=True):
                    record.embedding = vector
                yield page if isinstance(found, list) else RecordPage(page, found)
        except sqlite3.DatabaseError as error:
            raise self._unreadable(error) from error

    def _pages(self, collection: SourceCollection, after: int) -> Iterator[list[Record]]:
        rows = self._connection.execute(self._record_query, (self._segment(collection), after))
        vector_bytes = 4 * (collection.dimension or 0)
        page: list[Record] = []
        size = 0
        for seq, name, document, uri, metadata in rows:
            size += vector_bytes + (len(document) if document else 0) + len(metadata)
            page.append(Record(seq, name, None, document, _decode(metadata) or None, uri))
            if len(page) >= PAGE_RECORDS or size >= PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def _add_floats(self, page: list[Record]) -> None:
        """Add what JSON text from SQLite would round."""
        by_seq = {record.seq: record for record in page}
        for seq, key, value in self._connection.execute(
            f"SELECT id, key, float_value FROM embedding_metadata WHERE id BETWEEN ? AND ? AND {self._is_float}",  # noqa: S608 - names of our own
            (page[0].seq, page[-1].seq),
        ):
            if record := by_seq.get(seq):
                record.metadata = record.metadata or {}
                record.metadata[key] = value

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
        self.require_sound()
        missing: list[str] = []
        unstorable: list[str] = []
        unequal: list[str] = []
        try:
            vectors = self._vectors_of(collection)
            lost, complete = self._without_record(collection, vectors)
            if not (complete and vectors.all_sound()):
                for ids in self._ids(collection):
                    fetched = vectors.fetch(ids)
                    if are_sound(fetched, collection.dimension):
                        continue
                    for name, vector in zip(ids, fetched, strict=True):
                        if vector is None:
                            missing.append(name)
                        elif collection.dimension is not None and len(vector) != collection.dimension:
                            unequal.append(name)
                        elif not np.isfinite(vector).all():
                            unstorable.append(name)
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
        if lost:
            found.append(
                Problem(
                    "notice",
                    "record-lost",
                    collection.path,
                    "records that Chroma lost: it shows them no more, but its log or index still holds them",
                    len(lost),
                    tuple(lost[:SHOWN_IDS]),
                )
            )
        try:
            if not self._texts.result().harmless:
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
        ids, _ = self._without_record(collection, vectors)
        first = int(collection.state.get("last_embedding_id") or 0) + 1
        for start in range(0, len(ids), PAGE_RECORDS):
            part = ids[start : start + PAGE_RECORDS]
            page = list(dangers.lost_records(self._connection, collection.id, part, first + start))
            for record, vector in zip(page, vectors.fetch(part), strict=True):
                record.embedding = record.embedding if vector is None else vector
            yield page

    def _without_record(
        self, collection: SourceCollection, vectors: CollectionVectors
    ) -> tuple[list[str], bool]:
        """Return (the ids that have a vector and no record, whether every record has a vector)."""
        lost = set(vectors.live_ids())
        complete = True
        for ids in self._ids(collection):
            complete = complete and lost.issuperset(ids)
            lost.difference_update(ids)
        return sorted(lost), complete

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return the bytes of a collection's texts and vectors."""
        texts = self._texts.result().size_bytes.get(self._segment(collection) or "", 0)
        return texts + 4 * (collection.dimension or 0) * collection.count

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
    with snapshot.take(path, work_folder) as taken, contextlib.closing(ChromaFolder(taken)) as folder:
        yield folder
        folder.require_sound()
