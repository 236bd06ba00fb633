"""The records of a copied Chroma folder; whatever process has the copy can read them."""

import contextlib
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias
from uuid import UUID

import msgspec

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma import catalog, dangers, layout, snapshot
from pgchroma.migrate.chroma.vectors import CollectionVectors
from pgchroma.migrate.model import SourceCollection
from pgchroma.migrate.policies import texts_of
from pgchroma.types import MetadataValue, Record, RecordPage

PAGE_RECORDS = 2_000
PAGE_BYTES = 16 * 1024 * 1024

# Number, id, document, uri, metadata as JSON text.
_Row: TypeAlias = tuple[int, str, str | None, str | None, bytes]
_decode_all = msgspec.json.Decoder(list[dict[str, Any]]).decode

_DOCUMENT, _URI = "chroma:document", "chroma:uri"


def _record_query(columns: set[str], *, uris: bool) -> tuple[str, str]:
    """Return (statement for a segment's records after a number, condition for the values that it leaves out: floats).

    SQLite puts each record's metadata together as JSON, which keeps text, integers and booleans apart, but not all of a float's bits.

    Args:
        uris: whether there are any.
    """
    flag = "bool_value" if "bool_value" in columns else "NULL"
    plain = f"({flag} IS NOT NULL OR string_value IS NOT NULL OR int_value IS NOT NULL)"
    typed = (
        f"CASE WHEN {flag} IS NULL THEN coalesce(string_value, int_value)"
        f" ELSE json(CASE {flag} WHEN 0 THEN 'false' ELSE 'true' END) END"
    )

    def of(key: str) -> str:
        return f"(SELECT string_value FROM embedding_metadata m WHERE m.id = e.id AND m.key = '{key}')"  # noqa: S608

    uri = of(_URI) if uris else "NULL"
    return (
        f"SELECT e.id, e.embedding_id, {of(_DOCUMENT)}, {uri}, (SELECT CAST(json_group_object(key, {typed}) AS BLOB)"  # noqa: S608
        f" FROM embedding_metadata m WHERE m.id = e.id AND m.key <> '{_DOCUMENT}' AND m.key <> '{_URI}' AND {plain})"
        " FROM embeddings e WHERE e.segment_id = ? AND e.id > ? ORDER BY e.id"
    ), f"float_value IS NOT NULL AND NOT {plain} AND key NOT IN ('{_DOCUMENT}', '{_URI}')"


def unreadable(folder: Path, error: sqlite3.DatabaseError) -> SourceError:
    """Return what to say about a database that turns out to be damaged."""
    return SourceError(
        f"cannot read {folder / snapshot.DATABASE}: {error}",
        hint="restore the folder from a backup, or recover the file with `sqlite3 chroma.sqlite3 .recover`",
    )


def _decoded(rows: Sequence[_Row]) -> list[dict[str, Any]]:
    # At once, since a call for each would cost as much as what it does.
    return _decode_all(b"[" + b",".join([row[4] for row in rows]) + b"]")


def _with_vectors(page: list[Record], vectors: CollectionVectors) -> list[Record]:
    """Give lost records the vectors that the index still has, in place of those of the log."""
    found = vectors.fetch([record.id for record in page])
    for record, vector in zip(page, found, strict=True):
        record.embedding = record.embedding if vector is None else vector
    return page


