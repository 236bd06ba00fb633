"""Reads the next page of records while the client is busy with the one before.

A client that reads a collection out page by page takes longer to decode a page than the server to make one; both can be done at the
same time. What was read ahead is an answer only while nothing at all was committed to the database since: PostgreSQL's own snapshot
says so, which is asked for again when the request has come.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import TypeAlias
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


@dataclass(frozen=True, slots=True)
class _Ahead:
    """A page that was read ahead: the answer, how many records it holds, and PostgreSQL's snapshot before it was read."""

    body: bytes
    count: int
    moment: str


# Returns the answer to a page as JSON, and how many records it holds.
Read: TypeAlias = Callable[[Page], Awaitable[tuple[bytes, int]]]


class ReadAhead:
    """The one page that a worker keeps.

    Args:
        moment: returns PostgreSQL's snapshot: two that are equal say that nothing was committed between them.
        limit_bytes: longest answer that is kept; 0 to keep none.
    """

    def __init__(self, moment: Callable[[], Awaitable[str]], limit_bytes: int) -> None:
        self._moment = moment
        self._limit_bytes = limit_bytes
        self._page: Page | None = None
        self._task: asyncio.Task[_Ahead | None] | None = None
        self._expiry: asyncio.TimerHandle | None = None
        # Whether the page after a first one is likely to be wanted: the last one that was read ahead was.
        self._trusting = True
        self._last: Page | None = None
        self._paused_until = 0.0

    async def get(self, page: Page, read: Read) -> bytes:
        """Return the answer to a page, read now or ahead, and see to the next one where it is likely to be wanted."""
        known = await self._take(page)
        body, count = (known.body, known.count) if known is not None else await read(page)
        if count == page.limit and len(body) <= self._limit_bytes:
            self._begin(page, read)
        self._last = page
        return body

    async def close(self) -> None:
        """Give up what is being read."""
        task = self._task
        self._drop()
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _take(self, page: Page) -> _Ahead | None:
        """Return what was read ahead for a page where it is still true."""
        task = self._task
        if task is None or page != self._page:
            return None
        # Shielded: where this request is given up, another may ask for the same.
        ahead = await asyncio.shield(task)
        if self._task is task:
            self._drop()
        if ahead is None:
            return None
        if await self._moment() != ahead.moment:
            self._paused_until = asyncio.get_running_loop().time() + _PAUSE_SECONDS
            return None
        self._trusting = True
        return ahead

    def _begin(self, page: Page, read: Read) -> None:
        """Read the page after this one ahead, unless another is kept or it is not likely to be wanted."""
        loop = asyncio.get_running_loop()
        in_turn = self._last is not None and self._last.following == page
        if self._task is not None or loop.time() < self._paused_until or not (self._trusting or in_turn):
            return
        self._page = page.following
        self._task = asyncio.create_task(self._read(self._page, read), name="read-ahead")
        self._expiry = loop.call_later(_KEPT_SECONDS, self._expire, self._task)

    async def _read(self, page: Page, read: Read) -> _Ahead | None:
        try:
            moment = await self._moment()
            body, count = await read(page)
        except Exception as error:  # noqa: BLE001 - whoever asks for the page is told what is wrong then
            logger.debug("nothing was read ahead: %s", error)
            return None
        return _Ahead(body, count, moment) if len(body) <= self._limit_bytes else None

    def _expire(self, task: asyncio.Task[_Ahead | None]) -> None:
        if self._task is not task:
            return
        if task.done():
            self._trusting = False
            self._drop()
        else:
            self._expiry = asyncio.get_running_loop().call_later(_KEPT_SECONDS, self._expire, task)

    def _drop(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        self._page = self._task = self._expiry = None
