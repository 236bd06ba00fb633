"""Queries that are run together: who runs them, who gets which answer, and what becomes of those whose caller is gone."""

import asyncio

import numpy as np
import pytest

from pgchroma.store import bounds
from pgchroma.store.together import Together
from pgchroma.types import Float32Matrix, Rows


class _Journeys:
    """Answers a query for n with the id n once it is let; notes what was asked for together."""

    def __init__(self) -> None:
        self.together = Together()
        self.asked: list[list[int]] = []
        self.permits = asyncio.Semaphore(0)
        self.wrong: set[int] = set()

    async def run(self, embeddings: list[Float32Matrix]) -> list[Rows]:
        numbers = [int(embedding[0]) for embedding in embeddings]
        self.asked.append(numbers)
        await self.permits.acquire()
        if self.wrong.intersection(numbers):
            raise ValueError(f"one of {numbers} is wrong")
        return [Rows([str(number)]) for number in numbers]

    def start(self, number: int, kind: str = "one") -> "asyncio.Task[Rows]":
        embedding = np.array([number], np.float32)
        return asyncio.create_task(self.together.query(kind, embedding, self.run))

    def let(self, count: int = 100) -> None:
        """Let so many journeys end."""
        for _ in range(count):
            self.permits.release()

    @property
    def is_over(self) -> bool:
        """Whether nothing is remembered of any kind."""
        return not self.together._lines


async def _settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def _under_way(journeys: _Journeys, count: int, first: int = 0) -> list["asyncio.Task[Rows]"]:
    tasks = [journeys.start(number) for number in range(first, first + count)]
    await _settled()
    return tasks


async def _ids(tasks: list["asyncio.Task[Rows]"]) -> list[list[str]]:
    return [rows.ids for rows in await asyncio.gather(*tasks)]


def test_what_waits_for_one_query_goes_together() -> None:
    async def check() -> None:
        journeys = _Journeys()
        tasks = await _under_way(journeys, 40)
        assert journeys.asked == [[0]]
        journeys.let()
        assert await _ids(tasks) == [[str(number)] for number in range(40)]
        assert journeys.asked == [[0], list(range(1, 17)), list(range(17, 33)), list(range(33, 40))]
        assert journeys.is_over

    asyncio.run(check())


def test_other_kinds_do_not_wait() -> None:
    async def check() -> None:
        journeys = _Journeys()
        tasks = [journeys.start(1, "one"), journeys.start(2, "other")]
        await _settled()
        assert journeys.asked == [[1], [2]]
        journeys.let()
        assert await _ids(tasks) == [["1"], ["2"]]
        assert journeys.is_over

    asyncio.run(check())


def test_tasks_confined_to_different_databases_never_go_together() -> None:
    """What one may reach need not exist for the other, and one does the work of all."""

    async def check() -> None:
        journeys = _Journeys()

        async def confined(number: int, tenant: str) -> Rows:
            bounds.confine(tenant, "d")
            return await journeys.together.query("one", np.array([number], np.float32), journeys.run)

        places = ["ours", "theirs", "ours", "theirs", "ours"]
        tasks = [asyncio.create_task(confined(number, tenant)) for number, tenant in enumerate(places)]
        await _settled()
        assert journeys.asked == [[0], [1]]
        journeys.let()
        await asyncio.gather(*tasks)
        assert sorted(journeys.asked) == [[0], [1], [2, 4], [3]]
        assert journeys.is_over

    asyncio.run(check())


def test_an_error_is_told_only_to_whom_it_concerns() -> None:
    async def check() -> None:
        journeys = _Journeys()
        journeys.wrong = {3}
        tasks = await _under_way(journeys, 5)
        journeys.let()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [rows.ids if isinstance(rows, Rows) else str(rows) for rows in found] == [
            ["0"],
            ["1"],
            ["2"],
            "one of [3] is wrong",
            ["4"],
        ]
        assert journeys.is_over

    asyncio.run(check())


@pytest.mark.parametrize("gone", [0, 1, 2, 4])
def test_the_others_are_answered_when_one_is_cancelled(gone: int) -> None:
    async def check() -> None:
        journeys = _Journeys()
        tasks = await _under_way(journeys, 5)
        tasks[gone].cancel()
        await _settled()
        journeys.let()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [rows.ids if isinstance(rows, Rows) else type(rows) for rows in found] == [
            asyncio.CancelledError if number == gone else [str(number)] for number in range(5)
        ]
        assert journeys.is_over

    asyncio.run(check())


def test_one_that_is_cancelled_when_its_turn_has_come_hands_it_on() -> None:
    async def check() -> None:
        journeys = _Journeys()
        journeys.let()
        embedding = np.array([0], np.float32)
        waiting: list[asyncio.Task[Rows]] = []

        async def run(embeddings: list[Float32Matrix]) -> list[Rows]:
            waiting.extend(await _under_way(journeys, 3, first=1))
            return [Rows(["0"])]

        assert (await journeys.together.query("one", embedding, run)).ids == ["0"]
        # Its turn was told to it a moment ago, and it has not run since.
        assert waiting[0].cancel()
        found = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(found[0]), *(rows.ids for rows in found[1:] if isinstance(rows, Rows))] == [
            asyncio.CancelledError,
            ["2"],
            ["3"],
        ]
        assert journeys.asked == [[2, 3]]
        assert journeys.is_over

    asyncio.run(check())


def test_those_that_went_with_one_that_is_cancelled_go_alone() -> None:
    async def check() -> None:
        journeys = _Journeys()
        tasks = await _under_way(journeys, 4)
        journeys.let(1)
        await _settled()
        assert journeys.asked == [[0], [1, 2, 3]]
        tasks[1].cancel()
        await _settled()
        assert journeys.asked[2:] == [[2], [3]]
        journeys.let()
        assert await _ids(tasks[2:]) == [["2"], ["3"]]
        assert journeys.is_over

    asyncio.run(check())
