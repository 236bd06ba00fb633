"""Adding, upserting, updating and deleting records; each function runs inside the caller's transaction.

Two batches that touch the same ids always lock them in the same order: existing records first, by id, then new ones, by id, and
last the collection's row in the catalog, where the batch brings something new to it.
What still collides (two batches adding the same new id) fails with a race that `Database.write` repeats.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

import numpy as np
import psycopg
from psycopg import sql

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError
from pgchroma.store import (
    bulk,
    catalog,
    configuration,
    inserts,
    metadata,
    operations,
    reads,
    sketches,
    sparse,
    text,
    vectors,
    wire,
)
from pgchroma.store.connection import Connection
from pgchroma.store.inserts import Change
from pgchroma.types import Collection, Filter, Float32Matrix, Record, RecordBatch


def _fold(batch: RecordBatch, *, first_wins: bool) -> dict[str, Change]:
    """Return the batch by id key; with `first_wins` later duplicates are ignored, otherwise they are merged in order."""
    rows: Sequence[int | None]
    if batch.embeddings is None:
        rows = [None] * len(batch)
    elif batch.embedding_rows is None:
        rows = range(len(batch))
    else:
        rows = [None] * len(batch)
        for row, position in enumerate(batch.embedding_rows):
            rows[position] = row
    changes: dict[str, Change] = {}
    for position, record_id in enumerate(batch.ids):
        key, full = text.id_key(record_id)
        change = changes.get(key)
        if change is None:
            change = changes[key] = Change(key, full)
        elif first_wins:
            continue
        if rows[position] is not None:
            change.row = rows[position]
        if batch.documents is not None and batch.documents[position] is not None:
            change.document = batch.documents[position]
        if batch.uris is not None and batch.uris[position] is not None:
            change.uri = batch.uris[position]
        if batch.metadatas is not None and (patch := batch.metadatas[position]) is not None:
            change.patch = {**(change.patch or {}), **patch}
    return changes


def _check(batch: RecordBatch, *, embeddings_required: bool) -> None:
    count = len(batch)
    for column in (batch.documents, batch.metadatas, batch.uris):
        if column is not None and len(column) != count:
            raise InvalidArgumentError(
                "Inconsistent number of IDs, embeddings, documents, URIs and metadatas"
            )
    if any(not record_id for record_id in batch.ids):
        raise InvalidArgumentError("Empty ID, ID must have at least one character")
    embeddings = batch.embeddings
    rows = range(count) if batch.embedding_rows is None else batch.embedding_rows
    if embeddings_required and (embeddings is None or len(rows) < count):
        raise InvalidArgumentError("Embeddings are required")
    if embeddings is None:
        return
    if embeddings.ndim != 2 or embeddings.shape[0] != len(rows):
        raise InvalidArgumentError("Inconsistent number of IDs, embeddings, documents, URIs and metadatas")
    if not 1 <= embeddings.shape[1] <= vectors.MAX_DIMENSION:
        raise InvalidArgumentError(
            f"embeddings have {embeddings.shape[1]} dimensions; at least 1 and at most {vectors.MAX_DIMENSION} are possible"
        )
    if not np.isfinite(embeddings).all():
        raise InvalidArgumentError("Embeddings must be finite: NaN or Infinity found")


async def _target(connection: Connection, collection_id: UUID, batch: RecordBatch) -> Collection:
    """Return the collection, with its dimension fixed and checked."""
    collection = await catalog.get_collection_by_id(connection, collection_id)
    if batch.embeddings is not None and len(batch.embeddings):
        dimension = int(batch.embeddings.shape[1])
        if collection.dimension is None:
            collection = await catalog.fix_dimension(connection, collection, dimension)
        require_dimension(collection, dimension)
    return collection


def require_dimension(collection: Collection, dimension: int) -> None:
    """Raise InvalidDimensionError unless the collection's embeddings have this dimension."""
    if collection.dimension != dimension:
        raise InvalidDimensionError(
            f"Collection expecting embedding with dimension of {collection.dimension}, got {dimension}"
        )


async def _note(
    connection: Connection,
    collection: Collection,
    batch: RecordBatch,
    written: Sequence[Change],
    kinds: set[tuple[str, str]],
) -> None:
    """Note what a batch has done and, in the catalog, what it is the first to have: metadata keys, lengths of embeddings.

    At the end of every write: who waits for the collection's row has all other locks, so that no two wait for each other.
    """
    await operations.note(connection, collection.id, len(batch))
    await catalog.add_discovered_keys(connection, collection, kinds)
    moved = [change for change in written if change.row is not None]
    await sketches.note_lengths(connection, collection, inserts.embeddings_of(moved, _matrix(batch)))


