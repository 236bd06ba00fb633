"""Chroma's rank expressions: what they are, and the scores they come to. No HTTP and no SQL in here.

The meaning is that of upstream's evaluator. An expression has a value for some records (its support) and perhaps one for all
others (its default). A kNN supports the `limit` nearest records, with their distances or, with `return_rank`, their positions
from 0; its default is the `default` it was given, if any. A constant supports nothing and is the default everywhere. An operation
of two expressions is supported where either is, if the other has a default to stand in, so that without defaults only records
that both support remain. Numbers are float32, lower is better.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgchroma.types import Metadata

Floats: TypeAlias = NDArray[np.float32]
Seqs: TypeAlias = NDArray[np.int64]

EMBEDDING_KEY = "#embedding"
SCORE_KEY = "#score"


@dataclass(frozen=True, slots=True)
class Knn:
    """The nearest records to a query.

    Attributes:
        query: a dense vector, float32 of shape (dimension,), or a sparse one as JSON.
        key: `#embedding`, or the metadata key of sparse vectors.
        limit: how many records at most.
        default: value of the records that are not among them; None leaves them out.
        return_rank: the value is the position, not the distance.
    """

    query: Floats | dict[str, Any]
    key: str
    limit: int
    default: float | None = None
    return_rank: bool = False


@dataclass(frozen=True, slots=True)
class Constant:
    """The same for every record."""

    value: float


@dataclass(frozen=True, slots=True)
class Operation:
    """A function of other expressions: `abs`, `exp`, `log` of one, `sub`, `div` of two, `sum`, `mul`, `max`, `min` of any."""

    name: str
    operands: tuple["Expression", ...]


Expression: TypeAlias = Knn | Constant | Operation


@dataclass(frozen=True, slots=True)
class Aggregate:
    """Which records of a group stay: the `k` with the smallest, or largest, values of `keys`, compared in turn."""

    keys: tuple[str, ...]
    k: int
    largest: bool


@dataclass(frozen=True, slots=True)
class GroupBy:
    """Records with the same values of `keys` form a group."""

    keys: tuple[str, ...]
    aggregate: Aggregate


@dataclass(frozen=True, slots=True)
class Search:
    """One search of a request.

    Attributes:
        rank: None for insertion order.
        select: what to return beside the ids: `#document`, `#embedding`, `#metadata`, `#score` and metadata keys.
    """

    where: dict[str, Any] | None = None
    rank: Expression | None = None
    group_by: GroupBy | None = None
    limit: int | None = None
    offset: int = 0
    select: tuple[str, ...] = ()


def knns(expression: Expression) -> list[Knn]:
    """Return an expression's kNNs in the order in which `evaluate` takes their results."""
    if isinstance(expression, Knn):
        return [expression]
    if isinstance(expression, Constant):
        return []
    return [knn for operand in expression.operands for knn in knns(operand)]


@dataclass(frozen=True, slots=True)
class _Domain:
    """The values of an expression: `values[i]` for the record `seqs[i]` (ascending), `default` for all others."""

    seqs: Seqs = field(default_factory=lambda: np.empty(0, np.int64))
    values: Floats = field(default_factory=lambda: np.empty(0, np.float32))
    default: np.float32 | None = None

    def at(self, seqs: Seqs) -> Floats:
        """Return the values of `seqs`, each of which is in the support or has the default."""
        result = np.full(len(seqs), 0 if self.default is None else self.default, np.float32)
        places = np.searchsorted(self.seqs, seqs)
        known = places < len(self.seqs)
        known[known] = self.seqs[places[known]] == seqs[known]
        result[known] = self.values[places[known]]
        return result


_Binary: TypeAlias = Callable[[Any, Any], Any]
_UNARY: dict[str, Callable[[Any], Any]] = {"abs": np.abs, "exp": np.exp, "log": np.log}
_BINARY: dict[str, _Binary] = {"sub": np.subtract, "div": np.divide}
# fmax and fmin, unlike maximum and minimum, prefer a number to NaN, as Rust's do.
_FOLDED: dict[str, _Binary] = {"sum": np.add, "mul": np.multiply, "max": np.fmax, "min": np.fmin}

