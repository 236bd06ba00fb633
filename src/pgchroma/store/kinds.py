"""Kinds of vector indexes: what a collection may ask for, how the index is built, and how a query must be written to use it.

A collection asks through its metadata, which every client can send: `pgchroma:index` and `pgchroma:quantisation`. An index over
quantised vectors is asked for more candidates than wanted, and these are compared again by the vectors themselves.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
from pgvector import Bit, HalfVector
from psycopg import sql

from pgchroma.errors import InvalidArgumentError
from pgchroma.types import Collection, Float32Matrix

INDEX_KEY, QUANTISATION_KEY = "pgchroma:index", "pgchroma:quantisation"
PREFIX = "pgchroma:"
_CHOICES = {INDEX_KEY: ("hnsw", "ivfflat", "none"), QUANTISATION_KEY: ("auto", "none", "halfvec", "binary")}
# pgvector's limits for an index, in dimensions.
LONGEST = {"none": 2_000, "halfvec": 4_000, "binary": 64_000}
# The largest number that halfvec holds.
_LARGEST_HALF = 65_504.0
# What pgvector accepts.
_MAX_M, _MAX_EF_CONSTRUCTION, MAX_EF_SEARCH, _MAX_LISTS = 100, 1_000, 1_000, 32_768
_ROWS_PER_LIST = 200

_CLASSES: dict[str, dict[str, LiteralString]] = {
    "none": {"l2": "vector_l2_ops", "cosine": "vector_cosine_ops", "ip": "vector_ip_ops"},
    "halfvec": {"l2": "halfvec_l2_ops", "cosine": "halfvec_cosine_ops", "ip": "halfvec_ip_ops"},
    "binary": dict.fromkeys(("l2", "cosine", "ip"), "bit_hamming_ops"),
}
_OPERATORS: dict[str, LiteralString] = {"l2": "<->", "cosine": "<=>", "ip": "<#>"}


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of index that a collection can have.

    Attributes:
        kind: `hnsw` or `ivfflat`.
        quantisation: `none`, `halfvec` or `binary`.
        options: what else it is built with, as one comparable text.
    """

    kind: str
    quantisation: str
    options: str = ""


def check(metadata: Mapping[str, Any] | None) -> None:
    """Raise InvalidArgumentError for a setting that does not exist or has a wrong value."""
    for key, value in (metadata or {}).items():
        if not key.startswith(PREFIX):
            continue
        if key not in _CHOICES:
            raise InvalidArgumentError(f"{key!r} is not a setting; there are {', '.join(sorted(_CHOICES))}")
        if value is not None and value not in _CHOICES[key]:
            raise InvalidArgumentError(f"{key} must be one of {', '.join(_CHOICES[key])}, got: {value!r}")


def wanted(collection: Collection) -> Kind | None:
    """Return the kind of index that a collection is to have; None when it is to have none or can have none."""
    metadata = collection.metadata or {}
    kind = metadata.get(INDEX_KEY, "hnsw")
    if kind == "none" or collection.dimension is None:
        return None
    # A collection that was moved here may carry anything.
    kind = kind if kind in _CHOICES[INDEX_KEY] else "hnsw"
    quantisation = metadata.get(QUANTISATION_KEY, "auto")
    if quantisation not in LONGEST:
        quantisation = _automatic(collection.space, collection.dimension)
    if collection.dimension > LONGEST[quantisation]:
        return None
    return Kind(kind, quantisation, _options(collection, kind))


def _automatic(space: str, dimension: int) -> str:
    # Normalised coordinates always fit, and half the bytes are read twice as fast; others might be too large for 16 bits.
    return "halfvec" if space == "cosine" or dimension > LONGEST["none"] else "none"