async def add(connection: Connection, collection_id: UUID, batch: RecordBatch) -> None:
    """Insert the records whose ids are new; the others stay as they are."""
    _check(batch, embeddings_required=True)
    if not len(batch):
        return
    collection = await _target(connection, collection_id, batch)
    changes = _fold(batch, first_wins=True)
    cursor = await connection.execute(
        sql.SQL("SELECT id FROM {} WHERE id = ANY(%s)").format(inserts.records(collection)), [list(changes)]
    )
    for row in await cursor.fetchall():
        del changes[row[0]]
    new = list(changes.values())
    kinds = bulk.kinds([change.patch for change in new])
    await inserts.insert(connection, collection, new, _matrix(batch), kinds)
    await _note(connection, collection, batch, new, kinds)


async def upsert(connection: Connection, collection_id: UUID, batch: RecordBatch) -> None:
    """Insert new records, merge into existing ones."""
    _check(batch, embeddings_required=True)
    if not len(batch):
        return
    collection = await _target(connection, collection_id, batch)
    changes = _fold(batch, first_wins=False)
    existing = await _lock(connection, collection, changes)
    await _update(connection, collection, existing, _matrix(batch))
    new = [change for change in changes.values() if not change.seq]
    kinds = bulk.kinds(batch.metadatas or ())
    await inserts.insert(connection, collection, new, _matrix(batch), kinds)
    await _note(connection, collection, batch, list(changes.values()), kinds)


async def update(connection: Connection, collection_id: UUID, batch: RecordBatch) -> None:
    """Merge into existing records; unknown ids are ignored."""
    _check(batch, embeddings_required=False)
    collection = await catalog.get_collection_by_id(connection, collection_id)
    if batch.embeddings is not None and len(batch.embeddings) and collection.dimension is not None:
        require_dimension(collection, int(batch.embeddings.shape[1]))
    if collection.table_number is None or not len(batch):
        return
    changes = _fold(batch, first_wins=False)
    existing = await _lock(connection, collection, changes)
    await _update(connection, collection, existing, _matrix(batch))
    kinds = bulk.kinds([change.patch for change in existing])
    await _note(connection, collection, batch, existing, kinds)


async def delete(connection: Connection, collection_id: UUID, selection: Filter) -> int:
    """Delete what the filter selects, the first in insertion order where it has a limit; return how many that were."""
    collection = await catalog.get_collection_by_id(connection, collection_id)
    condition, parameters, compiler = await reads.condition(connection, collection, selection)
    if collection.table_number is None:
        return 0
    patterns = compiler.patterns
    source = inserts.records(collection)
    chosen = condition
    if selection.limit is not None:
        # Locked one by one: where others have deleted what comes first, as many of what comes after it are taken.
        victims = sql.SQL("SELECT seq FROM {} AS record WHERE {} ORDER BY seq LIMIT {} FOR UPDATE").format(
            source, condition, sql.Literal(selection.limit)
        )
        cursor = await wire.execute(connection, victims, parameters)
        parameters = {**parameters, "victims": [seq for (seq,) in await cursor.fetchall()]}
        chosen = sql.SQL("{} AND record.seq = ANY(%(victims)s)").format(condition)
    query = sql.SQL(
        "SELECT record.seq, record.vseq, {} FROM {} AS record WHERE {} ORDER BY record.id FOR UPDATE"
    ).format(sql.SQL("record.document" if patterns.compiled else "NULL"), source, chosen)
    cursor = await wire.execute(connection, query, parameters)
    rows = await cursor.fetchall()
    if patterns.compiled:
        # PostgreSQL has looked again at what changed while this waited for its lock, but cannot do so for a pattern.
        found = [(seq, document) for seq, _, document in rows]
        if not await patterns.run(lambda: patterns.still_hold(found), at_once=patterns.is_quick(found)):
            raise psycopg.errors.SerializationFailure("a document changed after it was searched")
    if rows:
        # Separate statements: they must see what other transactions committed while this one waited for the locks.
        await _delete_rows(connection, source, [row[0] for row in rows])
        await _delete_rows(connection, inserts.embeddings(collection), [row[1] for row in rows])
        await sparse.delete(connection, collection, [row[0] for row in rows])
        await operations.note(connection, collection_id, len(rows))
    return len(rows)


