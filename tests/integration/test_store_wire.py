"""Statements without cursors: their rows, their errors, and connections that stay usable."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import numpy as np
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from pgchroma.store import Store, wire
from pgchroma.store.adapting import Numbers
from pgchroma.store.connection import Connection
from support.store import batch, eventually, execute, make, nearest

pytestmark = pytest.mark.anyio


@pytest.fixture
async def connection(store: Store) -> AsyncIterator[Connection]:
    async with store._database.connection() as lent:
        yield lent


async def test_rows_are_as_a_cursor_would_return_them(connection: Connection) -> None:
    query = (
        "SELECT %(text)s::text, %(number)s::bigint, %(nothing)s::text, %(list)s::text[], "
        "(%(vector)s::vector <-> %(vector)s::vector), 7 %% 4, n FROM generate_series(1, 3) AS n"
    )
    parameters = {
        "text": "a%s $1 '",
        "number": 2**40,
        "nothing": None,
        "list": ["x", "y"],
        "vector": np.ones(3, np.float32),
        "unused": object,
    }
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(query.encode(), parameters)
        expected = await cursor.fetchall()
    for _ in range(8):
        assert await connection.fetch(query.encode(), parameters) == expected
    assert await connection.fetch(query.encode(), parameters, prepare=False) == expected
    assert await connection.fetch(b"SELECT 1 WHERE false", {}) == []


async def test_an_error_has_its_class_and_leaves_the_connection_usable(connection: Connection) -> None:
    for prepare in (True, True, False):
        with pytest.raises(psycopg.errors.UndefinedTable, match="nowhere"):
            await connection.fetch(b"SELECT * FROM nowhere", {}, prepare=prepare)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.fetch(b"SELECT 1 / %(zero)s", {"zero": 0}, prepare=prepare)
        assert await connection.fetch(b"SELECT 1", {}) == [(1,)]
    async with connection.transaction():
        assert await connection.fetch(b"SELECT 2", {}) == [(2,)]
    with pytest.raises(KeyError):
        await connection.fetch(b"SELECT %(missing)s", {})
    assert await connection.fetch(b"SELECT 3", {}) == [(3,)]


async def test_nothing_is_kept_of_long_statements(connection: Connection) -> None:
    async def prepared() -> int:
        ((count,),) = await connection.fetch(
            b"SELECT count(*) FROM pg_prepared_statements", {}, prepare=False
        )
        return int(count)

    before, texts = await prepared(), wire._kept_numbered.cache_info().currsize
    long = b"SELECT %(one)s::int /* " + b"x" * 20_000 + b" */"
    for _ in range(4):
        assert await connection.fetch(long, {"one": 1}) == [(1,)]
    assert await prepared() == before
    assert wire._kept_numbered.cache_info().currsize <= texts + 1
    assert not any(len(text) > 16_384 for text, _ in connection._statements._names)


async def test_filters_of_many_conditions_are_not_remembered(store: Store) -> None:
    collection = await make(store)
    await store.add(collection.id, batch(["a", "b"], metadatas=[{"k": 1}, {"k": 2}]))
    for count in (1, 1_000):
        where = {"$or": [{"k": number} for number in range(1, count + 1)]}
        for _ in range(2):
            found, _ = await nearest(store, collection, [1, 1], 2, where=where)
            assert found == ["a", "b"][:count]
        async with store._database.connection() as lent:
            remembered = lent.entries[collection.id].statements
        # The first filter's statement, and that alone.
        assert len(remembered) == 1


async def test_more_statements_than_are_kept(connection: Connection) -> None:
    for number in range(120):
        for _ in range(3):
            query = f"SELECT %(a)s::int, {number}"
            assert await connection.fetch(query.encode(), {"a": 1}) == [(1, number)]
    count = await connection.fetch(
        b"SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'pgchroma%%'", {}
    )
    assert 0 < count[0][0] <= 100


async def test_a_plan_that_tables_outgrew_is_made_anew(connection: Connection) -> None:
    await connection.execute("CREATE TEMP TABLE changing (a int)")
    for _ in range(3):
        assert await connection.fetch(b"SELECT * FROM changing", {}) == []
    await connection.execute("ALTER TABLE changing ALTER a TYPE text")
    assert await connection.fetch(b"SELECT * FROM changing", {}) == []
    await connection.execute("INSERT INTO changing VALUES ('x')")
    assert await connection.fetch(b"SELECT * FROM changing", {}) == [("x",)]


async def test_a_large_answer_and_a_large_question(connection: Connection) -> None:
    text = "x" * 3_000_000
    assert await connection.fetch(b"SELECT %(text)s::text", {"text": text}) == [(text,)]
    rows = await connection.fetch(b"SELECT repeat('y', 1000) FROM generate_series(1, 5000)", {})
    assert len(rows) == 5_000


async def test_after_rows_that_were_streamed(connection: Connection) -> None:
    async with connection.cursor(binary=True) as cursor:
        streamed = [
            number
            async for (number,) in cursor.stream("SELECT n FROM generate_series(1, 1000) AS n", size=100)
        ]
    assert len(streamed) == 1_000
    rows = await connection.fetch(b"SELECT n FROM generate_series(1, 250) AS n", {})
    assert [number for (number,) in rows] == list(range(1, 251))


async def test_a_cancelled_statement_ends_in_postgresql_too(store: Store, module_database_url: str) -> None:
    async with store._database.connection() as connection:
        task = asyncio.create_task(connection.fetch(b"SELECT pg_sleep(600)", {}))
        query = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(600)%' AND state = 'active'"

        async def runs() -> bool:
            return bool(await asyncio.to_thread(execute, module_database_url, query))

        async def is_gone() -> bool:
            return not await runs()

        await eventually("the statement to run", runs)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await eventually("the statement to end", is_gone)
        if not connection.closed:
            assert await connection.fetch(b"SELECT 1", {}) == [(1,)]


async def test_a_connection_that_postgresql_ends_is_an_operational_error(
    store: Store, module_database_url: str
) -> None:
    async with store._database.connection() as connection:
        pid = connection.info.backend_pid
        task = asyncio.create_task(connection.fetch(b"SELECT pg_sleep(600)", {}))
        end = "SELECT pg_terminate_backend(%(pid)s) FROM pg_stat_activity WHERE pid = %(pid)s AND state = 'active'"

        async def ended() -> bool:
            return bool(await asyncio.to_thread(execute, module_database_url, end, {"pid": pid}))

        await eventually("the end", ended)
        with pytest.raises(psycopg.OperationalError):
            await task


async def test_statements_that_somebody_deallocated_are_prepared_again(connection: Connection) -> None:
    for _ in range(3):
        assert await connection.fetch(b"SELECT 7", {}) == [(7,)]
    await connection.execute("DEALLOCATE ALL")
    assert await connection.fetch(b"SELECT 7", {}) == [(7,)]
    for _ in range(3):
        assert await connection.fetch(b"SELECT 7", {}) == [(7,)]
    await connection.execute("DEALLOCATE ALL")
    # Within a transaction the error has ended that; what it did before cannot be done again here.
    with pytest.raises(psycopg.errors.InvalidSqlStatementName):
        async with connection.transaction():
            await connection.fetch(b"SELECT 7", {})
    assert await connection.fetch(b"SELECT 7", {}) == [(7,)]


async def test_psycopg_deallocates_nothing_but_its_own_statements(connection: Connection) -> None:
    """After a ROLLBACK or a DROP it would deallocate everything, and each of ours would cost an error in PostgreSQL's log."""
    for _ in range(3):
        assert await connection.fetch(b"SELECT 8", {}) == [(8,)]
    await connection.execute("SELECT 9", prepare=True)
    for statement in ("BEGIN", "ROLLBACK", "CREATE TEMPORARY TABLE gone ()", "DROP TABLE gone", "SELECT 10"):
        await connection.execute(statement)
    cursor = await connection.execute("SELECT statement FROM pg_prepared_statements ORDER BY statement")
    left = [row[0] for row in await cursor.fetchall()]
    assert "SELECT 8" in left
    assert "SELECT 9" not in left


