"""`where` and `where_document` against a model of them in a few lines of Python."""

import asyncio
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgchroma.errors import InvalidArgumentError
from pgchroma.server.embedded import EmbeddedPostgres
from pgchroma.store import Store, StoreSettings
from pgchroma.types import Filter, RecordBatch
from support.store import ONLY_IDS, batch, eventually, ids, make, matrix

COMPARISONS = {
    "$gt": lambda stored, operand: stored > operand,
    "$gte": lambda stored, operand: stored >= operand,
    "$lt": lambda stored, operand: stored < operand,
    "$lte": lambda stored, operand: stored <= operand,
}
COMPLEMENTS = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains", "$not_regex": "$regex"}


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def equal(stored: object, operand: object) -> bool:
    if is_number(stored) and is_number(operand):
        return stored == operand
    return type(stored) is type(operand) and not isinstance(stored, list) and stored == operand


def value_matches(stored: Any, operator: str, operand: Any) -> bool:
    if operator in COMPLEMENTS:
        return not value_matches(stored, COMPLEMENTS[operator], operand)
    if operator == "$eq":
        return equal(stored, operand)
    if operator == "$in":
        return any(equal(stored, item) for item in operand)
    if operator == "$contains":
        return isinstance(stored, list) and any(
            type(item) is type(operand) and item == operand for item in stored
        )
    return is_number(stored) and COMPARISONS[operator](stored, operand)


def document_matches(document: str | None, operator: str, operand: str) -> bool:
    if operator in COMPLEMENTS:
        return not document_matches(document, COMPLEMENTS[operator], operand)
    if document is None:
        return False
    return operand in document if operator == "$contains" else re.search(operand, document) is not None


def matches(metadata: dict[str, Any] | None, document: str | None, clause: dict[str, Any]) -> bool:
    ((key, value),) = clause.items()
    if key == "$and":
        return all(matches(metadata, document, part) for part in value)
    if key == "$or":
        return any(matches(metadata, document, part) for part in value)
    if key.startswith("$"):
        return document_matches(document, key, value)
    if key == "#document":
        ((operator, operand),) = value.items()
        return document_matches(document, operator, operand)
    ((operator, operand),) = value.items() if isinstance(value, dict) else [("$eq", value)]
    return value_matches((metadata or {}).get(key), operator, operand)


