"""The connection pool and the rules for retrying on a lost connection."""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, TypeAlias, TypeVar
from uuid import UUID

import numpy as np
import psycopg
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo
from psycopg.errors import Diagnostic
from psycopg.pq import TransactionStatus
from psycopg.pq.abc import PGconn
from psycopg.rows import AsyncRowFactory, tuple_row
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout, TooManyRequests

from pgchroma.errors import (
    BusyError,
    ConfigurationError,
    ContentionError,
    DatabaseUnreachableError,
    InvalidArgumentError,
)
from pgchroma.store import adapting, barrier, failures, wire

logger = logging.getLogger("pgchroma.store")

Row: TypeAlias = tuple[Any, ...]
Result = TypeVar("Result")

# A write that lost a race (deadlock, serialization, unique id) is run again this often before the client hears of it.
MAX_ATTEMPTS = 15
_LONGEST_PAUSE_SECONDS = 0.25
# A read that met a deletion or an exchange of tables is run this often; each time it looks the collection up anew.
MAX_READS = 5
# A request that waits for a connection hears this often whether PostgreSQL is known to be away.
_WAIT_SECONDS = 1.0
# With PostgreSQL known to be away a request waits no longer than a connection that is there after all takes to be handed out.
_GLANCE_SECONDS = 0.02
_SECOND_LOOK_SECONDS = 0.5
_RACES = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.SerializationFailure,
    psycopg.errors.UniqueViolation,
    # The collection was deleted between looking it up and using its tables; the next look-up says so.
    psycopg.errors.UndefinedTable,
    # Likewise the database in which a collection was to be created.
    psycopg.errors.ForeignKeyViolation,
    # "tuple concurrently updated", "could not open relation": tables dropped while an index of theirs is built.
    psycopg.errors.InternalError_,
)
# A read meets only these: what it looks at was dropped under it, or whoever drops it waits for it in turn.
_VANISHED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.InternalError_,
    psycopg.errors.DeadlockDetected,
)
# To try these again would end the same.
_HOPELESS = (
    psycopg.errors.QueryCanceled,
    psycopg.errors.InvalidSchemaName,
    psycopg.errors.InsufficientPrivilege,
)


class Connection(AsyncConnection[Row]):
    """A connection that remembers the warnings PostgreSQL sent; see `Database.write`."""

    def __init__(self, pgconn: PGconn, row_factory: AsyncRowFactory[Row] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self._prepared = wire.OwnStatements()
        # SQLSTATEs only: psycopg frees what a Diagnostic refers to as soon as its handler returns.
        self.warnings: list[str | None] = []
        # Settings that queries change, as they are now.
        self.settings: dict[str, object] = {}
        # What entries.py remembers.
        self.entries: OrderedDict[UUID, Any] = OrderedDict()
        self.knows_vector = False
        # The process's, see held.py; None where it holds none.
        self.sketches: Any = None
        # For the regular expressions of a request, at most; see patterns.py.
        self.regex_seconds = 0.0
        self._statements = wire.Prepared()
        self.add_notice_handler(self._remember)

    async def fetch(self, query: bytes, parameters: Mapping[str, Any], *, prepare: bool = True) -> list[Row]:
        """Run one query and return its rows; quicker than a cursor, see `wire.fetch`."""
        return await wire.fetch(self, self._statements, query, parameters, prepare=prepare)

    async def fetch_each(self, query: bytes, several: Iterable[Mapping[str, Any]]) -> list[list[Row]]:
        """Run one query with each of several parameters and return the rows of each; see `wire.fetch_each`."""
        return await wire.fetch_each(self, self._statements, query, several, prepare=True)

    async def learn_vectors(self) -> None:
        """Learn pgvector's types, and set how its indexes are searched; nothing where the database has no such extension yet."""
        if await adapting.register(self):
            self._statements.forget_types()
            # Deleted and filtered-out neighbours must not make an answer shorter than asked for.
            await self.execute("SET hnsw.iterative_scan = strict_order")
            self.knows_vector = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End a transaction; one that a pool lent, and that has none, as after most reads, is left alone at once."""
        if getattr(self, "_pool", None) is None or self.pgconn.transaction_status != TransactionStatus.IDLE:
            await super().__aexit__(kind, error, traceback)

    def _remember(self, notice: Diagnostic) -> None:
        if notice.severity_nonlocalized == "WARNING":
            self.warnings.append(notice.sqlstate)


class Watching(Protocol):
    """What the pool asks of a watch over PostgreSQL."""

    is_down: bool

    def suspect(self) -> None:
        """Have PostgreSQL looked at now."""

    async def look_again(self, seconds: float = ...) -> None:
        """Return after a look that begins now, or when it takes too long."""


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """How a store uses its database.

    Attributes:
        pool_size: connections per process, at most.
        pool_timeout_seconds: how long a request waits for a connection.
        pool_waiting: requests that wait for a connection at a time, at most; one more is refused at once. 0 for no limit.
        statement_timeout_seconds: longest run of one statement; 0 for no limit.
        password_file: file with the password, for a database that asks for one; kept out of the URL.
        parallel_index_builds: False for pgvector below 0.8.4, whose parallel builds can overflow a buffer.
        index_minimum_rows: a tail shorter than this gets no vector index.
        indexer_interval_seconds: pause between two looks at what needs an index.
        sketch_memory_mb: for sketches that a process holds, at most; 0 for none.
        regex_timeout_seconds: for running the regular expressions of one request, at most; 0 for no limit.
    """

    pool_size: int = 8
    pool_timeout_seconds: float = 5.0
    pool_waiting: int = 0
    statement_timeout_seconds: float = 60.0
    password_file: Path | None = None
    parallel_index_builds: bool = True
    index_minimum_rows: int = 2_000
    indexer_interval_seconds: float = 2.0
    sketch_memory_mb: int = 128
    regex_timeout_seconds: float = 30.0
    application_name: str = "pgchroma"


def conninfo(database_url: str, settings: StoreSettings) -> str:
    """Return libpq's connection string; ConfigurationError when the URL or the password file is unusable."""
    extra: dict[str, Any] = {
        "application_name": settings.application_name,
        "connect_timeout": 5,
        "client_encoding": "UTF8",
        "options": f"-c statement_timeout={int(settings.statement_timeout_seconds * 1000)}",
    }
    if settings.password_file:
        try:
            extra["password"] = settings.password_file.read_text().rstrip("\n")
        except OSError as error:
            raise ConfigurationError(
                f"cannot read the password file {settings.password_file}: {error.strerror}",
                hint="check PGCHROMA_DATABASE_PASSWORD_FILE and the file's owner and mode",
            ) from error
    try:
        return make_conninfo(database_url, **extra)
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"the database URL is not valid: {error}",
            hint="use postgresql://user@host/database or postgresql:///database?host=/var/run/postgresql&user=NAME",
        ) from error


