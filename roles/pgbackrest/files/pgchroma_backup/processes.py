"""Running pgBackRest's restore so that none of its processes goes on once it has ended."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from . import engine
from .errors import BackupError

# What pgBackRest's processes are told to do that fetch the files of a restore.
RESTORING = "restore:local"
# How long a process that was killed is waited for.
ORPHAN_SECONDS = 20


def run_restore(command: list[str]) -> engine.Done:
    """Run pgBackRest's restore as run() does; none of its own processes outlives it, nor one that an earlier restore has left.

    pgBackRest gives up waiting for a process of its own that waits for a repository, and one whose main process was killed first ends what
    it was told: both go on writing, into files that have been in service since.

    Raises:
        BackupError: one of an earlier restore does not end, or the program does not exist.
    """
    end_orphans()
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(  # noqa: S603
                engine.as_postgres(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd="/",
                env=engine.environment(),
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise engine.missing(command) from error
        try:
            status = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        output.seek(0)
        return engine.Done(status, output.read().decode("utf-8", "replace"))


def end_orphans() -> None:
    """Kill the processes of a restore whose main process is gone, and wait until they are.

    Raises:
        BackupError: one does not end.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while found := orphans():
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise BackupError(
                f"a process that an earlier restore has left behind does not end: {found[0]}",
                "it waits for a disk or a network file system: see what became of that, then run this again",
            )
        time.sleep(0.1)


def orphans() -> list[int]:
    """Return the processes of a restore whose main process is gone."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        words = arguments(entry)
        if (
            words[:1] == ["pgbackrest"]
            and words[-1] == RESTORING
            and arguments(parent(entry))[:1] != ["pgbackrest"]
        ):
            found.append(int(entry.name))
    return found


def arguments(process: Path) -> list[str]:
    """Return the program of a process, without its folder, and its arguments; nothing for one that is gone."""
    try:
        first, *rest = (process / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []
    return [Path(first).name, *rest]


def parent(process: Path) -> Path:
    """Return the folder in /proc of a process's parent."""
    try:
        stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return process
    return process.with_name(stat.rpartition(")")[2].split()[1])
