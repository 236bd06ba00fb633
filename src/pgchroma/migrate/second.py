"""A second process that reads and encodes while this one sends: a Python process keeps one core busy, and there are more.

It is a fork, made before this process has threads or connections, because a new interpreter would take as long to start as small
migrations take as a whole. It ends with this process, however that ends, and gets nothing but calls of this package's functions.
"""

import contextlib
import ctypes
import fcntl
import gc
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import InterruptedMigrationError, PgchromaError

logger = logging.getLogger("pgchroma.migrate")

# A value, and large buffers that belong to it, which are passed on without being looked at.
Item: TypeAlias = tuple[Any, Sequence[NDArray[Any]]]
Work: TypeAlias = Callable[..., Iterable[Item]]

_PR_SET_PDEATHSIG = 1
# What a pipe may hold without privileges; the default makes the two processes take turns too often.
_PIPE_BYTES: Final = 1 << 20
# Made since the last look for garbage before there is another one.
_OBJECTS: Final = 100_000


class SecondProcess:
    """The other process, seen from this one; use `second_process`."""

    def __init__(
        self, process: multiprocessing.process.BaseProcess, calls: Connection, items: Connection
    ) -> None:
        self._process, self._calls, self._items = process, calls, items

    def run(self, work: Work, *arguments: object) -> Generator[tuple[Any, list[NDArray[np.uint8]]]]:
        """Have a generator function of this package run over there, and yield what it yields, its buffers as bytes that may be written to.

        One at a time, and to its end: to give one up is to give up the process.

        Raises:
            PgchromaError: whatever the function raised.
            InterruptedMigrationError: the process is gone.
        """
        try:
            self._calls.send((work, arguments))
            while True:
                kind, told, sizes = self._items.recv()
                if kind == "end":
                    return
                if kind == "error":
                    raise told
                yield told, [_received(self._items.fileno(), size) for size in sizes]
        except (EOFError, OSError) as error:
            raise InterruptedMigrationError(
                f"the process that reads the source ended early ({self._process.exitcode})",
                hint="perhaps the kernel took its memory, see `journalctl -k`; what was committed stands",
            ) from error

    def close(self) -> None:
        """End the process."""
        self._calls.close()
        self._items.close()
        # It only reads, so nothing is cut short.
        self._process.kill()
        self._process.join()


def _received(descriptor: int, size: int) -> NDArray[np.uint8]:
    buffer = np.empty(size, np.uint8)
    rest = buffer.data
    while len(rest):
        count = os.readv(descriptor, [rest])
        if not count:
            raise EOFError
        rest = rest[count:]
    return buffer


def _serve(parent: int, calls: Connection, items: Connection, others: Sequence[Connection]) -> None:
    # The other ends belong to the parent alone: when it closes them, or is gone, this process notices.
    for connection in others:
        connection.close()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return
    # An interrupt from the terminal is meant for the parent, which ends between two batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # What the parent had will not become garbage here, and to look at it would copy its memory; a page is thousands of objects, none
    # of them in a cycle.
    gc.freeze()
    gc.set_threshold(_OBJECTS)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            work, arguments = calls.recv()
            try:
                for told, buffers in work(*arguments):
                    _send(items, told, buffers)
            except BrokenPipeError:
                raise
            except PgchromaError as error:
                items.send(("error", error, ()))
            except Exception as error:
                logger.exception("the second process failed")
                items.send(("error", RuntimeError(f"{type(error).__name__}: {error}"), ()))
            else:
                items.send(("end", None, ()))


def _send(items: Connection, told: object, buffers: Sequence[NDArray[Any]]) -> None:
    flat = [np.ascontiguousarray(buffer).reshape(-1).view(np.uint8).data for buffer in buffers]
    items.send(("item", told, [len(buffer) for buffer in flat]))
    for rest in flat:
        while len(rest):
            rest = rest[os.write(items.fileno(), rest) :]


@contextlib.contextmanager
def second_process() -> Iterator[SecondProcess | None]:
    """Start the process and end it; None where it would be of no use, with one core, or unsafe, with threads under way."""
    if threading.active_count() > 1 or len(os.sched_getaffinity(0)) < 2:
        yield None
        return
    context = multiprocessing.get_context("fork")
    calls, own_calls = context.Pipe(duplex=False)
    own_items, items = context.Pipe(duplex=False)
    with contextlib.suppress(PermissionError):
        fcntl.fcntl(items.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    process = context.Process(
        target=_serve, args=(os.getpid(), calls, items, (own_calls, own_items)), name="reading", daemon=True
    )
    process.start()
    calls.close()
    items.close()
    second = SecondProcess(process, own_calls, own_items)
    try:
        yield second
    finally:
        second.close()