async def copy_records(connection: Connection, collection: Collection, records: Sequence[Record]) -> int:
    """Insert whole records whose ids are new, in the given order; psycopg.errors.UniqueViolation if one is not."""
    prepared = records if isinstance(records, bulk.Prepared) else bulk.Prepared(records)
    if not len(prepared):
        return 0
    require_dimension(collection, prepared.dimension)
    if prepared.bits != collection.sketch:
        prepared = bulk.Prepared(list(prepared), collection.sketch)
    seqs = await inserts.next_seqs(connection, len(prepared))
    columns = bulk.COLUMNS if prepared.bits else bulk.COLUMNS[:-1]
    table = sql.SQL("{} ({})").format(
        inserts.records(collection), sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    records_stream, vectors_stream = prepared.numbered(seqs)
    await inserts.copy(connection, table, records_stream.data)
    await inserts.copy(connection, inserts.embeddings(collection), vectors_stream.data)
    key = configuration.sparse_key(collection.schema)
    if key is not None:
        found = {int(seqs[place]): {key: value} for place, value in prepared.sparse(key).items()}
        await sparse.insert(connection, collection, found)
    await operations.note(connection, collection.id, len(prepared))
    # Last, as in every write.
    await catalog.add_discovered_keys(connection, collection, prepared.kinds)
    if not prepared.unit_length:
        await sketches.note_other_length(connection, collection)
    return len(prepared)


def _matrix(batch: RecordBatch) -> Float32Matrix:
    return np.empty((0, 1), np.float32) if batch.embeddings is None else batch.embeddings


async def _delete_rows(connection: Connection, table: sql.Identifier, seqs: list[int]) -> None:
    await connection.execute(sql.SQL("DELETE FROM {} WHERE seq = ANY(%s::bigint[])").format(table), [seqs])


async def _lock(
    connection: Connection, collection: Collection, changes: Mapping[str, Change]
) -> list[Change]:
    """Lock the records that exist, by id, and note their numbers and, where it is to be merged, their metadata."""
    query = sql.SQL(
        "SELECT id, seq, vseq, metadata::text, metadata_exact FROM {} WHERE id = ANY(%s) ORDER BY id FOR UPDATE"
    ).format(inserts.records(collection))
    cursor = await connection.execute(query, [list(changes)])
    existing = []
    for key, seq, vseq, stored, exact in await cursor.fetchall():
        change = changes[key]
        change.seq, change.vseq = seq, vseq
        if change.patch is not None:
            change.old_metadata = metadata.decode(stored, exact)
        existing.append(change)
    return existing


async def _update(
    connection: Connection, collection: Collection, changes: list[Change], embeddings: Float32Matrix
) -> None:
    if not changes:
        return
    moved = [change for change in changes if change.row is not None]
    new_vseqs: dict[int, int] = {}
    new_sketches: dict[int, str] = {}
    if moved:
        numbers = await inserts.next_seqs(connection, len(moved))
        seqs = np.array([change.seq for change in moved], dtype=np.int64)
        matrix = inserts.embeddings_of(moved, embeddings)
        await inserts.copy(
            connection, inserts.embeddings(collection), vectors.copy_buffer(numbers, seqs, matrix)
        )
        await _delete_rows(connection, inserts.embeddings(collection), [change.vseq for change in moved])
        new_vseqs = {change.seq: int(number) for change, number in zip(moved, numbers, strict=True)}
        if bits := collection.sketch:
            packed = sketches.encode(matrix, bits)
            new_sketches = {
                change.seq: sketches.text(row, matrix.shape[1], bits)
                for change, row in zip(moved, packed, strict=True)
            }
    merged = [
        None if change.patch is None else metadata.merge(change.old_metadata, change.patch)
        for change in changes
    ]
    encoded = [metadata.encode(value) if value else (None, None) for value in merged]
    query = sql.SQL(
        "UPDATE {} AS record SET vseq = coalesce(n.vseq, record.vseq), document = coalesce(n.document, record.document), "
        "uri = coalesce(n.uri, record.uri), "
        "metadata = CASE WHEN n.has_metadata THEN n.metadata::jsonb ELSE record.metadata END, "
        "metadata_exact = CASE WHEN n.has_metadata THEN n.exact ELSE record.metadata_exact END {} "
        "FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::bool[], %s::text[], %s::text[], %s::varbit[]) "
        "AS n (seq, vseq, document, uri, has_metadata, metadata, exact, sketch) WHERE record.seq = n.seq"
    ).format(
        inserts.records(collection),
        sql.SQL(", sketch = coalesce(n.sketch, record.sketch)" if collection.sketch else ""),
    )
    await connection.execute(
        query,
        [
            [change.seq for change in changes],
            [new_vseqs.get(change.seq) for change in changes],
            [None if change.document is None else text.encode(change.document) for change in changes],
            [None if change.uri is None else text.encode(change.uri) for change in changes],
            [change.patch is not None for change in changes],
            [stored.decode() if stored else None for stored, _ in encoded],
            [exact for _, exact in encoded],
            [new_sketches.get(change.seq) for change in changes],
        ],
    )
    await sparse.update(connection, collection, {change.seq: change.patch for change in changes})
