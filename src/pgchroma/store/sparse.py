"""Sparse vectors: what they may be, and the table that finds the nearest ones.

A record's sparse vector is part of its metadata and stays there. Where the schema indexes its key, a copy goes to
`pgchroma_data.s<n>`: the dimensions as an array under a GIN index, which finds the records that share one with a query, and the
values as pgvector's sparsevec, whose inner product ranks them exactly. A sparsevec has 10^9 dimensions, a Chroma index runs to
2^32 - 1 (Chroma's BM25 hashes words into half of that), so five columns hold a fifth of the dimensions each; the empty ones
cost nothing.
"""

import itertools
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import configuration, tables, vectors, wire
from pgchroma.store.connection import Connection
from pgchroma.types import Collection

TYPE_KEY, TYPE_NAME = "#type", "sparse_vector"
MAX_INDEX = 2**32 - 1
# pgvector's limit for the values of one sparsevec.
MAX_VALUES = 16_000
_DIMENSIONS = 1_000_000_000
_COLUMNS = tuple(f"e{part}" for part in range(MAX_INDEX // _DIMENSIONS + 1))
_BORDERS = np.arange(len(_COLUMNS) + 1) * _DIMENSIONS
# Search reads the entries that wait for the index one by one; this keeps them few. In KiB, 64 is the least.
_PENDING_KIB = 1_024
_BEYOND_FLOAT32 = 3.4028235677973366e38

_FIELDS = struct.Struct("!hiqi").pack
_LENGTH = struct.Struct("!i").pack
_ARRAY = struct.Struct("!iiIii").pack
_VECTOR = struct.Struct("!iii").pack
_NULL = b"\xff\xff\xff\xff"
_INT8_OID = 20

SparseJson = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class SparseVector:
    """The entries of a sparse vector that are not zero as float32.

    Attributes:
        indices: shape (n,), ascending.
        values: float32, shape (n,).
    """

    indices: NDArray[np.int64]
    values: NDArray[np.float32]


def check(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a sparse vector as it is kept and answered: `#type`, `indices`, `values` and, where given, `tokens`.

    Raises:
        InvalidArgumentError: another type, lists of different length, indices that are not ascending or out of range, values
            that are no finite float32, or too many of them; `name` says whose.
    """

    def invalid(reason: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"Invalid sparse vector in {name}: {reason}")

    if value.get(TYPE_KEY, TYPE_NAME) != TYPE_NAME:
        raise invalid(f"{TYPE_KEY} must be '{TYPE_NAME}', got: {_shown(value[TYPE_KEY])}")
    indices, values, tokens = value.get("indices"), value.get("values"), value.get("tokens")
    if not isinstance(indices, list) or not isinstance(values, list):
        raise invalid("indices and values must be lists")
    if len(indices) != len(values):
        raise invalid(f"{len(indices)} indices but {len(values)} values")
    if len(indices) > MAX_VALUES:
        raise invalid(f"{len(indices)} values; at most {MAX_VALUES} are possible")
    last = -1
    for position, index in enumerate(indices):
        if type(index) is not int or not 0 <= index <= MAX_INDEX:
            raise invalid(
                f"indices must be integers from 0 to {MAX_INDEX}, got {_shown(index)} at {position}"
            )
        if index <= last:
            raise invalid(f"indices must be strictly ascending, got {index} after {last} at {position}")
        last = index
    for position, entry in enumerate(values):
        if type(entry) not in (int, float) or not _is_finite(entry):
            raise invalid(f"values must be finite numbers (as float32), got {_shown(entry)} at {position}")
    result = {TYPE_KEY: TYPE_NAME, "indices": indices, "values": [float(entry) for entry in values]}
    if tokens is not None:
        if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
            raise invalid("tokens must be a list of strings")
        if len(tokens) != len(indices):
            raise invalid(f"{len(indices)} indices but {len(tokens)} tokens")
        result["tokens"] = tokens
    return result


def _is_finite(value: float) -> bool:
    # Half a unit beyond the largest float32 still rounds down to it. An integer may be too large for any float.
    return -_BEYOND_FLOAT32 < value < _BEYOND_FLOAT32


def _shown(value: object) -> str:
    # Python refuses to write integers of more than a few thousand digits.
    text = "a huge integer" if isinstance(value, int) and abs(value) > 10**40 else repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def vector(value: SparseJson) -> SparseVector:
    """Return the entries of a checked sparse vector."""
    values = np.array(value["values"], dtype=np.float32)
    kept = values != 0
    return SparseVector(np.array(value["indices"], dtype=np.int64)[kept], values[kept])


def table(number: int) -> sql.Identifier:
    """Return the name of a collection's table of sparse vectors."""
    return sql.Identifier(tables.SCHEMA, f"s{number}")


def create(number: int) -> list[sql.Composed]:
    """Return the statements that create the table."""
    columns = sql.SQL(", ").join(
        sql.SQL("{} sparsevec({})").format(sql.Identifier(column), sql.Literal(_DIMENSIONS))
        for column in _COLUMNS
    )
    return [
        sql.SQL("CREATE TABLE {} (record_seq bigint PRIMARY KEY, dims bigint[] NOT NULL, {})").format(
            table(number), columns
        ),
        sql.SQL(
            "CREATE INDEX {} ON {} USING gin (dims) WITH (fastupdate = on, gin_pending_list_limit = {})"
        ).format(sql.Identifier(f"s{number}_dims"), table(number), sql.Literal(_PENDING_KIB)),
    ]


async def insert(
    connection: Connection, collection: Collection, patches: Mapping[int, Mapping[str, Any] | None]
) -> None:
    """Index the sparse vectors in the metadata of new records; `patches` by the records' seq."""
    key = configuration.sparse_key(collection.schema)
    if key is None:
        return
    found = {seq: patch[key] for seq, patch in patches.items() if patch and isinstance(patch.get(key), dict)}
    await _copy(connection, collection, found)


async def update(
    connection: Connection, collection: Collection, patches: Mapping[int, Mapping[str, Any] | None]
) -> None:
    """Index anew the records whose sparse vector a metadata patch replaces or deletes; `patches` by the records' seq."""
    key = configuration.sparse_key(collection.schema)
    if key is None:
        return
    changed = {seq: patch[key] for seq, patch in patches.items() if patch is not None and key in patch}
    await delete(connection, collection, list(changed))
    await _copy(
        connection, collection, {seq: value for seq, value in changed.items() if isinstance(value, dict)}
    )


async def delete(connection: Connection, collection: Collection, seqs: Sequence[int]) -> None:
    """Take records out of the index."""
    if not seqs or collection.table_number is None or configuration.sparse_key(collection.schema) is None:
        return
    await connection.execute(
        sql.SQL("DELETE FROM {} WHERE record_seq = ANY(%s::bigint[])").format(table(collection.table_number)),
        [list(seqs)],
    )


async def _copy(connection: Connection, collection: Collection, found: Mapping[int, SparseJson]) -> None:
    if not found or collection.table_number is None:
        return
    entries = ((seq, vector(value)) for seq, value in found.items())
    rows = [_row(seq, value) for seq, value in entries if len(value.indices)]
    async with (
        connection.cursor() as cursor,
        cursor.copy(
            sql.SQL("COPY {} FROM STDIN (FORMAT BINARY)").format(table(collection.table_number))
        ) as copy,
    ):
        await copy.write(b"".join([vectors.COPY_HEADER, *rows, vectors.COPY_TRAILER]))


def _row(seq: int, entries: SparseVector) -> bytes:
    count = len(entries.indices)
    items = np.empty(count, dtype=[("length", ">i4"), ("value", ">i8")])
    items["length"], items["value"] = 8, entries.indices
    array = _ARRAY(1, 0, _INT8_OID, count, 1) + items.tobytes()
    parts = [_FIELDS(2 + len(_COLUMNS), 8, seq, len(array)), array]
    borders = np.searchsorted(entries.indices, _BORDERS)
    for part, (low, high) in enumerate(itertools.pairwise(borders)):
        if low == high:
            parts.append(_NULL)
            continue
        data = _binary(entries.indices[low:high] - part * _DIMENSIONS, entries.values[low:high])
        parts += [_LENGTH(len(data)), data]
    return b"".join(parts)


def _binary(indices: NDArray[np.int64], values: NDArray[np.float32]) -> bytes:
    """Return pgvector's binary form of a sparsevec."""
    return (
        _VECTOR(_DIMENSIONS, len(indices), 0)
        + indices.astype(">i4").tobytes()
        + values.astype(">f4").tobytes()
    )


def _text(indices: NDArray[np.int64], values: NDArray[np.float32]) -> str:
    entries = ",".join(
        f"{index + 1}:{value}" for index, value in zip(indices.tolist(), values.tolist(), strict=True)
    )
    return f"{{{entries}}}/{_DIMENSIONS}"


async def nearest(
    connection: Connection,
    collection: Collection,
    key: str,
    query: SparseVector,
    k: int,
    condition: sql.Composed,
    parameters: Mapping[str, Any],
) -> list[tuple[int, float]]:
    """Return (seq, distance) of the k records nearest to `query`, nearest first; the distance is 1 - inner product.

    Only records that share a dimension with the query are found. Where the index is told to weigh by BM25, each value of the
    query is first multiplied by its dimension's inverse document frequency.

    Args:
        condition: over `record`, the collection's records; with `parameters` bound.
    """
    number = collection.table_number
    if number is None or not len(query.indices):
        return []
    if configuration.sparse_config(collection.schema, key).get("bm25"):
        query = await _weighed(connection, number, query)
    terms, bound = _distance(query)
    statement = sql.SQL(
        "SELECT sparse.record_seq, 1 + ({terms}) AS distance FROM {records} AS record JOIN {sparse} AS sparse "
        "ON record.seq = sparse.record_seq WHERE sparse.dims && %(sparse_dims)s::bigint[] AND ({condition}) "
        "ORDER BY distance, sparse.record_seq LIMIT %(sparse_k)s"
    ).format(terms=terms, sparse=table(number), records=tables.records(number), condition=condition)
    bound |= {"sparse_dims": query.indices.tolist(), "sparse_k": k}
    cursor = await wire.execute(connection, statement, {**parameters, **bound})
    return [(int(seq), float(distance)) for seq, distance in await cursor.fetchall()]


def _distance(query: SparseVector) -> tuple[sql.Composed, dict[str, Any]]:
    """Return the negative inner product with `query` as SQL, and its parameters."""
    terms, bound = [], {}
    borders = np.searchsorted(query.indices, _BORDERS)
    for part, (low, high) in enumerate(itertools.pairwise(borders)):
        if low == high:
            continue
        name = f"sparse_{part}"
        bound[name] = _text(query.indices[low:high] - part * _DIMENSIONS, query.values[low:high])
        terms.append(
            sql.SQL("coalesce(sparse.{} <#> {}::sparsevec, 0)").format(
                sql.Identifier(_COLUMNS[part]), sql.Placeholder(name)
            )
        )
    return sql.SQL(" + ").join(terms), bound


async def _weighed(connection: Connection, number: int, query: SparseVector) -> SparseVector:
    """Return the query with each value times ln((n - n_t + 0.5) / (n_t + 0.5) + 1), of n records n_t having the dimension."""
    statement = sql.SQL(
        "SELECT (SELECT count(*) FROM {}), ARRAY(SELECT (SELECT count(*) FROM {} WHERE dims @> ARRAY[d]) "
        "FROM unnest(%s::bigint[]) WITH ORDINALITY AS wanted (d, place) ORDER BY place)"
    ).format(tables.records(number), table(number))
    cursor = await connection.execute(statement, [query.indices.tolist()])
    row = await cursor.fetchone()
    total, having = row if row else (0, [])
    present = np.array(having, dtype=np.float32)
    weights = np.log1p((np.float32(total) - present + np.float32(0.5)) / (present + np.float32(0.5)))
    return SparseVector(query.indices, (query.values * weights).astype(np.float32))
