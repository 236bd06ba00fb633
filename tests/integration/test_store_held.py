"""Sketches held in memory: answers as good as an exact search, whatever was written, deleted or changed since they were read."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import numpy as np
import psycopg
import pytest

from pgchroma.errors import NotFoundError
from pgchroma.store import Store, StoreSettings, barrier, bounds, entries, indexer
from pgchroma.store.connection import Connection
from pgchroma.store.held import SketchMemory
from pgchroma.types import Collection, Filter, Float32Matrix, Include, RecordBatch, Rows
from support.distances import distances
from support.postgres import Databases
from support.store import eventually, execute, nearest

pytestmark = pytest.mark.anyio
SETTINGS = StoreSettings(pool_size=4, index_minimum_rows=100, indexer_interval_seconds=0.02)
DIMENSION, ROWS, K = 128, 1_500, 10


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        yield url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with await Store.open(database_url, SETTINGS) as opened:
        yield opened


def points(count: int, seed: int = 0, dimension: int = DIMENSION) -> Float32Matrix:
    """Return points of length 1 around some centres, as embeddings are."""
    order = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((30, dimension))
    found = centres[order.integers(0, 30, count)] + 0.7 * order.standard_normal((count, dimension))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


async def make(
    store: Store, embeddings: Float32Matrix, space: str = "cosine", metadata: dict[str, str] | None = None
) -> Collection:
    """Return a collection of these embeddings, named by their positions, all of them indexed."""
    collection = await store.create_collection(
        "default_tenant",
        "default_database",
        "records",
        configuration={"hnsw": {"space": space}},
        metadata=metadata,
    )
    await add(store, collection, embeddings)
    return collection


async def add(store: Store, collection: Collection, embeddings: Float32Matrix, start: int = 0) -> None:
    names = [str(start + number) for number in range(len(embeddings))]
    await store.add(collection.id, RecordBatch(names, embeddings))
    await index(store)


async def index(store: Store) -> None:
    """Run the indexer until nothing is left to do."""
    work = indexer.Indexer(store._database.conninfo, store.settings)
    async with await Connection.connect(store._database.conninfo, autocommit=True) as connection:
        for _ in range(6):
            await work.look(connection)


async def held(store: Store, collection: Collection, embedding: Float32Matrix) -> int:
    """Query until sketches are held; how many bytes."""

    async def ask() -> int:
        await nearest(store, collection, embedding.tolist(), K)
        return store.sketch_bytes

    return await eventually("sketches to be held", ask, seconds=10)


async def is_used(store: Store, collection: Collection, embedding: Float32Matrix) -> bool:
    """Whether a query is answered by what is held; None of a walk's candidates would come from PostgreSQL then."""
    async with store._database.connection() as connection:
        entry = await entries.fetch(connection, collection.id)
        return connection.sketches.candidates(entry, embedding, 100, K) is not None


async def identity(store: Store, collection: Collection) -> str:
    async with store._database.connection() as connection:
        return (await entries.fetch(connection, collection.id)).identity


async def require_good(
    store: Store,
    collection: Collection,
    embeddings: dict[str, np.ndarray],
    space: str = "cosine",
    least: float = 0.99,
) -> None:
    names = list(embeddings)
    matrix = np.array([embeddings[name] for name in names], np.float32)
    hits = 0
    queries = points(20, seed=7, dimension=matrix.shape[1])
    for query in queries:
        found, far = await nearest(store, collection, query.tolist(), K)
        exact = distances(space, matrix, query)
        bound = np.partition(exact, K - 1)[K - 1] + 1e-5
        assert len(found) == K
        assert far == sorted(far)
        place = {name: number for number, name in enumerate(names)}
        assert np.allclose(far, [exact[place[name]] for name in found], atol=1e-5)
        hits += sum(bool(exact[place[name]] <= bound) for name in found)
    assert hits / (K * len(queries)) >= least


def named(embeddings: Float32Matrix) -> dict[str, np.ndarray]:
    return {str(number): row for number, row in enumerate(embeddings)}


@pytest.mark.parametrize("space", ["cosine", "l2", "ip"])
@pytest.mark.parametrize("dimension", [100, 600, 1_100])
async def test_answers_are_as_good_as_exact_ones(store: Store, space: str, dimension: int) -> None:
    embeddings = points(ROWS, dimension=dimension)
    collection = await make(store, embeddings, space)
    assert store.sketch_bytes == 0
    assert await held(store, collection, embeddings[0]) > ROWS * dimension // 8
    assert await is_used(store, collection, embeddings[0])
    await require_good(store, collection, named(embeddings), space)


