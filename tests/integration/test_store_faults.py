"""PostgreSQL goes away, comes back, or ends a connection at the worst moment: no acknowledged write is lost or done twice."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import psycopg
import pytest

from pgchroma.errors import (
    ContentionError,
    DatabaseNotReadyError,
    DatabaseUnreachableError,
    InvalidArgumentError,
)
from pgchroma.server import errors
from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from pgchroma.store import Store, StoreSettings, bootstrap, connection, migrations
from pgchroma.store.connection import Connection
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Collection, Filter
from support.postgres import Databases
from support.store import EVERYTHING, batch, eventually, execute, ids, make, matrix, require_whole

pytestmark = pytest.mark.anyio
SETTINGS = StoreSettings(pool_size=6, pool_timeout_seconds=10)


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A cluster that these tests may stop."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture(scope="module")
def own_databases(own_postgres: EmbeddedPostgres) -> Databases:
    return Databases(own_postgres)


@pytest.fixture
def database_url(own_databases: Databases) -> Iterator[str]:
    with own_databases.fresh() as url:
        yield url


@pytest.fixture
async def store(database_url: str) -> AsyncIterator[Store]:
    async with await Store.open(database_url, SETTINGS) as opened:
        yield opened


async def write_until(
    stop: asyncio.Event, store: Store, collection: Collection, writer: int
) -> tuple[list[str], list[str]]:
    """Return the ids that were acknowledged and those that ended in an error, in order."""
    done: list[str] = []
    failed: list[str] = []
    number = 0
    while not stop.is_set():
        name = f"{writer}-{number}"
        number += 1
        try:
            await store.add(collection.id, batch([name], documents=[name], metadatas=[{"n": number}]))
            done.append(name)
        except DatabaseUnreachableError:
            failed.append(name)
    return done, failed


@pytest.mark.parametrize("immediate", [False, True])
async def test_a_restart_of_postgresql_loses_no_acknowledged_write(
    store: Store, own_postgres: EmbeddedPostgres, database_url: str, immediate: bool
) -> None:
    collection = await make(store)
    stop = asyncio.Event()
    writers = [asyncio.create_task(write_until(stop, store, collection, number)) for number in range(4)]

    async def written(count: int) -> bool:
        return await store.count(collection.id) >= count

    await eventually("the first writes", lambda: written(20))
    await asyncio.to_thread(own_postgres.stop, immediate=immediate)
    # PostgreSQL ends with the thread that started it, so this must be the main one.
    own_postgres.start()
    before = await store.count(collection.id)
    await eventually("writes after the restart", lambda: written(before + 20))
    stop.set()
    results = await asyncio.gather(*writers)
    found = await ids(store, collection)
    acknowledged = {name for done, _ in results for name in done}
    assert acknowledged <= set(found)
    assert set(found) <= acknowledged | {name for _, failed in results for name in failed}
    assert len(found) == len(set(found))
    require_whole(database_url)


async def test_a_pool_full_of_dead_connections_is_no_error(
    store: Store, own_postgres: EmbeddedPostgres
) -> None:
    collection = await make(store)
    for _ in range(2):
        await asyncio.gather(*(store.upsert(collection.id, batch([str(n)])) for n in range(30)))
        assert store.pool_stats()["pool_size"] > 2
        own_postgres.stop()
        own_postgres.start()
        assert await store.count(collection.id) == 30
        await store.upsert(collection.id, batch(["0"]))


async def test_every_method_says_so_while_postgresql_is_away(
    own_postgres: EmbeddedPostgres, database_url: str
) -> None:
    async with await Store.open(database_url, StoreSettings(pool_timeout_seconds=0.3)) as store:
        collection = await make(store)
        own_postgres.stop()
        for attempt in (
            store.count(collection.id), store.add(collection.id, batch(["a"])), store.check_ready(0.3),
            store.get(collection.id, Filter(), EVERYTHING), store.delete(collection.id, Filter()), store.status(),
            store.list_collections(), migrations.upgrade(database_url), migrations.schema_versions(database_url),
        ):  # fmt: skip
            with pytest.raises(DatabaseUnreachableError, match="PostgreSQL does not answer") as caught:
                await attempt
            assert caught.value.hint
        own_postgres.start()
        await eventually("the store to come back", lambda: answers(store))
        assert await store.count(collection.id) == 0


async def answers(store: Store) -> bool:
    with suppress(DatabaseUnreachableError):
        await store.check_ready()
        return True
    return False


async def test_connections_cut_again_and_again_are_repaired(store: Store, database_url: str) -> None:
    """Each writer may hear of a connection lost while its commit was on the way, but of nothing else."""
    collection = await make(store)
    stop = asyncio.Event()
    writers = [asyncio.create_task(write_until(stop, store, collection, number)) for number in range(4)]
    for _ in range(15):
        await asyncio.to_thread(
            execute,
            database_url,
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgchroma' "
            "AND datname = current_database() AND pid <> pg_backend_pid()",
        )
        assert await store.count(collection.id) >= 0
    stop.set()
    results = await asyncio.gather(*writers)
    found = set(await ids(store, collection))
    assert {name for done, _ in results for name in done} <= found
    assert found <= {name for done, failed in results for name in done + failed}
    require_whole(database_url)


class _Cut:
    """Ends the connection around its COMMIT: `sent` tells whether PostgreSQL gets to see it."""

    def __init__(self, connection: Connection, url: str, *, sent: bool) -> None:
        self.connection, self.url, self.sent = connection, url, sent

    async def commit(self) -> None:
        if self.sent:
            await self.connection.execute("COMMIT")
        await asyncio.to_thread(
            execute, self.url, "SELECT pg_terminate_backend(%(pid)s)", {"pid": self.connection.info.backend_pid}
        )  # fmt: skip
        await self.connection.execute("SELECT 1")


@pytest.mark.parametrize("sent", [True, False])
async def test_a_connection_lost_during_commit_is_never_silently_repeated(
    store: Store, database_url: str, monkeypatch: pytest.MonkeyPatch, sent: bool
) -> None:
    attempts = 0

    async def cut(self: Connection) -> None:
        nonlocal attempts
        attempts += 1
        await _Cut(self, database_url, sent=sent).commit()

    collection = await make(store)
    await store.add(collection.id, batch(["before"]))
    with monkeypatch.context() as patched:
        patched.setattr(Connection, "commit", cut)
        with pytest.raises(DatabaseUnreachableError):
            await store.add(collection.id, batch(["during"]))
    assert attempts == 1
    assert await ids(store, collection) == (["before", "during"] if sent else ["before"])
    await store.add(collection.id, batch(["after"]))


async def test_a_connection_lost_before_commit_is_repaired_silently(store: Store, database_url: str) -> None:
    collection = await make(store)
    attempts = 0

    async def work(used: Connection) -> None:
        nonlocal attempts
        attempts += 1
        if attempts == 1:
            await asyncio.to_thread(
                execute, database_url, "SELECT pg_terminate_backend(%(pid)s)", {"pid": used.info.backend_pid}
            )  # fmt: skip
        await used.execute(
            "UPDATE pgchroma.collections SET name = name || '!' WHERE id = %s", [collection.id]
        )

    await store._database.write(work)
    assert attempts == 2
    assert (await store.get_collection_by_id(collection.id)).name == collection.name + "!"


@pytest.mark.parametrize("own_transaction", [False, True])
async def test_a_commit_that_the_standby_did_not_confirm_is_no_success(
    store: Store, database_url: str, own_transaction: bool
) -> None:
    """PostgreSQL gives up the wait for a synchronous standby with a mere warning, when told to."""
    collection = await make(store)
    await store.add(collection.id, batch(["safe"]))
    execute(database_url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
    execute(database_url, "SELECT pg_reload_conf()")

    async def write() -> None:
        # PostgreSQL's processes hear of the setting one by one, so the first commits may still not wait.
        while True:
            if own_transaction:
                async with store.transaction() as connection:
                    await connection.execute("UPDATE pgchroma.collections SET metadata = metadata")
            else:
                await store.upsert(collection.id, batch(["unsafe"]))

    async def waits_no_more() -> bool:
        cancel = "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        await asyncio.to_thread(execute, database_url, cancel)
        return writing.done()

    try:
        writing = asyncio.create_task(write())
        await eventually("the wait to be cancelled", waits_no_more)
        with pytest.raises(DatabaseUnreachableError, match="not confirmed by the synchronous standby"):
            await writing
    finally:
        execute(database_url, "ALTER SYSTEM RESET synchronous_standby_names")
        execute(database_url, "SELECT pg_reload_conf()")


async def test_a_request_that_takes_too_long_is_given_up(database_url: str) -> None:
    settings = StoreSettings(statement_timeout_seconds=0.2)
    async with await Store.open(database_url, settings) as store:

        async def wait(used: Connection) -> None:
            await used.execute("SELECT pg_sleep(20)")

        for run in (store._database.read, store._database.write):
            with pytest.raises(InvalidArgumentError, match=r"longer than 0\.2 s"):
                await run(wait)
        assert await store.list_collections() == []


@pytest.mark.parametrize("kind", [psycopg.errors.SerializationFailure, psycopg.errors.UniqueViolation])
async def test_a_race_that_is_never_won_is_reported_at_last_without_ids(
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: type[psycopg.Error],
) -> None:
    monkeypatch.setattr(connection, "MAX_ATTEMPTS", 3)
    caplog.set_level("DEBUG", "pgchroma.store")
    attempts = 0

    async def lose(_used: Connection) -> None:
        nonlocal attempts
        attempts += 1
        raise kind('violates "r1_id"\nDETAIL:  Key (id)=(secret) already exists.')

    with pytest.raises(ContentionError, match="r1_id") as caught:
        await store._database.write(lose)
    assert attempts == 3
    assert errors.response_to(caught.value).status == 503
    assert "r1_id" in caplog.text
    assert "secret" not in caplog.text + str(caught.value)

    async def all_are_back() -> bool:
        return store.pool_stats()["pool_available"] == store.pool_stats()["pool_size"]

    await eventually("every connection to be back", all_are_back)


async def test_a_cancelled_request_leaves_no_transaction_behind(store: Store, database_url: str) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a"]))
    number = (await store.get_collection_by_id(collection.id)).table_number
    async with store.transaction() as locker:
        await locker.execute(f"SELECT FROM pgchroma_data.r{number} FOR UPDATE".encode())
        waiting = asyncio.create_task(store.upsert(collection.id, batch(["a", "b"])))

        async def waits() -> bool:
            return bool(execute(database_url, "SELECT 1 FROM pg_locks WHERE NOT granted"))

        await eventually("the writer to wait", waits)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    async def idle() -> bool:
        query = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
        return not execute(database_url, query)

    await eventually("no open transaction", idle)
    assert await ids(store, collection) == ["a"]


async def test_a_store_opened_before_the_database_was_prepared_works_once_it_is(
    own_postgres: EmbeddedPostgres,
) -> None:
    bootstrap.create_database(own_postgres.url(), "late")
    url = own_postgres.url("late")
    async with await Store.open(url) as store:
        with pytest.raises(DatabaseNotReadyError, match="extension vector"):
            await store.check_ready()
        with pytest.raises(DatabaseNotReadyError, match="not prepared"):
            await store.list_collections()
        with pytest.raises(DatabaseNotReadyError, match="not prepared"):
            await store.create_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "records")
        bootstrap.create_extension(url)
        await migrations.upgrade(url)
        await store.check_ready()
        collection = await make(store)
        await store.add(collection.id, batch(["a"]))
        (rows,) = await store.query(collection.id, matrix([1, 1]), 1, Filter(), EVERYTHING)
        assert rows.ids == ["a"]
    bootstrap.drop_database(own_postgres.url(), "late")
