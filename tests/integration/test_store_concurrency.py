"""Many writers at once: nobody gets an error, nothing is written twice or by halves."""

import asyncio
import itertools
import multiprocessing
import random
from collections.abc import Awaitable, Callable
from functools import partial
from uuid import UUID

import numpy as np
import pytest

from pgchroma.errors import DatabaseNotReadyError, NotFoundError
from pgchroma.ranking import EMBEDDING_KEY, Knn, Search
from pgchroma.server.embedded import EmbeddedPostgres
from pgchroma.store import Store, StoreSettings
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Filter, RecordBatch
from support.store import (
    EVERYTHING,
    ONLY_IDS,
    batch,
    contents,
    eventually,
    execute,
    ids,
    make,
    matrix,
    require_whole,
)

pytestmark = pytest.mark.anyio
NAMES = [f"id-{number:02}" for number in range(30)]


async def upsert_in_any_order(store: Store, collection_id: UUID, seed: int, rounds: int) -> None:
    """Write overlapping ids in shuffled order, document and embedding telling which write they belong to."""
    order = random.Random(seed)
    for number in range(rounds):
        names = order.sample(NAMES, 15)
        stamp = seed * 1000 + number
        embeddings = np.full((15, 2), stamp, np.float32)
        documents = [str(stamp)] * 15
        await store.upsert(
            collection_id, RecordBatch(names, embeddings, documents, [{f"key-{stamp}": 1}] * 15)
        )


def run_in_process(database_url: str, collection_id: UUID, seed: int) -> None:
    async def work() -> None:
        async with await Store.open(database_url, StoreSettings(pool_size=3)) as store:
            await asyncio.gather(
                *(upsert_in_any_order(store, collection_id, seed + task, 6) for task in range(3))
            )

    asyncio.run(work())


async def test_writers_of_the_same_ids_in_tasks_and_processes(store: Store, module_database_url: str) -> None:
    collection = await make(store)
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=run_in_process, args=(module_database_url, collection.id, seed))
        for seed in (10, 20)
    ]
    for process in processes:
        process.start()
    await asyncio.gather(*(upsert_in_any_order(store, collection.id, seed, 6) for seed in range(4)))
    for process in processes:
        await asyncio.to_thread(process.join, 60)
        assert process.exitcode == 0
    found = await contents(store, collection)
    assert sorted(found) == NAMES
    for embedding, document, metadata, _ in found.values():
        assert embedding == [float(document)] * 2
        assert f"key-{document}" in metadata
    keys = (await store.get_collection_by_id(collection.id)).schema["keys"]
    assert {key for _, _, metadata, _ in found.values() for key in metadata} <= set(keys)
    require_whole(module_database_url)


def deadlocks(postgres: EmbeddedPostgres) -> int:
    return postgres.log.read_text(errors="replace").count("deadlock detected")


async def test_writers_of_the_same_ids_who_all_bring_something_new_never_deadlock(
    database_url: str, postgres: EmbeddedPostgres
) -> None:
    before = deadlocks(postgres)
    async with await Store.open(database_url) as store:
        # A collection in which lengths matter, and are noted.
        collection = await make(store, space="ip")
        unit = np.eye(2, 128, dtype=np.float32)
        await store.upsert(collection.id, RecordBatch(["a", "b"], unit))

        async def write(kind: str, writer: int) -> None:
            for number in range(6):
                metadatas = [{f"{kind}-{writer}-{number}": 1}] * 2
                embeddings = unit if kind == "update" else (1 + number) * unit
                await getattr(store, kind)(
                    collection.id, RecordBatch(["b", "a"], embeddings, None, metadatas)
                )

        await asyncio.gather(
            *(write(kind, writer) for kind in ("add", "upsert", "update") for writer in range(3))
        )
        found = await contents(store, collection)
        for _, _, metadata, _ in found.values():
            assert len(metadata) == 36
        keys = (await store.get_collection_by_id(collection.id)).schema["keys"]
        assert set(found["a"][2]) <= set(keys)
        assert not (await store.get_collection_by_id(collection.id)).unit_length
    assert deadlocks(postgres) == before


