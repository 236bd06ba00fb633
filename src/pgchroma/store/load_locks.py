"""What tells that a load is at work: advisory locks of a session that lasts as long as the load, and never longer than its process."""

import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import psycopg
from psycopg import AsyncConnection

from pgchroma.errors import RefusedError
from pgchroma.store import backups
from pgchroma.store.failures import unreachable

# PostgreSQL needs a moment to see that a process was killed.
_PATIENCE_MILLISECONDS = 2_000


@contextlib.asynccontextmanager
async def loading(database_url: str, digest: str, place: str) -> AsyncIterator[AsyncConnection[Any]]:
    """Be the one load of a dump to a place, which nobody discards meanwhile; yields the session that the locks belong to.

    What must not happen without the locks is to be done in that session: it cannot go on when they are lost.

    Raises:
        RefusedError: such a load is at work already, or what one has written is being discarded.
    """
    async with _session(database_url) as session:
        if not await _take(session, "pg_advisory_lock_shared", digest):
            raise RefusedError(
                "what a load of this dump has written is being discarded", hint="wait until that has ended"
            )
        if not await _take(session, "pg_advisory_lock", digest, place):
            raise RefusedError(
                f"a load of this dump to {place} is at work already",
                hint="wait until it has ended, or stop it; a load that was stopped is continued by the same command",
            )
        yield session


@contextlib.asynccontextmanager
async def discarding(database_url: str, digest: str) -> AsyncIterator[None]:
    """Keep every load of a dump from beginning; RefusedError while one is at work."""
    async with _session(database_url) as session:
        if not await _take(session, "pg_advisory_lock", digest):
            raise RefusedError(
                "a load of this dump is at work, or another discards what one has written; nothing was discarded",
                hint="wait until it has ended, or stop it",
            )
        yield


@contextlib.asynccontextmanager
async def _session(database_url: str) -> AsyncIterator[AsyncConnection[Any]]:
    async with await backups.connect(database_url, "pgchroma backup load") as session:
        try:
            # It is idle for as long as the load takes; a load whose computer is gone is to be missed within a minute.
            await session.execute(
                "SET idle_session_timeout = 0; SET tcp_keepalives_idle = 30; "
                "SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"
            )
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
        yield session


async def _take(session: AsyncConnection[Any], function: str, *names: str) -> bool:
    """Take a lock until the session ends; return whether it was to be had."""
    # Of 64 bits, so that it is neither another load's nor one of the small numbers of pgchroma's other locks.
    key = int.from_bytes(hashlib.sha256("\0".join(("load", *names)).encode()).digest()[:8], signed=True)
    try:
        await session.execute(f"SET lock_timeout = {_PATIENCE_MILLISECONDS}".encode())
        try:
            await session.execute(f"SELECT {function}(%s)".encode(), [key])
        except psycopg.errors.LockNotAvailable:
            return False
        await session.execute("SET lock_timeout = 0")
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    return True