async def test_questions_of_one_request_and_of_many_are_answered_alike(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])
    asked = points(30, seed=5)
    asked[7] = 0
    include = Include(distances=True)

    async def one(embedding: Float32Matrix) -> Rows:
        (rows,) = await store.query(collection.id, embedding[None], K, Filter(), include)
        return rows

    apart = [await one(embedding) for embedding in asked]
    for deleted in ([], [name for rows in apart[:4] for name in rows.ids]):
        if deleted:
            # So many of the candidates of the first that they have to be looked for again.
            await store.delete(collection.id, Filter(deleted))
            apart = [await one(embedding) for embedding in asked]
        in_one = await store.query(collection.id, asked, K, Filter(), include)
        at_once = await asyncio.gather(*map(one, asked))
        for several in (in_one, at_once):
            assert [len(rows.ids) for rows in several] == [K] * len(asked)
            for place, (rows, expected) in enumerate(zip(several, apart, strict=True)):
                # Of a query without a direction every record is equally far.
                assert place == 7 or rows.ids == expected.ids
                assert rows.distances is not None
                assert expected.distances is not None
                np.testing.assert_allclose(rows.distances, expected.distances, atol=1e-6)


async def test_a_query_among_many_sees_what_was_written_before_it(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])
    new = points(60, seed=12)

    async def write_and_ask(number: int) -> None:
        await store.add(collection.id, RecordBatch([str(ROWS + number)], new[number : number + 1]))
        (rows,) = await store.query(collection.id, new[number : number + 1], 1, Filter(), Include())
        assert rows.ids == [str(ROWS + number)]

    async def ask() -> None:
        for embedding in points(40, seed=13):
            await store.query(collection.id, embedding[None], K, Filter(), Include())

    await asyncio.gather(*(write_and_ask(number) for number in range(len(new))), *(ask() for _ in range(6)))


async def test_several_segments_and_the_tail_are_searched_together(store: Store) -> None:
    embeddings = points(ROWS + 450)
    collection = await make(store, embeddings[:ROWS])
    await add(store, collection, embeddings[ROWS : ROWS + 400], start=ROWS)
    names = [str(ROWS + 400 + number) for number in range(50)]
    await store.add(collection.id, RecordBatch(names, embeddings[ROWS + 400 :]))
    (status,) = await store.status()
    assert status.segments == 2
    await held(store, collection, embeddings[0])
    await eventually("both to be held", lambda: is_used(store, collection, embeddings[0]), seconds=10)
    await require_good(store, collection, named(embeddings))


async def test_deleted_neighbours_make_answers_neither_shorter_nor_worse(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    before = await held(store, collection, embeddings[0])
    query = points(20, seed=7)[0]
    order = np.argsort(distances("cosine", embeddings, query))
    gone = {str(place) for place in order[:800]}
    await store.delete(collection.id, Filter(ids=sorted(gone)))
    left = {name: row for name, row in named(embeddings).items() if name not in gone}
    # An index full of deleted vectors finds a little less, until they are vacuumed away.
    await require_good(store, collection, left, least=0.9)

    async def is_smaller() -> bool:
        return 0 < await held(store, collection, embeddings[0]) < before

    await eventually("the sketches of what is left to be read", is_smaller)
    await require_good(store, collection, left)


async def test_a_changed_embedding_is_found_at_its_new_place_only(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])
    await store.update(collection.id, RecordBatch(["0"], -embeddings[:1]))
    found, _ = await nearest(store, collection, embeddings[0].tolist(), K)
    assert "0" not in found
    found, _ = await nearest(store, collection, (-embeddings[0]).tolist(), K)
    assert found[0] == "0"


async def test_zero_vectors_are_found(store: Store) -> None:
    embeddings = points(300)
    embeddings[100:295] = 0
    collection = await make(store, embeddings)
    query = embeddings[0]
    await held(store, collection, query)
    found, far = await nearest(store, collection, query.tolist(), 250)
    assert len(found) == 250
    assert np.allclose(far, np.sort(1 - embeddings @ query)[:250], atol=1e-5)
    # Every record is as far from a zero vector.
    found, far = await nearest(store, collection, [0.0] * DIMENSION, 5)
    assert far == [1.0] * 5