async def test_a_reader_sees_every_write_whole_or_not_at_all(store: Store) -> None:
    collection = await make(store)
    await upsert_in_any_order(store, collection.id, 0, 1)
    writers = asyncio.gather(*(upsert_in_any_order(store, collection.id, seed, 10) for seed in range(1, 4)))
    reads = 0
    while not writers.done() or reads < 5:
        rows = await store.get(collection.id, Filter(), EVERYTHING)
        (answer,) = await store.query(collection.id, matrix([0, 0]), 50, Filter(), EVERYTHING)
        for seen in (rows, answer):
            assert seen.embeddings is not None
            assert seen.documents is not None
            assert [row[0] for row in seen.embeddings.tolist()] == [
                float(text or -1) for text in seen.documents
            ]
            assert len(set(seen.ids)) == len(seen.ids)
        reads += 1
    await writers


async def test_the_same_new_ids_added_at_once_are_added_once(store: Store, module_database_url: str) -> None:
    collection = await make(store)
    await asyncio.gather(
        *(
            store.add(collection.id, batch(random.Random(seed).sample(NAMES, 30), documents=[str(seed)] * 30))
            for seed in range(8)
        )
    )
    assert sorted(await ids(store, collection)) == NAMES
    assert len({document for _, document, _, _ in (await contents(store, collection)).values()}) == 1
    require_whole(module_database_url)


async def test_adding_updating_and_deleting_the_same_ids_at_once(
    store: Store, module_database_url: str
) -> None:
    collection = await make(store)

    async def churn(seed: int) -> None:
        order = random.Random(seed)
        for _ in range(12):
            names = order.sample(NAMES, 10)
            work: list[Callable[[], Awaitable[object]]] = [
                partial(store.add, collection.id, batch(names)),
                partial(store.update, collection.id, batch(names, metadatas=[{f"k{seed}": 1}] * 10)),
                partial(store.upsert, collection.id, batch(names)),
                partial(store.delete, collection.id, Filter(ids=names)),
                partial(store.delete, collection.id, Filter(where={f"k{seed}": 1}, limit=3)),
                partial(store.delete, collection.id, Filter(where_document={"$not_regex": "x"}, limit=3)),
            ]
            await order.choice(work)()

    await asyncio.gather(*(churn(seed) for seed in range(8)))
    require_whole(module_database_url)
    found = await ids(store, collection)
    assert len(found) == len(set(found)) == await store.count(collection.id)


async def test_first_writers_of_two_dimensions_agree_on_one(store: Store, module_database_url: str) -> None:
    collection = await make(store)
    results = await asyncio.gather(
        *(
            store.add(collection.id, RecordBatch([str(number)], np.ones((1, 2 + number % 2), np.float32)))
            for number in range(8)
        ),
        return_exceptions=True,
    )
    refused = [result for result in results if result is not None]
    assert len(refused) == 4
    assert all("Collection expecting embedding with dimension" in str(error) for error in refused)
    assert await store.count(collection.id) == 4
    require_whole(module_database_url)


async def test_one_of_many_creators_of_a_collection_wins(store: Store) -> None:
    made = await asyncio.gather(
        *(
            store.create_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "wanted", get_or_create=True)
            for _ in range(8)
        )
    )
    assert len({collection.id for collection in made}) == 1


async def test_creating_and_deleting_one_name_at_once_is_no_error(
    store: Store, module_database_url: str
) -> None:
    async def create() -> None:
        for _ in range(10):
            found = await store.create_collection(
                DEFAULT_TENANT, DEFAULT_DATABASE, "contested", get_or_create=True
            )
            try:
                await store.upsert(found.id, batch(NAMES))
            except NotFoundError:
                continue

    async def delete() -> None:
        for _ in range(10):
            try:
                await store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "contested")
            except NotFoundError:
                continue

    await asyncio.gather(create(), create(), delete(), delete())
    require_whole(module_database_url)


