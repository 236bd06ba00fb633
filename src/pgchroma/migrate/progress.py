"""What a long step tells the person watching: how many records, how fast, how many bytes, how long still."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID

from pgchroma import output

logger = logging.getLogger("pgchroma.migrate")
# A log file gets a line at most this often.
_LOGGED_SECONDS = 10.0


class Step:
    """One line of the display."""

    def __init__(self, progress: Progress, task: TaskID, title: str, done: int) -> None:
        self._progress, self._task, self._title = progress, task, title
        self._first, self._done = done, done
        self._bytes = 0
        self._started = self._logged = time.monotonic()

    def advance(self, records: int, size: int = 0) -> None:
        """Note that more records, of so many bytes, are done."""
        self._done += records
        self._bytes += size
        now = time.monotonic()
        seconds = now - self._started
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        text = f"{rate:,.0f} rows/s"
        if self._bytes and seconds > 0:
            text += f" {output.size(self._bytes)} {output.size(self._bytes / seconds)}/s"
        self._progress.update(self._task, completed=self._done, rate=text)
        if now - self._logged >= _LOGGED_SECONDS:
            self._logged = now
            logger.info("%s: %d records, %s", self._title, self._done, text)


class Display:
    """The lines of one command, on standard error; silent when that is not a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, title: str, total: int, done: int = 0) -> Step:
        """Add a line for `total` records of which `done` were done by an earlier attempt."""
        task = self._progress.add_task(title, total=total, completed=done, rate="")
        return Step(self._progress, task, title, done)


@contextmanager
def display() -> Iterator[Display]:
    """Show progress for as long as the context lasts."""
    with output.progress() as progress:
        yield Display(progress)
