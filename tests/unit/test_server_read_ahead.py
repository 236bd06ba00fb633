"""Pages that are read ahead: when they are an answer, when not, and when none is read."""

import asyncio
from dataclasses import replace
from uuid import UUID

import pytest

from pgchroma.server import read_ahead
from pgchroma.server.read_ahead import Page, ReadAhead

pytestmark = pytest.mark.anyio
LIMIT, PAGES = 1_000, 4
FIRST = Page("tenant", "database", UUID(int=1), ("documents",), LIMIT, 0)


class Server:
    """Counts what is read, page by page; the last page holds one record less."""

    def __init__(self, limit_bytes: int = 100) -> None:
        self.now = 0
        self.read: list[int] = []
        self.fails = False
        # Number of a page whose answer is longer than what is kept.
        self.too_large: int | None = None
        self.written: list[int] = []
        self.turns_to_write = 0
        self.may_write = asyncio.Event()
        self.may_read = asyncio.Event()
        self.may_write.set()
        self.may_read.set()
        self.ahead = ReadAhead(self._moment, self._read, self._write, limit_bytes)

    async def _moment(self) -> str:
        return f"{self.now}:{self.now}:"

    async def _read(self, page: Page) -> tuple[str, int]:
        await self.may_read.wait()
        if self.fails:
            raise ConnectionError("PostgreSQL is away")
        number = page.offset // LIMIT
        self.read.append(number)
        return f"{number} at {self.now}", LIMIT if number < PAGES - 1 else LIMIT - 1

    async def _write(self, page: Page, records: str) -> bytes:
        await self.may_write.wait()
        for _ in range(self.turns_to_write):
            await asyncio.sleep(0)
        self.written.append(page.offset // LIMIT)
        return records.encode() + b" " * (100 if page.offset // LIMIT == self.too_large else 0)

    async def get(self, page: Page) -> bytes:
        """Return an answer, and let what is read ahead be read."""
        body = await self.ahead.get(page)
        await settle()
        return body


async def settle() -> None:
    """Let the other tasks go on for a while."""
    for _ in range(10):
        await asyncio.sleep(0)


def page(number: int) -> Page:
    return replace(FIRST, offset=number * LIMIT)


async def test_each_page_is_read_once_and_before_it_is_asked_for() -> None:
    server = Server()
    for number in range(PAGES):
        assert await server.get(page(number)) == f"{number} at 0".encode()
        # The last one is short: nothing follows it.
        assert server.read == list(range(min(number + 2, PAGES)))
    await server.ahead.close()


async def test_what_was_committed_since_is_seen() -> None:
    server = Server()
    await server.get(page(0))
    server.now = 1
    assert await server.get(page(1)) == b"1 at 1"
    # Somebody writes, so nothing is read ahead for a while.
    assert server.read == [0, 1, 1]
    assert await server.get(page(2)) == b"2 at 1"
    assert server.read == [0, 1, 1, 2]


async def test_another_page_is_not_taken_for_the_one_that_is_kept() -> None:
    server = Server()
    await server.get(page(0))
    for other in (
        replace(page(1), tenant="another"),
        replace(page(1), database="another"),
        replace(page(1), collection=UUID(int=2)),
        replace(page(1), include=()),
        replace(page(1), limit=LIMIT + 1),
    ):
        await server.get(other)
    assert server.read == [0, 1, 1, 1, 1, 1, 1]
    await server.get(page(1))
    assert server.read == [0, 1, 1, 1, 1, 1, 1, 2]


async def test_a_page_that_is_too_large_is_not_kept() -> None:
    server = Server(limit_bytes=1)
    for number in range(2):
        assert await server.get(page(number)) == f"{number} at 0".encode()
    # Nor is the next one read, which is as large, most likely.
    assert server.read == [0, 1]


async def test_nothing_is_read_ahead_where_it_is_switched_off() -> None:
    server = Server(limit_bytes=0)
    await server.get(page(0))
    await server.get(page(1))
    assert server.read == [0, 1]


async def test_the_client_is_told_what_is_wrong_when_it_asks() -> None:
    server = Server()
    await server.get(page(0))
    await server.get(page(1))
    server.fails = True
    assert await server.get(page(2)) == b"2 at 0"
    with pytest.raises(ConnectionError):
        await server.get(page(3))


async def test_a_page_that_nobody_asks_for_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_ahead, "_KEPT_SECONDS", 0.01)
    server = Server()
    await server.get(page(0))
    deadline = asyncio.get_running_loop().time() + 5
    while server.ahead._kept is not None:
        assert asyncio.get_running_loop().time() < deadline
        await asyncio.sleep(0)
    # From now on a first page alone is no reason, two in turn are.
    await server.get(page(0))
    assert server.read == [0, 1, 0]
    await server.get(page(1))
    assert server.read == [0, 1, 0, 1, 2]
    await server.ahead.close()


async def test_a_request_that_is_given_up_leaves_the_page_to_the_next() -> None:
    server = Server()
    await server.ahead.get(page(0))
    server.may_read.clear()
    waiting = asyncio.create_task(server.ahead.get(page(1)))
    await settle()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    server.may_read.set()
    assert await server.get(page(1)) == b"1 at 0"
    assert server.read == [0, 1, 2]
    await server.ahead.close()


async def test_the_next_page_is_read_while_the_answer_to_one_is_written() -> None:
    server = Server()
    await server.ahead.get(page(0))
    server.may_write.clear()
    waiting = asyncio.create_task(server.ahead.get(page(1)))
    await settle()
    assert (server.read, server.written) == ([0, 1, 2], [0])
    server.may_write.set()
    assert await waiting == b"1 at 0"
    assert await server.get(page(2)) == b"2 at 0"
    assert server.read == [0, 1, 2, 3]
    await server.ahead.close()


async def test_what_somebody_waits_for_is_not_ended_by_a_page_that_is_too_large() -> None:
    """However many turns of the event loop lie between what makes the one and the other."""
    for turns in range(12):
        server = Server()
        server.too_large, server.turns_to_write = 1, 4
        await server.ahead.get(page(0))
        server.may_write.clear()
        await settle()
        server.may_read.clear()
        first = asyncio.create_task(server.ahead.get(page(1)))
        await settle()
        second = asyncio.create_task(server.ahead.get(page(2)))
        await settle()
        server.may_write.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        server.may_read.set()
        assert (await first)[:6] == b"1 at 0"
        assert await second == b"2 at 0"
        await server.ahead.close()


async def test_a_page_that_turns_out_too_large_ends_what_was_begun_after_it() -> None:
    server = Server()
    server.too_large = 1
    await server.get(page(0))
    assert await server.get(page(1)) == b"1 at 0" + b" " * 100
    assert server.ahead._kept is None
    assert server.written == [0, 1, 1]
    assert await server.get(page(2)) == b"2 at 0"
    assert server.ahead._kept is not None
    await server.ahead.close()