async def test_numbers_and_embeddings_arrive_as_they_are(connection: Connection) -> None:
    query = b"SELECT %(numbers)s, %(vector)s::vector::text"
    for numbers in ([], [5], [2**62, -1, 7]):
        values = Numbers(np.array(numbers, np.int64))
        # Every other coordinate of a longer array: not one piece of memory.
        vector = np.arange(8, dtype=np.float32)[::2]
        for _ in range(3):
            rows = await connection.fetch(query, {"numbers": values, "vector": vector})
            assert rows == [(numbers, "[0,2,4,6]")]
    with pytest.raises(ValueError, match="one dimension, not 2"):
        await connection.fetch(query, {"numbers": values, "vector": np.ones((2, 2), np.float32)})
    assert await connection.fetch(b"SELECT 1", {}) == [(1,)]


async def test_types_may_change_between_two_runs_of_a_statement(connection: Connection) -> None:
    for _ in range(3):
        for value in ("x", 1, 2**40, 1.5, [3], None, "x"):
            assert await connection.fetch(b"SELECT %(value)s", {"value": value}) == [(value,)]
    cursor = await connection.execute("SELECT 1::bigint")
    assert await cursor.fetchall() == await connection.fetch(b"SELECT 1::bigint", {})


async def test_a_connection_goes_back_without_a_transaction(store: Store) -> None:
    for fails in (False, True):
        with contextlib.suppress(ZeroDivisionError):
            async with store._database.connection() as connection:
                await connection.execute("BEGIN")
                await connection.execute("CREATE TEMPORARY TABLE IF NOT EXISTS kept AS SELECT 1")
                if fails:
                    await connection.execute("DROP TABLE kept")
                    raise ZeroDivisionError
        async with store._database.connection() as connection:
            assert connection.pgconn.transaction_status == TransactionStatus.IDLE