UNARY, BINARY, FOLDED = tuple(_UNARY), tuple(_BINARY), tuple(_FOLDED)


def _combine(function: _Binary, left: _Domain, right: _Domain) -> _Domain:
    if left.default is not None and right.default is not None:
        seqs, default = np.union1d(left.seqs, right.seqs), np.float32(function(left.default, right.default))
        return _Domain(seqs, function(left.at(seqs), right.at(seqs)), default)
    if left.default is not None:
        seqs = right.seqs
    elif right.default is not None:
        seqs = left.seqs
    else:
        seqs = np.intersect1d(left.seqs, right.seqs, assume_unique=True)
    return _Domain(seqs, function(left.at(seqs), right.at(seqs)), None)


def _evaluate(expression: Expression, results: "list[tuple[Seqs, Floats]]") -> _Domain:
    if isinstance(expression, Constant):
        return _Domain(default=np.float32(expression.value))
    if isinstance(expression, Knn):
        seqs, values = results.pop(0)
        if expression.return_rank:
            values = np.arange(len(seqs), dtype=np.float32)
        order = np.argsort(seqs)
        default = None if expression.default is None else np.float32(expression.default)
        return _Domain(seqs[order], values[order], default)
    domains = [_evaluate(operand, results) for operand in expression.operands]
    if expression.name in _UNARY:
        function = _UNARY[expression.name]
        (domain,) = domains
        default = None if domain.default is None else np.float32(function(domain.default))
        return _Domain(domain.seqs, function(domain.values), default)
    combined = domains[0]
    for domain in domains[1:]:
        combined = _combine((_BINARY | _FOLDED)[expression.name], combined, domain)
    return combined


def evaluate(expression: Expression, results: Sequence[tuple[Seqs, Floats]]) -> tuple[Seqs, Floats]:
    """Return the records that an expression ranks and their scores, best first, ties by insertion order.

    Args:
        results: for each of `knns(expression)`, the records it found, nearest first, and their distances.
    """
    with np.errstate(all="ignore"):
        domain = _evaluate(expression, list(results))
    # A score that is no number comes last, as it does where floats are ordered by their bits.
    order = np.lexsort((domain.seqs, domain.values))
    return domain.seqs[order], domain.values[order]


def _sortable(value: object) -> tuple[int, Any]:
    """Return what metadata values are ordered by: nothing, booleans, numbers by value, strings, then the rest."""
    if value is None:
        return (0, 0)
    if isinstance(value, bool):
        return (1, value)
    if isinstance(value, int | float):
        # What is no number comes last among them.
        return (2, (value != value, value))
    return (3, value) if isinstance(value, str) else (4, repr(value))


def keep_of_groups(
    group_by: GroupBy, seqs: Seqs, scores: Floats, metadatas: Sequence[Metadata | None]
) -> list[int]:
    """Return the positions that stay, ascending, of ranked records whose metadata is given.

    Records that lack a key of the group form a group with each other; in an aggregate a missing value is the smallest.
    """

    def values(position: int, keys: tuple[str, ...]) -> tuple[Any, ...]:
        metadata = metadatas[position] or {}
        return tuple(
            _sortable(float(scores[position]) if key == SCORE_KEY else metadata.get(key)) for key in keys
        )

    groups: dict[tuple[Any, ...], list[int]] = {}
    for position in range(len(seqs)):
        groups.setdefault(values(position, group_by.keys), []).append(position)
    aggregate = group_by.aggregate
    kept: list[int] = []
    for members in groups.values():
        # Stable, so that ties stay in the order of the ranking.
        members.sort(key=lambda position: values(position, aggregate.keys), reverse=aggregate.largest)
        kept += members[: aggregate.k]
    return sorted(kept)
