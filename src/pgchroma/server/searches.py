"""The body of a search request, turned into `ranking.Search`; what is wrong with it is a 400 that names the place."""

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
from msgspec import Struct

from pgchroma import ranking
from pgchroma.errors import InvalidArgumentError
from pgchroma.ranking import Aggregate, Constant, Expression, GroupBy, Knn, Operation, Search
from pgchroma.server.http import bad_request
from pgchroma.server.payloads import U32
from pgchroma.store import sparse

ReadLevel: TypeAlias = Literal["index_and_wal", "index_only", "index_and_bounded_wal"]

DEFAULT_KNN_LIMIT = 16
MAX_SEARCHES = 100
MAX_DEPTH = 64
# Of one search's rank expression, constants and operations included.
MAX_TERMS = 1_000
MAX_KNNS = 64

_SELECTABLE = ("#id", "#document", "#embedding", "#metadata", "#score")
# Keys that a filter cannot be about.
_UNFILTERABLE = ("#embedding", "#metadata", "#score")


class LimitPayload(Struct):
    """`limit` of a search."""

    offset: U32 = 0
    limit: U32 | None = None


class SelectPayload(Struct):
    """`select` of a search."""

    keys: list[str] = []


class SearchItem(Struct):
    """One search; filter, rank and group_by are looked at below."""

    filter: Any = None
    rank: Any = None
    group_by: Any = None
    limit: LimitPayload | None = None
    select: SelectPayload | None = None


class SearchPayload(Struct):
    """Searches, and how fresh their data must be; here every read sees every write."""

    searches: list[SearchItem]
    read_level: ReadLevel = "index_and_wal"


def parse(payload: SearchPayload) -> list[Search]:
    """Return the searches of a request.

    Raises:
        HttpError: 400 that names the search and the member that is wrong.
    """
    if len(payload.searches) > MAX_SEARCHES:
        raise bad_request(
            f"searches: {len(payload.searches)} searches; at most {MAX_SEARCHES} are possible in a request"
        )
    return [_search(item, f"searches[{index}]") for index, item in enumerate(payload.searches)]


def _search(item: SearchItem, path: str) -> Search:
    limit = item.limit or LimitPayload()
    rank = None if item.rank is None else _RankParser().parse(item.rank, f"{path}.rank", 0)
    group_by = _group_by(item.group_by, f"{path}.group_by")
    if group_by is not None and rank is None:
        raise bad_request(f"{path}.group_by: grouping needs a rank, there is none")
    return Search(
        where=_where(item.filter, f"{path}.filter"),
        rank=rank,
        group_by=group_by,
        limit=limit.limit,
        offset=limit.offset,
        select=_select(item.select, f"{path}.select"),
    )


def _where(clause: object, path: str) -> dict[str, Any] | None:
    if clause is None or clause == {}:
        return None
    if not isinstance(clause, dict):
        raise bad_request(f"{path}: expected an object, got {_shown(clause)}")
    waiting: list[Any] = [clause]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            for key in _UNFILTERABLE:
                if key in part:
                    raise bad_request(
                        f"{path}: cannot filter by {key}; use #id, #document or the key of a metadata value"
                    )
            waiting += [value for key, value in part.items() if key in ("$and", "$or")]
        elif isinstance(part, list):
            waiting += part
    return clause


def _select(select: SelectPayload | None, path: str) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(select.keys)) if select else ()
    for key in keys:
        if not key or (key.startswith("#") and key not in _SELECTABLE):
            raise bad_request(
                f"{path}.keys: unknown key {key!r}; select {', '.join(_SELECTABLE)} or the key of a metadata value"
            )
    return keys