async def test_several_runs_of_a_statement_in_one_journey(connection: Connection) -> None:
    query = b"SELECT g, %(name)s::text FROM generate_series(1, %(rows)s::int) AS g"
    for _ in range(3):
        several = ({"name": str(rows), "rows": rows} for rows in (3, 0, 20_000, 1))
        found = await connection.fetch_each(query, several)
        assert found == [[(g, str(rows)) for g in range(1, rows + 1)] for rows in (3, 0, 20_000, 1)]
    assert await connection.fetch_each(query, ()) == []
    assert await connection.fetch(b"SELECT 1", {}) == [(1,)]


async def test_an_error_in_one_of_several_runs_leaves_the_connection_usable(connection: Connection) -> None:
    query = b"SELECT 6 / %(by)s::int"
    for _ in range(3):
        with pytest.raises(psycopg.errors.DivisionByZero):
            await connection.fetch_each(query, [{"by": 1}, {"by": 0}, {"by": 2}])
        assert await connection.fetch_each(query, [{"by": 1}, {"by": 2}]) == [[(6,)], [(3,)]]


async def test_several_runs_of_what_somebody_deallocated(connection: Connection) -> None:
    query, several = b"SELECT %(n)s::int + 1", [{"n": n} for n in range(5)]
    for _ in range(3):
        assert await connection.fetch_each(query, iter(several)) == [[(n + 1,)] for n in range(5)]
        await connection.execute("DEALLOCATE ALL")


async def test_parameters_that_cannot_be_made_cost_the_connection_and_nothing_else(
    store: Store, connection: Connection
) -> None:
    def several() -> Iterator[dict[str, int]]:
        yield {"n": 1}
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await connection.fetch_each(b"SELECT %(n)s::int", several())
    assert await store.moment()
