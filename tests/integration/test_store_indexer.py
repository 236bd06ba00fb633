"""The background indexer: segments, the watermark, and queries before, during and after."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import numpy as np
import pytest

from pgchroma.store import Store, StoreSettings, builds, gauges, indexer, segments
from pgchroma.store.connection import Connection
from pgchroma.store.segments import Segment
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
MINIMUM = 100
SETTINGS = StoreSettings(pool_size=4, index_minimum_rows=MINIMUM, indexer_interval_seconds=0.02)
DIMENSION = 24


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        yield url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with await Store.open(database_url, SETTINGS) as opened:
        yield opened


@asynccontextmanager
async def indexing(store: Store) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(store.run_indexer())
    try:
        yield task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def points(count: int, seed: int = 0) -> Float32Matrix:
    """Return points around some centres, as embeddings are."""
    order = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((20, DIMENSION))
    return (centres[order.integers(0, 20, count)] + 0.5 * order.standard_normal((count, DIMENSION))).astype(
        np.float32
    )


async def fill(
    store: Store, collection: Collection, embeddings: Float32Matrix, prefix: str = ""
) -> list[str]:
    names = [f"{prefix}{number}" for number in range(len(embeddings))]
    await store.add(collection.id, RecordBatch(names, embeddings))
    return names


async def segments_of(database_url: str, collection: Collection) -> list[Segment]:
    async with await Connection.connect(database_url) as connection:
        return await segments.load(connection, collection.id)


async def indexed(store: Store, collection: Collection, tail: int = 0) -> bool:
    (status,) = [status for status in await store.status() if status.id == collection.id]
    return status.tail_rows <= tail and status.segments > 0


async def until_indexed(store: Store, collection: Collection, tail: int = 0) -> None:
    async def is_indexed() -> bool:
        return await indexed(store, collection, tail)

    async with indexing(store):
        await eventually("the tail to be indexed", is_indexed)


async def recall(store: Store, collection: Collection, embeddings: Float32Matrix, names: list[str]) -> float:
    """Return recall@10 over 20 queries, each of which must have ten results in ascending order."""
    queries = points(20, seed=5)
    hits = 0
    for query, rows in zip(
        queries, await store.query(collection.id, queries, 10, Filter(), Include(distances=True)), strict=True
    ):
        assert len(rows.ids) == 10
        assert rows.distances is not None
        assert (np.diff(rows.distances) >= 0).all()
        best = np.argsort(distances(collection.space, embeddings, query), kind="stable")[:10]
        hits += len({names[number] for number in best} & set(rows.ids))
    return hits / 200


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
async def test_queries_are_as_good_before_during_and_after_indexing(store: Store, space: str) -> None:
    collection = await make(store, space=space)
    embeddings = points(3000)
    names = await fill(store, collection, embeddings)
    assert await recall(store, collection, embeddings, names) == 1.0
    during = []
    async with indexing(store):
        while not await indexed(store, collection):
            during.append(await recall(store, collection, embeddings, names))
    assert min(during, default=1.0) >= 0.95
    assert await recall(store, collection, embeddings, names) >= 0.95
    more = points(50, seed=1)
    names += await fill(store, collection, more, "more-")
    assert not await indexed(store, collection)
    assert await recall(store, collection, np.concatenate([embeddings, more]), names) >= 0.95


async def test_a_query_uses_the_index_of_every_segment_and_never_reads_the_whole_table(
    database_url: str,
) -> None:
    # PostgreSQL has counted what a connection did when that is closed, so writing and reading have stores of their own.
    async with await Store.open(database_url, SETTINGS) as store:
        # With little to search in an index PostgreSQL prefers it to comparing with a few thousand vectors.
        collection = await make(store, ef_search=10)
        # The second segment is too small to take the first one along.
        for prefix, count in (("a", 2500), ("b", 1200)):
            await fill(store, collection, points(count), prefix)
            await until_indexed(store, collection)
        await fill(store, collection, points(20), "tail")
    found = await segments_of(database_url, collection)
    assert len(found) == 2
    names = ", ".join(f"'{segment.index_name}'" for segment in found)
    table_reads = "SELECT seq_scan FROM pg_stat_user_tables WHERE relname = 'v1'"

    async def nobody_else() -> bool:
        others = (
            "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        return not execute(database_url, others)

    await eventually("the writers' connections to end", nobody_else)
    before = execute(database_url, table_reads)
    async with await Store.open(database_url, SETTINGS) as store:
        # More often than the five times after which the statement is prepared and a plan may be kept.
        for query in points(30):
            await nearest(store, collection, query.tolist(), 10)
    await eventually("the readers' connections to end", nobody_else)
    used = f"SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname IN ({names})"  # noqa: S608
    assert execute(database_url, used) == [(30,), (30,)]
    assert execute(database_url, table_reads) == before


async def test_new_rows_become_segments_that_merge(store: Store, database_url: str) -> None:
    collection = await make(store)
    highs, counts = [0], []
    for number in range(8):
        await fill(store, collection, points(MINIMUM, seed=number), f"{number}-")
        await until_indexed(store, collection)
        found = await segments_of(database_url, collection)
        highs.append(segments.watermark(found))
        counts.append(len(found))
        assert [segment.low for segment in found] == [0, *(segment.high for segment in found[:-1])]
        assert sum(segment.rows for segment in found) == MINIMUM * (number + 1)
    assert highs == sorted(set(highs))
    assert max(counts) <= 3

    async def only_known_indexes() -> bool:
        query = "SELECT c.relname FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'"
        return {name for (name,) in execute(database_url, query)} == {segment.index_name for segment in found}

    # The indexer may have been stopped between building an index and dropping those in it.
    async with indexing(store):
        await eventually("the merged indexes to be dropped", only_known_indexes)


async def test_a_short_tail_is_left_alone(store: Store, database_url: str) -> None:
    collection, other = await make(store), await make(store)
    await fill(store, collection, points(MINIMUM - 1))
    await fill(store, other, points(MINIMUM))
    await until_indexed(store, other)
    assert await segments_of(database_url, collection) == []


async def test_what_is_too_long_for_an_index_is_searched_exactly(store: Store, database_url: str) -> None:
    wide, other = await make(store), await make(store)
    embeddings = np.random.default_rng(0).standard_normal((MINIMUM, 4001)).astype(np.float32)
    await fill(store, wide, embeddings)
    await fill(store, other, points(MINIMUM))
    await until_indexed(store, other)
    assert await segments_of(database_url, wide) == []
    (rows,) = await store.query(wide.id, embeddings[7:8], 1, Filter(), Include())
    assert rows.ids == ["7"]


async def test_a_changed_embedding_is_found_at_its_new_place_only(store: Store, database_url: str) -> None:
    collection = await make(store)
    embeddings = points(400)
    names = await fill(store, collection, embeddings)
    await until_indexed(store, collection)
    far = np.full((1, DIMENSION), 50, np.float32)
    await store.update(collection.id, RecordBatch(["7"], far))
    await store.update(collection.id, RecordBatch(["8"], documents=["only the text"]))
    (status,) = await store.status()
    assert status.tail_rows == 1
    assert (await nearest(store, collection, far[0].tolist(), 1))[0] == ["7"]
    assert "7" not in (await nearest(store, collection, embeddings[7].tolist(), 10))[0]
    everything, _ = await nearest(store, collection, embeddings[7].tolist(), 400)
    assert sorted(everything) == sorted(names)
    require_whole(database_url)


async def test_deleted_rows_do_not_make_answers_shorter(store: Store) -> None:
    collection = await make(store)
    embeddings = points(3000)
    names = await fill(store, collection, embeddings)
    await until_indexed(store, collection)
    query = points(1, seed=8)[0]
    order = np.argsort(distances("l2", embeddings, query))
    await store.delete(collection.id, Filter(ids=[names[number] for number in order[:2000]]))
    found, _ = await nearest(store, collection, query.tolist(), 10)
    kept = [names[number] for number in order[2000:]]
    assert len(found) == 10
    assert not set(found) - set(kept)
    assert len(set(found) & set(kept[:10])) >= 9


async def test_zero_vectors_are_found_in_an_indexed_cosine_collection(store: Store) -> None:
    collection = await make(store, space="cosine")
    embeddings = points(300)
    embeddings[[3, 200]] = 0
    names = await fill(store, collection, embeddings)
    await until_indexed(store, collection)
    found, values = await nearest(store, collection, points(1)[0].tolist(), 300)
    assert sorted(found) == sorted(names)
    assert [value for name, value in zip(found, values, strict=True) if name in ("3", "200")] == [1, 1]
    opposite = -embeddings[:1].repeat(300, axis=0) * np.linspace(1, 2, 300, dtype=np.float32)[:, None]
    other = await make(store, space="cosine")
    opposite[5] = 0
    await fill(store, other, opposite)
    await until_indexed(store, other)
    assert (await nearest(store, other, embeddings[0].tolist(), 1)) == (["5"], [1])
    found, values = await nearest(store, collection, [0] * DIMENSION, 10)
    assert (found, values) == (names[:10], [1] * 10)


async def test_more_results_than_an_index_can_give_are_searched_exactly(store: Store) -> None:
    collection = await make(store)
    names = await fill(store, collection, points(1200))
    await until_indexed(store, collection)
    assert sorted((await nearest(store, collection, [0] * DIMENSION, 1100))[0]) != sorted(names)
    assert sorted((await nearest(store, collection, [0] * DIMENSION, 5000))[0]) == sorted(names)


async def test_what_a_crashed_build_left_is_removed(store: Store, database_url: str) -> None:
    collection = await make(store)
    names = await fill(store, collection, points(300))
    await until_indexed(store, collection)
    number = (await store.get_collection_by_id(collection.id)).table_number
    (known,) = await segments_of(database_url, collection)
    for statement in (  # what an interrupted CREATE and an interrupted DROP INDEX CONCURRENTLY leave
        f"CREATE INDEX left_over ON pgchroma_data.v{number} USING hnsw (embedding vector_l2_ops)",
        f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'pgchroma_data.{known.index_name}'::regclass",  # noqa: S608
    ):
        execute(database_url, statement)
    async with await Connection.connect(database_url, autocommit=True) as connection:
        await builds.remove_leftovers(connection)
    assert execute(database_url, "SELECT 1 FROM pg_class c JOIN pg_am a ON a.oid = c.relam WHERE a.amname = 'hnsw'") == []  # fmt: skip
    assert await segments_of(database_url, collection) == []
    assert sorted((await nearest(store, collection, [0] * DIMENSION, 300))[0]) == sorted(names)
    await until_indexed(store, collection)


async def test_nothing_is_lost_with_the_index_in_the_middle(store: Store, database_url: str) -> None:
    collection = await make(store)
    names = []
    for prefix, count in (("a", 1701), ("b", 700), ("c", 150)):
        names += await fill(store, collection, points(count), prefix)
        await until_indexed(store, collection)
    found = await segments_of(database_url, collection)
    assert len(found) == 3
    execute(database_url, f"DELETE FROM pgchroma.index_segments WHERE index_name = '{found[1].index_name}'")  # noqa: S608
    assert await segments_of(database_url, collection) == found[:1]
    for prefix, count in (("a", 1701), ("b", 700), ("c", 150)):
        answer, _ = await nearest(store, collection, points(count)[5].tolist(), 1)
        assert answer == [f"{prefix}5"]
    await until_indexed(store, collection)
    assert execute(database_url, "SELECT count(*) FROM pgchroma.index_segments") == [(2,)]
    assert await ids(store, collection) == names


async def test_one_process_at_a_time_builds(store: Store, database_url: str) -> None:
    collection = await make(store)
    await fill(store, collection, points(300))
    async with indexing(store) as first, indexing(store) as second:

        async def built() -> bool:
            return await indexed(store, collection)

        await eventually("the tail to be indexed", built)
        held = execute(
            database_url,
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 1885825400 AND granted",
        )
        assert held == [(1,)]
        assert not first.done()
        assert not second.done()


async def test_the_indexer_takes_over_and_goes_on_when_its_connection_is_cut(
    store: Store, database_url: str
) -> None:
    collection = await make(store)
    async with indexing(store), indexing(store):
        for number in range(3):
            await fill(store, collection, points(300, seed=number), f"{number}-")

            async def built() -> bool:
                return await indexed(store, collection)

            await eventually("the tail to be indexed", built)
            execute(
                database_url,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgchroma-indexer' "
                "AND datname = current_database()",
            )


async def test_a_collection_deleted_under_the_indexer_does_not_stop_it(
    store: Store, database_url: str
) -> None:
    async with indexing(store) as task:
        for number in range(6):
            doomed = await make(store)
            await fill(store, doomed, points(1500))
            if number % 2:

                async def is_building() -> bool:
                    return bool(execute(database_url, "SELECT 1 FROM pg_stat_progress_create_index"))

                with suppress(AssertionError):
                    await eventually("a build", is_building, seconds=0.3)
            await store.delete_collection(doomed.tenant, doomed.database, doomed.name)
        last = await make(store)
        await fill(store, last, points(300))

        async def built() -> bool:
            return await indexed(store, last)

        await eventually("the tail to be indexed", built)
        assert not task.done()
    require_whole(database_url)


async def test_a_collection_that_cannot_be_indexed_holds_up_no_other_one(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(indexer, "_FIRST_PAUSE_SECONDS", 0.05)
    # A document that is too long for the index takes a minute to fail; this one fails at once.
    whole = execute(database_url, "SELECT prosrc FROM pg_proc WHERE oid = 'pgchroma.runs'::regproc")[0][0]
    define = "CREATE OR REPLACE FUNCTION pgchroma.runs(document text) RETURNS integer[] LANGUAGE {} IMMUTABLE STRICT AS $${}$$"
    execute(
        database_url,
        define.format(
            "plpgsql",
            "BEGIN IF document = 'too long' THEN RAISE 'secret' USING ERRCODE = 'program_limit_exceeded'; END IF; "
            "RETURN '{}'; END",
        ),
    )

    async def filled(document: str) -> Collection:
        collection = await make(store)
        names = [str(number) for number in range(MINIMUM)]
        await store.add(collection.id, RecordBatch(names, points(MINIMUM), documents=[document] * MINIMUM))
        return collection

    def with_documents(collection: Collection) -> bool:
        query = "SELECT 1 FROM pgchroma.record_segments WHERE collection_id = %(id)s AND document_index IS NOT NULL"
        return bool(execute(database_url, query, {"id": collection.id}))

    faulty = await filled("too long")
    async with indexing(store):

        async def faulty_is_all_but_done() -> bool:
            return await indexed(store, faulty)

        await eventually("what can be indexed", faulty_is_all_but_done)
        sound = await filled("short")

        async def sound_is_done() -> bool:
            return with_documents(sound)

        await eventually("the sound collection to be indexed", sound_is_done)
        assert not with_documents(faulty)
        assert str(faulty.id) in caplog.text
        execute(database_url, define.format("sql", whole))

        async def faulty_is_done() -> bool:
            return with_documents(faulty)

        await eventually("the other one to be tried again", faulty_is_done)
    assert execute(database_url, "SELECT 1 FROM pg_index WHERE NOT indisvalid") == []


@pytest.mark.parametrize(("parallel", "expected"), [(True, "2"), (False, "0")])
async def test_parallel_builds_can_be_switched_off(database_url: str, parallel: bool, expected: str) -> None:
    settings = StoreSettings(index_minimum_rows=MINIMUM, parallel_index_builds=parallel)
    async with await Store.open(database_url, settings) as store:
        await fill(store, await make(store), points(MINIMUM))
        async with await Connection.connect(database_url, autocommit=True) as connection:
            mine = indexer.Indexer(database_url, settings)
            await mine.look(connection)
            await mine.look(connection)
            cursor = await connection.execute("SHOW max_parallel_maintenance_workers")
            assert await cursor.fetchone() == (expected,)


async def test_rows_written_during_a_build_are_found(store: Store, database_url: str) -> None:
    collection = await make(store)
    written = await fill(store, collection, points(500), "0-")
    async with indexing(store):
        for number in range(1, 15):
            written += await fill(store, collection, points(100, seed=number), f"{number}-")
            await store.upsert(collection.id, RecordBatch([written[number]], points(1, seed=number)))
            mine = points(100, seed=number)[99]
            assert (await nearest(store, collection, mine.tolist(), 1))[0] == [f"{number}-99"]
    found, _ = await nearest(store, collection, [0] * DIMENSION, 5000)
    assert sorted(found) == sorted(written)
    require_whole(database_url)


async def test_deleting_a_collection_does_not_wait_for_its_index(store: Store, database_url: str) -> None:
    doomed, other = await make(store), await make(store)
    async with await Connection.connect(database_url) as reader, indexing(store) as task:
        # A build waits at its end for everyone who might still look at the table as it was.
        await reader.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        await reader.execute("SELECT 1")
        await fill(store, doomed, points(300))

        async def is_waiting() -> bool:
            return bool(
                execute(
                    database_url,
                    "SELECT 1 FROM pg_stat_progress_create_index WHERE phase = 'waiting for old snapshots'",
                )
            )

        await eventually("the index to be all but built", is_waiting)
        await store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, doomed.name)
        require_whole(database_url)
        await reader.rollback()
        await fill(store, other, points(300))

        async def built() -> bool:
            return await indexed(store, other)

        await eventually("the next collection to be indexed", built)
        assert not task.done()


async def test_a_growing_collection_is_indexed_sooner_where_somebody_searches_it(database_url: str) -> None:
    # One connection, so that what it counts can be told to PostgreSQL before each look.
    async with (
        await Store.open(database_url, StoreSettings(pool_size=1, index_minimum_rows=MINIMUM)) as store,
        await Connection.connect(database_url, autocommit=True) as connection,
    ):
        mine = indexer.Indexer(database_url, store.settings)
        await mine.look(connection)
        collection = await make(store)

        async def grow(number: int, rows: int) -> list[Segment]:
            await fill(store, collection, points(rows, seed=number), f"{number}-")
            async with store.transaction() as lent:
                await lent.execute("SELECT pg_stat_force_next_flush()")
            await mine.look(connection)
            return await segments_of(database_url, collection)

        assert await grow(1, 6 * MINIMUM) == []
        assert await grow(2, 10) == []
        for seed in range(20):
            await nearest(store, collection, points(1, seed=seed)[0].tolist(), 1)
        assert [part.rows for part in await grow(3, 10)] == [6 * MINIMUM + 20]
        # And in any case once it has grown very long.
        other = await make(store, "other")
        await fill(store, other, points(25 * MINIMUM))
        async with store.transaction() as lent:
            await lent.execute("SELECT pg_stat_force_next_flush()")
        await mine.look(connection)
        assert [part.rows for part in await segments_of(database_url, other)] == [25 * MINIMUM]


async def test_monitoring_learns_exact_tails_and_how_long_an_index_has_been_due(database_url: str) -> None:
    # One connection, so that what it counts can be told to PostgreSQL before each look.
    async with (
        await Store.open(database_url, StoreSettings(pool_size=1, index_minimum_rows=MINIMUM)) as store,
        await Connection.connect(database_url, autocommit=True) as connection,
    ):
        mine = indexer.Indexer(database_url, store.settings)
        await mine.look(connection)
        collection = await make(store)

        async def seen() -> tuple[float, float]:
            """Return rows in tails and the indexer's lag, after a look."""
            async with store.transaction() as lent:
                await lent.execute("SELECT pg_stat_force_next_flush()")
            await mine.look(connection)
            figures = {gauge.name: gauge.samples for gauge in await gauges.indexes(connection)}
            return figures["pgchroma_tail_rows"][0][1], figures["pgchroma_indexer_lag_seconds"][0][1]

        names = await fill(store, collection, points(3 * MINIMUM))
        rows, first = await seen()
        assert rows == 3 * MINIMUM
        names += await fill(store, collection, points(10), "more-")
        rows, second = await seen()
        assert rows == 3 * MINIMUM + 10
        assert second > first > 0
        # The first of these looks builds the index, the second one counts what it left.
        await seen()
        assert await seen() == (0, 0)
        await store.delete(collection.id, Filter(ids=names[: 2 * MINIMUM]))
        tail = await fill(store, collection, points(60), "tail-")
        assert await seen() == (60, 0)
        await store.delete(collection.id, Filter(ids=tail[:20]))
        assert await seen() == (40, 0)