@pytest.mark.parametrize("space", ["l2", "ip"])
@pytest.mark.parametrize("tail", [0, 3])
@pytest.mark.filterwarnings("error")
async def test_a_query_without_a_direction_finds_as_many_as_any(store: Store, space: str, tail: int) -> None:
    embeddings = points(ROWS + tail)
    collection = await make(store, embeddings[:ROWS], space)
    size = await held(store, collection, embeddings[0])
    names = [str(ROWS + number) for number in range(tail)]
    await store.update(
        collection.id, RecordBatch([str(number) for number in range(ROWS)], None, metadatas=[{"a": 1}] * ROWS)
    )
    if tail:
        await store.add(collection.id, RecordBatch(names, embeddings[ROWS:], metadatas=[{"a": 1}] * tail))
    zero = np.zeros(DIMENSION, np.float32)
    exact = np.sort(distances(space, embeddings, zero))[:K]
    for where in (None, {"a": 1}):
        for _ in range(3):
            found, far = await nearest(store, collection, zero.tolist(), K, where=where)
            assert len(set(found)) == K
            assert np.allclose(far, exact, atol=1e-6)
    assert store.sketch_bytes == size


async def test_what_is_held_outlives_a_change_of_the_catalog_and_an_empty_question(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    size = await held(store, collection, embeddings[0])
    for number in range(3):
        # A new key is a new revision, of which every connection hears by a first answer that is empty.
        await store.update(collection.id, RecordBatch(["0"], None, metadatas=[{f"key{number}": 1}]))
        for where in (None, {"key0": 1}, {"key0": {"$ne": 2}}):
            for count in (0, 1):
                found, _ = await nearest(store, collection, embeddings[0].tolist(), count, where=where)
                assert found == ["0"][:count]
            assert store.sketch_bytes == size


async def test_records_that_are_all_alike_are_found(store: Store) -> None:
    embeddings = np.repeat(points(1), ROWS, axis=0)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])
    found, far = await nearest(store, collection, embeddings[0].tolist(), K)
    assert len(set(found)) == K
    assert np.allclose(far, 0, atol=1e-6)


async def test_a_write_that_was_under_way_while_sketches_were_read_is_found(
    store: Store, database_url: str
) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    tables = await table_names(store, collection)
    late_seq = 700
    for table in tables:
        execute(
            database_url,
            f"CREATE TABLE kept_{table} AS SELECT * FROM pgchroma_data.{table} WHERE seq = {late_seq}",  # noqa: S608
        )
        execute(database_url, f"DELETE FROM pgchroma_data.{table} WHERE seq = {late_seq}")  # noqa: S608
    with psycopg.connect(database_url) as late:
        # A writer that took its number, one that the segment covers, and has been slow since.
        late.execute(barrier.SHARE)
        for table in tables:
            late.execute(f"INSERT INTO pgchroma_data.{table} SELECT * FROM kept_{table}".encode())  # noqa: S608
        task = asyncio.create_task(held(store, collection, embeddings[0]))
        await eventually("somebody to wait for the writer", lambda: _is_waiting(store))
        assert store.sketch_bytes == 0
        late.commit()
        await task
    await require_good(store, collection, named(embeddings))


async def table_names(store: Store, collection: Collection) -> list[str]:
    number = (await store.get_collection_by_id(collection.id)).table_number
    return [f"r{number}", f"v{number}"]


async def _is_waiting(store: Store) -> bool:
    return store._sketches._loading is not None


@pytest.mark.parametrize("kind", [{"pgchroma:index": "ivfflat"}, {"pgchroma:quantisation": "binary"}])
async def test_an_index_that_was_asked_for_is_used(store: Store, kind: dict[str, str]) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings, metadata=kind)
    for _ in range(20):
        await nearest(store, collection, embeddings[0].tolist(), K)
    assert store._sketches._loading is None
    assert store.sketch_bytes == 0


