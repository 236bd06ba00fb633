"""Reading whole collections out in PostgreSQL's own binary form, chunk by chunk, in one snapshot, and writing such chunks back.

A chunk holds `rows` tuples of COPY BINARY of the records table and as many of the vectors table, in insertion order, with the
numbers `seq`, `vseq` and `record_seq` set to zero: they mean something in one database only, and without them the same records
always are the same bytes. PostgreSQL sends each tuple as one message, so that no tuple has to be taken apart here.
"""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgchroma.errors import SourceChangedError
from pgchroma.store import tables, vectors
from pgchroma.types import Float32Matrix

MAX_ROWS: Final = 8_192
# Of records, and of vectors; a chunk is cut at whichever comes first.
MAX_BYTES: Final = 16 * 2**20
_HEADER: Final = len(vectors.COPY_HEADER)
# Where the two numbers stand in a tuple: int16 fields, int32 length, int64, int32 length, int64.
_FIRST, _SECOND = slice(6, 14), slice(18, 26)
# Fields, two numbers and the vector's length word, dimension and unused word around the floats.
_AROUND_VECTOR: Final = 34
_NINE_FIELDS: Final = b"\x00\x09"


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some records in a row.

    Attributes:
        lengths: bytes of each tuple in `records`, uint32, shape (rows,).
        records, vectors: tuples of COPY BINARY without its header and trailer, numbers set to zero.
        last_seq: of the last record, in the database it was read from; 0 when read from a file.
    """

    lengths: NDArray[np.uint32]
    records: bytes
    vectors: bytes
    last_seq: int = 0

    @property
    def rows(self) -> int:
        """How many records it holds."""
        return len(self.lengths)


def _offsets(lengths: NDArray[np.uint32]) -> NDArray[np.int64]:
    return (
        np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))
        if len(lengths)
        else np.empty(0, np.int64)
    )


def _big_endian(seqs: NDArray[np.int64]) -> NDArray[np.uint8]:
    return seqs.astype(">i8").view(np.uint8).reshape(-1, 8)


def _numbered_records(chunk: Chunk, seqs: NDArray[np.int64]) -> bytes:
    """Return the tuples of records with their numbers set."""
    records = np.frombuffer(bytearray(chunk.records), dtype=np.uint8)
    starts = _offsets(chunk.lengths)[:, None]
    for place in (_FIRST, _SECOND):
        records[starts + np.arange(place.start, place.stop)] = _big_endian(seqs)
    return records.tobytes()


def _numbered_vectors(chunk: Chunk, seqs: NDArray[np.int64]) -> bytes:
    """Return the tuples of vectors with their numbers set."""
    tuples = np.frombuffer(bytearray(chunk.vectors), dtype=np.uint8).reshape(chunk.rows, -1)
    for place in (_FIRST, _SECOND):
        tuples[:, place] = _big_endian(seqs)
    return tuples.tobytes()


def embeddings_of(chunk: Chunk) -> Float32Matrix:
    """Return a chunk's embeddings, shape (rows, dimension)."""
    tuples = np.frombuffer(chunk.vectors, dtype=np.uint8).reshape(chunk.rows, -1)
    return np.ascontiguousarray(tuples[:, _AROUND_VECTOR:]).view(">f4").astype(np.float32)


def copy_streams(
    chunk: Chunk, seqs: NDArray[np.int64], further: Sequence[bytes] | None
) -> tuple[bytes, bytes]:
    """Return COPY BINARY streams for a records and a vectors table.

    Args:
        seqs: what numbers both, shape (rows,).
        further: a ninth field for each record, in COPY's form.
    """
    records, embeddings = _numbered_records(chunk, seqs), _numbered_vectors(chunk, seqs)
    if further is not None:
        ends = np.cumsum(chunk.lengths, dtype=np.int64).tolist()
        parts: list[bytes] = []
        begin = 0
        for end, field in zip(ends, further, strict=True):
            # The number of fields stands before the first.
            parts += (_NINE_FIELDS, records[begin + 2 : end], field)
            begin = end
        records = b"".join(parts)
    return (
        vectors.COPY_HEADER + records + vectors.COPY_TRAILER,
        vectors.COPY_HEADER + embeddings + vectors.COPY_TRAILER,
    )


