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
# The variable by which pgBackRest's processes are known as those of a run of this command: its process id, when that process began, and
# what its id is counted in.
OWNER = "PGCHROMA_BACKUP_OWNER"
# Where status_of() has when a process began, in the kernel's own count: field 22 of the whole line, whose third is the first there.
BEGAN = 19
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
                env={**engine.environment(), OWNER: own_mark()},
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


def own_mark() -> str:
    """Return by what this process is told from every other one, also from a later one of the same process id."""
    return f"{os.getpid()}:{status_of(Path('/proc/self'))[BEGAN]}:{numbering()}"


def numbering() -> str:
    """Return what names the set of process ids that this process is counted in: a container on this host has its own."""
    return str(Path("/proc/self/ns/pid").readlink())


def end_orphans() -> None:
    """Kill the processes of a restore that nobody waits for any more, and wait until they are gone.

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
    """Return the processes of a restore whose main process is gone, or the run of this command that began it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        words = arguments(entry)
        if words[:1] != ["pgbackrest"]:
            continue
        alone = words[-1] == RESTORING and arguments(parent(entry))[:1] != ["pgbackrest"]
        if alone or is_left(entry):
            found.append(int(entry.name))
    return found


def is_left(process: Path) -> bool:
    """Whether a process was begun by run_restore() in a process that is gone."""
    try:
        variables = (process / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    for variable in variables:
        name, _, mark = variable.decode("utf-8", "replace").partition("=")
        if name == OWNER:
            number, _, rest = mark.partition(":")
            moment, _, counted = rest.partition(":")
            return number.isdigit() and counted == numbering() and is_gone(process.with_name(number), moment)
    return False


def is_gone(process: Path, moment: str) -> bool:
    """Whether a process that began at a moment is no more; one that is only hidden from this user is not gone."""
    words = status_of(process)
    if words:
        return words[0] in "ZX" or words[BEGAN] != moment
    try:
        os.kill(int(process.name), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def arguments(process: Path) -> list[str]:
    """Return the program of a process, without its folder, and its arguments; nothing for one that is gone."""
    try:
        first, *rest = (process / "cmdline").read_bytes().decode("utf-8", "replace").rstrip("\0").split("\0")
    except OSError:
        return []
    return [Path(first).name, *rest]


def parent(process: Path) -> Path:
    """Return the folder in /proc of a process's parent."""
    words = status_of(process)
    return process.with_name(words[1]) if words else process


def status_of(process: Path) -> list[str]:
    """Return what the kernel says of a process after its name: its state, its parent and so on; nothing for one that is gone."""
    try:
        stat = (process / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return stat.rpartition(")")[2].split()