async def test_memory_is_limited_and_can_be_switched_off(database_url: str) -> None:
    embeddings = points(ROWS)
    async with await Store.open(database_url, replace(SETTINGS, sketch_memory_mb=0)) as store:
        collection = await make(store, embeddings)
        for _ in range(20):
            await nearest(store, collection, embeddings[0].tolist(), K)
        assert store.sketch_bytes == 0
    async with await Store.open(database_url, SETTINGS) as store:
        size = await held(store, collection, embeddings[0])
        # Room for one collection and a half: the one used last stays.
        small = SketchMemory(store._database.connection, size * 3 // 2)
        store._sketches, store._database.sketches = small, small
        other = await store.create_collection(
            "default_tenant", "default_database", "other", configuration={"hnsw": {"space": "cosine"}}
        )
        await add(store, other, embeddings)
        for wanted in (collection, other, collection):

            async def holds(wanted: Collection = wanted) -> bool:
                await nearest(store, wanted, embeddings[0].tolist(), K)
                return await is_used(store, wanted, embeddings[0])

            await eventually("its sketches", holds)
            assert small.size == size


async def test_a_database_that_was_exchanged_is_read_anew(store: Store, database_url: str) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])
    table, _ = await table_names(store, collection)
    before = await identity(store, collection)
    # As a restored dump would: the same names, other tables.
    for statement in (
        f"ALTER TABLE pgchroma_data.{table} RENAME TO old",
        f"CREATE TABLE pgchroma_data.{table} (LIKE pgchroma_data.old INCLUDING ALL)",
        f"INSERT INTO pgchroma_data.{table} SELECT * FROM pgchroma_data.old",  # noqa: S608
        "DROP TABLE pgchroma_data.old",
        "UPDATE pgchroma.collections SET revision = revision + 1",
    ):
        execute(database_url, statement)
    assert await identity(store, collection) != before
    assert not await is_used(store, collection, embeddings[0])
    await require_good(store, collection, named(embeddings))


async def test_filters_that_most_records_match_are_answered_from_memory_others_are_not(store: Store) -> None:
    embeddings = points(ROWS + 50)
    collection = await store.create_collection(
        "default_tenant", "default_database", "records", configuration={"hnsw": {"space": "cosine"}}
    )
    # Half of the records match the first filter, one in a hundred the second.
    metadatas = [{"half": number % 2, "few": number % 100} for number in range(ROWS + 50)]
    for low, high in ((0, ROWS), (ROWS, ROWS + 50)):
        names = [str(number) for number in range(low, high)]
        await store.add(
            collection.id, RecordBatch(names, embeddings[low:high], metadatas=metadatas[low:high])
        )
        if low == 0:
            await index(store)
    await held(store, collection, embeddings[0])
    for key, share in (("half", 2), ("few", 100)):
        mine = np.arange(1, ROWS + 50, share)
        hits = 0
        queries = points(20, seed=7)
        for query in queries:
            found, far = await nearest(store, collection, query.tolist(), K, where={key: 1})
            exact = distances("cosine", embeddings[mine], query)
            assert {int(name) % share for name in found} == {1}
            assert np.allclose(
                far, distances("cosine", embeddings[[int(name) for name in found]], query), atol=1e-5
            )
            bound = np.partition(exact, K - 1)[K - 1] + 1e-5
            assert len(found) == K
            hits += sum(value <= bound for value in far)
        assert hits / (K * len(queries)) >= 0.99
        # Both filters have one shape, so that the second takes away the hope that the first has made.
        assert [value > 0 for value in store._sketches._hopes.values()] == [share == 2]


async def test_a_filter_that_was_answered_from_memory_sees_deletions(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await store.update(
        collection.id, RecordBatch([str(number) for number in range(ROWS)], None, metadatas=[{"a": 1}] * ROWS)
    )
    await held(store, collection, embeddings[0])
    found, _ = await nearest(store, collection, embeddings[0].tolist(), K, where={"a": 1})
    order = np.argsort(distances("cosine", embeddings, embeddings[0]))
    assert found[0] == "0"
    await store.delete(collection.id, Filter(ids=[str(place) for place in order[:700]]))
    again, _ = await nearest(store, collection, embeddings[0].tolist(), K, where={"a": 1})
    assert len(again) == K
    assert set(map(int, again)) <= set(order[700:760].tolist())


async def test_a_filter_that_was_asked_for_before_sees_every_change(store: Store) -> None:
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])
    # Too few match for the way on which the nearest are chosen first.
    some = [str(number) for number in range(0, ROWS, 50)]
    await store.update(collection.id, RecordBatch(some, None, metadatas=[{"a": 1}] * len(some)))
    query = embeddings[0].tolist()

    async def ask() -> list[str]:
        return (await nearest(store, collection, query, K, where={"a": 1}))[0]

    for _ in range(6):
        before = await ask()
    assert store._sketches._noted
    assert before[0] == "0"
    # One no longer matches, one is gone, one moves away, one matches now, and one is new.
    await store.update(collection.id, RecordBatch([before[1]], None, metadatas=[{"a": 2}]))
    await store.delete(collection.id, Filter(ids=[before[2]]))
    await store.update(collection.id, RecordBatch([before[3]], -embeddings[:1]))
    order = np.argsort(distances("cosine", embeddings, embeddings[0]))
    now = next(str(place) for place in order if str(place) not in some)
    await store.update(collection.id, RecordBatch([now], None, metadatas=[{"a": 1}]))
    await store.add(collection.id, RecordBatch(["new"], embeddings[:1], metadatas=[{"a": 1}]))
    for _ in range(3):
        after = await ask()
        assert not {before[1], before[2], before[3]} & set(after)
        assert set(after[:2]) == {"0", "new"}
        assert now in after
        assert len(after) == K


