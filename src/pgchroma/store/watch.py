"""One connection of a server's process beside its pool: it knows whether PostgreSQL answers, and which tokens there are.

Readiness and the figures for monitoring are asked over it, so that neither waits while requests use up the pool.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TypeVar

import psycopg

from pgchroma.errors import DatabaseUnreachableError, PgchromaError
from pgchroma.store import failures, tokens
from pgchroma.store.connection import Connection
from pgchroma.store.tokens import Token

logger = logging.getLogger("pgchroma.store")

Result = TypeVar("Result")

# How often it looks by itself; a token that was revoked is refused after this at the latest while PostgreSQL answers, and within a
# tenth of it where PostgreSQL can tell the connection.
LOOK_SECONDS = 1.0
# Looks that requests ask for come no faster than this: wrong tokens in masses cost PostgreSQL ten small queries a second.
_LEAST_PAUSE_SECONDS = 0.1
# A statement that takes longer than this counts as a database that does not answer.
_PATIENCE_SECONDS = 3.0
# What is known of the tokens is used for this long without a look; a token revoked while the watch is cut off from PostgreSQL is
# refused after this at the latest.
TRUST_SECONDS = 5.0
# Requests that wait for a look at a time; a flood of wrong tokens is not worth the memory.
_MOST_WAITING = 1_000
_USE_NOTED_SECONDS = 60.0


class Watch:
    """Keeps the connection; `run` goes on until it is cancelled."""

    def __init__(self, conninfo: str, *, with_tokens: bool) -> None:
        self._conninfo = conninfo
        self._with_tokens = with_tokens
        self._connection: Connection | None = None
        self._ear: int | None = None
        self._lock = asyncio.Lock()
        self._wake = asyncio.Event()
        self._waiting: list[asyncio.Future[None]] = []
        self._tokens: Mapping[str, Token] = {}
        self._version: int | None = None
        self._looked_at = float("-inf")
        self._problem: PgchromaError = DatabaseUnreachableError(
            "PostgreSQL was not asked yet", hint="try again"
        )
        self._used: set[str] = set()
        self._noted: dict[str, float] = {}
        # Called after each look, e.g. to publish what the pool does.
        self.on_look: Callable[[], None] = lambda: None
        self.is_down = False

    async def run(self) -> None:
        """Look at PostgreSQL every second, and sooner when asked to; connect again, and again, whenever the connection is lost."""
        try:
            while True:
                self._wake.clear()
                waiting, self._waiting = self._waiting, []
                try:
                    await self.ask(self._look)
                except PgchromaError as error:
                    self._problem = error
                except psycopg.Error as error:
                    self._problem = failures.unprepared(error)
                for future in waiting:
                    if not future.done():
                        future.set_result(None)
                self.on_look()
                await asyncio.sleep(_LEAST_PAUSE_SECONDS)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS - _LEAST_PAUSE_SECONDS):
                        await self._wake.wait()
        finally:
            await self._drop()

    def suspect(self) -> None:
        """Have PostgreSQL looked at now, because a request lost its connection."""
        self._wake.set()

    async def ask(
        self, work: Callable[[Connection], Awaitable[Result]], seconds: float = _PATIENCE_SECONDS
    ) -> Result:
        """Run `work`, which only reads, over the connection; DatabaseUnreachableError when there is no answer in time."""
        try:
            async with asyncio.timeout(seconds), self._lock, self._connected() as connection:
                result = await work(connection)
        except (TimeoutError, psycopg.OperationalError) as error:
            if self._connection is None or isinstance(error, psycopg.OperationalError):
                self._note(is_down=True)
            if isinstance(error, TimeoutError):
                raise failures.unreachable(TimeoutError(f"no answer in {seconds:g} s")) from error
            raise failures.unreachable(error) from error
        self._note(is_down=False)
        return result

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        try:
            if self._connection is None or self._connection.closed:
                await self._drop()
                self._version = None
                self._connection = await Connection.connect(
                    self._conninfo, autocommit=True, application_name="pgchroma watch"
                )
                # Before the tokens are read, so that no change falls in between.
                if self._with_tokens and not await tokens.listen(self._connection):
                    logger.info("PostgreSQL is a standby, which does not tell when a token changes")
                self._connection.add_notify_handler(lambda _notice: self._wake.set())
            self._stop_hearing()
            yield self._connection
            self._hear(self._connection)
        except psycopg.Error as error:
            # A refused statement leaves the connection as it was.
            if isinstance(error, psycopg.OperationalError) or self._connection is None:
                await self._drop()
            else:
                self._hear(self._connection)
            raise
        except BaseException:
            # Half-way through a statement; the next look needs a connection without a past.
            await self._drop()
            raise

    async def _drop(self) -> None:
        connection, self._connection = self._connection, None
        self._stop_hearing()
        if self._ear is not None:
            os.close(self._ear)
            self._ear = None
        if connection is not None:
            await connection.close()

    def _hear(self, connection: Connection) -> None:
        """Look as soon as PostgreSQL says something unasked while the connection lies idle: a token changed, or it goes away."""
        if self._take_notices(connection):
            if self._ear is None:
                # A descriptor of its own: libpq closes its one when PostgreSQL goes away.
                self._ear = os.dup(connection.fileno())
            asyncio.get_running_loop().add_reader(self._ear, self._take_notices, connection)

    def _stop_hearing(self) -> None:
        # Psycopg waits at the same socket while it works.
        if self._ear is not None:
            asyncio.get_running_loop().remove_reader(self._ear)

    def _take_notices(self, connection: Connection) -> bool:
        """Take what PostgreSQL sent; whether the connection is still there."""
        try:
            connection.pgconn.consume_input()
            while connection.pgconn.notifies():
                self._wake.set()
        except psycopg.OperationalError:
            self._stop_hearing()
            self._wake.set()
            return False
        return True

    def _note(self, *, is_down: bool) -> None:
        if is_down != self.is_down:
            self.is_down = is_down
            logger.warning("PostgreSQL does not answer" if is_down else "PostgreSQL answers again")

    async def _look(self, connection: Connection) -> None:
        if not self._with_tokens:
            await connection.execute("SELECT 1")
            return
        started = time.monotonic()
        found = await tokens.version(connection)
        if found != self._version:
            self._tokens = await tokens.load(connection)
            # Taken before the tokens were read: one that came in between is read again at the next look.
            self._version = found
            if not self._tokens:
                logger.warning(
                    "there is no token, so nobody can use the server; make one: pgchroma token create"
                )
            self._noted = {ident: at for ident, at in self._noted.items() if ident in self._tokens}
        self._looked_at = started
        due = {ident for ident in self._used if started - self._noted.get(ident, 0.0) >= _USE_NOTED_SECONDS}
        if due:
            try:
                await tokens.note_use(connection, due)
            except psycopg.Error as error:
                # On a standby, say; that a token was used is not worth a failure.
                logger.info("cannot note the use of tokens: %s", error)
            self._noted |= dict.fromkeys(due, started)
            self._used -= due

    # Tokens

    def tokens(self) -> Mapping[str, Token]:
        """Return the tokens by id.

        Raises:
            DatabaseUnreachableError, DatabaseNotReadyError: they are not known, or what is known is too old to be trusted.
        """
        if time.monotonic() - self._looked_at > TRUST_SECONDS:
            raise self._problem
        return self._tokens

    @property
    def token_count(self) -> int | None:
        """How many tokens there are, None while that is not known."""
        return len(self._tokens) if self._version is not None else None

    def note_use(self, token: Token) -> None:
        """Remember that a token was used; the database learns of it within a minute."""
        self._used.add(token.id)

    async def look_again(self, seconds: float = 2 * _PATIENCE_SECONDS) -> None:
        """Return after a look that began after this call, so that a token made a moment ago is known, or after `seconds`."""
        if len(self._waiting) >= _MOST_WAITING:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await future
