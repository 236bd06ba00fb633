"""Adding, updating, reading and deleting records through the store."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError, NotFoundError
from pgchroma.store import Store
from pgchroma.types import Collection, Filter, Record, RecordBatch
from support.metadata import METADATA, same
from support.store import EVERYTHING, batch, contents, dimension, ids, make, matrix, require_whole

pytestmark = pytest.mark.anyio
WORDS = ["", "x\x00y", "\ufdd0\ufdd2", "a'b\"c", "100%", "{0}", "\\u0000", "Größe 漢字 🙂", "\n\t\x7f"]


async def read(store: Store, collection: Collection) -> list[Record]:
    return [record async for page in store.iter_records(collection) for record in page]


async def test_an_added_record_comes_back_whole(store: Store) -> None:
    collection = await make(store)
    metadata: dict[str, Any] = {"s": "x", "i": 1, "f": 2.0, "b": True, "list": [1.0, 2.5]}
    await store.add(
        collection.id, RecordBatch(["a"], matrix([0.1, -0.0]), ["text"], [metadata], ["http://x/y"])
    )
    embedding = np.array([0.1, -0.0], np.float32).tolist()
    assert await contents(store, collection) == {"a": (embedding, "text", metadata, "http://x/y")}
    assert await store.count(collection.id) == 1


async def test_add_leaves_existing_records_and_takes_the_first_of_duplicates(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a"], documents=["old"], metadatas=[{"k": 1}]))
    await store.add(
        collection.id, batch(["b", "a", "b"], documents=["first", "new", "second"], metadatas=[{"k": 2}, {"k": 3}, None])
    )  # fmt: skip
    found = await contents(store, collection)
    assert {key: value[1:3] for key, value in found.items()} == {
        "a": ("old", {"k": 1}),
        "b": ("first", {"k": 2}),
    }
    assert await store.count(collection.id) == 2


async def test_an_upsert_keeps_what_it_does_not_mention(store: Store) -> None:
    collection = await make(store)
    await store.upsert(
        collection.id, RecordBatch(["a"], matrix([1, 2]), ["text"], [{"k": 1, "gone": "x", "l": [1, 2]}], ["uri"])
    )  # fmt: skip
    await store.upsert(collection.id, RecordBatch(["a"], matrix([3, 4])))
    assert (await contents(store, collection))["a"] == (
        [3, 4],
        "text",
        {"k": 1, "gone": "x", "l": [1, 2]},
        "uri",
    )
    patch: dict[str, Any] = {"gone": None, "new": 2.0, "l": [3], "never there": None}
    await store.upsert(collection.id, RecordBatch(["a"], matrix([3, 4]), [None], [patch], [None]))
    assert (await contents(store, collection))["a"] == ([3, 4], "text", {"k": 1, "new": 2.0, "l": [3]}, "uri")


async def test_duplicates_in_an_upsert_are_merged_in_order(store: Store) -> None:
    collection = await make(store)
    metadatas: list[Any] = [{"x": 1, "y": 1}, {"z": 1}, {"x": None, "y": 2}]
    await store.upsert(
        collection.id, RecordBatch(["a", "b", "a"], matrix([1, 1], [2, 2], [3, 3]), ["one", None, None], metadatas)
    )  # fmt: skip
    assert await contents(store, collection) == {
        "a": ([3, 3], "one", {"y": 2}, None), "b": ([2, 2], None, {"z": 1}, None),
    }  # fmt: skip


async def test_an_update_touches_only_what_exists(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a", "b"], documents=["old", None], metadatas=[{"k": 1}, None]))
    update = RecordBatch(
        ["b", "unknown", "a"], matrix([7, 8]), [None, "x", ""], [{"n": 1}, {"new key": 1}, {"k": None}], embedding_rows=[2]
    )  # fmt: skip
    await store.update(collection.id, update)
    assert await contents(store, collection) == {
        "a": ([7, 8], "", None, None), "b": ([1, 1], None, {"n": 1}, None),
    }  # fmt: skip
    schema = (await store.get_collection_by_id(collection.id)).schema
    assert "n" in schema["keys"]
    assert "new key" not in schema["keys"]


async def test_the_empty_string_is_a_document(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a", "b"], documents=["", None], uris=["", None]))
    found = await contents(store, collection)
    assert [(value[1], value[3]) for value in found.values()] == [("", ""), (None, None)]


async def test_order_is_that_of_insertion_and_survives_updates(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["c", "a", "b"]))
    await store.upsert(collection.id, batch(["a", "d", "c"]))
    await store.update(collection.id, batch(["c"]))
    assert await ids(store, collection) == ["c", "a", "b", "d"]
    await store.delete(collection.id, Filter(ids=["a"]))
    await store.add(collection.id, batch(["a"]))
    assert await ids(store, collection) == ["c", "b", "d", "a"]
    assert await ids(store, collection, ids=["a", "b", "c", "c"]) == ["c", "b", "a"]
    assert await ids(store, collection, limit=2, offset=1) == ["b", "d"]
    assert await ids(store, collection, limit=0) == []
    assert await ids(store, collection, offset=9) == []


async def test_a_record_deleted_and_added_again_starts_clean(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, RecordBatch(["a"], matrix([1, 2]), ["old"], [{"k": -0.0}], ["uri"]))
    await store.delete(collection.id, Filter(ids=["a"]))
    await store.upsert(collection.id, RecordBatch(["a"], matrix([3, 4])))
    assert await contents(store, collection) == {"a": ([3, 4], None, None, None)}


async def test_a_new_value_replaces_one_that_jsonb_cannot_hold(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a", "b"], metadatas=[{"k": -0.0}, {"k": math.nan}]))
    await store.update(collection.id, RecordBatch(["a"], metadatas=[{"k": 1.5}]))
    await store.update(collection.id, RecordBatch(["b"], metadatas=[{"other": math.inf}]))
    first, second = [record.metadata for record in await read(store, collection)]
    assert same(first, {"k": 1.5})
    assert same(second, {"k": math.nan, "other": math.inf})


async def test_deleting_with_a_limit_takes_the_first_inserted(store: Store, module_database_url: str) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(list("edcba"), metadatas=[{"k": number % 2} for number in range(5)]))
    assert await store.delete(collection.id, Filter(where={"k": 0}, limit=2)) == 2
    assert await ids(store, collection) == ["d", "b", "a"]
    assert await store.delete(collection.id, Filter(where={"k": 1}, limit=0)) == 0
    assert await store.delete(collection.id, Filter(ids=["a", "d", "nope"], where={"k": 1})) == 1
    assert await ids(store, collection) == ["b", "a"]
    require_whole(module_database_url)


@pytest.mark.parametrize("clause", [{"$regex": "^a"}, {"$not_regex": "^a"}])
async def test_records_can_be_deleted_by_regular_expression(store: Store, clause: dict[str, Any]) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["1", "2", "3"], documents=["ab", "ba", None]))
    deleted = await store.delete(collection.id, Filter(where_document=clause))
    assert deleted == (1 if "$regex" in clause else 2)
    assert await store.count(collection.id) == 3 - deleted


async def test_ids_of_any_length_and_content_are_told_apart(store: Store) -> None:
    collection = await make(store)
    names = [word for word in WORDS if word] + [
        "x" * 1024, "x" * 1025, "x" * 100_000, "x" * 99_999 + "y", "\x00" * 999, "A", "a", " a", "a ", "é", "e\u0301",
    ]  # fmt: skip
    await store.add(collection.id, batch(names))
    await store.upsert(collection.id, batch(names[::-1], documents=names[::-1]))
    assert {name: value[1] for name, value in (await contents(store, collection)).items()} == {
        name: name for name in names
    }
    assert await ids(store, collection, ids=[names[-8], "\x00"]) == [names[-8]]
    assert await store.delete(collection.id, Filter(ids=names)) == len(names)


async def test_words_of_every_kind_survive_in_every_column(store: Store) -> None:
    collection = await make(store)
    names = [str(number) for number in range(len(WORDS))]
    metadatas = [{f"key {word}": word, "list": [word, word]} for word in WORDS]
    await store.add(
        collection.id, batch(names, documents=WORDS, metadatas=metadatas, uris=[w or None for w in WORDS])
    )
    found = await contents(store, collection)
    assert [value[1:] for value in found.values()] == [
        (word, metadata, word or None) for word, metadata in zip(WORDS, metadatas, strict=True)
    ]
    assert [record.document for record in await read(store, collection)] == WORDS


async def test_many_records_are_read_in_pages(store: Store) -> None:
    collection = await make(store)
    names = [f"{number:04}" for number in range(1000)]
    await store.add(collection.id, batch(names))
    pages = [page async for page in store.iter_records(collection, page=300)]
    assert [len(page) for page in pages] == [300, 300, 300, 100]
    assert [record.id for page in pages for record in page] == names
    last = pages[1][-1].seq
    later = [page async for page in store.iter_records(collection, after_seq=last, page=1000)]
    assert [record.id for page in later for record in page] == names[600:]


async def test_whole_records_are_loaded_in_bulk(store: Store) -> None:
    collection = await make(store)
    records = [
        Record(0, f"id {number}", np.array([number, 1], np.float32), "text", {"n": number, "z": -0.0}, None)
        for number in range(500)
    ]
    async with store.transaction() as connection:
        ready = await store.prepare_copy(connection, collection, 2)
        assert await store.copy_records(connection, ready, []) == 0
        assert await store.copy_records(connection, ready, records) == 500
    assert set((await store.get_collection_by_id(collection.id)).schema["keys"]) >= {"n", "z"}
    for one, other in zip(await read(store, ready), records, strict=True):
        assert (one.id, one.document) == (other.id, other.document)
        assert same(one.metadata, other.metadata)
        assert one.embedding is not None
        assert other.embedding is not None
        assert one.embedding.tobytes() == other.embedding.tobytes()
    with pytest.raises(InvalidArgumentError, match="every record needs an embedding"):
        async with store.transaction() as connection:
            await store.copy_records(connection, ready, [Record(0, "lost", None)])


@pytest.mark.parametrize(
    "wrong",
    [
        RecordBatch(["a", ""], matrix([1, 2], [1, 2])),
        RecordBatch(["a"], matrix([1, 2], [1, 2])),
        RecordBatch(["a"], matrix([1, 2]), ["x", "y"]),
        RecordBatch(["a"], matrix([1, 2]), None, [None, None]),
        RecordBatch(["a"], matrix([1, math.nan])),
        RecordBatch(["a"], matrix([1, -math.inf])),
        RecordBatch(["a"], np.empty((1, 0), np.float32)),
        RecordBatch(["a"], np.zeros((1, 16_001), np.float32)),
        RecordBatch(["a"]),
        RecordBatch(["a", "b"], matrix([1, 2]), embedding_rows=[1]),
    ],
)
async def test_a_wrong_batch_changes_nothing(store: Store, wrong: RecordBatch) -> None:
    collection = await make(store)
    for write in (store.add, store.upsert):
        with pytest.raises(InvalidArgumentError):
            await write(collection.id, wrong)
    assert await store.count(collection.id) == 0
    assert await dimension(store, collection.id) is None


async def test_the_first_write_fixes_the_dimension_even_after_everything_is_deleted(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a"]))
    await store.delete(collection.id, Filter())
    for write in (store.add, store.upsert, store.update):
        with pytest.raises(InvalidDimensionError, match="embedding with dimension of 2, got 3"):
            await write(collection.id, RecordBatch(["a"], matrix([1, 2, 3])))
    assert await dimension(store, collection.id) == 2


async def test_nothing_can_be_done_to_a_collection_that_is_gone(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a"]))
    await store.delete_collection(collection.tenant, collection.database, collection.name)
    for attempt in (
        store.add(collection.id, batch(["a"])), store.upsert(collection.id, batch(["a"])),
        store.update(collection.id, batch(["a"])), store.delete(collection.id, Filter()), store.count(collection.id),
        store.get(collection.id, Filter(), EVERYTHING),
        store.query(collection.id, matrix([1, 1]), 1, Filter(), EVERYTHING),
    ):  # fmt: skip
        with pytest.raises(NotFoundError):
            await attempt


def test_metadata_survives_postgresql_to_the_last_bit(module_database_url: str) -> None:
    with asyncio.Runner() as runner:
        store = runner.run(Store.open(module_database_url))
        collection = runner.run(make(store, "metadata"))

        async def round_trip(metadatas: list[dict[str, Any]]) -> None:
            await store.delete(collection.id, Filter())
            names = [str(number) for number in range(len(metadatas))]
            await store.add(collection.id, batch(names, metadatas=metadatas))
            for record, metadata in zip(await read(store, collection), metadatas, strict=True):
                assert same(record.metadata, metadata or None)

        @settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow])
        @example(
            [{"k": value} for value in (1e15 + 0.5, 1e15, 1e16, 1e22, -1e16, 5e-324, 1e308, -0.0, 2**53 + 1)]
        )
        @example([{"k": value} for value in (math.nan, math.inf, -math.inf, 2.0, 2, True, "2", [-0.0, 1e16])])
        @given(st.lists(METADATA, min_size=1, max_size=10))
        def check(metadatas: list[dict[str, Any]]) -> None:
            runner.run(round_trip(metadatas))

        try:
            check()
        finally:
            runner.run(store.close())