def _tuples(connection: psycopg.Connection[Any], query: sql.Composed) -> Iterator[bytes]:
    with connection.cursor() as cursor, cursor.copy(query) as copy:
        first = True
        for message in copy:
            block = bytes(message)
            if first:
                block, first = block[_HEADER:], False
            # The trailer may stand alone or, where there is no tuple, behind the header.
            if block and block != vectors.COPY_TRAILER:
                yield block


def read(
    records: psycopg.Connection[Any],
    embeddings: psycopg.Connection[Any],
    number: int,
    dimension: int,
    *,
    after_seq: int = 0,
    sizes: Sequence[int] | None = None,
) -> Iterator[Chunk]:
    """Yield a collection's records in insertion order.

    Args:
        records, embeddings: two connections in transactions with the same snapshot.
        after_seq: start after this record.
        sizes: how many records each chunk shall hold, instead of what fits.

    Raises:
        SourceChangedError: a record has no vector, or the tables were dropped.
    """
    limit = max(1, min(MAX_ROWS, MAX_BYTES // (4 * dimension)))
    wanted = iter(sizes) if sizes is not None else None
    query = sql.SQL(
        "COPY (SELECT seq, vseq, id, id_full, document, metadata, metadata_exact, uri FROM {} WHERE seq > {} ORDER BY seq) "
        "TO STDOUT (FORMAT BINARY)"
    ).format(tables.records(number), sql.Literal(after_seq))
    blocks: list[bytes] = []
    size = 0
    rows = limit if wanted is None else next(wanted, limit)
    try:
        for block in _tuples(records, query):
            blocks.append(block)
            size += len(block)
            if len(blocks) >= rows or (wanted is None and size >= MAX_BYTES):
                chunk = _chunk(embeddings, number, dimension, blocks, after_seq)
                yield chunk
                after_seq, blocks, size = chunk.last_seq, [], 0
                rows = limit if wanted is None else next(wanted, limit)
        if blocks:
            yield _chunk(embeddings, number, dimension, blocks, after_seq)
    except psycopg.errors.UndefinedTable as error:
        raise SourceChangedError(
            "a collection was deleted while it was read", hint="run the command again"
        ) from error


def _chunk(
    connection: psycopg.Connection[Any], number: int, dimension: int, blocks: list[bytes], after_seq: int
) -> Chunk:
    lengths = np.array([len(block) for block in blocks], dtype=np.uint32)
    last = int.from_bytes(blocks[-1][_FIRST], "big")
    # In one message, because a message for each vector costs more than the vector.
    query = sql.SQL(
        "SELECT string_agg(vector_send(vector.embedding), ''::bytea ORDER BY record.seq) "
        "FROM {} AS record JOIN {} AS vector ON vector.seq = record.vseq WHERE record.seq > %s AND record.seq <= %s"
    ).format(tables.records(number), tables.embeddings(number))
    with connection.cursor(binary=True) as cursor:
        row = cursor.execute(query, [after_seq, last]).fetchone()
    found = bytes(row[0] or b"") if row else b""
    size = 4 + 4 * dimension
    if len(found) != len(blocks) * size:
        raise SourceChangedError(
            f"a record up to number {last} of table r{number} has no vector of {dimension} dimensions",
            hint="run `pgchroma verify database`; the collection is damaged",
        )
    tuples = np.zeros((len(blocks), _AROUND_VECTOR - 4 + size), np.uint8)
    tuples[:, : _AROUND_VECTOR - 4] = np.frombuffer(
        struct.pack("!hiqiqi", 3, 8, 0, 8, 0, size), dtype=np.uint8
    )
    tuples[:, _AROUND_VECTOR - 4 :] = np.frombuffer(found, dtype=np.uint8).reshape(len(blocks), size)
    raw = Chunk(lengths, b"".join(blocks), b"", last)
    return Chunk(lengths, _numbered_records(raw, np.zeros(len(blocks), np.int64)), tuples.tobytes(), last)


def fingerprint(connection: psycopg.Connection[Any], number: int, after_seq: int, last_seq: int) -> str:
    """Return a text that changes when any record with a number in (after_seq, last_seq] is written; reads no content.

    Every write of a record, of its vector too, makes a new version of its row in the records table.
    """
    row = connection.execute(
        sql.SQL(
            "SELECT count(*), coalesce(sum(hash_record_extended(ROW(int8send(hash_record_extended("
            "ROW(seq, vseq, xmin::text), 0))), 0)), 0) FROM {} WHERE seq > %s AND seq <= %s"
        ).format(tables.records(number)),
        [after_seq, last_seq],
    ).fetchone()
    assert row is not None  # noqa: S101 - an aggregate has one row
    return f"{row[0]}:{row[1]}"


@dataclass(frozen=True, slots=True)
class Catalogued:
    """One collection as the catalog has it, JSON as PostgreSQL's own text so that nothing is lost on the way."""

    id: str
    tenant: str
    database: str
    name: str
    metadata: str | None
    metadata_exact: str | None
    configuration: str
    schema: str
    dimension: int | None
    table_number: int | None

    @property
    def path(self) -> str:
        """`tenant/database/name`."""
        return f"{self.tenant}/{self.database}/{self.name}"


class Snapshot:
    """Two connections that see one moment of the database, for as long as the context lasts."""

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo

    def __enter__(self) -> "Snapshot":
        self.records: psycopg.Connection[Any] = psycopg.connect(self._conninfo)
        self.embeddings: psycopg.Connection[Any] = psycopg.connect(self._conninfo)
        self.records.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = self.records.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None  # noqa: S101 - a SELECT without FROM has one row
        self.embeddings.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        self.embeddings.execute(sql.SQL("SET TRANSACTION SNAPSHOT {}").format(sql.Literal(row[0])))
        for connection in (self.records, self.embeddings):
            # One waits while the other works, and both while a chunk is written.
            connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        # A chunk's few thousand vectors are looked up one by one; the planner might read the whole table for each chunk.
        self.embeddings.execute("SET LOCAL enable_hashjoin = off")
        self.embeddings.execute("SET LOCAL enable_mergejoin = off")
        return self

    def __exit__(self, *_exception: object) -> None:
        self.embeddings.close()
        self.records.close()

    def collections(self, tenant: str, database: str | None, name: str | None) -> list[Catalogued]:
        """Return the collections of a tenant, of one of its databases, or one of them, by path."""
        rows = self.records.execute(
            "SELECT c.id::text, d.tenant, d.name, c.name, c.metadata::text, c.metadata_exact, c.configuration::text, c.schema::text, "
            "c.dimension, c.table_number FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
            "WHERE d.tenant = %(tenant)s AND (%(database)s::text IS NULL OR d.name = %(database)s) "
            "AND (%(name)s::text IS NULL OR c.name = %(name)s) ORDER BY d.name, c.name",
            {"tenant": tenant, "database": database, "name": name},
        ).fetchall()
        return [Catalogued(*row) for row in rows]

    def databases(self, tenant: str, database: str | None) -> list[str]:
        """Return the names of a tenant's databases, or the one if it exists."""
        rows = self.records.execute(
            "SELECT name FROM pgchroma.databases WHERE tenant = %(tenant)s AND (%(database)s::text IS NULL OR name = %(database)s) "
            "ORDER BY name",
            {"tenant": tenant, "database": database},
        ).fetchall()
        return [row[0] for row in rows]

    def tokens(self, tenant: str) -> list[dict[str, Any]]:
        """Return a tenant's tokens as they are stored: of the secrets only their hashes."""
        rows = self.records.execute(
            "SELECT to_jsonb(t) - 'last_used_at' FROM pgchroma.tokens t WHERE tenant = %s ORDER BY id",
            [tenant],
        ).fetchall()
        return [row[0] for row in rows]
