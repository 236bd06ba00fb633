"""Search: kNNs over dense and sparse vectors, combined by a rank expression."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
import numpy as np
from psycopg import sql

from pgchroma import ranking
from pgchroma.errors import InvalidArgumentError
from pgchroma.ranking import EMBEDDING_KEY, Floats, Knn, Search, Seqs
from pgchroma.store import catalog, configuration, entries, reads, sparse, tables, text
from pgchroma.store.connection import Connection
from pgchroma.types import Collection, Filter, Include, Rows

_decode = msgspec.json.Decoder(dict[str, Any]).decode


@dataclass(slots=True)
class SearchRows:
    """What one search found, best first.

    Attributes:
        rows: with the columns that the search selects; metadatas whole, whichever keys are selected.
        scores: float32, one per row; without a rank the position, as upstream answers.
    """

    rows: Rows = field(default_factory=Rows)
    scores: Floats = field(default_factory=lambda: np.empty(0, np.float32))


async def search(connection: Connection, collection_id: UUID, searches: Sequence[Search]) -> list[SearchRows]:
    """Return the result of each search; all of them see the same state of the collection.

    Raises:
        InvalidArgumentError: a filter that cannot be, or a key without a sparse index.
        InvalidDimensionError: a dense query's dimension is not the collection's.
        NotFoundError: the collection does not exist.
    """
    try:
        async with connection.transaction():
            await connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            collection = await catalog.get_collection_by_id(connection, collection_id)
            entries.forget_other(connection, collection)
            return [await _one(connection, collection, entry) for entry in searches]
    except BaseException:
        # Whatever was SET in the transaction has been taken back with it.
        connection.settings.clear()
        raise


async def _one(connection: Connection, collection: Collection, entry: Search) -> SearchRows:
    include = _include(entry)
    if entry.rank is None:
        selection = Filter(where=entry.where, limit=entry.limit, offset=entry.offset)
        rows = await reads.get(connection, collection.id, selection, include)
        return SearchRows(rows, np.arange(len(rows.ids), dtype=np.float32))
    seqs, scores = await _ranked(connection, collection, entry)
    if entry.group_by is not None and len(seqs):
        found = await _rows(connection, collection, seqs, Include(metadatas=True))
        metadatas = [None if stored is None else _decode(stored) for stored in found.metadatas or ()]
        kept = ranking.keep_of_groups(entry.group_by, seqs, scores, metadatas)
        seqs, scores = seqs[kept], scores[kept]
    end = None if entry.limit is None else entry.offset + entry.limit
    seqs, scores = seqs[entry.offset : end], scores[entry.offset : end]
    return SearchRows(await _rows(connection, collection, seqs, include), scores)


def _include(entry: Search) -> Include:
    keys = entry.select
    return Include(
        documents="#document" in keys,
        embeddings="#embedding" in keys,
        metadatas=any(key == "#metadata" or not key.startswith("#") for key in keys),
    )


async def _ranked(connection: Connection, collection: Collection, entry: Search) -> tuple[Seqs, Floats]:
    assert entry.rank is not None  # noqa: S101 - the caller checked it
    wanted = ranking.knns(entry.rank)
    for knn in wanted:
        if isinstance(knn.query, dict):
            configuration.sparse_config(collection.schema, knn.key)
        elif knn.key != EMBEDDING_KEY:
            raise InvalidArgumentError(f"there are no dense vectors under {knn.key!r}")
    results = [await _nearest(connection, collection, entry, knn) for knn in wanted]
    return ranking.evaluate(entry.rank, results)


async def _nearest(
    connection: Connection, collection: Collection, entry: Search, knn: Knn
) -> tuple[Seqs, Floats]:
    selection = Filter(where=entry.where)
    if isinstance(knn.query, dict):
        condition, parameters, _ = await reads.condition(connection, collection, selection)
        pairs = await sparse.nearest(
            connection, collection, knn.key, sparse.vector(knn.query), knn.limit, condition, parameters
        )
        return (
            np.array([seq for seq, _ in pairs], dtype=np.int64),
            np.array([distance for _, distance in pairs], dtype=np.float32),
        )
    (rows,) = await reads.query(
        connection, collection.id, knn.query[np.newaxis], knn.limit, selection, Include(distances=True)
    )
    if rows.distances is None or not rows.ids:
        return np.empty(0, np.int64), np.empty(0, np.float32)
    return await _seqs(connection, collection, rows.ids), rows.distances


async def _seqs(connection: Connection, collection: Collection, ids: Sequence[str]) -> Seqs:
    """Return the insertion order of records by their ids."""
    keys = [text.id_key(record_id)[0] for record_id in ids]
    cursor = await connection.execute(
        sql.SQL("SELECT id, seq FROM {} WHERE id = ANY(%s)").format(_records(collection)), [keys]
    )
    seqs: dict[str, int] = dict(await cursor.fetchall())
    return np.array([seqs[key] for key in keys], dtype=np.int64)


async def _rows(connection: Connection, collection: Collection, seqs: Seqs, include: Include) -> Rows:
    """Return records in the order of `seqs`."""
    if not len(seqs):
        return await reads.get(connection, collection.id, Filter(ids=[]), include)
    cursor = await connection.execute(
        sql.SQL("SELECT seq, coalesce(id_full, id) FROM {} WHERE seq = ANY(%s::bigint[])").format(
            _records(collection)
        ),
        [seqs.tolist()],
    )
    ids = {seq: text.decode(record_id) for seq, record_id in await cursor.fetchall()}
    wanted = [ids[seq] for seq in seqs.tolist()]
    found = await reads.get(connection, collection.id, Filter(ids=wanted), include)
    place = {record_id: position for position, record_id in enumerate(found.ids)}
    order = [place[record_id] for record_id in wanted]
    return Rows(
        ids=wanted,
        documents=found.documents and [found.documents[position] for position in order],
        metadatas=found.metadatas and [found.metadatas[position] for position in order],
        embeddings=None if found.embeddings is None else found.embeddings[order],
    )


def _records(collection: Collection) -> sql.Identifier:
    assert collection.table_number is not None  # noqa: S101 - it has records
    return tables.records(collection.table_number)
