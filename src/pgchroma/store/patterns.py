"""The regular expressions of one request: run apart from the event loop, and for a limited time.

A pattern that is dear to RE2 takes seconds for documents of some thousand words, and Python's thread is not its to keep meanwhile.
RE2 lets go of Python's lock, so that in a thread of its own it leaves the other requests of the worker alone. A document is never
left half-way, so that what a request takes may exceed its time by one of them.
"""

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import text
from pgchroma.store.regex import Regex

Result = TypeVar("Result")

# More threads would only take the processors from the rest; requests take turns, which are short.
_threads = ThreadPoolExecutor(2, thread_name_prefix="patterns")
# RE2 needs a third of a nanosecond for a character of a document and an instruction of a pattern, at worst. A thread costs a tenth of
# a millisecond: what takes a few at most is done at once. A turn ends when it may have taken a twentieth of a second.
_AT_ONCE, _TURN = 5_000_000, 150_000_000
# Characters that a document counts for in addition to its own.
_DOCUMENT = 20


class Patterns:
    """Compiled patterns, and which records' documents they match once that has been found out.

    Attributes:
        compiled: by pattern.
        hits: numbers of the records that match, by pattern; None as long as no documents have been looked at.
    """

    def __init__(self, seconds: float = 0) -> None:
        """Make room for patterns that all together may take `seconds`; 0 for no limit."""
        self.compiled: dict[str, Regex] = {}
        self.hits: dict[str, set[int]] | None = None
        self._size = 0
        self._is_marked = False
        self._seconds = seconds
        self._used = 0.0
        self._deadline = math.inf

    def compile(self, pattern: str) -> None:
        """Compile a pattern that is not known yet; InvalidArgumentError says what is wrong with it."""
        if pattern not in self.compiled:
            self.check()
            regex = self.compiled[pattern] = Regex(pattern, self.check)
            self._size += regex.size
            self._is_marked |= regex.is_marked

    def look_at(self, rows: Sequence[tuple[int, str]]) -> None:
        """Take down which records match, given their numbers and stored documents."""
        if self.hits is None:
            self.hits = {pattern: set() for pattern in self.compiled}
        wanted = [(regex.matches, self.hits[pattern].add) for pattern, regex in self.compiled.items()]
        for seq, document in rows:
            decoded = text.decode(document)
            for matches, note in wanted:
                if time.monotonic() > self._deadline:
                    self.check()
                if matches(decoded):
                    note(seq)

    def still_hold(self, rows: Sequence[tuple[int, str | None]]) -> bool:
        """Whether stored documents agree with what was found of their records."""
        hits = self.hits or {}
        for seq, document in rows:
            decoded = None if document is None else text.decode(document)
            for pattern, regex in self.compiled.items():
                self.check()
                if (decoded is not None and regex.matches(decoded)) != (seq in hits.get(pattern, ())):
                    return False
        return True

    def is_quick(self, rows: Sequence[tuple[int, str | None]]) -> bool:
        """Whether stored documents are not worth a thread."""
        documents = [document for _, document in rows if document is not None]
        if self._size * (sum(map(len, documents)) + _DOCUMENT * len(documents)) > _AT_ONCE:
            return False
        return not self._is_marked or all(map(str.isascii, documents))

    @property
    def characters_of_a_turn(self) -> int:
        """Characters of documents that are enough for one turn."""
        return _TURN // max(self._size, 1)

    async def run(self, work: Callable[[], Result], *, at_once: bool = False) -> Result:
        """Return the result of `work`, which calls the other methods; in a thread unless told otherwise."""
        if at_once:
            return self._timed(work)
        try:
            return await asyncio.get_running_loop().run_in_executor(_threads, self._timed, work)
        except asyncio.CancelledError:
            self._deadline = -math.inf
            raise

    def _timed(self, work: Callable[[], Result]) -> Result:
        started = time.monotonic()
        if self._seconds:
            self._deadline = min(self._deadline, started + self._seconds - self._used)
        try:
            return work()
        finally:
            self._used += time.monotonic() - started
            self._deadline = math.inf

    def check(self) -> None:
        """Raise InvalidArgumentError when the time is up."""
        if time.monotonic() > self._deadline:
            raise InvalidArgumentError(
                f"the regular expressions of the request took longer than {self._seconds:g} s "
                "(PGCHROMA_REGEX_TIMEOUT_SECONDS) and were given up",
                hint="select fewer documents by the rest of the filter, or ask for less of the pattern",
            )
