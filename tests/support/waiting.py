"""Waiting for a condition with a deadline, the only way a test waits."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")

_never = threading.Event()


def wait_for(what: str, condition: Callable[[], Result | None], *, seconds: float = 30.0) -> Result:
    """Return the first true value of `condition`; fail, saying what was waited for, when none came in time."""
    deadline = time.monotonic() + seconds
    while True:
        result = condition()
        if result:
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        _never.wait(0.02)