class Database:
    """A pool of connections that connects by itself, again and again, whenever PostgreSQL comes back."""

    def __init__(self, database_url: str, settings: StoreSettings) -> None:
        self.settings = settings
        self.conninfo = conninfo(database_url, settings)
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            self.conninfo,
            min_size=1,
            max_size=settings.pool_size,
            timeout=settings.pool_timeout_seconds,
            max_waiting=settings.pool_waiting,
            # After this long psycopg_pool gives an attempt up; the next request starts a new one at once.
            reconnect_timeout=5.0,
            connection_class=Connection,
            configure=Connection.learn_vectors,
            # A read is one statement and needs no transaction; writes open theirs.
            kwargs={"autocommit": True},
            open=False,
            name="pgchroma",
        )
        # A server's watch, which knows whether PostgreSQL is away; see watch.py.
        self.watch: Watching | None = None
        # What every connection is given; see held.py.
        self.sketches: Any = None

    async def open(self) -> None:
        """Start connecting in the background; an absent database is no error yet."""
        await self._pool.open(wait=False)

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.close()

    def stats(self) -> dict[str, int]:
        """Return psycopg_pool's counters (pool_size, pool_available, requests_waiting, ...)."""
        return dict(self._pool.get_stats())

    @contextlib.asynccontextmanager
    async def connection(self, timeout_seconds: float | None = None) -> AsyncIterator[Connection]:
        """Lend a connection; DatabaseUnreachableError when there is none in time, BusyError when all are in use."""
        connection = await self._lend(timeout_seconds)
        try:
            async with connection:
                if not connection.knows_vector:
                    # It may be older than the extension.
                    await connection.learn_vectors()
                connection.sketches = self.sketches
                connection.regex_seconds = self.settings.regex_timeout_seconds
                yield connection
        finally:
            await self._pool.putconn(connection)

    async def _lend(self, timeout_seconds: float | None) -> Connection:
        connection = await self._wait_for_one(timeout_seconds)
        # After a restart of PostgreSQL the pool is full of dead connections; a request should not have to try them all.
        for _ in range(self.settings.pool_size):
            if wire.is_alive(connection.pgconn):
                break
            if self.watch is not None:
                self.watch.suspect()
            await self._pool.putconn(connection)
            connection = await self._wait_for_one(timeout_seconds)
        return connection

    async def _wait_for_one(self, timeout_seconds: float | None) -> Connection:
        """Return a connection of the pool; what it waited for in vain decides which error it raises."""
        left = self.settings.pool_timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            while not await self._is_away():
                try:
                    return await self._pool.getconn(min(left, _WAIT_SECONDS))
                except PoolTimeout:
                    left -= _WAIT_SECONDS
                    if left <= 0:
                        raise
            return await self._pool.getconn(_GLANCE_SECONDS)
        except TooManyRequests as error:
            raise self._busy(f"{self.settings.pool_waiting} requests wait for one already") from error
        except PoolTimeout as error:
            stats = self._pool.get_stats()
            # A command has no watch, nor requests that could use up the pool, whose size counts a connection that is being tried.
            failed = bool(stats.get("connections_errors")) if self.watch is None else self.watch.is_down
            if failed or stats["pool_size"] < self.settings.pool_size:
                raise failures.unreachable(await self._why() or error) from error
            raise self._busy("none became free in time") from error
        except PoolClosed as error:
            raise failures.unreachable(error) from error

    async def _why(self) -> BaseException | None:
        """Return what PostgreSQL says to a command's own connection: the pool only logs what it said to its."""
        if self.watch is None:
            try:
                await (await AsyncConnection.connect(self.conninfo)).close()
            except psycopg.OperationalError as error:
                return error
        return None

    async def _is_away(self) -> bool:
        """Whether PostgreSQL is known to be away; what was so a second ago is looked at once more."""
        if self.watch is None or not self.watch.is_down:
            return False
        await self.watch.look_again(_SECOND_LOOK_SECONDS)
        return self.watch.is_down

    def _busy(self, reason: str) -> BusyError:
        return BusyError(
            f"all {self.settings.pool_size} database connections of this worker are in use, and {reason}",
            hint="send fewer requests at a time, or raise PGCHROMA_POOL_SIZE",
        )

    async def read(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Run `work`, which only reads, and again when the connection, once, or a collection's tables were lost under it."""
        for attempt in range(1, MAX_READS + 1):
            try:
                async with self.connection() as connection:
                    return await work(connection)
            except _HOPELESS as error:
                raise self._explained(error) from error
            except _VANISHED as error:
                if attempt == MAX_READS:
                    raise self._explained(error) from error
                logger.info("repeating a read: %s", failures.reason(error))
            except psycopg.OperationalError as error:
                if attempt > 1:
                    raise self._explained(error) from error
                logger.info("repeating a read: %s", failures.reason(error))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def write(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Run `work` in one transaction; repeat it while it loses races, and on a connection lost before COMMIT was sent.

        A connection lost during COMMIT leaves the outcome unknown: that is an error for the client, never a silent repeat.
        """
        for attempt in range(1, MAX_ATTEMPTS + 1):
            committing = False
            try:
                async with self.connection() as connection:
                    await connection.execute(barrier.BEGIN_WRITE, prepare=False)
                    result = await work(connection)
                    connection.warnings.clear()
                    committing = True
                    await connection.commit()
                    require_replicated(connection.warnings)
                    return result
            except _RACES as error:
                if attempt == MAX_ATTEMPTS:
                    raise self._lost(error) from error
                logger.debug("write lost a race, attempt %d: %s", attempt, failures.reason(error))
                pause = min(0.001 * 2**attempt, _LONGEST_PAUSE_SECONDS)
                await asyncio.sleep(pause * np.random.default_rng().random())
            except _HOPELESS as error:
                raise self._explained(error) from error
            except psycopg.OperationalError as error:
                if committing or attempt > 2:
                    raise self._explained(error) from error
                logger.info("repeating a write after a connection lost before its commit: %s", error)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _lost(self, error: psycopg.Error) -> Exception:
        if isinstance(error, psycopg.errors.UndefinedTable):
            return failures.unprepared(error)
        return ContentionError(
            f"others wrote to the same at the same time, {MAX_ATTEMPTS} times in a row: {failures.reason(error)}",
            hint="write again, with fewer writers to the same records",
        )

    def _explained(self, error: psycopg.Error) -> Exception:
        if isinstance(error, psycopg.errors.QueryCanceled):
            return InvalidArgumentError(
                f"a statement of the request took longer than {self.settings.statement_timeout_seconds:g} s "
                "(PGCHROMA_STATEMENT_TIMEOUT_SECONDS) and was given up",
                hint="send smaller batches, narrow the filter or ask for fewer results",
            )
        return failures.explained(error)


def require_replicated(warnings: list[str | None]) -> None:
    """Refuse to call a commit done whose wait for the synchronous standby was cancelled (a mere WARNING to PostgreSQL)."""
    if "01000" in warnings:
        raise DatabaseUnreachableError(
            "the commit was not confirmed by the synchronous standby, so the write may be lost in a failover",
            hint="write again; an upsert is safe to repeat",
        )