KEYS = ["a", "b", "c'\"", "%s", "{}", "\\", "n\x00l", "ä ?"]
INTEGERS = st.sampled_from([0, 1, 2, -1, 2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
FLOATS = st.sampled_from([0.0, -0.0, 1.0, 2.0, 0.1, -1.5, 2.0**53, 1e15 + 0.5, 1e16, 5e-324, 1e308])
STRINGS = st.sampled_from(["", "a", "b", "1", "x\x00y", "%", "\\", "true", "'; --", "\ufdd0"])
SCALARS = INTEGERS | FLOATS | STRINGS | st.booleans()
KINDS = (INTEGERS, FLOATS, STRINGS, st.booleans())
ARRAYS = st.one_of(*(st.lists(kind, min_size=1, max_size=3) for kind in KINDS))
LISTS = ARRAYS
DOCUMENTS = st.none() | st.text("ab%_\\'ß\x00\n ", max_size=6)
NEEDLES = st.text("ab%_\\'ß\x00\n", max_size=2)
# Python's and Rust's engine agree on these; not on `$`, which Python takes for the place before a last line break, too.
PATTERNS = st.sampled_from(
    [r"a.b", r"^a", r"(?i)B", r"[ab]{2}", r"\\", r"_|%", r"(?s)a.", r"ß\s?a", r"\x00", r"b_?%"]
)
RECORDS = st.lists(
    st.tuples(
        st.none() | st.dictionaries(st.sampled_from([*KEYS, "$k"]), SCALARS | ARRAYS, min_size=1, max_size=4),
        DOCUMENTS,
    ),
    min_size=1,
    max_size=12,
)
DOCUMENT_LEAVES = st.one_of(
    st.builds(lambda op, s: {op: s}, st.sampled_from(["$contains", "$not_contains"]), NEEDLES),
    st.builds(lambda op, s: {op: s}, st.sampled_from(["$regex", "$not_regex"]), PATTERNS),
)
LEAVES = st.one_of(
    st.builds(lambda k, v: {k: v}, st.sampled_from(KEYS), SCALARS),
    st.builds(
        lambda k, op, v: {k: {op: v}},
        st.sampled_from(KEYS),
        st.sampled_from(["$eq", "$ne", "$contains", "$not_contains"]),
        SCALARS,
    ),
    st.builds(
        lambda k, op, v: {k: {op: v}},
        st.sampled_from(KEYS),
        st.sampled_from(sorted(COMPARISONS)),
        INTEGERS | FLOATS,
    ),
    st.builds(lambda k, op, v: {k: {op: v}}, st.sampled_from(KEYS), st.sampled_from(["$in", "$nin"]), LISTS),
    st.builds(lambda leaf: {"#document": leaf}, DOCUMENT_LEAVES),
)


def trees(leaves: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        leaves,
        lambda part: st.builds(
            lambda op, parts: {op: parts}, st.sampled_from(["$and", "$or"]), st.lists(part, max_size=3)
        ),
        max_leaves=5,
    )


def test_filters_select_what_the_model_selects(module_database_url: str, postgres: EmbeddedPostgres) -> None:
    log_before = len(postgres.log.read_text())
    with asyncio.Runner() as runner:
        store = runner.run(Store.open(module_database_url))
        collection = runner.run(make(store, "filtered"))

        async def compare(
            records: list[tuple[dict[str, Any] | None, str | None]],
            clauses: list[dict[str, Any]],
            document_clauses: list[dict[str, Any]],
        ) -> None:
            await store.delete(collection.id, Filter())
            names = [f"r{number}" for number in range(len(records))]
            metadatas, documents = [metadata for metadata, _ in records], [text for _, text in records]
            await store.add(collection.id, batch(names, metadatas=metadatas, documents=documents))
            for where, where_document in zip(clauses, document_clauses, strict=True):
                expected = [
                    name
                    for name, metadata, document in zip(names, metadatas, documents, strict=True)
                    if matches(metadata, document, where)
                ]
                assert await ids(store, collection, where=where) == expected, where
                both = [name for name in expected if matches(None, documents[int(name[1:])], where_document)]
                found = await ids(store, collection, where=where, where_document=where_document)
                assert found == both, (where, where_document)
                (rows,) = await store.query(
                    collection.id,
                    matrix([1, 1]),
                    50,
                    Filter(where=where, where_document=where_document),
                    ONLY_IDS,
                )
                assert sorted(rows.ids) == sorted(both), (where, where_document)

        @settings(
            max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example]
        )
        @given(
            RECORDS,
            st.lists(trees(LEAVES), min_size=6, max_size=6),
            st.lists(trees(DOCUMENT_LEAVES), min_size=6, max_size=6),
        )
        def check(
            records: list[tuple[dict[str, Any] | None, str | None]],
            clauses: list[dict[str, Any]],
            document_clauses: list[dict[str, Any]],
        ) -> None:
            runner.run(compare(records, clauses, document_clauses))

        try:
            check()
        finally:
            runner.run(store.close())
    # A filter that PostgreSQL refuses would be an error here even where it is repeated or answered.
    assert "ERROR" not in postgres.log.read_text()[log_before:]


@pytest.mark.anyio
async def test_numbers_are_compared_by_value_and_kept_apart_from_booleans_and_strings(store: Store) -> None:
    collection = await make(store)
    values: list[Any] = [2, 2.0, True, 1, "1", 0, -0.0, [2], [2.0], 2**53 + 1]
    names = [str(number) for number in range(len(values))]
    await store.add(collection.id, batch(names, metadatas=[{"k": value} for value in values]))
    for where, expected in [
        ({"k": 2}, "0 1"),
        ({"k": {"$in": [2.0]}}, "0 1"),
        ({"k": 1}, "3"),
        ({"k": True}, "2"),
        ({"k": "1"}, "4"),
        ({"k": {"$gte": 0.1}}, "0 1 3 9"),
        ({"k": {"$lte": 0}}, "5 6"),
        ({"k": {"$contains": 2}}, "7"),
        ({"k": {"$contains": 2.0}}, "8"),
        ({"k": float(2**53)}, ""),
        ({"k": {"$gt": float(2**53)}}, "9"),
        ({"k": {"$ne": 2}}, "2 3 4 5 6 7 8 9"),
        ({"missing": {"$nin": ["x"]}}, "0 1 2 3 4 5 6 7 8 9"),
        ({"missing": {"$not_contains": "x"}}, "0 1 2 3 4 5 6 7 8 9"),
    ]:
        assert await ids(store, collection, where=where) == expected.split(), where


@pytest.mark.anyio
async def test_arrays_with_numbers_that_jsonb_lacks_can_be_searched(store: Store) -> None:
    collection = await make(store)
    metadatas = [{"k": [float("nan"), 1.5]}, {"k": [float("inf")]}, {"k": [1]}]
    await store.add(collection.id, batch(["a", "b", "c"], metadatas=metadatas))
    assert await ids(store, collection, where={"k": {"$contains": 1.5}}) == ["a"]
    assert await ids(store, collection, where={"k": {"$contains": 1}}) == ["c"]


@pytest.mark.anyio
async def test_the_empty_string_is_in_every_document_but_not_in_none(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a", "b", "c"], documents=["x", "", None]))
    assert await ids(store, collection, where_document={"$contains": ""}) == ["a", "b"]
    assert await ids(store, collection, where_document={"$not_contains": ""}) == ["c"]
    assert await ids(store, collection, where_document={"$regex": ""}) == ["a", "b"]
    assert await ids(store, collection, where_document={"$not_regex": "x"}) == ["b", "c"]


@pytest.mark.anyio
async def test_a_pattern_that_is_given_up_leaves_the_connection_in_order(module_database_url: str) -> None:
    settings = StoreSettings(pool_size=1, regex_timeout_seconds=2.0)
    async with await Store.open(module_database_url, settings) as store:
        collection = await make(store)
        # More than PostgreSQL sends at a time, and each of them takes the pattern half a second.
        count = 600
        names = [str(number) for number in range(count)]
        documents: list[str | None] = ["слово " * 3_600] * count
        documents[7] = "слово zzz"
        metadatas = [{"k": number} for number in range(count)]
        await store.add(collection.id, batch(names, documents=documents, metadatas=metadatas))
        dear = {"$regex": r"(?:\b\w+\b ){1,50}zzz"}
        for work in (
            ids(store, collection, where_document=dear),
            store.delete(collection.id, Filter(where_document=dear)),
        ):
            with pytest.raises(InvalidArgumentError, match=r"2 s .PGCHROMA_REGEX_TIMEOUT_SECONDS"):
                await work
            assert await store.count(collection.id) == count
        # What ids and the rest of the filter leave out is not looked at.
        for others in ({"ids": ["7", "8"]}, {"where": {"k": 7}}):
            assert await ids(store, collection, where_document=dear, **others) == ["7"]
        either = {"$and": [{"k": {"$lt": 8}}, {"$or": [{"k": 3}, {"#document": dear}]}, {"k": {"$gt": 6}}]}
        assert await ids(store, collection, where=either) == ["7"]
        assert store.pool_stats()["connections_num"] == 1
        asking = asyncio.create_task(ids(store, collection, where_document=dear))
        await eventually("the pattern to be run", lambda: _is_lent(store))
        asking.cancel()
        await asyncio.wait([asking])
        assert await store.count(collection.id) == count


async def _is_lent(store: Store) -> bool:
    return store.pool_stats()["pool_available"] == 0


@pytest.mark.anyio
async def test_ids_and_filters_narrow_each_other(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(list("abcd"), metadatas=[{"k": 1}, {"k": 1}, {"k": 2}, None]))
    assert await ids(store, collection, ids=["c", "b", "b", "unknown"]) == ["b", "c"]
    assert await ids(store, collection, ids=["c", "b"], where={"k": 1}) == ["b"]
    assert await ids(store, collection, ids=[]) == []
    assert await ids(store, collection, ids=[], where={"k": 1}) == []


@pytest.mark.anyio
async def test_a_wrong_filter_is_refused_on_a_collection_without_records_too(store: Store) -> None:
    collection = await make(store)
    for selection in (Filter(where={"a": {"$in": []}}), Filter(where_document={"$regex": "("})):
        with pytest.raises(InvalidArgumentError):
            await store.get(collection.id, selection, ONLY_IDS)
        with pytest.raises(InvalidArgumentError):
            await store.query(collection.id, matrix([1, 1]), 1, selection, ONLY_IDS)
        with pytest.raises(InvalidArgumentError):
            await store.delete(collection.id, selection)


@pytest.mark.anyio
async def test_a_great_many_conditions_are_no_problem(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a", "b"], metadatas=[{"k": 1}, {"k": 999}]))
    wide = {"$or": [{"k": {"$gt": 998 + number}} for number in range(500)]}
    assert await ids(store, collection, where=wide) == ["b"]
    assert await ids(store, collection, where={"k": {"$in": list(range(50_000))}}) == ["a", "b"]
    many = [str(number) for number in range(50_000)]
    assert await ids(store, collection, ids=["b", *many]) == ["b"]


@pytest.mark.anyio
async def test_records_with_filters_on_a_fresh_key_need_no_schema_entry(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, RecordBatch(["a"], matrix([1, 2])))
    assert await ids(store, collection, where={"never seen": {"$ne": "x"}}) == ["a"]
