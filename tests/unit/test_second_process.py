"""The process that reads while the other one sends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import wait_for

_PRELUDE = """
import os, sys
import numpy as np
from pgchroma.errors import SourceError
from pgchroma.migrate.second import second_process

def counting(count):
    for number in range(count):
        yield number, [np.full((number, 3), number, np.float32), np.arange(number)]

def failing():
    yield 1, []
    raise SourceError("it is damaged", hint="restore it")

def dying():
    yield os.getpid(), []
    os.kill(os.getpid(), 9)
    yield 2, []

def endless():
    while True:
        yield os.getpid(), [np.zeros(1 << 20, np.uint8)]
"""


def program(body: str) -> subprocess.CompletedProcess[str]:
    text = (
        _PRELUDE
        + "with second_process() as second:\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
    )
    return subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False
    )


def test_items_arrive_whole_and_in_order() -> None:
    done = program("""
for _ in range(2):
    for told, (matrix, numbers) in second.run(counting, 5):
        assert matrix.view(np.float32).reshape(told, 3).tolist() == np.full((told, 3), told).tolist()
        numbers.view(np.int64)[:] += 1
        assert numbers.view(np.int64).tolist() == list(range(1, told + 1))
        print(told)
""")
    assert done.stderr == ""
    assert done.stdout.split() == list("01234" * 2)


def test_an_error_over_there_is_raised_here_with_its_hint() -> None:
    done = program("""
items = second.run(failing)
print(next(items)[0])
try:
    next(items)
except SourceError as error:
    print(error.message, error.hint, sep=": ")
print([told for told, _ in second.run(counting, 3)])
""")
    assert done.stdout.splitlines() == ["1", "it is damaged: restore it", "[0, 1, 2]"]


def test_a_process_that_was_killed_is_an_interruption() -> None:
    done = program("""
from pgchroma.errors import InterruptedMigrationError
items = second.run(dying)
next(items)
try:
    next(items)
except InterruptedMigrationError as error:
    print(error.message)
""")
    assert done.stdout.startswith("the process that reads the source ended early")


def test_work_that_is_given_up_ends_with_the_context() -> None:
    done = program("""
told, _ = next(second.run(endless))
print(told, flush=True)
""")
    assert done.returncode == 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(done.stdout), 0)


def test_it_does_not_outlive_a_parent_that_is_killed() -> None:
    done = program("""
told, _ = next(second.run(endless))
print(told, flush=True)
os.kill(os.getpid(), 9)
""")
    assert done.returncode == -signal.SIGKILL
    status = Path(f"/proc/{int(done.stdout)}/status")

    def is_gone() -> bool:
        # Whoever inherited it may not have looked at it yet.
        return not status.exists() or "State:\tZ" in status.read_text()

    wait_for("the end of the second process", is_gone)


def test_with_threads_under_way_there_is_none() -> None:
    text = (
        "import threading; from pgchroma.migrate.second import second_process\n"
        "stop = threading.Event(); threading.Thread(target=stop.wait).start()\n"
        "with second_process() as second: print(second)\nstop.set()"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "None\n"
