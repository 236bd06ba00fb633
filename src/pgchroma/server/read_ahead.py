"""Reads the next page of records while the client is busy with the one before.

A client that reads a collection out page by page takes longer to decode a page than the server to make one; both can be done at the
same time. Where the client is quicker, PostgreSQL reads a page while the server writes the answer of the one before. What was read ahead
is an answer only while nothing at all was committed to the database since: PostgreSQL's own snapshot says so, which is asked for again
when the request has come.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeAlias, TypeVar
from uuid import UUID

logger = logging.getLogger("pgchroma.read_ahead")

# Shorter pages are made as quickly as asked for.
SHORTEST = 1_000
# How long a page is kept for a client that does not ask for it.
_KEPT_SECONDS = 5.0
# After a page that was out of date somebody writes, and the next ones would be, too.
_PAUSE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Page:
    """Which records are asked for, and how.

    Attributes:
        include: the names of the request, in its order.
    """

    tenant: str
    database: str
    collection: UUID
    include: tuple[str, ...]
    limit: int
    offset: int

    @property
    def following(self) -> "Page":
        """The page after this one."""
        return replace(self, offset=self.offset + self.limit)


# What a page was read as.
Records = TypeVar("Records")
# Returns the records of a page, and how many they are.
Read: TypeAlias = Callable[[Page], Awaitable[tuple[Records, int]]]
# Returns the answer to a page as JSON.
Write: TypeAlias = Callable[[Page, Records], Awaitable[bytes]]


@dataclass(eq=False, slots=True)
class _Ahead:
    """A page that is read ahead.

    Attributes:
        found: PostgreSQL's snapshot before it was read, and how many records it holds; None where it could not be read.
        body: its answer, once it is written; None where there is none.
        is_wanted: whether a request waits for it already, or has.
    """

    page: Page
    found: asyncio.Future[tuple[str, int] | None]
    body: asyncio.Task[bytes | None]
    is_wanted: bool = False


class ReadAhead(Generic[Records]):
    """The one page that a worker keeps.

    Args:
        moment: returns PostgreSQL's snapshot: two that are equal say that nothing was committed between them.
        read: returns a page's records, and how many they are.
        write: returns the answer to a page as JSON.
        limit_bytes: longest answer that is kept; 0 to keep none.
    """

    def __init__(
        self,
        moment: Callable[[], Awaitable[str]],
        read: Read[Records],
        write: Write[Records],
        limit_bytes: int,
    ) -> None:
        self._moment = moment
        self._read = read
        self._write = write
        self._limit_bytes = limit_bytes
        self._kept: _Ahead | None = None
        self._expiry: asyncio.TimerHandle | None = None
        # Whether the page after a first one is likely to be wanted: the last one that was read ahead was.
        self._trusting = True
        self._last: Page | None = None
        self._paused_until = 0.0

    async def get(self, page: Page) -> bytes:
        """Return the answer to a page, read now or ahead, and see to the next one where it is likely to be wanted."""
        body = await self._take(page)
        if body is None:
            records, count = await self._read(page)
            body = await self._write(page, records)
            if count == page.limit and len(body) <= self._limit_bytes:
                self._begin(page)
        self._last = page
        return body

    async def close(self) -> None:
        """Give up what is being read, and what is kept."""
        ahead = self._kept
        self._drop()
        if ahead is not None:
            ahead.body.cancel()
            await asyncio.wait([ahead.body])

    async def _take(self, page: Page) -> bytes | None:
        """Return the answer that was read ahead for a page where it is still true, and have PostgreSQL read the page after it."""
        ahead = self._kept
        if ahead is None or page != ahead.page:
            return None
        ahead.is_wanted = True
        # Shielded: where this request is given up, another may ask for the same.
        found = await asyncio.shield(ahead.found)
        if self._kept is ahead:
            self._drop()
        if found is None:
            return None
        moment, count = found
        if await self._moment() != moment:
            self._paused_until = asyncio.get_running_loop().time() + _PAUSE_SECONDS
            return None
        self._trusting = True
        if count == page.limit:
            self._begin(page)
        body = await asyncio.shield(ahead.body)
        if body is None and self._kept is not None and not self._kept.is_wanted:
            # It is too large, and the next one most likely, too.
            await self.close()
        return body

    def _begin(self, page: Page) -> None:
        """Read the page after this one ahead, unless another is kept or it is not likely to be wanted."""
        loop = asyncio.get_running_loop()
        in_turn = self._last is not None and self._last.following == page
        if self._kept is not None or loop.time() < self._paused_until or not (self._trusting or in_turn):
            return
        found: asyncio.Future[tuple[str, int] | None] = loop.create_future()
        following = page.following
        body = asyncio.create_task(self._make(following, found), name="read-ahead")
        self._kept = ahead = _Ahead(following, found, body)
        self._expiry = loop.call_later(_KEPT_SECONDS, self._expire, ahead)

    async def _make(self, page: Page, found: asyncio.Future[tuple[str, int] | None]) -> bytes | None:
        try:
            moment = await self._moment()
            records, count = await self._read(page)
            found.set_result((moment, count))
            body = await self._write(page, records)
        except Exception as error:  # noqa: BLE001 - whoever asks for the page is told what is wrong then
            logger.debug("nothing was read ahead: %s", error)
            return None
        finally:
            if not found.done():
                found.set_result(None)
        return body if len(body) <= self._limit_bytes else None

    def _expire(self, ahead: _Ahead) -> None:
        if self._kept is not ahead:
            return
        if ahead.body.done():
            self._trusting = False
            self._drop()
        else:
            self._expiry = asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._expire, ahead)

    def _drop(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._kept = self._expiry = None
