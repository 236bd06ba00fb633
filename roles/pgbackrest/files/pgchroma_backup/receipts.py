"""Receipts: what was done, when and with what result, as JSON files in the state directory."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .errors import BackupError, RefusedError
from .settings import Settings

# The restore points that were made on this host.
POINTS = "restore-points.json"


def now() -> str:
    """Return the present moment in UTC as receipts write it."""
    return stamp(datetime.now(timezone.utc))


def stamp(moment: datetime | float) -> str:
    """Return a moment, or seconds since 1970, as ``2026-11-21T08:00:00Z``."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, timezone.utc)
    return moment.astimezone(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def give(path: Path) -> None:
    """Have a path belong to postgres, whoever calls."""
    if os.geteuid() == 0:
        shutil.chown(path, "postgres", "postgres")


def write(settings: Settings, name: str, content: dict[str, Any]) -> Path:
    """Write one receipt under another name and rename it, so that no reader sees half of it; it outlives a crash of the host."""
    target = settings.state / name
    file = tempfile.NamedTemporaryFile("w", dir=settings.state, prefix=f".{name}.", delete=False)  # noqa: SIM115
    try:
        with file:
            json.dump(content, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(file.name).chmod(0o640)
        give(Path(file.name))
        Path(file.name).replace(target)
    except BaseException:
        Path(file.name).unlink(missing_ok=True)
        raise
    sync(settings.state)
    return target


def sync(folder: Path) -> None:
    """Have the names in a folder be on disk: files that were made, renamed or removed there."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read(settings: Settings, name: str) -> dict[str, Any] | None:
    """Return a receipt, or None where there is none."""
    try:
        content: dict[str, Any] = json.loads((settings.state / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


def needed(settings: Settings, name: str) -> dict[str, Any] | None:
    """Return what read() does, of a file that must not be taken for none when it cannot be read: what is to be done depends on it.

    Raises:
        BackupError: it is there, and cannot be read.
    """
    found = read(settings, name)
    path = settings.state / name
    if found is None and path.exists():
        raise BackupError(
            f"{path} cannot be read, or is damaged",
            "look at it as root: it says what was going on with restores here; when that is known, move it away and run this again",
        )
    return found


def lock_of(settings: Settings, what: str) -> Path:
    """Return the file whose lock tells of ``what``."""
    return settings.state / f".{what}.lock"


@contextmanager
def at_work(settings: Settings, what: str) -> Iterator[None]:
    """Have is_held() tell that ``what`` is going on; others may do the same at once."""
    path = lock_of(settings, what)
    with path.open("w") as handle:
        give(path)
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield


def is_held(settings: Settings, what: str) -> bool:
    """Whether a process holds the lock of ``what``."""
    try:
        with lock_of(settings, what).open() as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextmanager
def alone(settings: Settings, what: str) -> Iterator[None]:
    """Hold the lock of ``what``; two restores or two drills at once would take each other's files.

    Raises:
        RefusedError: another process holds it.
    """
    path = lock_of(settings, what)
    with path.open("w") as handle:
        give(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"another {what} is at work on this host", "wait until it has ended"
            ) from error
        yield
