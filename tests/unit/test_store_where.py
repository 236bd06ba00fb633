"""Filters compiled to SQL: what is refused, and that no value ever becomes part of the statement."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import configuration
from pgchroma.store.where import MAX_CONDITIONS, MAX_DEPTH, Compiler, has_pattern, runs
from support.metadata import KEYS, SCALARS

SCHEMA = configuration.default_schema()


def nested(depth: int) -> dict[str, Any]:
    clause: dict[str, Any] = {"k": 1}
    for _ in range(depth):
        clause = {"$and": [clause]}
    return clause


@pytest.mark.parametrize(
    "clause",
    [
        {},
        {"a": 1, "b": 2},
        {"a": {"$gt": 1, "$lt": 3}},
        {"a": {}},
        {"a": None},
        {"a": [1]},
        {"a": {"$eq": None}},
        {"a": {"$eq": [1]}},
        {"a": {"$eq": {"x": 1}}},
        {"a": {"$unknown": 1}},
        {"$unknown": 1},
        {"a": {"$in": []}},
        {"a": {"$in": 1}},
        {"a": {"$in": [1, "x"]}},
        {"a": {"$in": [1, True]}},
        {"a": {"$in": [None]}},
        {"a": {"$nin": [[1]]}},
        {"a": {"$gt": "x"}},
        {"a": {"$lte": True}},
        {"a": {"$gt": float("nan")}},
        {"a": {"$eq": float("inf")}},
        {"a": {"$eq": 10**400}},
        {"a": {"$in": [1, -(10**400)]}},
        {"a": {"$in": [1.0, float("nan")]}},
        {"a": {"$contains": [1]}},
        {"a": {"$contains": None}},
        {"a": {"$regex": "x"}},
        {"$and": {"a": 1}},
        {"$or": [1]},
        {"$and": [{"a": 1}, {}]},
        {"#document": "x"},
        {"#document": {"$eq": "x"}},
        {"#document": {"$contains": 1}},
        {"#document": {"$contains": "a", "$regex": "b"}},
        nested(MAX_DEPTH + 1),
    ],
)
def test_a_wrong_where_is_refused_with_a_reason(clause: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Invalid where clause: .+"):
        Compiler(SCHEMA).where(clause)


@pytest.mark.parametrize(
    "clause",
    [{}, {"$contains": 1}, {"$contains": None}, {"$eq": "x"}, {"a": "x"}, {"$and": "x"}, {"$or": [{}]},
     {"$contains": "a", "$not_contains": "b"}],
)  # fmt: skip
def test_a_wrong_where_document_is_refused_with_a_reason(clause: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match=r"Invalid where document clause: .+"):
        Compiler(SCHEMA).where_document(clause)


def test_a_wrong_regular_expression_is_refused_before_any_document_is_read() -> None:
    with pytest.raises(InvalidArgumentError, match="Regex syntax errror: regex parse error"):
        Compiler(SCHEMA).where_document({"$regex": "(?=x)"})


def test_more_conditions_than_a_statement_can_take_are_refused() -> None:
    clause = {"$or": [{"k": {"$gt": number}} for number in range(MAX_CONDITIONS + 1)]}
    with pytest.raises(InvalidArgumentError, match=r"more than .* conditions; \$in takes"):
        Compiler(SCHEMA).where(clause)


@pytest.mark.parametrize("clause", [{"$and": []}, {"$or": []}, nested(MAX_DEPTH), {"$or": [{"a": 1}]}])
def test_unusual_but_valid_clauses_are_taken(clause: dict[str, Any]) -> None:
    Compiler(SCHEMA).where(clause)


OPERANDS = SCALARS.filter(lambda value: not isinstance(value, float) or abs(value) < 1e300)
LEAVES = st.one_of(
    st.builds(lambda k, op, v: {k: {op: v}}, KEYS, st.sampled_from(["$eq", "$ne", "$contains"]), OPERANDS),
    st.builds(lambda k, op, v: {k: {op: v}}, KEYS, st.sampled_from(["$gt", "$lte"]), st.integers(-9, 9)),
    st.builds(lambda k, v: {k: {"$in": [v]}}, KEYS, OPERANDS),
    st.builds(lambda op, v: {"#document": {op: v}}, st.sampled_from(["$contains", "$not_contains"]), KEYS),
).filter(lambda leaf: not next(iter(leaf)).startswith("$"))


def shape(clause: dict[str, Any]) -> str:
    compiler = Compiler(SCHEMA)
    text = compiler.where(clause).as_string()
    for name in sorted(compiler.parameters, key=len, reverse=True):
        assert f"%({name})s" in text
        text = text.replace(f"%({name})s", "?")
    return text


@given(LEAVES)
def test_keys_and_values_are_bound_never_spelled_out(leaf: dict[str, Any]) -> None:
    text = shape(leaf)
    ((key, condition),) = leaf.items()
    ((operator, _),) = condition.items()
    if key != "#document":
        # The statement is that of any other key and value of the same type.
        value = condition[operator][0] if operator == "$in" else condition[operator]
        like = {str: "v", bool: True, int: 1, float: 1.0}[type(value)]
        assert text == shape({"other": {operator: [like] if operator == "$in" else like}})


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        (None, False),
        ({"a": "$regex"}, False),
        ({"$regex": "x"}, True),
        ({"$and": [{"a": 1}, {"$or": [{"#document": {"$not_regex": "x"}}]}]}, True),
        ({"$and": [{"a": {"$in": ["$regex"]}}]}, False),
    ],
)
def test_a_regular_expression_is_seen_wherever_it_is(clause: dict[str, Any] | None, expected: bool) -> None:
    assert has_pattern(None, clause) is expected


def test_runs_of_a_needle_are_runs_of_every_text_that_contains_it() -> None:
    assert runs("ab") == []
    assert runs("abcd") == [0x616263, 0x626364]
    needle = "ünïcode and more, long enough to be thinned out"
    assert 8 <= len(runs(needle)) <= 24
    data = f"before {needle} after".encode()
    assert set(runs(needle)) <= {int.from_bytes(data[start : start + 3]) for start in range(len(data) - 2)}
