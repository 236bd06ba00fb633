"""Distances and the number of results, without a vector index."""

from typing import Any

import numpy as np
import pytest

from pgchroma.errors import InvalidDimensionError
from pgchroma.store import Store, StoreSettings, reads, search_basis
from pgchroma.types import Filter, Float32Matrix, Include, RecordBatch
from support.distances import distances
from support.store import EVERYTHING, make, matrix, nearest

pytestmark = pytest.mark.anyio
SPACES = ("l2", "cosine", "ip")


def random_matrix(count: int, dimension: int) -> Float32Matrix:
    return np.random.default_rng(7).standard_normal((count, dimension)).astype(np.float32)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("dimension", [1, 3, 2000, 2001, 16_000])
async def test_distances_are_chromas_in_every_dimension(store: Store, space: str, dimension: int) -> None:
    collection = await make(store, space=space)
    embeddings = random_matrix(21, dimension)
    names = [str(number) for number in range(20)]
    await store.add(collection.id, RecordBatch(names, embeddings[:20]))
    (rows,) = await store.query(
        collection.id, embeddings[20:], 7, Filter(), Include(embeddings=True, distances=True)
    )
    expected = distances(space, embeddings[:20], embeddings[20])
    found = [int(name) for name in rows.ids]
    assert rows.distances is not None
    assert rows.embeddings is not None
    assert rows.distances.dtype == np.float32
    np.testing.assert_allclose(rows.distances, np.sort(expected)[:7], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows.distances, expected[found], rtol=1e-4, atol=1e-4)
    assert rows.embeddings.tobytes() == embeddings[found].tobytes()


async def test_l2_is_squared_and_ip_can_be_negative(store: Store) -> None:
    l2, ip = await make(store, space="l2"), await make(store, space="ip")
    for collection in (l2, ip):
        await store.add(collection.id, RecordBatch(["a", "b"], matrix([3, 4], [1, 0])))
    assert await nearest(store, l2, [0, 0], 2) == (["b", "a"], [1, 25])
    assert await nearest(store, ip, [1, 1], 2) == (["a", "b"], [-6, 0])


@pytest.mark.parametrize("where", [None, {"k": {"$ne": 1}}])
async def test_a_zero_vector_is_at_distance_one_from_everything(
    store: Store, where: dict[str, Any] | None
) -> None:
    collection = await make(store, space="cosine")
    await store.add(collection.id, RecordBatch(list("abc"), matrix([0, 0], [1, 0], [-1, 0])))
    assert await nearest(store, collection, [1, 0], 3, where=where) == (["b", "a", "c"], [0, 1, 2])
    assert await nearest(store, collection, [0, 0], 3, where=where) == (["a", "b", "c"], [1, 1, 1])


@pytest.mark.parametrize("scale", [1e-30, 1e-44])
async def test_tiny_vectors_have_a_direction(store: Store, scale: float) -> None:
    collection = await make(store, space="cosine")
    await store.add(collection.id, RecordBatch(list("abc"), matrix([0, scale], [scale, scale], [scale, 0])))
    found, values = await nearest(store, collection, [scale, 0], 3)
    assert found == ["c", "b", "a"]
    np.testing.assert_allclose(values, [0, 1 - 0.5**0.5, 1], atol=1e-6)


@pytest.mark.parametrize("space", SPACES)
async def test_huge_vectors_are_no_error(store: Store, space: str) -> None:
    collection = await make(store, space=space)
    await store.add(collection.id, RecordBatch(list("ab"), matrix([3e38, 3e38], [1, 1])))
    found, _ = await nearest(store, collection, [3e38, -3e38], 2)
    assert sorted(found) == ["a", "b"]


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 1), (3, 3), (4, 3), (10_000, 3)])
async def test_there_are_as_many_results_as_asked_for_or_as_there_are(
    store: Store, count: int, expected: int
) -> None:
    collection = await make(store)
    await store.add(collection.id, RecordBatch(list("abc"), matrix([1, 0], [2, 0], [3, 0])))
    found, _ = await nearest(store, collection, [0, 0], count)
    assert found == list("abc")[:expected]


async def test_every_query_of_a_batch_gets_an_answer_of_its_own(store: Store) -> None:
    collection = await make(store)
    await store.add(
        collection.id, RecordBatch(list("abc"), matrix([1, 0], [2, 0], [3, 0]), metadatas=[{"k": 1}, None, {"k": 1}])
    )  # fmt: skip
    answers = await store.query(collection.id, matrix([0, 0], [9, 0]), 2, Filter(where={"k": 1}), EVERYTHING)
    assert [rows.ids for rows in answers] == [["a", "c"], ["c", "a"]]
    assert answers[0].metadatas == [b'{"k": 1}', b'{"k": 1}']
    assert answers[0].documents == [None, None]
    answers = await store.query(collection.id, matrix([0, 0], [9, 0]), 2, Filter(ids=["b", "x"]), Include())
    assert [(rows.ids, rows.documents, rows.distances) for rows in answers] == [(["b"], None, None)] * 2


async def test_equally_near_records_come_in_insertion_order(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, RecordBatch(list("cab"), matrix([1, 0], [0, 1], [-1, 0])))
    await store.update(collection.id, RecordBatch(["c"], matrix([0, -1])))
    assert (await nearest(store, collection, [0, 0], 3))[0] == ["c", "a", "b"]


async def test_a_query_needs_the_collections_dimension(store: Store) -> None:
    collection = await make(store)
    empty = await store.query(collection.id, matrix([1, 2, 3], [1, 2, 3]), 5, Filter(), EVERYTHING)
    assert [rows.ids for rows in empty] == [[], []]
    await store.add(collection.id, RecordBatch(["a"], matrix([1, 2])))
    with pytest.raises(InvalidDimensionError, match="embedding with dimension of 2, got 3"):
        await store.query(collection.id, matrix([1, 2, 3]), 5, Filter(), EVERYTHING)


async def test_what_a_rollback_takes_back_is_set_again(store: Store) -> None:
    with_pattern = Filter(where_document={"$regex": "x"})
    async with store._database.connection() as connection:
        await search_basis.set_to(connection, "hnsw.ef_search", 77)

        async def fail() -> None:
            async with reads.one_snapshot(connection, with_pattern):
                await search_basis.set_to(connection, "hnsw.ef_search", 78)
                raise ZeroDivisionError

        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                await fail()
            await search_basis.set_to(connection, "hnsw.ef_search", 78)
            assert await connection.fetch(b"SHOW hnsw.ef_search", {}) == [("78",)]
            await search_basis.set_to(connection, "hnsw.ef_search", 77)


async def test_a_connection_keeps_no_more_than_so_many_statements(database_url: str) -> None:
    """Every collection has tables of its own: the statements prepared for them must not pile up in PostgreSQL."""
    async with await Store.open(database_url, StoreSettings(pool_size=1)) as store:
        for number in range(12):
            collection = await make(store, f"collection-{number}")
            await store.add(collection.id, RecordBatch(["a"], matrix([1, 2])))
            for _ in range(12):
                for where in (None, {"k": 1}, {"k": {"$ne": 1}}, {"$or": [{"k": 1}] * (number + 1)}):
                    await store.get(collection.id, Filter(where=where), EVERYTHING)
                    await store.query(collection.id, matrix([1, 2]), 1, Filter(where=where), EVERYTHING)
        async with store.transaction() as connection:
            cursor = await connection.execute("SELECT count(*) FROM pg_prepared_statements")
            row = await cursor.fetchone()
    assert row is not None
    assert 0 < row[0] <= 100