class _RankParser:
    """Parses one rank expression and counts its terms."""

    def __init__(self) -> None:
        self._terms = 0
        self._knns = 0

    def parse(self, value: object, path: str, depth: int) -> Expression:
        """Return the expression at `path`."""
        self._terms += 1
        if depth > MAX_DEPTH:
            raise bad_request(f"{path[:80]}...: nested more than {MAX_DEPTH} levels deep")
        if self._terms > MAX_TERMS:
            raise bad_request(f"{path}: the rank has more than {MAX_TERMS} terms")
        if not isinstance(value, dict) or len(value) != 1:
            raise bad_request(f"{path}: expected an object with exactly one operator, got {_shown(value)}")
        ((operator, operand),) = value.items()
        path = f"{path}.{operator}"
        name = operator.removeprefix("$")
        if operator == "$val":
            return Constant(_number(operand, path))
        if operator == "$knn":
            return self._knn(operand, path)
        if operator == f"${name}" and name in ranking.UNARY:
            return Operation(name, (self.parse(operand, path, depth + 1),))
        if operator == f"${name}" and name in ranking.BINARY:
            if not isinstance(operand, dict) or set(operand) != {"left", "right"}:
                raise bad_request(f"{path}: expected an object with left and right, got {_shown(operand)}")
            sides = ("left", "right")
            return Operation(
                name, tuple(self.parse(operand[side], f"{path}.{side}", depth + 1) for side in sides)
            )
        if operator == f"${name}" and name in ranking.FOLDED:
            if not isinstance(operand, list) or not operand:
                raise bad_request(f"{path}: expected a list of ranks, got {_shown(operand)}")
            return Operation(
                name,
                tuple(self.parse(part, f"{path}[{index}]", depth + 1) for index, part in enumerate(operand)),
            )
        known = ("val", "knn", *ranking.UNARY, *ranking.BINARY, *ranking.FOLDED)
        raise bad_request(
            f"{path}: unknown rank operator; known are {', '.join('$' + entry for entry in known)}"
        )

    def _knn(self, value: object, path: str) -> Knn:
        self._knns += 1
        if self._knns > MAX_KNNS:
            raise bad_request(f"{path}: the rank has more than {MAX_KNNS} $knn")
        if not isinstance(value, dict):
            raise bad_request(f"{path}: expected an object, got {_shown(value)}")
        unknown = value.keys() - {"query", "key", "limit", "default", "return_rank"}
        if unknown:
            raise bad_request(f"{path}: unknown member {sorted(unknown)[0]!r}")
        key = value.get("key", ranking.EMBEDDING_KEY)
        if not isinstance(key, str):
            raise bad_request(f"{path}.key: expected a string, got {_shown(key)}")
        limit = value.get("limit", DEFAULT_KNN_LIMIT)
        if type(limit) is not int or not 1 <= limit < 2**32:
            raise bad_request(f"{path}.limit: expected a number of records, at least 1, got {_shown(limit)}")
        default = value.get("default")
        return_rank = value.get("return_rank", False)
        if not isinstance(return_rank, bool):
            raise bad_request(f"{path}.return_rank: expected a boolean, got {_shown(return_rank)}")
        return Knn(
            query=self._query(value.get("query"), key, path),
            key=key,
            limit=limit,
            default=None if default is None else _number(default, f"{path}.default"),
            return_rank=return_rank,
        )

    def _query(self, query: object, key: str, path: str) -> ranking.Floats | dict[str, Any]:
        if isinstance(query, dict):
            if key == ranking.EMBEDDING_KEY:
                raise bad_request(
                    f"{path}.query: a sparse vector, but {key} holds dense ones; set key to a sparse vector's metadata key"
                )
            return _sparse(query, f"{path}.query")
        if isinstance(query, str):
            raise bad_request(f"{path}.query: a string; the client embeds it before it sends the search")
        if not isinstance(query, list):
            raise bad_request(f"{path}.query: expected a dense or a sparse vector, got {_shown(query)}")
        if key != ranking.EMBEDDING_KEY:
            raise bad_request(
                f"{path}.key: there are no dense vectors under {key!r}; use {ranking.EMBEDDING_KEY} or a sparse query"
            )
        if not query:
            raise bad_request(f"{path}.query: a vector needs at least 1 dimension")
        for index, entry in enumerate(query):
            _number(entry, f"{path}.query[{index}]")
        return np.array(query, dtype=np.float32)


def _sparse(query: Mapping[str, Any], path: str) -> dict[str, Any]:
    try:
        return sparse.check(query, path)
    except InvalidArgumentError as error:
        raise bad_request(error.message) from error


def _group_by(value: object, path: str) -> GroupBy | None:
    if value is None or value == {}:
        return None
    if not isinstance(value, dict) or set(value) != {"keys", "aggregate"}:
        raise bad_request(f"{path}: expected an object with keys and aggregate, got {_shown(value)}")
    keys = _keys(value["keys"], f"{path}.keys", ())
    aggregate = value["aggregate"]
    if not isinstance(aggregate, dict) or len(aggregate) != 1:
        raise bad_request(f"{path}.aggregate: expected an object with $min_k or $max_k")
    ((operator, operand),) = aggregate.items()
    if operator not in ("$min_k", "$max_k"):
        raise bad_request(f"{path}.aggregate: unknown operator {operator!r}; known are $min_k and $max_k")
    path = f"{path}.aggregate.{operator}"
    if not isinstance(operand, dict) or set(operand) != {"keys", "k"}:
        raise bad_request(f"{path}: expected an object with keys and k, got {_shown(operand)}")
    k = operand["k"]
    if type(k) is not int or not 1 <= k < 2**32:
        raise bad_request(f"{path}.k: expected a number of records, at least 1, got {_shown(k)}")
    by = _keys(operand["keys"], f"{path}.keys", (ranking.SCORE_KEY,))
    return GroupBy(keys, Aggregate(by, k, largest=operator == "$max_k"))


def _keys(value: object, path: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise bad_request(f"{path}: expected a list of keys, got {_shown(value)}")
    for key in value:
        if not isinstance(key, str) or not key or (key.startswith("#") and key not in allowed):
            also = f" or {', '.join(allowed)}" if allowed else ""
            raise bad_request(f"{path}: {_shown(key)} is not the key of a metadata value{also}")
    return tuple(value)


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise bad_request(f"{path}: expected a number, got {_shown(value)}")
    with np.errstate(over="ignore"):
        # An integer may be too large for any float; so may what a comparison with NaN lets through.
        finite = -1e300 < value < 1e300 and math.isfinite(np.float32(value))
    if not finite:
        raise bad_request(f"{path}: not a finite number (as float32): {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python refuses to write integers of more than a few thousand digits.
        text = "a huge integer"
    return text if len(text) <= 80 else text[:80] + "..."
