"""Upgrading the schema, the rights of the three roles, and what check_ready names as missing."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import psycopg
import pytest

from pgchroma.errors import ConfigurationError, DatabaseNotReadyError, DatabaseUnreachableError
from pgchroma.store import Store, StoreSettings, bootstrap, builds, migrations, snapshot, tokens, watch
from pgchroma.store.connection import Connection, conninfo
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Filter, Record, RecordBatch
from support.postgres import Databases
from support.store import EVERYTHING, batch, eventually, execute, make, matrix, nearest, require_whole

pytestmark = pytest.mark.anyio
OWNER, APP, MONITOR = "test_owner", "test_app", "test_monitor"


def as_role(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@")


@pytest.fixture(scope="module")
def roles(databases: Databases) -> Iterator[None]:
    superuser = databases.postgres.url()
    for role in (OWNER, APP, MONITOR):
        execute(superuser, f"CREATE ROLE {role} LOGIN")
    execute(superuser, f"GRANT pg_monitor TO {MONITOR}")
    yield
    for role in (OWNER, APP, MONITOR):
        execute(superuser, f"DROP ROLE {role}")


@pytest.fixture
def bare_url(databases: Databases) -> Iterator[str]:
    """A database with pgvector and nothing else."""
    with databases.fresh(migrated=False) as url:
        yield url


@pytest.fixture
def owned_url(databases: Databases, roles: None) -> Iterator[str]:
    """A database as the roles prepare it on a host: owned, with pgvector, not yet upgraded."""
    with databases.fresh(migrated=False) as url:
        name = psycopg.conninfo.conninfo_to_dict(url)["dbname"]
        execute(url, f"ALTER DATABASE {name} OWNER TO {OWNER}")
        yield url


async def test_an_upgrade_is_done_once(bare_url: str) -> None:
    assert await migrations.schema_versions(bare_url) == (0, migrations.required_version())
    report = await migrations.upgrade(bare_url)
    assert report.applied == [f"{item.version:04}_{item.name}" for item in migrations.migrations()]
    again = await migrations.upgrade(bare_url)
    assert not again.changed
    assert await migrations.schema_versions(bare_url) == (migrations.required_version(),) * 2


async def test_upgrades_at_the_same_time_take_turns(bare_url: str) -> None:
    reports = await asyncio.gather(*(migrations.upgrade(bare_url) for _ in range(4)))
    assert sorted(report.changed for report in reports) == [False, False, False, True]


async def test_an_edited_migration_is_refused(bare_url: str) -> None:
    await migrations.upgrade(bare_url)
    execute(bare_url, "UPDATE pgchroma.schema_migrations SET checksum = 'x' WHERE version = 1")
    with pytest.raises(DatabaseNotReadyError, match="migration 0001 was changed"):
        await migrations.upgrade(bare_url)


async def test_an_upgrade_without_the_extension_or_a_role_changes_nothing(databases: Databases) -> None:
    bootstrap.create_database(databases.postgres.url(), "empty")
    url = databases.postgres.url("empty")
    with pytest.raises(DatabaseNotReadyError, match="extension vector") as caught:
        await migrations.upgrade(url)
    assert "CREATE EXTENSION vector" in caught.value.hint
    bootstrap.create_extension(url)
    for app, monitor in (("nobody_there", None), (None, "nobody_there")):
        with pytest.raises(DatabaseNotReadyError, match="role nobody_there does not exist"):
            await migrations.upgrade(url, app_role=app, monitor_role=monitor)
    assert await migrations.schema_versions(url) == (0, migrations.required_version())
    assert execute(url, "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pgchroma%'") == []
    bootstrap.drop_database(databases.postgres.url(), "empty")


async def test_check_ready_names_what_is_missing(
    bare_url: str, owned_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def problem(url: str) -> tuple[str, str]:
        async with await Store.open(url) as store:
            with pytest.raises(DatabaseNotReadyError) as caught:
                await store.check_ready()
        return caught.value.message, caught.value.hint

    message, hint = await problem(bare_url)
    assert "version 0" in message
    assert "pgchroma db upgrade" in hint
    await migrations.upgrade(bare_url)
    for name, value, expected in (
        ("MINIMUM_POSTGRESQL", 990000, "PostgreSQL 16 is too old"),
        ("MINIMUM_PGVECTOR", (99, 0, 0), "pgvector 0.8.5 is too old"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(migrations, name, value)
            message, hint = await problem(bare_url)
            assert (message, bool(hint)) == (expected, True)
    execute(bare_url, "INSERT INTO pgchroma.schema_migrations VALUES (9999, 'future', 'x')")
    message, hint = await problem(bare_url)
    assert "version 9999, newer than" in message
    assert "newer one" in hint
    execute(bare_url, "DROP EXTENSION vector")
    assert "extension vector" in (await problem(bare_url))[0]
    await migrations.upgrade(as_role(owned_url, OWNER))
    assert "permission denied" in (await problem(as_role(owned_url, APP)))[0]
    async with await Store.open(bare_url.replace("@/", "@/no_such_")) as store:
        with pytest.raises(DatabaseUnreachableError):
            await store.check_ready(0.3)


async def test_the_app_role_can_do_all_the_store_does(owned_url: str) -> None:
    report = await migrations.upgrade(as_role(owned_url, OWNER), app_role=APP, monitor_role=MONITOR)
    assert len(report.granted) == 5
    assert not (
        await migrations.upgrade(as_role(owned_url, OWNER), app_role=APP, monitor_role=MONITOR)
    ).changed
    settings = StoreSettings(index_minimum_rows=10, indexer_interval_seconds=0.02)
    async with await Store.open(as_role(owned_url, APP), settings) as store:
        await store.check_ready()
        await store.create_tenant("tenant")
        await store.create_database("tenant", "database")
        await store.ensure_database("other", "database")
        doomed = await store.create_collection("tenant", "database", "doomed")
        await store.add(doomed.id, batch(["a"]))
        await store.delete_collection("tenant", "database", "doomed")
        collection = await make(store, space="cosine")
        await store.modify_collection(
            collection.id, new_metadata={"k": 1}, new_configuration={"hnsw": {"ef_search": 50}}
        )
        records = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
        await store.add(
            collection.id, RecordBatch([str(n) for n in range(50)], records, metadatas=[{"k": 1}] * 50)
        )
        async with store.transaction() as connection:
            ready = await store.prepare_copy(connection, collection, 3)
            await store.copy_records(connection, ready, [Record(0, "copied", records[0], metadata={"c": 1})])
        task = asyncio.create_task(store.run_indexer())

        async def indexed() -> bool:
            return any(status.segments for status in await store.status())

        await eventually("the index", indexed)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        async with await Connection.connect(as_role(owned_url, APP), autocommit=True) as connection:
            await builds.remove_leftovers(connection)
        await store.upsert(collection.id, RecordBatch(["1"], matrix([0, 0, 0])))
        assert (await nearest(store, collection, [0, 0, 0], 3))[1] == [1, 1, 1]
        assert await store.delete(collection.id, Filter(where={"k": 1}, limit=5)) == 5
        assert len((await store.get(collection.id, Filter(), EVERYTHING)).ids) == 46
        await store.delete_database("tenant", "database")
        await store.reset()
    require_whole(owned_url)


async def test_each_role_can_do_no_more_than_it_should(owned_url: str) -> None:
    await migrations.upgrade(as_role(owned_url, OWNER), app_role=APP, monitor_role=MONITOR)
    async with await Store.open(as_role(owned_url, APP)) as store:
        collection = await make(store)
        await store.add(collection.id, batch(["a"], documents=["secret"]))
        number = (await store.get_collection_by_id(collection.id)).table_number
    forbidden = {
        APP: [
            "ALTER TABLE pgchroma.collections ADD COLUMN more text",
            "DROP TABLE pgchroma.tenants",
            "TRUNCATE pgchroma.index_segments",
            "CREATE TABLE pgchroma.more (a int)",
            "CREATE FUNCTION pgchroma.more() RETURNS int LANGUAGE sql RETURN 1",
            "CREATE SCHEMA more",
            "CREATE TABLE public.more (a int)",
            "UPDATE pgchroma.schema_migrations SET checksum = 'x'",
            "DELETE FROM pgchroma.schema_migrations",
            "ALTER SEQUENCE pgchroma.record_seqs RESTART",
            "DROP EXTENSION vector",
            "INSERT INTO pgchroma.tokens (id, name, digest, scope) VALUES ('x', 'x', decode(repeat('00', 32), 'hex'), 'operator')",
            "UPDATE pgchroma.tokens SET scope = 'operator', tenant = NULL",
            "UPDATE pgchroma.tokens SET revoked_at = NULL",
            "DELETE FROM pgchroma.tokens",
            "UPDATE pgchroma.token_version SET version = 0",
        ],
        MONITOR: [
            "SELECT digest FROM pgchroma.tokens",
            f"TABLE pgchroma_data.r{number}",
            f"TABLE pgchroma_data.v{number}",
            "UPDATE pgchroma.collections SET name = 'x'",
            "INSERT INTO pgchroma.tenants (name) VALUES ('x')",
            "SELECT nextval('pgchroma.record_seqs')",
            "CREATE TABLE pgchroma_data.more (a int)",
        ],
    }
    for role, statements in forbidden.items():
        for statement in statements:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                execute(as_role(owned_url, role), statement)
    assert execute(as_role(owned_url, MONITOR), "SELECT name FROM pgchroma.collections") == [
        (collection.name,)
    ]
    assert execute(as_role(owned_url, APP), "SELECT count(*) FROM pgchroma.schema_migrations")[0][0] >= 1
    # What a migration compares to know whether anybody wrote meanwhile.
    with snapshot.DatabaseSnapshot(as_role(owned_url, APP), StoreSettings()) as seen:
        assert seen.horizon()["record_seq"] >= 1
        assert [found.name for found in seen.collections()] == [collection.name]
    # A server must be able to note that a token was used, or it would log that it cannot, every second.
    with psycopg.connect(as_role(owned_url, APP)) as app:
        app.execute("UPDATE pgchroma.tokens SET last_used_at = now()")


async def test_a_store_without_rights_says_what_to_run(owned_url: str) -> None:
    await migrations.upgrade(as_role(owned_url, OWNER))
    async with await Store.open(as_role(owned_url, APP)) as store:
        for attempt in (
            store.list_collections(), store.create_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "records"),
        ):  # fmt: skip
            with pytest.raises(DatabaseNotReadyError, match="permission denied") as caught:
                await attempt
            assert "pgchroma db upgrade" in caught.value.hint


async def test_connection_settings(database_url: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    password_file = tmp_path_factory.mktemp("secret") / "password"
    with pytest.raises(ConfigurationError, match="cannot read the password file"):
        conninfo(database_url, StoreSettings(password_file=password_file))
    password_file.write_text("s3 cret\n")
    settings = StoreSettings(
        password_file=password_file, statement_timeout_seconds=12.5, application_name="mine"
    )
    text = conninfo(database_url, settings)
    assert psycopg.conninfo.conninfo_to_dict(text)["password"] == "s3 cret"
    assert execute(text, "SHOW statement_timeout") == [("12500ms",)]
    assert execute(text, "SHOW application_name") == [("mine",)]
    with pytest.raises(ConfigurationError, match="database URL is not valid"):
        conninfo("mysql://x", StoreSettings())


async def test_a_database_of_many_collections_is_deleted_in_portions(databases: Databases) -> None:
    """PostgreSQL cannot drop thousands of tables in one transaction; 130 collections are already two portions."""
    with databases.fresh() as url:
        async with await Store.open(url) as store:
            await store.create_database(DEFAULT_TENANT, "many")
            for number in range(130):
                await store.create_collection(DEFAULT_TENANT, "many", f"collection-{number}")
            assert await store.count_collections(DEFAULT_TENANT, "many") == 130
            some = await store.list_collections(DEFAULT_TENANT, "many", limit=20)
            for collection in some:
                await store.add(collection.id, batch(["a"]))
            kept = await make(store)
            await store.delete_database(DEFAULT_TENANT, "many")
            assert [collection.id for collection in await store.list_collections()] == [kept.id]
            require_whole(url)
            await store.reset()
            assert await store.list_collections() == []
            require_whole(url)


async def test_the_servers_role_hears_of_a_revoked_token_without_looking(
    owned_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By itself it would look no more within this test.
    monkeypatch.setattr(watch, "LOOK_SECONDS", 600.0)
    monkeypatch.setattr(watch, "TRUST_SECONDS", 600.0)
    await migrations.upgrade(as_role(owned_url, OWNER), app_role=APP, monitor_role=MONITOR)
    async with (
        await Store.open(as_role(owned_url, OWNER)) as owner,
        await Store.open(as_role(owned_url, APP)) as store,
    ):
        await owner.tokens.create("first", "operator")
        await owner.tokens.create("second", "operator")
        mine = store.watch(with_tokens=True)
        task = asyncio.create_task(mine.run())

        async def names() -> set[str]:
            return {token.name for token in mine.tokens().values()}

        async def knows_both() -> bool:
            return mine.token_count == 2

        async def has_forgotten_first() -> bool:
            return await names() == {"second"}

        async def has_forgotten_all() -> bool:
            return await names() == set()

        await eventually("the first look", knows_both)
        # A question from a request in between leaves it listening.
        assert await mine.ask(tokens.version) > 0
        await owner.tokens.revoke("first")
        await eventually("the notice", has_forgotten_first, seconds=10)
        which = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgchroma watch' AND datname = current_database()"
        ((before,),) = execute(owned_url, which)
        execute(owned_url, "SELECT pg_terminate_backend(%(pid)s)", {"pid": before})

        async def connected_again() -> bool:
            return any(pid != before for (pid,) in execute(owned_url, which))

        await eventually("a new connection, as the old one was seen to end", connected_again, seconds=10)
        await owner.tokens.revoke("second")
        await eventually("the notice over the new connection", has_forgotten_all, seconds=10)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