def _options(collection: Collection, kind: str) -> str:
    if kind != "hnsw":
        return ""
    hnsw = collection.configuration["hnsw"]
    m = min(max(int(hnsw["max_neighbors"]), 2), _MAX_M)
    return f"m={m} ef_construction={min(max(int(hnsw['ef_construction']), 2 * m, 4), _MAX_EF_CONSTRUCTION)}"


def lists(rows: int) -> int:
    """Return into how many lists IVFFlat parts that many rows."""
    return min(max(rows // _ROWS_PER_LIST, 10), _MAX_LISTS)


def probes(number_of_lists: int, rows: int, ef_search: int) -> int:
    """Return how many lists a query looks into, so that it compares fifty vectors where HNSW keeps one candidate."""
    per_list = max(rows / max(number_of_lists, 1), 1)
    return min(max(math.ceil(50 * ef_search / per_list), 2), number_of_lists)


def expression(quantisation: str, space: str, dimension: int) -> sql.Composed:
    """Return what the index is over."""
    if quantisation == "none":
        return sql.SQL("embedding").format()
    size = sql.Literal(dimension)
    if quantisation == "binary":
        return sql.SQL("(binary_quantize(embedding)::bit({}))").format(size)
    vector: LiteralString = "l2_normalize(embedding)" if space == "cosine" else "embedding"
    return sql.SQL("({}::halfvec({}))").format(sql.SQL(vector), size)


def create(
    name: str, table: sql.Composable, collection: Collection, kind: Kind, low: int, high: int, rows: int
) -> sql.Composed:
    """Return the statement that builds an index over the vectors with low < seq <= high."""
    if collection.dimension is None:
        raise ValueError("a collection without a dimension has no vectors to index")
    if kind.kind == "hnsw":
        m, construction = (part.partition("=")[2] for part in kind.options.split())
        options = sql.SQL("m = {}, ef_construction = {}").format(
            sql.Literal(int(m)), sql.Literal(int(construction))
        )
    else:
        options = sql.SQL("lists = {}").format(sql.Literal(lists(rows)))
    return sql.SQL(
        "CREATE INDEX CONCURRENTLY {} ON {} USING {} ({} {}) WITH ({}) WHERE seq > {} AND seq <= {}"
    ).format(
        sql.Identifier(name),
        table,
        sql.SQL("hnsw" if kind.kind == "hnsw" else "ivfflat"),
        expression(kind.quantisation, collection.space, collection.dimension),
        sql.SQL(_CLASSES[kind.quantisation][collection.space]),
        options,
        sql.Literal(low),
        sql.Literal(high),
    )


def order(quantisation: str, space: str, dimension: int) -> sql.Composed:
    """Return the ORDER BY of a query that uses such an index; its parameter is that of `parameters`."""
    operator: LiteralString = "<~>" if quantisation == "binary" else _OPERATORS[space]
    return sql.SQL("{} {} {}").format(
        expression(quantisation, space, dimension),
        sql.SQL(operator),
        sql.Placeholder(_PARAMETERS[quantisation]),
    )


_PARAMETERS = {"none": "q", "halfvec": "q_half", "binary": "q_bits"}


def candidates(quantisation: str, count: int) -> int:
    """Return how many an index is asked for when `count` are wanted."""
    return {"none": count, "halfvec": 2 * count + 10, "binary": max(20 * count, 200)}[quantisation]


def parameters(quantisations: set[str], space: str, query: Float32Matrix) -> dict[str, Any]:
    """Return the query vector in the forms that indexes of these quantisations are asked with."""
    found: dict[str, Any] = {}
    if "halfvec" in quantisations:
        if space == "cosine":
            wide = query.astype(np.float64)
            length = float(wide @ wide) ** 0.5
            query_half = wide / length if length > 0 else wide
        else:
            query_half = np.clip(query, -_LARGEST_HALF, _LARGEST_HALF)
        found["q_half"] = HalfVector(query_half.astype(">f2"))
    if "binary" in quantisations:
        found["q_bits"] = Bit(query > 0)
    return found