class FolderReader:
    """Puts records together from a copy's SQLite rows, HNSW files and log.

    Attributes:
        connection: the copied database, with the indexes that `prepare` adds.
        source: the folder that was copied; only named, in messages.
    """

    def __init__(self, connection: sqlite3.Connection, copy: Path, source: Path) -> None:
        self.connection = connection
        self.source = source
        self._copy = copy
        self._has_arrays = bool(layout.columns(connection, "embedding_metadata_array"))
        uris = connection.execute(
            "SELECT 1 FROM embedding_metadata WHERE key = ? AND string_value IS NOT NULL LIMIT 1", (_URI,)
        ).fetchone()
        self._record_query, self._is_float = _record_query(
            layout.columns(connection, "embedding_metadata"), uris=bool(uris)
        )
        self._has_floats = connection.execute(
            f"SELECT 1 FROM embedding_metadata WHERE {self._is_float} LIMIT 1"  # noqa: S608 - names of our own
        ).fetchone()
        self._vectors: tuple[UUID, CollectionVectors] | None = None

    def vectors_of(self, collection: SourceCollection) -> CollectionVectors:
        """Return what finds a collection's vectors."""
        # One at a time: the maps of ids are the only thing here that grows with a collection.
        if self._vectors is None or self._vectors[0] != collection.id:
            self._vectors = None
            self._vectors = (
                collection.id,
                CollectionVectors(self.connection, self._copy, collection),
            )
        return self._vectors[1]

    def segment(self, collection: SourceCollection) -> str | None:
        """Return the id that a collection's rows carry."""
        return catalog.segments_of(self.connection, collection.id).metadata

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order, each of at most 2,000 records and about 16 MiB.

        Args:
            collection: one of `collections()`.
            after: `Record.seq` (the row id in `embeddings`) of the last record already had.

        Raises:
            SourceError: the database turns out to be damaged.
        """
        try:
            vectors = self.vectors_of(collection)
            for rows in self._pages(collection, after):
                stored = [row[4] if row[4] != b"{}" else b"" for row in rows]
                page = [
                    Record(seq, name, None, document, metadata or None, uri)
                    for (seq, name, document, uri, _), metadata in zip(rows, _decoded(rows), strict=True)
                ]
                # What these add is not in the texts.
                added = bool(self._has_floats) and self._add_floats(page)
                if self._has_arrays:
                    added = self._add_arrays(page) or added
                found = vectors.fetch([record.id for record in page])
                for record, vector in zip(page, found, strict=True):
                    record.embedding = vector
                yield page if isinstance(found, list) else RecordPage(page, found, None if added else stored)
        except sqlite3.DatabaseError as error:
            raise unreadable(self.source, error) from error

    def _pages(self, collection: SourceCollection, after: int) -> Iterator[list[_Row]]:
        rows = self.connection.execute(self._record_query, (self.segment(collection), after))
        vector_bytes = 4 * (collection.dimension or 0)
        page: list[_Row] = []
        size = 0
        for row in rows:
            size += vector_bytes + len(row[2] or "") + len(row[3] or "") + len(row[4])
            page.append(row)
            if len(page) >= PAGE_RECORDS or size >= PAGE_BYTES:
                yield page
                page, size = [], 0
        if page:
            yield page

    def _add_floats(self, page: list[Record]) -> bool:
        """Add what JSON text from SQLite would round; return whether there was any."""
        added = False
        by_seq = {record.seq: record for record in page}
        for seq, key, value in self.connection.execute(
            f"SELECT id, key, float_value FROM embedding_metadata WHERE id BETWEEN ? AND ? AND {self._is_float}",  # noqa: S608 - names of our own
            (page[0].seq, page[-1].seq),
        ):
            if record := by_seq.get(seq):
                record.metadata = record.metadata or {}
                record.metadata[key] = value
                added = True
        return added

    def _add_arrays(self, page: list[Record]) -> bool:
        """Add the lists; return whether there was any."""
        by_seq = {record.seq: record for record in page}
        values = catalog.typed_columns(self.connection, "embedding_metadata_array", "string_value")
        rows = self.connection.execute(
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
        return bool(arrays)

    def ids(self, collection: SourceCollection) -> Iterator[list[str]]:
        """Yield the ids of a collection's records in insertion order, some thousand at a time."""
        cursor = self.connection.execute(
            "SELECT embedding_id FROM embeddings WHERE segment_id = ? ORDER BY id",
            (self.segment(collection),),
        )
        while rows := cursor.fetchmany(PAGE_RECORDS):
            yield [str(name) for (name,) in rows]

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield the records that Chroma lost, put together from its log and index files; their order is that of their ids.

        Pages are bounded like those of `records`.
        """
        vectors = self.vectors_of(collection)
        ids, _ = self.without_record(collection, vectors)
        first = int(collection.state.get("last_embedding_id") or 0) + 1
        page: list[Record] = []
        size = 0
        for record in dangers.lost_records(self.connection, collection.id, ids, first):
            size += 4 * (collection.dimension or 0) + sum(map(len, texts_of(record)))
            page.append(record)
            if len(page) >= PAGE_RECORDS or size >= PAGE_BYTES:
                yield _with_vectors(page, vectors)
                page, size = [], 0
        if page:
            yield _with_vectors(page, vectors)

    def without_record(
        self, collection: SourceCollection, vectors: CollectionVectors
    ) -> tuple[list[str], bool]:
        """Return (the ids that have a vector and no record, whether every record has a vector)."""
        lost = set(vectors.live_ids())
        complete = True
        for ids in self.ids(collection):
            complete = complete and lost.issuperset(ids)
            lost.difference_update(ids)
        return sorted(lost), complete


@contextlib.contextmanager
def reopened(copy: Path, source: Path) -> Iterator[FolderReader]:
    """Open a copy that another process has made and prepared, and keeps for as long as this lasts."""
    with contextlib.closing(snapshot.connect(copy)) as connection:
        yield FolderReader(connection, copy, source)
