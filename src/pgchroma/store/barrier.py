"""The write barrier: one advisory lock that every write holds in common until its commit is visible.

Whoever takes it alone finds no write half-way: each is in the next snapshot and in the WAL before the next record of it, or
begins afterwards. Table locks would do the same, but one for each of thousands of collections is more than PostgreSQL's lock
table holds, and they would wait for VACUUM and for index builds. Readers never take it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection

from pgchroma.errors import RefusedError

# Any number that nothing else in the database uses; it spells "pgcw".
_LOCK: Final = 0x70676377
# Two statements in one message, so that the barrier costs a write no round trip.
BEGIN_WRITE: Final = f"BEGIN; SELECT pg_advisory_xact_lock_shared({_LOCK})"
SHARE: Final = f"SELECT pg_advisory_xact_lock_shared({_LOCK})"

# While one waits for the barrier, new writes queue behind it: so it waits briefly, and often.
_ATTEMPT_MILLISECONDS = 2_000
_PAUSE_SECONDS = 1.0


@contextlib.asynccontextmanager
async def hold(connection: AsyncConnection[Any], patience_seconds: float) -> AsyncIterator[None]:
    """Keep every write out for as long as the context lasts; the connection must be in autocommit mode and not pooled.

    Raises:
        RefusedError: some write was open for as long as the patience lasted.
    """
    await _take(connection, "pg_advisory_lock", patience_seconds)
    try:
        yield
    finally:
        await connection.execute(f"SELECT pg_advisory_unlock({_LOCK})".encode())


async def hold_to_commit(connection: AsyncConnection[Any], patience_seconds: float) -> None:
    """Keep every other write out until the transaction that begins here ends; RefusedError as for `hold`.

    The connection must be in autocommit mode; the caller commits.
    """
    await _take(connection, "BEGIN; SELECT pg_advisory_xact_lock", patience_seconds)


async def holders(connection: AsyncConnection[Any]) -> set[str]:
    """Return the transactions that hold the barrier now, each by PostgreSQL's virtual transaction id."""
    cursor = await connection.execute(
        "SELECT virtualtransaction FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = %s "
        "AND objsubid = 1 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        [_LOCK],
    )
    return {row[0] for row in await cursor.fetchall()}


async def _take(connection: AsyncConnection[Any], function: str, patience_seconds: float) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + patience_seconds
    query = f"{function}({_LOCK})" if function.startswith("BEGIN") else f"SELECT {function}({_LOCK})"
    await connection.execute(f"SET lock_timeout = {_ATTEMPT_MILLISECONDS}".encode())
    try:
        while True:
            try:
                await connection.execute(query.encode(), prepare=False)
            except psycopg.errors.LockNotAvailable as error:
                await connection.rollback()
                if loop.time() > deadline:
                    raise RefusedError(
                        f"writes were under way all the time for {patience_seconds:g} s",
                        hint="look for a transaction that does not end: SELECT pid, state, xact_start, query FROM "
                        "pg_stat_activity ORDER BY xact_start; then try again, or raise --patience",
                    ) from error
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return
    finally:
        status = connection.info.transaction_status
        if status == psycopg.pq.TransactionStatus.INTRANS:
            await connection.execute("SET LOCAL lock_timeout = 0")
        elif status == psycopg.pq.TransactionStatus.IDLE:
            await connection.execute("SET lock_timeout = 0")
