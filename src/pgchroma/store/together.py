"""Queries that arrive while another like them is under way, run together when that has been answered.

One by one, each of many queries waits for PostgreSQL, and then for its turn in this process. Together they make one journey, and
PostgreSQL is at work on the first while the candidates of the others are chosen. A query that meets no other waits for none.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from pgchroma.store import bounds
from pgchroma.types import Float32Matrix, Rows

# Queries of a journey, whose first waits for its last.
_MOST: Final = 16

Run: TypeAlias = Callable[[list[Float32Matrix]], Awaitable[list[Rows]]]


@dataclass(eq=False, slots=True)
class _Waiting:
    """One that waits; its turn is True to run itself and others, False to run alone after all, else the answer."""

    embedding: Float32Matrix
    turn: "asyncio.Future[Rows | bool]"


class Together:
    """Runs single queries of the same kind together; for one event loop."""

    def __init__(self) -> None:
        # A kind is here as long as a journey of it is under way.
        self._lines: dict[Hashable, deque[_Waiting]] = {}

    async def query(self, kind: Hashable, embedding: Float32Matrix, run: Run) -> Rows:
        """Return what `run` finds for an embedding.

        Args:
            kind: what is the same of all queries that may be run together; their `run` does the same. Their tasks are confined to the
                same database too, without that being said here.
            run: finds the answers to some embeddings, each of shape (dimension,), in one journey.

        Raises:
            Whatever `run` raises for this embedding alone.
        """
        # One task does the work of all: what does not exist for one of them must not exist for it.
        kind = (bounds.current(), kind)
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = deque()
        else:
            turn = await self._turn(kind, line, embedding)
            if isinstance(turn, Rows):
                return turn
            if not turn:
                return (await run([embedding]))[0]
        others = _next(line)
        try:
            found = await run([embedding, *(other.embedding for other in others)])
        except BaseException as error:
            # It may be about one of them only.
            _tell(others, [False] * len(others))
            if not others or not isinstance(error, Exception):
                raise
        else:
            _tell(others, found[1:])
            return found[0]
        finally:
            self._pass_on(kind, line)
        return (await run([embedding]))[0]

    async def _turn(self, kind: Hashable, line: deque[_Waiting], embedding: Float32Matrix) -> Rows | bool:
        waiting = _Waiting(embedding, asyncio.get_running_loop().create_future())
        line.append(waiting)
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            # Cancelled just when it was to run the others.
            if not waiting.turn.cancelled() and waiting.turn.result() is True:
                self._pass_on(kind, line)
            raise

    def _pass_on(self, kind: Hashable, line: deque[_Waiting]) -> None:
        """Have the first that waits run what waits."""
        while line:
            turn = line.popleft().turn
            if not turn.done():
                turn.set_result(True)
                return
        del self._lines[kind]


def _next(line: deque[_Waiting]) -> list[_Waiting]:
    """Take those that are to be run with one that is, without any whose caller is gone."""
    others: list[_Waiting] = []
    while line and len(others) + 1 < _MOST:
        other = line.popleft()
        if not other.turn.done():
            others.append(other)
    return others


def _tell(others: list[_Waiting], turns: Sequence[Rows | bool]) -> None:
    for other, turn in zip(others, turns, strict=True):
        if not other.turn.done():
            other.turn.set_result(turn)
