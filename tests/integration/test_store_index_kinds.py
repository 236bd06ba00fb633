"""Kinds of vector indexes, indexes over records, filtered queries over all of them, and what connections remember."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError, NotFoundError
from pgchroma.store import Store, StoreSettings, builds, indexer, search_filtered
from pgchroma.store import nearest as nearest_records
from pgchroma.store.connection import Connection
from pgchroma.types import (
    DEFAULT_DATABASE,
    DEFAULT_TENANT,
    Collection,
    Filter,
    Float32Matrix,
    Include,
    RecordBatch,
)
from support.distances import distances
from support.postgres import Databases
from support.store import eventually, execute, ids, make, nearest, require_whole

pytestmark = pytest.mark.anyio
# Without sketches in memory, which would answer instead of the index after some queries.
SETTINGS = StoreSettings(
    pool_size=2, index_minimum_rows=100, indexer_interval_seconds=0.02, sketch_memory_mb=0
)
# Long enough for sketches.
DIMENSION = 128
ROWS = 1_500
QUERIES = 10


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        yield url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with await Store.open(database_url, SETTINGS) as opened:
        yield opened


def points(count: int, seed: int = 0, dimension: int = DIMENSION) -> Float32Matrix:
    """Return points around some centres, unit length."""
    order = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, dimension))
    found = centres[order.integers(0, 20, count)] + 0.7 * order.standard_normal((count, dimension))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def metadata_of(number: int) -> dict[str, Any]:
    return {"tenth": number % 10, "name": f"n{number % 100}", "half": number % 2 == 0, "size": number * 1.5}


def document_of(number: int) -> str:
    return (
        f"Record number {number} of {'many' if number % 3 else 'plenty of ünïcode'}; 100% sure_{number % 7}"
    )


async def collection_of(
    store: Store, embeddings: Float32Matrix, space: str = "cosine", **settings: str
) -> Collection:
    metadata = {f"pgchroma:{key}": value for key, value in settings.items()} or None
    collection = await store.create_collection(
        DEFAULT_TENANT,
        DEFAULT_DATABASE,
        f"kinds-{space}-{'-'.join(settings.values())}x",
        configuration={"hnsw": {"space": space}},
        metadata=metadata,
    )
    count = len(embeddings)
    batch = RecordBatch(
        [str(number) for number in range(count)],
        embeddings,
        [document_of(number) for number in range(count)],
        [metadata_of(number) for number in range(count)],
    )
    await store.add(collection.id, batch)
    return await store.get_collection_by_id(collection.id)


async def settle(database_url: str, settings: StoreSettings = SETTINGS) -> None:
    """Let the indexer look until it finds nothing to do."""
    async with await Connection.connect(database_url, autocommit=True) as connection:
        mine = indexer.Indexer(database_url, settings)

        async def nothing_left() -> bool:
            before = execute(database_url, "SELECT last_value FROM pgchroma.revisions")
            for _ in range(2):
                await mine.look(connection)
            return before == execute(database_url, "SELECT last_value FROM pgchroma.revisions")

        await eventually("the indexer to find nothing to do", nothing_left, seconds=90)


def indexes(database_url: str) -> set[tuple[str, str]]:
    rows = execute(database_url, "SELECT kind, quantisation FROM pgchroma.index_segments")
    return {(kind, quantisation) for kind, quantisation in rows}


def database_name(database_url: str) -> str:
    return database_url.partition("?")[0].rpartition("/")[2]


def scans(database_url: str) -> int:
    """How often indexes of segments have been used."""
    query = "SELECT sum(idx_scan)::int FROM pg_stat_user_indexes WHERE indexrelname ~ '_(hnsw|ivfflat)_'"
    return int(execute(database_url, query)[0][0] or 0)


async def recall(
    store: Store, collection: Collection, embeddings: Float32Matrix, mask: np.ndarray, **where: Any
) -> float:
    """Return recall@10 of queries over the records of `mask`; each answer has to be full, in order and of those records only."""
    queries = points(QUERIES, seed=5, dimension=embeddings.shape[1])
    rows = np.flatnonzero(mask)
    wanted = min(10, len(rows))
    hits = 0
    answers = await store.query(collection.id, queries, 10, Filter(**where), Include(distances=True))
    for query, answer in zip(queries, answers, strict=True):
        assert len(answer.ids) == wanted
        assert answer.distances is not None
        assert (np.diff(answer.distances) >= 0).all()
        found = {int(name) for name in answer.ids}
        assert found <= set(rows.tolist())
        best = rows[np.argsort(distances(collection.space, embeddings[rows], query), kind="stable")[:wanted]]
        hits += len(found & set(best.tolist()))
    return hits / (wanted * QUERIES)


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
@pytest.mark.parametrize("quantisation", ["none", "halfvec", "binary"])
async def test_every_kind_of_index_is_built_used_and_good(
    store: Store, database_url: str, space: str, kind: str, quantisation: str
) -> None:
    embeddings = points(ROWS)
    collection = await collection_of(store, embeddings, space, index=kind, quantisation=quantisation)
    await settle(database_url)
    assert indexes(database_url) == {(kind, quantisation)}
    # So few are compared one by one more cheaply, which is not what is to be tested.
    for setting in ("enable_seqscan", "enable_sort"):
        execute(
            database_url,
            f"ALTER ROLE CURRENT_USER IN DATABASE {database_name(database_url)} SET {setting} = off",
        )
    async with await Store.open(database_url, SETTINGS) as fresh:
        assert await recall(fresh, collection, embeddings, np.ones(ROWS, bool)) >= 0.95

    async def used() -> bool:
        return scans(database_url) >= QUERIES

    await eventually("the use of the index to be counted", used)
    (status,) = await store.status()
    assert (status.index, status.tail_rows, status.record_tail_rows) == (f"{kind}/{quantisation}", 0, 0)
    assert (status.documents, status.building) == ("function", None)


async def test_a_collection_may_do_without_an_index(store: Store, database_url: str) -> None:
    embeddings = points(ROWS)
    collection = await collection_of(store, embeddings, index="none")
    await settle(database_url)
    assert indexes(database_url) == set()
    assert await recall(store, collection, embeddings, np.ones(ROWS, bool)) == 1.0


@pytest.mark.parametrize(
    ("dimension", "settings", "expected"),
    [
        (2_001, {}, {("hnsw", "halfvec")}),
        (4_001, {}, set()),
        (4_001, {"quantisation": "binary"}, {("hnsw", "binary")}),
        (2_001, {"quantisation": "none"}, set()),
    ],
)
async def test_long_embeddings_are_indexed_as_far_as_pgvector_can(
    store: Store, database_url: str, dimension: int, settings: dict[str, str], expected: set[tuple[str, str]]
) -> None:
    embeddings = points(150, dimension=dimension)
    collection = await collection_of(store, embeddings, "l2", **settings)
    await settle(database_url)
    assert indexes(database_url) == expected
    assert await recall(store, collection, embeddings, np.ones(150, bool)) >= 0.9


async def test_another_kind_is_built_when_the_collection_asks_for_it(store: Store, database_url: str) -> None:
    embeddings = points(ROWS)
    collection = await collection_of(store, embeddings)
    everything = np.ones(ROWS, bool)
    for settings, expected in (
        ({}, {("hnsw", "halfvec")}),
        ({"pgchroma:index": "ivfflat"}, {("ivfflat", "halfvec")}),
        ({"pgchroma:quantisation": "none"}, {("hnsw", "none")}),
        ({"pgchroma:index": "none"}, set()),
    ):
        await store.modify_collection(collection.id, new_metadata={**settings, "kept": 1})
        # Until it is there, the one before serves.
        assert await recall(store, collection, embeddings, everything) >= 0.95
        await settle(database_url)
        assert indexes(database_url) == expected
        assert await recall(store, collection, embeddings, everything) >= 0.95
    assert execute(database_url, "SELECT 1 FROM pg_class WHERE relname ~ '_(hnsw|ivfflat)_'") == []
    await store.modify_collection(collection.id, new_metadata={"kept": 1})
    await settle(database_url)
    await store.modify_collection(collection.id, new_configuration={"hnsw": {"max_neighbors": 24}})
    await settle(database_url)
    options = execute(database_url, "SELECT options FROM pgchroma.index_segments")
    assert options == [("m=24 ef_construction=100",)]


@pytest.mark.parametrize(
    ("key", "value", "choices"),
    [
        ("pgchroma:index", "lsh", "hnsw, ivfflat, none"),
        ("pgchroma:index", 1, "hnsw, ivfflat, none"),
        ("pgchroma:quantisation", "int8", "auto, none, halfvec, binary"),
        ("pgchroma:quantization", "none", "pgchroma:index, pgchroma:quantisation"),
    ],
)
async def test_wrong_settings_are_refused_and_the_choices_named(
    store: Store, key: str, value: object, choices: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=choices):
        await store.create_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "wrong", metadata={key: value})
    collection = await make(store)
    with pytest.raises(InvalidArgumentError, match=choices):
        await store.modify_collection(collection.id, new_metadata={key: value})


async def test_numbers_too_large_for_halfvec_get_an_index_without(store: Store, database_url: str) -> None:
    embeddings = points(200) * np.float32(1e6)
    collection = await collection_of(store, embeddings, "l2", quantisation="halfvec")
    await settle(database_url)
    assert indexes(database_url) == {("hnsw", "none")}
    # From here all of them are nearly equally far.
    assert await recall(store, collection, embeddings, np.ones(200, bool)) >= 0.9
    assert execute(database_url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


NUMBERS = np.arange(ROWS)
FILTERS: list[tuple[dict[str, Any], np.ndarray]] = [
    ({"where": {"tenth": 3}}, NUMBERS % 10 == 3),
    ({"where": {"name": "n7"}}, NUMBERS % 100 == 7),
    ({"where": {"half": True}}, NUMBERS % 2 == 0),
    ({"where": {"tenth": {"$in": [1, 2]}}}, (NUMBERS % 10 == 1) | (NUMBERS % 10 == 2)),
    ({"where": {"tenth": {"$ne": 3}}}, NUMBERS % 10 != 3),
    ({"where": {"$and": [{"half": True}, {"size": {"$gt": 600.0}}]}}, (NUMBERS % 2 == 0) & (NUMBERS > 400)),
    ({"where": {"$or": [{"name": "n7"}, {"tenth": 1}]}}, (NUMBERS % 100 == 7) | (NUMBERS % 10 == 1)),
    ({"where_document": {"$contains": "plenty of ünï"}}, NUMBERS % 3 == 0),
    ({"where_document": {"$contains": "sure_3"}}, NUMBERS % 7 == 3),
    ({"where_document": {"$contains": "%"}}, NUMBERS >= 0),
    ({"where_document": {"$not_contains": "plenty"}}, NUMBERS % 3 != 0),
    (
        {"where_document": {"$or": [{"$contains": "sure_3"}, {"$contains": "plenty"}]}},
        (NUMBERS % 7 == 3) | (NUMBERS % 3 == 0),
    ),
    (
        {"where": {"tenth": 3}, "where_document": {"$contains": "sure_3"}},
        (NUMBERS % 10 == 3) & (NUMBERS % 7 == 3),
    ),
    (
        {"where": {"$or": [{"tenth": 3}, {"#document": {"$contains": "sure_3"}}]}},
        (NUMBERS % 10 == 3) | (NUMBERS % 7 == 3),
    ),
    ({"where_document": {"$contains": "no such text"}}, NUMBERS < 0),
]


@pytest.mark.parametrize("space", ["l2", "cosine"])
async def test_filters_find_the_same_with_indexes_with_a_tail_and_after_changes(
    store: Store, database_url: str, space: str
) -> None:
    embeddings = points(ROWS)
    collection = await collection_of(store, embeddings, space)
    names = np.array([str(number) for number in NUMBERS])

    async def check() -> None:
        for where, mask in FILTERS:
            assert await ids(store, collection, **where) == names[mask].tolist(), where
            if mask.any():
                assert await recall(store, collection, embeddings, mask, **where) >= 0.99, where

    await check()
    await settle(database_url)
    assert (
        len(execute(database_url, "SELECT FROM pgchroma.record_segments WHERE document_index IS NOT NULL"))
        == 1
    )
    await check()
    # Deleted and added anew they move to the tail, updated they stay; both indexes have to notice.
    moved = [str(number) for number in range(ROWS - 60, ROWS)]
    await store.delete(collection.id, Filter(ids=moved))
    batch = RecordBatch(
        moved,
        embeddings[-60:],
        [document_of(int(name)) for name in moved],
        [metadata_of(int(name)) for name in moved],
    )
    await store.add(collection.id, batch)
    await store.update(
        collection.id, RecordBatch(["3", "7"], None, ["was changed", "was changed, too"], [{"tenth": 99}] * 2)
    )
    assert await ids(store, collection, where={"tenth": 99}) == ["3", "7"]
    assert await ids(store, collection, where_document={"$contains": "was changed"}) == ["3", "7"]
    assert await store.delete(collection.id, Filter(where_document={"$contains": "changed, too"})) == 1
    assert await ids(store, collection, where={"tenth": 99}) == ["3"]
    restored = RecordBatch(["3"], embeddings[3:4], [document_of(3)], [metadata_of(3)])
    await store.upsert(collection.id, restored)
    assert (await nearest(store, collection, embeddings[3].tolist(), 1, where={"tenth": 3}))[0] == ["3"]
    require_whole(database_url)


@pytest.mark.parametrize("kind", ["hnsw", "ivfflat"])
async def test_many_matches_are_found_by_a_walk_through_the_index(
    store: Store, database_url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings = points(ROWS)
    collection = await collection_of(store, embeddings, index=kind)
    await settle(database_url)
    found: list[int | None] = []
    walk = nearest_records.walking

    def walking(*arguments: Any, **named: Any) -> sql.Composed:
        found.append(arguments[3])
        return walk(*arguments, **named)

    monkeypatch.setattr(nearest_records, "walking", walking)
    half, hundredth = NUMBERS % 2 == 0, NUMBERS % 100 == 7
    assert await recall(store, collection, embeddings, half, where={"half": True}) >= 0.99
    assert not found
    monkeypatch.setattr(search_filtered, "_FEW_MATCHES", 100)
    assert await recall(store, collection, embeddings, half, where={"half": True}) >= 0.99
    assert len(found) == QUERIES
    # Of so few the walk would find too few, and is not tried.
    assert await recall(store, collection, embeddings, hundredth, where={"name": "n7"}) >= 0.99
    assert len(found) == QUERIES
    monkeypatch.setattr(search_filtered, "_WORTH_WALKING", 0)
    monkeypatch.setattr(search_filtered, "_FEW_MATCHES", 1)
    # One that finds too few is followed by a look at each match.
    last = NUMBERS >= ROWS - 5
    where = {"size": {"$gte": 1.5 * (ROWS - 5)}}
    assert await recall(store, collection, embeddings, last, where=where) == 1.0
    assert len(found) == 2 * QUERIES


async def test_embeddings_of_any_length_are_found_although_sketches_know_angles_only(store: Store) -> None:
    lengths = np.geomspace(0.01, 100, 600, dtype=np.float32)[:, None]
    embeddings = points(600) * np.random.default_rng(1).permutation(lengths)
    collection = await collection_of(store, embeddings, "l2")
    assert not (await store.get_collection_by_id(collection.id)).unit_length
    mask = np.arange(600) % 2 == 0
    assert await recall(store, collection, embeddings, mask, where={"half": True}) == 1.0


@pytest.mark.parametrize(("dimension", "bits"), [(DIMENSION, 3), (600, 2), (1_100, 1), (4_097, 0)])
async def test_sketches_of_longer_embeddings_choose_as_well(store: Store, dimension: int, bits: int) -> None:
    embeddings = points(1_400, dimension=dimension)
    collection = await collection_of(store, embeddings, "ip")
    assert (await store.get_collection_by_id(collection.id)).sketch == bits
    mask = np.arange(1_400) % 2 == 0
    assert await recall(store, collection, embeddings, mask, where={"half": True}) >= 0.99


async def test_a_changed_embedding_has_another_sketch(store: Store) -> None:
    embeddings = points(800)
    collection = await collection_of(store, embeddings)
    far = -embeddings.mean(axis=0)
    await store.update(collection.id, RecordBatch(["8"], far[None]))
    assert (await nearest(store, collection, far.tolist(), 1, where={"half": True}))[0] == ["8"]


@pytest.mark.parametrize("method", ["metadata_index", "document_index", "vectors"])
async def test_a_lost_index_of_a_segment_is_built_again(store: Store, database_url: str, method: str) -> None:
    embeddings = points(300)
    collection = await collection_of(store, embeddings)
    await settle(database_url)
    query = {
        "vectors": "SELECT index_name FROM pgchroma.index_segments",
    }.get(method, f"SELECT {method} FROM pgchroma.record_segments")  # noqa: S608 - one of two names
    ((name,),) = execute(database_url, query)
    execute(
        database_url,
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgchroma_data.{name}'::regclass",  # noqa: S608
    )
    mask = np.arange(300) % 10 == 3
    assert await recall(store, collection, embeddings, mask, where={"tenth": 3}) == 1.0
    async with await Connection.connect(database_url, autocommit=True) as connection:
        await builds.remove_leftovers(connection)
    await settle(database_url)
    ((again,),) = execute(database_url, query)
    assert again != name
    assert execute(database_url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


async def test_what_a_connection_remembers_is_never_out_of_date(store: Store, database_url: str) -> None:
    """Every step changes a collection behind a store that has just read it."""
    async with await Store.open(database_url, StoreSettings(pool_size=1)) as reader:
        collection = await make(store, "remembered")
        empty = (await reader.query(collection.id, points(1), 3, Filter(), Include()))[0]
        assert (empty.ids, await reader.count(collection.id)) == ([], 0)
        await store.add(collection.id, RecordBatch(["a"], points(1)))
        assert (await nearest(reader, collection, points(1)[0].tolist(), 3))[0] == ["a"]
        assert (await ids(reader, collection), await reader.count(collection.id)) == (["a"], 1)
        await store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "remembered")
        for read in (
            reader.count(collection.id),
            reader.get(collection.id, Filter(), Include()),
            reader.query(collection.id, points(1), 3, Filter(), Include()),
        ):
            with pytest.raises(NotFoundError):
                await read
        again = await store.create_collection(
            DEFAULT_TENANT, DEFAULT_DATABASE, "another", collection_id=collection.id
        )
        await store.add(again.id, RecordBatch(["b", "c"], np.eye(2, dtype=np.float32)))
        assert (await nearest(reader, again, [0, 1], 3))[0] == ["c", "b"]
        with pytest.raises(InvalidDimensionError):
            await reader.query(again.id, points(1), 3, Filter(), Include())


async def test_a_remembered_index_that_is_gone_harms_nobody(store: Store, database_url: str) -> None:
    embeddings = points(600)
    collection = await collection_of(store, embeddings)
    await settle(database_url)
    for step in range(4):
        await store.modify_collection(
            collection.id, new_metadata={"pgchroma:index": ("ivfflat", "hnsw")[step % 2]}
        )
        for _ in range(8):
            assert await recall(store, collection, embeddings, np.ones(600, bool)) >= 0.95
        await settle(database_url)