@pytest.mark.parametrize("whole_database", [False, True])
async def test_everybody_hears_that_their_collection_was_deleted(
    store: Store, module_database_url: str, postgres: EmbeddedPostgres, whole_database: bool
) -> None:
    before = deadlocks(postgres)
    await store.create_database(DEFAULT_TENANT, "doomed")
    collection = await store.create_collection(DEFAULT_TENANT, "doomed", "records")

    async def use(seed: int) -> None:
        order = random.Random(seed)
        while True:
            names = order.sample(NAMES, 10)
            await store.upsert(collection.id, batch(names, metadatas=[{f"k{order.random()}": 1}] * 10))
            await store.get(collection.id, Filter(where_document={"$regex": "x"}), ONLY_IDS)
            await store.query(collection.id, matrix([1, 1]), 3, Filter(), EVERYTHING)
            await store.search(
                collection.id, [Search(rank=Knn(np.ones(2, np.float32), EMBEDDING_KEY, 3))] * 3
            )
            await store.search(collection.id, [Search(select=("#document", "#embedding"), limit=3)] * 3)

    async def fork(seed: int) -> None:
        while True:
            await store.fork(collection.id, f"fork-{seed}-{next(numbers)}")

    numbers = itertools.count()
    users = [asyncio.create_task(use(seed)) for seed in range(6)]
    users += [asyncio.create_task(fork(seed)) for seed in range(2)]

    async def everything_is_written() -> bool:
        return await store.count(collection.id) == len(NAMES)

    await eventually("the writers to begin", everything_is_written)
    if whole_database:
        await store.delete_database(DEFAULT_TENANT, "doomed")
    else:
        await store.delete_collection(DEFAULT_TENANT, "doomed", "records")
        await store.delete_database(DEFAULT_TENANT, "doomed")
    for result in await asyncio.gather(*users, return_exceptions=True):
        assert isinstance(result, NotFoundError)
    # Readers take a collection's tables in either order, and writers hold them when they come to the catalog.
    assert deadlocks(postgres) == before
    require_whole(module_database_url)


async def test_whoever_waits_for_the_records_holds_nothing_else_of_their_collection(
    store: Store, module_database_url: str
) -> None:
    """Who deletes a collection locks the records first, and would otherwise wait for those who wait for that."""
    collection = await make(store)
    await store.add(collection.id, batch(NAMES, metadatas=[{"k": 1}] * len(NAMES)))
    number = (await store.get_collection_by_id(collection.id)).table_number
    some = ["id-00", "id-01"]
    works: list[Callable[[], Awaitable[object]]] = [
        partial(store.get, collection.id, Filter(), EVERYTHING),
        partial(store.query, collection.id, matrix([1, 1]), 3, Filter(), EVERYTHING),
        partial(store.query, collection.id, matrix([1, 1]), 3, Filter(where={"k": 1}), ONLY_IDS),
        partial(store.search, collection.id, [Search(rank=Knn(np.ones(2, np.float32), EMBEDDING_KEY, 3))]),
        partial(store.add, collection.id, batch(some)),
        partial(store.upsert, collection.id, batch(some)),
        partial(store.update, collection.id, batch(some)),
        partial(store.delete, collection.id, Filter(ids=["none"])),
        partial(store.fork, collection.id, "fork"),
    ]

    async def someone_waits() -> bool:
        return bool(
            await asyncio.to_thread(execute, module_database_url, "SELECT 1 FROM pg_locks WHERE NOT granted")
        )

    for work in works[:-1] * 3 + works[-1:]:
        async with store.transaction() as connection:
            await connection.execute(f"LOCK TABLE pgchroma_data.r{number} IN ACCESS EXCLUSIVE MODE".encode())
            waiting = asyncio.ensure_future(work())
            await eventually(f"{work} to wait", someone_waits)
            query = "SELECT mode FROM pg_locks WHERE relation = %(table)s::regclass"
            held = execute(module_database_url, query, {"table": f"pgchroma_data.v{number}"})
            assert held == [], work
        await waiting


