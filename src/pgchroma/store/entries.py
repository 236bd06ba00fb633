"""What a connection remembers of the collections it reads: the catalog's row, and the indexes there are.

It is kept with the connection, so that it is gone with it: a database that was restored behind a lost connection cannot be mistaken
for the one before. A statement that relies on an entry carries `GUARD`, which makes it find nothing once the entry is out of date.
"""

import json
from collections.abc import Awaitable, Callable, Sized
from dataclasses import dataclass, field
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import psycopg
from psycopg.pq import TransactionStatus

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError
from pgchroma.store import catalog, segments
from pgchroma.store.connection import Connection
from pgchroma.store.segments import RecordSegment, Segment
from pgchroma.types import Collection

_REMEMBERED = 256
GUARD: LiteralString = "(SELECT revision FROM pgchroma.collections WHERE id = %(collection)s) = %(revision)s"


@dataclass(slots=True)
class Entry:
    """A collection as it was at one revision.

    Attributes:
        sketch: bits per dimension of the records' sketches where queries may use them, otherwise 0.
        identity: of the records table, such that another one never has it: not in another database, nor in this one restored.
        pages: pages of the records table, as PostgreSQL estimates.
        statements: texts of statements that only depend on this entry, by what tells them apart.
    """

    collection: Collection
    revision: int
    sketch: int
    vectors: list[Segment]
    records: list[RecordSegment]
    pages: int = 0
    rows: int = 0
    identity: str = ""
    statements: dict[object, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> dict[str, Any]:
        """What `GUARD` refers to."""
        return {"collection": self.collection.id, "revision": self.revision}


async def fetch(connection: Connection, collection_id: UUID) -> Entry:
    """Read a collection's entry and remember it; NotFoundError."""
    query = (
        f"SELECT {catalog.COLUMNS}, c.revision, {segments.VECTORS}::text, {segments.RECORDS}::text, t.relpages, "
        f"t.reltuples::bigint, concat_ws(' ', pg_postmaster_start_time(), t.oid) {catalog.FROM} "
        "LEFT JOIN pg_class t ON t.oid = to_regclass('pgchroma_data.r' || c.table_number) WHERE c.id = %s"
    )
    row = await (await connection.execute(query, [collection_id])).fetchone()
    collection = catalog.require(catalog.collection_of(row) if row else None, collection_id)
    assert row is not None  # noqa: S101 - otherwise there was no collection
    row = row[-6:]
    entry = Entry(
        collection,
        row[0],
        # Sketches know angles only.
        collection.sketch if collection.space == "cosine" or collection.unit_length else 0,
        segments.of_vectors(json.loads(row[1] or "[]")),
        segments.of_records(json.loads(row[2] or "[]")),
        max(row[3] or 0, 0),
        max(row[4] or 0, 0),
        row[5],
    )
    remembered = connection.entries
    remembered.pop(collection_id, None)
    # A collection without tables gets them any moment.
    if collection.table_number is not None:
        remembered[collection_id] = entry
        while len(remembered) > _REMEMBERED:
            remembered.popitem(last=False)
    return entry


def forget_other(connection: Connection, collection: Collection) -> None:
    """Drop what a connection remembers of a collection if that has other tables than it had."""
    remembered = connection.entries.get(collection.id)
    if remembered is not None and remembered.collection.table_number != collection.table_number:
        del connection.entries[collection.id]


Answer = TypeVar("Answer", bound=Sized)


async def reading(
    connection: Connection,
    collection_id: UUID,
    work: Callable[[Entry], Awaitable[Answer]],
    is_empty: Callable[[Answer], bool],
) -> Answer:
    """Return the answer of `work`, which reads by an entry that may be out of date, and do it again when it was.

    Args:
        work: puts `GUARD` into every statement.
        is_empty: whether an answer, or a part of it, holds nothing, which is what an entry out of date finds.
    """
    entry = connection.entries.get(collection_id)
    while True:
        remembered = entry is not None
        if entry is None:
            entry = await fetch(connection, collection_id)
        else:
            catalog.require(entry.collection, collection_id)
        try:
            answer = await work(entry)
        except (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn, psycopg.errors.InternalError_):
            connection.entries.pop(collection_id, None)
            if not remembered or connection.pgconn.transaction_status != TransactionStatus.IDLE:
                # Within a transaction nothing more can be asked, nor would it be of another moment; whoever began it repeats it.
                raise
            # What is current says whether the collection is gone; another connection might remember it just as wrongly.
            entry = None
            continue
        except (InvalidArgumentError, InvalidDimensionError):
            if not remembered:
                raise
            current = await fetch(connection, collection_id)
            if current.revision == entry.revision:
                raise
            entry = None
            continue
        if not is_empty(answer):
            return answer
        current = await fetch(connection, collection_id)
        if current.revision == entry.revision:
            return answer
        entry = current
