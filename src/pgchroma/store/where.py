"""Chroma's `where` and `where_document` compiled to SQL over the columns `metadata` and `document`; values and keys are bound.

The meaning is Chroma's: integers and floats compare by value, booleans and strings only with their like; `$ne`, `$nin` and
`$not_contains` are complements and so match records that lack the key; only `$contains` sees the elements of an array.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, LiteralString, cast

import msgspec
from psycopg import sql

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import configuration, metadata, segments, tables, text
from pgchroma.store.patterns import Patterns
from pgchroma.store.segments import RecordSegment

# What stands for a record's id in a clause.
ID_KEY = "#id"
MAX_DEPTH = 64
# An index is asked once for each value of a list; a longer one is better looked through row by row.
_LONGEST_INDEXED_LIST = 100
# Beyond so many an index over runs only takes longer.
_MOST_RUNS = 24
# A statement may have 65,535 bound values; each condition takes up to three of them.
MAX_CONDITIONS = 20_000

Condition = sql.Composed

_NUMBER: LiteralString = "jsonb_typeof(metadata -> {}::text) = 'number' AND (metadata -> {}::text)"
_ORDER: dict[str, LiteralString] = {
    "$gt": f"({_NUMBER} > {{}}::jsonb)",
    "$gte": f"({_NUMBER} >= {{}}::jsonb)",
    "$lt": f"({_NUMBER} < {{}}::jsonb)",
    "$lte": f"({_NUMBER} <= {{}}::jsonb)",
}
_OPERATORS = ("$eq", "$ne", "$in", "$nin", "$contains", "$not_contains", *_ORDER)
# Bytes in a run, as pgchroma.runs() indexes them.
_RUN = 3
_DOCUMENT_OPERATORS = ("$contains", "$not_contains", "$regex", "$not_regex")


def _invalid(reason: str, clause: str = "where") -> InvalidArgumentError:
    return InvalidArgumentError(f"Invalid {clause} clause: {reason}")


def _json(value: object) -> str:
    return metadata.encode({"v": value})[0][len('{"v":') : -1].decode()


def has_pattern(*clauses: Mapping[str, Any] | None) -> bool:
    """Whether the clauses hold a regular expression; they need not be valid."""
    waiting: list[Any] = list(clauses)
    while waiting:
        item = waiting.pop()
        if isinstance(item, Mapping):
            if "$regex" in item or "$not_regex" in item:
                return True
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return False


def _not(condition: Condition) -> Condition:
    return sql.SQL("(({}) IS NOT TRUE)").format(condition)


class Compiler:
    """Compiles the filters of one request.

    Args:
        schema: the collection's schema; filters on keys whose index is off are refused.
        patterns: what is known of regular expressions, which PostgreSQL is not asked to evaluate. Those met are added; as long as
            no documents have been looked at the conditions select every record that might match.

    Attributes:
        parameters: the named parameters that the conditions refer to.
        needles: substrings that every document must contain which the conditions together select.
    """

    def __init__(self, schema: dict[str, Any], patterns: Patterns | None = None) -> None:
        self._schema = schema
        self.patterns = Patterns() if patterns is None else patterns
        # How many `$or` the condition that is being compiled lies in.
        self._alternatives = 0
        self.needles: list[str] = []
        self.parameters: dict[str, Any] = {}
        self._conditions = 0

    def _sql(self, template: LiteralString, *values: object) -> Condition:
        """Return `template` with a named, bound parameter in the place of each value."""
        placeholders = []
        for value in values:
            name = f"where_{len(self.parameters)}"
            self.parameters[name] = value
            placeholders.append(sql.Placeholder(name))
        return sql.SQL(template).format(*placeholders)

    def where(self, clause: Mapping[str, Any]) -> Condition:
        """Return the condition of a `where` clause; InvalidArgumentError names what is wrong with it."""
        return self._boolean(clause, "where", self._metadata_leaf, 0)

    def where_document(self, clause: Mapping[str, Any]) -> Condition:
        """Return the condition of a `where_document` clause; InvalidArgumentError names what is wrong with it."""
        configuration.require_full_text(self._schema)
        return self._boolean(clause, "where document", self._document_leaf, 0)

    def _boolean(
        self, clause: object, name: str, leaf: Callable[[str, Any], Condition], depth: int
    ) -> Condition:
        if depth > MAX_DEPTH:
            raise _invalid(f"nested more than {MAX_DEPTH} levels deep", name)
        if not isinstance(clause, Mapping) or len(clause) != 1:
            raise _invalid("expected an object with exactly one key", name)
        key, operand = next(iter(clause.items()))
        if key not in ("$and", "$or"):
            self._conditions += 1
            if self._conditions > MAX_CONDITIONS:
                raise _invalid(f"more than {MAX_CONDITIONS} conditions; $in takes a list of any length", name)
            return leaf(key, operand)
        if not isinstance(operand, list):
            raise _invalid(f"{key} takes a list", name)
        self._alternatives += key == "$or"
        parts = [self._boolean(part, name, leaf, depth + 1) for part in operand]
        self._alternatives -= key == "$or"
        if not parts:
            return self._sql("true" if key == "$and" else "false")
        return sql.SQL("({})").format(sql.SQL(" AND " if key == "$and" else " OR ").join(parts))

    def _metadata_leaf(self, key: str, operand: object) -> Condition:
        if key == configuration.DOCUMENT_KEY:
            configuration.require_full_text(self._schema)
            if not isinstance(operand, Mapping) or len(operand) != 1:
                raise _invalid("#document takes an object with exactly one operator")
            return self._document_leaf(*next(iter(operand.items())), name="where")
        if key == ID_KEY:
            return self._id_leaf(operand)
        if key.startswith("$"):
            raise _invalid(f"unknown operator {key!r}")
        if not isinstance(operand, Mapping):
            operand = {"$eq": operand}
        if len(operand) != 1:
            raise _invalid(f"key {key!r} takes exactly one operator")
        operator, value = next(iter(operand.items()))
        if operator not in _OPERATORS:
            raise _invalid(f"unknown operator {operator!r} for key {key!r}")
        kind = self._checked_kind(key, operator, value)
        configuration.require_filterable(self._schema, key, kind)
        column = text.encode(key)
        if operator in ("$eq", "$ne"):
            condition = self._sql("metadata @> {}::jsonb", _object(column, value))
            return condition if operator == "$eq" else _not(condition)
        if operator == "$in" and len(cast("list[Any]", value)) <= _LONGEST_INDEXED_LIST:
            objects = [_object(column, item) for item in cast("list[Any]", value)]
            return self._sql("metadata @> ANY({}::jsonb[])", objects)
        if operator in ("$in", "$nin"):
            values = [_json(item) for item in cast("list[Any]", value)]
            condition = self._sql("(metadata -> {}::text) = ANY({}::jsonb[])", column, values)
            return condition if operator == "$in" else _not(condition)
        if operator in _ORDER:
            return self._sql(_ORDER[operator], column, column, _json(value))
        condition = self._sql("metadata @> {}::jsonb", _object(column, [value]))
        if kind in ("int", "float"):
            # jsonb takes 2 and 2.0 for equal; floats are always stored with a decimal point, so the text tells them apart.
            has_point = self._sql("(strpos(metadata ->> {}::text, '.') > 0) = {}", column, kind == "float")
            condition = sql.SQL("({} AND {})").format(condition, has_point)
        return condition if operator == "$contains" else _not(condition)

    def _checked_kind(self, key: str, operator: str, value: object) -> str:
        if operator in ("$in", "$nin"):
            if not isinstance(value, list) or not value:
                raise _invalid(f"{operator} for key {key!r} takes a non-empty list")
            if any(not isinstance(item, str | int | float | bool) for item in value):
                raise _invalid(f"{operator} for key {key!r} takes strings, numbers or booleans")
            if not all(map(_is_finite, value)):
                raise _invalid(f"{operator} for key {key!r} takes finite numbers")
            kinds = {configuration.value_type(item) for item in value}
            if len(kinds) > 1:
                raise _invalid(f"{operator} for key {key!r} mixes types")
            return kinds.pop()
        if not isinstance(value, str | int | float | bool):
            raise _invalid(f"{operator} for key {key!r} takes a string, number or boolean")
        if not _is_finite(value):
            raise _invalid(f"{operator} for key {key!r} takes a finite number")
        if operator in _ORDER and (isinstance(value, str | bool)):
            raise _invalid(f"{operator} for key {key!r} takes a number")
        return configuration.value_type(value)

    def _id_leaf(self, operand: object) -> Condition:
        if not isinstance(operand, Mapping):
            operand = {"$eq": operand}
        if len(operand) != 1:
            raise _invalid(f"{ID_KEY} takes exactly one operator")
        operator, value = next(iter(operand.items()))
        if operator not in ("$eq", "$ne", "$in", "$nin"):
            raise _invalid(f"unknown operator {operator!r} for {ID_KEY}; it takes $eq, $ne, $in and $nin")
        ids = value if operator in ("$in", "$nin") else [value]
        if not isinstance(ids, list) or not all(isinstance(entry, str) for entry in ids):
            raise _invalid(f"{operator} for {ID_KEY} takes {'a list of ids' if ids is value else 'an id'}")
        condition = self._sql("record.id = ANY({}::text[])", [text.id_key(entry)[0] for entry in ids])
        return condition if operator in ("$eq", "$in") else _not(condition)

    def _document_leaf(self, operator: str, value: object, name: str = "where document") -> Condition:
        if operator not in _DOCUMENT_OPERATORS:
            raise _invalid(f"unknown operator {operator!r}", name)
        if not isinstance(value, str):
            raise _invalid(f"{operator} takes a string", name)
        if operator in ("$contains", "$not_contains"):
            needle = text.encode(value)
            condition = self._sql("record.document LIKE {}", "%" + _like_escape(needle) + "%")
            if operator == "$contains" and not self._alternatives:
                self.needles.append(needle)
        else:
            self.patterns.compile(value)
            if self.patterns.hits is None:
                return self._sql("true")
            condition = self._sql("record.seq = ANY({}::bigint[])", sorted(self.patterns.hits[value]))
        return _not(condition) if "not" in operator else condition


def runs(needle: str) -> list[int]:
    """Return runs of three bytes of `needle` as pgchroma.runs() does, evenly spread over it where there are many."""
    data = needle.encode()
    found = sorted({int.from_bytes(data[start : start + _RUN]) for start in range(len(data) - _RUN + 1)})
    return found[:: -(-len(found) // _MOST_RUNS)] if found else []


def in_segments(condition: Condition, records: Sequence[RecordSegment]) -> Condition:
    """Return a condition over `record` written so that PostgreSQL sees that the indexes of these segments serve it."""
    if not records:
        return condition
    ranges = [
        sql.SQL("record.seq > {} AND record.seq <= {}").format(sql.Literal(part.low), sql.Literal(part.high))
        for part in records
    ]
    ranges.append(sql.SQL("record.seq > {}").format(sql.Literal(segments.watermark(records))))
    arms = [sql.SQL("({} AND {})").format(part, condition) for part in ranges]
    return sql.SQL("({})").format(sql.SQL(" OR ").join(arms))


def source(
    number: int, records: Sequence[RecordSegment], compiler: Compiler
) -> tuple[sql.Composable, dict[str, Any]]:
    """Return the records of a collection, for a FROM clause, as the indexes of these segments can serve conditions on them.

    Returns:
        SQL, and the named parameters in it.
    """
    table = tables.records(number)
    if not records:
        return table, {}
    wanted = sorted({run for needle in compiler.needles for run in runs(needle)})
    parts = []
    for part in records:
        # The bounds are literals on purpose: only so does the planner see that the partial index applies.
        selected = sql.SQL("SELECT * FROM {} WHERE seq > {} AND seq <= {}").format(
            table, sql.Literal(part.low), sql.Literal(part.high)
        )
        if wanted and part.method == "function":
            # pg_trgm understands the condition itself.
            selected += sql.SQL(" AND pgchroma.runs(document) @> %(runs)s::integer[]")
        parts.append(selected)
    parts.append(
        sql.SQL("SELECT * FROM {} WHERE seq > {}").format(table, sql.Literal(segments.watermark(records)))
    )
    return sql.SQL("({})").format(sql.SQL(" UNION ALL ").join(parts)), {"runs": wanted}


def _is_finite(value: object) -> bool:
    try:
        return not isinstance(value, int | float) or math.isfinite(value)
    except OverflowError:
        # An integer beyond every float.
        return False


def _object(key: str, value: object) -> str:
    return f"{{{msgspec.json.encode(key).decode()}:{_json(value)}}}"


def _like_escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
