"""How many record operations a collection has seen, and how many of them the indexer is done with.

A write notes its operations in a row of its own, so that concurrent writers do not wait for each other. The indexer adds the
rows of a collection up once it has nothing to do there: when what no index covers is too short for one. Then the collection's
`version` goes up by one, which is what clients wait for.
"""

from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg import sql

from pgchroma.errors import NotFoundError
from pgchroma.store import catalog, kinds, segments, tables
from pgchroma.store.connection import Connection
from pgchroma.types import Collection


@dataclass(frozen=True, slots=True)
class IndexingStatus:
    """How far the indexer is with a collection.

    Attributes:
        indexed: operations it is done with.
        unindexed: operations whose vectors no index covers yet although one is due, or that it has not looked at.
    """

    indexed: int
    unindexed: int

    @property
    def total(self) -> int:
        """All operations ever."""
        return self.indexed + self.unindexed

    @property
    def progress(self) -> float:
        """From 0.0 to 1.0, which also is that of a collection without any operation."""
        return self.indexed / self.total if self.total else 1.0


async def note(connection: Connection, collection_id: UUID, count: int) -> None:
    """Note `count` record operations, within the transaction that does them."""
    if count:
        await connection.execute("INSERT INTO pgchroma.operations VALUES (%s, %s)", [collection_id, count])


async def status(connection: Connection, collection_id: UUID) -> IndexingStatus:
    """Return how far the indexer is with a collection; NotFoundError."""
    collection = await catalog.get_collection_by_id(connection, collection_id)
    tail = sql.SQL("0::bigint").format()
    if collection.table_number is not None:
        watermark = segments.watermark(await segments.load(connection, collection_id))
        tail = sql.SQL("(SELECT count(*) FROM {} WHERE seq > {})").format(
            tables.embeddings(collection.table_number), sql.Literal(watermark)
        )
    cursor = await connection.execute(
        sql.SQL(
            "SELECT c.indexed_operations, coalesce((SELECT sum(operations) FROM pgchroma.operations o "
            "WHERE o.collection_id = c.id), 0)::bigint, {} FROM pgchroma.collections c WHERE c.id = %s"
        ).format(tail),
        [collection_id],
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"Collection [{collection_id}] does not exist.")
    settled, pending, tail_rows = row
    unindexed = min(pending, tail_rows)
    return IndexingStatus(settled + pending - unindexed, unindexed)


async def settle(connection: Connection, index_minimum_rows: int) -> None:
    """Add up the operations of the collections in which there is nothing to index; for the indexer."""
    cursor = await connection.execute(
        "SELECT DISTINCT o.collection_id, c.id IS NOT NULL FROM pgchroma.operations o "
        "LEFT JOIN pgchroma.collections c ON c.id = o.collection_id"
    )
    for collection_id, exists in await cursor.fetchall():
        if not exists:
            await connection.execute(
                "DELETE FROM pgchroma.operations WHERE collection_id = %s", [collection_id]
            )
        elif await _has_nothing_to_index(connection, collection_id, index_minimum_rows):
            await connection.execute(
                "WITH done AS (DELETE FROM pgchroma.operations WHERE collection_id = %(id)s RETURNING operations) "
                "UPDATE pgchroma.collections SET indexed_operations = indexed_operations + (SELECT sum(operations) FROM done), "
                "version = version + 1 WHERE id = %(id)s AND EXISTS (SELECT FROM done)",
                {"id": collection_id},
            )


async def _has_nothing_to_index(connection: Connection, collection_id: UUID, index_minimum_rows: int) -> bool:
    # Deleted meanwhile: the next look clears its rows away.
    with suppress(NotFoundError, psycopg.errors.UndefinedTable):
        collection = await catalog.get_collection_by_id(connection, collection_id)
        return (
            collection.table_number is None
            or kinds.wanted(collection) is None
            or await _tail_is_short(connection, collection, index_minimum_rows)
        )
    return False


async def _tail_is_short(connection: Connection, collection: Collection, index_minimum_rows: int) -> bool:
    assert collection.table_number is not None  # noqa: S101 - the caller checked it
    watermark = segments.watermark(await segments.load(connection, collection.id))
    cursor = await connection.execute(
        sql.SQL("SELECT count(*) FROM (SELECT FROM {} WHERE seq > {} LIMIT {}) AS tail").format(
            tables.embeddings(collection.table_number),
            sql.Literal(watermark),
            sql.Literal(index_minimum_rows),
        )
    )
    row = await cursor.fetchone()
    return row is not None and row[0] < index_minimum_rows
