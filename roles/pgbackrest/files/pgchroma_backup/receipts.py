"""Receipts: what was done, when and with what result, as JSON files in the state directory."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .errors import RefusedError
from .settings import Settings


def now() -> str:
    """Return the present moment in UTC as receipts write it."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime | float) -> str:
    """Return a moment, or seconds since 1970, as ``2026-11-21T08:00:00Z``."""
    if not isinstance(moment, datetime):
        moment = datetime.fromtimestamp(moment, UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def give(path: Path) -> None:
    """Have a path belong to postgres, whoever calls."""
    if os.geteuid() == 0:
        shutil.chown(path, "postgres", "postgres")


def write(settings: Settings, name: str, content: dict[str, Any]) -> Path:
    """Write one receipt under another name and rename it, so that no reader sees half of it."""
    target = settings.state / name
    with tempfile.NamedTemporaryFile("w", dir=settings.state, prefix=f".{name}.", delete=False) as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        Path(file.name).chmod(0o640)
    give(Path(file.name))
    Path(file.name).replace(target)
    return target


def read(settings: Settings, name: str) -> dict[str, Any] | None:
    """Return a receipt, or None where there is none."""
    try:
        content: dict[str, Any] = json.loads((settings.state / name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


@contextmanager
def alone(settings: Settings, what: str) -> Iterator[None]:
    """Hold the lock of ``what``; two restores or two drills at once would take each other's files.

    Raises:
        RefusedError: another process holds it.
    """
    path = settings.state / f".{what}.lock"
    with path.open("w") as handle:
        give(path)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RefusedError(
                f"another {what} is at work on this host", "wait until it has ended"
            ) from error
        yield
