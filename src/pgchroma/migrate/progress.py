"""What a long step tells the person watching: how many records, how fast, how long still."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, TaskID

from pgchroma import output


class Step:
    """One line of the display."""

    def __init__(self, progress: Progress, task: TaskID, done: int) -> None:
        self._progress, self._task = progress, task
        self._first, self._done = done, done
        self._started = time.monotonic()

    def advance(self, records: int) -> None:
        """Note that more records are done."""
        self._done += records
        seconds = time.monotonic() - self._started
        rate = (self._done - self._first) / seconds if seconds > 0 else 0.0
        self._progress.update(self._task, completed=self._done, rate=f"{rate:,.0f}/s")


class Display:
    """The lines of one command, on standard error; silent when that is not a terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def step(self, title: str, total: int, done: int = 0) -> Step:
        """Add a line for `total` records of which `done` were done by an earlier attempt."""
        return Step(
            self._progress, self._progress.add_task(title, total=total, completed=done, rate=""), done
        )


@contextmanager
def display() -> Iterator[Display]:
    """Show progress for as long as the context lasts."""
    with output.progress() as progress:
        yield Display(progress)
