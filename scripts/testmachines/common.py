"""Paths, settings, locks, messages and processes that the other modules share."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

STATE = Path(os.environ.get("PGCHROMA_MACHINES", "/var/lib/pgchroma-machines"))
CACHE = Path(os.environ.get("PGCHROMA_CACHE", "/var/cache/pgchroma"))
BRIDGE = os.environ.get("PGCHROMA_MACHINES_BRIDGE", "br-pgchroma")
# The first three octets of the /24 behind the bridge.
NETWORK = os.environ.get("PGCHROMA_MACHINES_NETWORK", "10.91.0")
# Debian package that brings each program, for the message when one is missing.
PROGRAMS = {
    "mmdebstrap": "mmdebstrap",
    "systemd-nspawn": "systemd-container",
    "nft": "nftables",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "setpriv": "util-linux",
}
POLL_SECONDS = 0.05


class MachineError(Exception):
    """Something the person at the keyboard can act on; the message names the thing and the remedy."""


def say(message: str) -> None:
    """Write one line for people to stderr; stdout is kept for data."""
    sys.stderr.write(f"{message}\n")
    sys.stderr.flush()


def run(command: Sequence[str], **options: str) -> str:
    """Run a command and return its stdout; ``input`` may be given.

    Raises:
        MachineError: the command failed; the message carries what it wrote to stderr.
    """
    done = subprocess.run(
        list(command), capture_output=True, text=True, check=False, input=options.get("input")
    )
    if done.returncode != 0:
        detail = (done.stderr or done.stdout).strip()
        raise MachineError(f"{' '.join(command)} failed with status {done.returncode}: {detail}")
    return done.stdout


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll ``condition`` until it holds (True) or ``seconds`` have passed (False)."""
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not condition():
        if time.monotonic() > deadline:
            return False
        pause.wait(POLL_SECONDS)
    return True


def require_host() -> None:
    """Refuse to go on without root or without the programs that the machines need.

    Raises:
        MachineError: naming what is missing and the command that brings it.
    """
    if os.geteuid() != 0:
        raise MachineError(
            "test machines need root (mounts, network, namespaces): run this as root or with sudo"
        )
    # A shell entered with `su` keeps a user's PATH.
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"
    missing = sorted({package for program, package in PROGRAMS.items() if shutil.which(program) is None})
    if missing:
        raise MachineError(
            f"missing Debian packages: {' '.join(missing)}; run `make venv`, or: apt-get install -y {' '.join(missing)}"
        )


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` (created when absent); the kernel frees it when the process ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def is_locked(path: Path) -> bool:
    """Tell whether a living process holds the lock on ``path``."""
    try:
        handle = path.open("r", encoding="utf-8")
    except FileNotFoundError:
        return False
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def write_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Write ``text`` to ``path`` in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.chmod(mode)
    temporary.replace(path)


def check_name(name: str) -> str:
    """Return ``name`` when it can be a host name, a directory and part of an interface name.

    Raises:
        MachineError: it cannot.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or len(name) > 40:
        raise MachineError(
            f"{name!r} is no machine name: use lower-case letters, digits and single hyphens, at most 40"
        )
    return name