async def test_no_task_is_answered_from_beyond_its_bounds(store: Store) -> None:
    """Those who may reach a collection do so at the same time."""
    embeddings = points(ROWS)
    collection = await make(store, embeddings)
    await held(store, collection, embeddings[0])

    async def ask(place: int, tenant: str) -> int:
        bounds.confine(tenant, "default_database")
        try:
            (rows,) = await store.query(collection.id, embeddings[place][None], K, Filter(), Include())
        except NotFoundError:
            return 0
        return len(rows.ids)

    for _ in range(10):
        tenants = ["default_tenant", "default_tenant", "evil", "default_tenant", "evil", "evil"] * 5
        found = await asyncio.gather(*(ask(place, tenant) for place, tenant in enumerate(tenants)))
        assert found == [K if tenant == "default_tenant" else 0 for tenant in tenants]


@pytest.mark.parametrize("space", ["l2", "cosine"])
@pytest.mark.parametrize("megabytes", [0, 64], ids=["by the index", "by what is held"])
async def test_records_are_found_behind_many_equal_ones_that_were_deleted(
    database_url: str, space: str, megabytes: int
) -> None:
    """Equal vectors are neighbours of each other alone, and a walk that begins among them ends there."""
    settings = replace(SETTINGS, sketch_memory_mb=megabytes)
    async with await Store.open(database_url, settings) as store:
        embeddings = np.concatenate([np.tile(points(1, seed=3), (1_200, 1)), points(ROWS)])
        collection = await make(store, embeddings, space)
        if megabytes:
            await held(store, collection, embeddings[0])
        await store.delete(collection.id, Filter([str(number) for number in range(1_200)]))
        for count in (1, 10, 200):
            names, far = await nearest(store, collection, embeddings[0].tolist(), count)
            assert len(names) == count, "as many as asked for"
            exact = np.sort(distances(space, embeddings[1_200:], embeddings[0]))[:count]
            np.testing.assert_allclose(far, exact, atol=1e-4)
        assert len((await nearest(store, collection, embeddings[0].tolist(), 999))[0]) == 999


async def test_sketches_that_do_not_tell_neighbours_apart_are_not_used(store: Store) -> None:
    """Vectors that scatter in every direction around the same points are all about as far from each other."""
    order = np.random.default_rng(1)
    scattered = order.standard_normal((2, 384))[order.integers(0, 2, 3_000)]
    scattered = scattered + 0.2 * order.standard_normal(scattered.shape)
    embeddings = np.asarray(scattered / np.linalg.norm(scattered, axis=1, keepdims=True), np.float32)
    collection = await make(store, embeddings)

    async def misled() -> bool:
        await nearest(store, collection, embeddings[0].tolist(), K)
        async with store._database.connection() as connection:
            assert connection.sketches is not None
            return bool(connection.sketches.misleads(await entries.fetch(connection, collection.id)))

    assert await eventually("sketches to be found wanting", misled, seconds=10)
    assert store.sketch_bytes == 0
    halves = [{"half": number % 2} for number in range(len(embeddings))]
    names = [str(number) for number in range(len(embeddings))]
    await store.update(collection.id, RecordBatch(names, None, None, halves))
    await index(store)
    for selection, among in ((Filter(), slice(None)), (Filter(where={"half": 1}), slice(1, None, 2))):
        hits = 0
        for embedding in embeddings[:30]:
            (rows,) = await store.query(collection.id, embedding[None], K, selection, Include(distances=True))
            exact = distances("cosine", embeddings[among], embedding)
            bound = np.partition(exact, K - 1)[K - 1] + 1e-6
            assert rows.distances is not None
            hits += int((np.array(rows.distances) <= bound).sum())
        assert hits >= 0.95 * 30 * K