async def test_a_search_hears_that_tables_were_exchanged(module_database_url: str) -> None:
    """As the loading of a dump does; a connection may remember the tables that were there before."""
    searches = [Search(rank=Knn(np.ones(2, np.float32), EMBEDDING_KEY, 3)), Search(limit=3)]
    async with await Store.open(module_database_url, StoreSettings(pool_size=1)) as store:
        collection = await make(store)
        await store.add(collection.id, batch(["a", "b"]))
        assert [found.rows.ids for found in await store.search(collection.id, searches)] == [["a", "b"]] * 2
        old = (await store.get_collection_by_id(collection.id)).table_number
        async with store.transaction() as connection:
            for name in ("r", "v"):
                copy = f"CREATE TABLE pgchroma_data.{name}9999 (LIKE pgchroma_data.{name}{old} INCLUDING ALL)"
                fill = f"INSERT INTO pgchroma_data.{name}9999 TABLE pgchroma_data.{name}{old}"
                for statement in (copy, fill, f"DROP TABLE pgchroma_data.{name}{old}"):
                    await connection.execute(statement.encode())
            await connection.execute(
                "UPDATE pgchroma.collections SET table_number = 9999 WHERE id = %s", [collection.id]
            )
        assert [found.rows.ids for found in await store.search(collection.id, searches)] == [["a", "b"]] * 2
        await store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, collection.name)


async def test_a_collection_without_its_tables_is_neither_deleted_nor_a_database_unprepared(
    store: Store, module_database_url: str
) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a"]))
    number = (await store.get_collection_by_id(collection.id)).table_number
    execute(module_database_url, f"ALTER TABLE pgchroma_data.r{number} RENAME TO away")
    for work in (
        store.get(collection.id, Filter(), ONLY_IDS),
        store.search(collection.id, [Search()]),
    ):
        with pytest.raises(DatabaseNotReadyError, match="the tables of a collection are not there"):
            await work
    execute(module_database_url, f"ALTER TABLE pgchroma_data.away RENAME TO r{number}")
    assert await ids(store, collection) == ["a"]


async def test_reset_under_writers_leaves_nothing_behind(store: Store, module_database_url: str) -> None:
    async def fill(seed: int) -> None:
        for number in range(8):
            try:
                collection = await make(store, f"short-lived-{seed}-{number}")
                await store.upsert(collection.id, batch(NAMES))
            except NotFoundError:
                continue

    async def reset() -> None:
        for _ in range(3):
            await store.reset()

    await asyncio.gather(fill(1), fill(2), fill(3), reset())
    await store.reset()
    assert await store.list_collections() == []
    require_whole(module_database_url)


async def test_a_record_that_stops_matching_is_not_deleted(store: Store, module_database_url: str) -> None:
    """A deletion waits for a writer and then looks again, for filters of every kind."""

    async def someone_waits() -> bool:
        query = "SELECT 1 FROM pg_locks WHERE NOT granted"
        return bool(await asyncio.to_thread(execute, module_database_url, query))

    for selection in (
        Filter(where={"k": 1}),
        Filter(where_document={"$contains": "old"}),
        Filter(where_document={"$regex": "o.d"}),
    ):
        collection = await make(store)
        await store.add(collection.id, batch(["a", "b"], documents=["old", "old"], metadatas=[{"k": 1}] * 2))
        number = (await store.get_collection_by_id(collection.id)).table_number
        async with store.transaction() as connection:
            await connection.execute(
                f"UPDATE pgchroma_data.r{number} SET document = 'new', metadata = '{{\"k\": 2}}' WHERE id = 'a'".encode()  # noqa: S608
            )
            deletion = asyncio.create_task(store.delete(collection.id, selection))
            await eventually("the deletion to wait", someone_waits)
        assert await deletion == 1
        assert await ids(store, collection) == ["a"]
    require_whole(module_database_url)


async def test_deletions_with_a_limit_at_once_each_delete_as_many(store: Store) -> None:
    """Whoever waits for what another deletes takes what comes after it."""
    collection = await make(store)
    for _ in range(5):
        await store.upsert(
            collection.id,
            RecordBatch([f"r{n}" for n in range(100)], np.ones((100, 2), np.float32), None, [{"t": 1}] * 100),
        )
        found = await asyncio.gather(
            *(store.delete(collection.id, Filter(where={"t": 1}, limit=10)) for _ in range(4))
        )
        assert found == [10] * 4
        assert await store.count(collection.id) == 60
        assert await store.delete(collection.id, Filter(where={"t": 1}, limit=100)) == 60
        assert await store.delete(collection.id, Filter(where={"t": 1}, limit=100)) == 0
