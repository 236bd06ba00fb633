"""Inserting new records: while PostgreSQL takes their vectors in, the rest of them is encoded here.

Both take about as long as each other, each on a core of its own.
"""

import itertools
import struct
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.pq.abc import PGconn
from psycopg.waiting import Ready, Wait

from pgchroma.store import bulk, sketches, sparse, tables, text, vectors
from pgchroma.store.connection import Connection
from pgchroma.types import Collection, Float32Matrix

_TWO_NUMBERS = struct.Struct("!hiqiq").pack
# Handed to libpq at a time; what the socket does not take of it is moved about in memory.
_PORTION_BYTES = 128 * 1024
# Encoded between two looks at whether the socket takes more; PostgreSQL needs longer than that for what the socket holds.
_STEP = 100


@dataclass(slots=True)
class Change:
    """What one batch does to one id, its duplicates folded together."""

    key: str
    full: str | None
    row: int | None = None
    document: str | None = None
    uri: str | None = None
    patch: dict[str, Any] | None = None
    seq: int = 0
    vseq: int = 0
    old_metadata: dict[str, Any] | None = None


def records(collection: Collection) -> sql.Identifier:
    """Return the records table of a collection that has one."""
    assert collection.table_number is not None  # noqa: S101 - callers checked it
    return tables.records(collection.table_number)


def embeddings(collection: Collection) -> sql.Identifier:
    """Return the vectors table of a collection that has one."""
    assert collection.table_number is not None  # noqa: S101 - callers checked it
    return tables.embeddings(collection.table_number)


async def next_seqs(connection: Connection, count: int) -> NDArray[np.int64]:
    """Return so many numbers that no other record has."""
    cursor = await connection.execute(
        "SELECT string_agg(int8send(nextval('pgchroma.record_seqs')), '') FROM generate_series(1, %s)",
        [count],
        binary=True,
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - an aggregate always has a row
    # In one value: a row each would take ten times as long to read.
    return np.frombuffer(row[0] or b"", dtype=">i8").astype(np.int64)


def embeddings_of(changes: Sequence[Change], matrix: Float32Matrix) -> Float32Matrix:
    """Return the embeddings of changes that each have one: rows of the batch's matrix, or that itself."""
    rows = np.array([change.row for change in changes], dtype=np.int64)
    if len(rows) == len(matrix) and np.array_equal(rows, np.arange(len(rows))):
        return matrix
    return matrix[rows]


async def insert(
    connection: Connection,
    collection: Collection,
    changes: Sequence[Change],
    matrix: Float32Matrix,
    kinds: set[tuple[str, str]],
) -> None:
    """Insert records whose ids are new.

    Args:
        matrix: shape (n, dimension), the embeddings of the batch; each change names its row.
        kinds: the (metadata key, value type) pairs that occur in the changes, or more.
    """
    if not changes:
        return
    seqs = await next_seqs(connection, len(changes))
    for change, seq in zip(changes, seqs.tolist(), strict=True):
        change.seq = seq
    matrix = embeddings_of(changes, matrix)
    stream: list[bytes] = []
    await _copy_beside(
        connection,
        embeddings(collection),
        vectors.copy_buffer(seqs, seqs, matrix),
        _encoding(changes, matrix, collection.sketch, kinds, stream),
    )
    columns = sql.SQL("seq, vseq, id, id_full, document, metadata, metadata_exact, uri{}").format(
        sql.SQL(", sketch" if collection.sketch else "")
    )
    await copy(connection, sql.SQL("{} ({})").format(records(collection), columns), b"".join(stream))
    await sparse.insert(connection, collection, {change.seq: change.patch for change in changes})


def _encoding(
    changes: Sequence[Change],
    matrix: Float32Matrix,
    bits: int,
    kinds: set[tuple[str, str]],
    stream: list[bytes],
) -> Iterator[None]:
    """Write the records into `stream` as COPY BINARY, a few at each step."""
    count = 9 if bits else 8
    stream.append(vectors.COPY_HEADER)
    # By id, so that batches with the same new ids wait for each other in the same order.
    ordered = sorted(range(len(changes)), key=lambda place: changes[place].key)
    for start in range(0, len(ordered), _STEP):
        places = ordered[start : start + _STEP]
        part = [changes[place] for place in places]
        stored = bulk.metadata_fields([change.patch for change in part], kinds)
        sketched = sketches.copy_fields(matrix[places], bits) if bits else itertools.repeat(b"")
        for change, fields, sketch in zip(part, stored, sketched, strict=False):
            stream += (
                _TWO_NUMBERS(count, 8, change.seq, 8, change.seq),
                bulk.field(change.key.encode()),
                bulk.NULL if change.full is None else bulk.field(change.full.encode()),
                bulk.NULL if change.document is None else bulk.field(text.encode_utf8(change.document)),
                fields,
                bulk.NULL if change.uri is None else bulk.field(text.encode_utf8(change.uri)),
                sketch,
            )
        yield
    stream.append(vectors.COPY_TRAILER)


async def copy(connection: Connection, table: sql.Composable, buffer: bytes | memoryview) -> None:
    """Send a whole COPY BINARY stream."""
    await _copy_beside(connection, table, buffer, iter(()))


async def _copy_beside(
    connection: Connection, table: sql.Composable, buffer: bytes | memoryview, work: Iterator[None]
) -> None:
    """Send a whole COPY BINARY stream, as much as PostgreSQL takes after each step of `work`, which goes on meanwhile."""
    rest = memoryview(buffer)
    async with (
        connection.cursor() as cursor,
        cursor.copy(sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table)) as sending,
    ):
        # psycopg waits until each piece of 32 KB is sent; libpq itself can be asked to send what the socket takes.
        pgconn = connection.pgconn
        for _ in work:
            rest = _sent(pgconn, rest)
        while len(rest) > len(vectors.COPY_TRAILER):
            await connection.wait(_flushed(pgconn))
            rest = _sent(pgconn, rest)
        # Never nothing: psycopg would take the stream for one without a beginning.
        await sending.write(bytes(rest))


def _sent(pgconn: PGconn, rest: memoryview) -> memoryview:
    """Send of a stream what the socket takes, and return what is left.

    All but the trailer: PostgreSQL inserts at each thousandth row, while the rest is still being encoded.
    """
    while pgconn.flush() == 0 and len(rest) > len(vectors.COPY_TRAILER):
        portion = min(_PORTION_BYTES, len(rest) - len(vectors.COPY_TRAILER))
        pgconn.put_copy_data(rest[:portion])
        rest = rest[portion:]
    return rest


def _flushed(pgconn: PGconn) -> Generator[Wait, Ready | int, None]:
    """Wait until the socket has taken what was handed to libpq."""
    while pgconn.flush():
        yield Wait.W
