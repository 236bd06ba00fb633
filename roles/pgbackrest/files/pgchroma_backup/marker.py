"""What tells of a restore that has not ended: how far it came, and what the same command is to make of it when it is run again."""

from __future__ import annotations

import time
from datetime import datetime
from pathlib import Path
from typing import Any

from . import receipts, target
from .errors import BackupError, RefusedError
from .settings import Settings
from .target import Target

NAME = "restore.json"
# The former data directory is moved away; files are copied; the server replays WAL.
MOVING, COPYING, RECOVERING, DONE = "moving", "copying", "recovering", "done"
# It has ended, and nobody has said that all it was for is done; what it has replaced is being put back.
ENDED, RETURNING = "ended", "returning"
# Whoever was cut off from a restore asks for it again within this time; who asks later means another one.
UNSEEN_HOURS = 24


def read(settings: Settings) -> dict[str, Any] | None:
    """Return the marker of a restore that stopped half-way, or None.

    Raises:
        BackupError: it cannot be read.
    """
    found = receipts.needed(settings, NAME)
    return found if found is not None and found["phase"] not in (DONE, ENDED, RETURNING) else None


def unseen(settings: Settings) -> dict[str, Any] | None:
    """Return the marker of a restore that has ended lately without anybody having called seen(), or None.

    Raises:
        BackupError: it cannot be read.
    """
    found = receipts.needed(settings, NAME)
    return found if found is not None and found["phase"] == ENDED and is_recent(found["ended"]) else None


def is_recent(moment: str) -> bool:
    """Whether whoever asks for a restore that began or ended then means that one."""
    passed = time.time() - datetime.fromisoformat(moment.replace("Z", "+00:00")).timestamp()
    return passed < UNSEEN_HOURS * 3600


def seen(settings: Settings) -> None:
    """Say that all that the last restore was for is done: the same one asked for once more is another one."""
    found = receipts.needed(settings, NAME)
    if found is not None and found["phase"] == ENDED:
        close(settings)


def returning(settings: Settings) -> dict[str, Any] | None:
    """Return the marker of a return to the former data directory that has not ended, or None.

    Raises:
        BackupError: it cannot be read.
    """
    found = receipts.needed(settings, NAME)
    return found if found is not None and found["phase"] == RETURNING else None


def begin_return(settings: Settings, former: Path, rejected: Path) -> None:
    """Say that ``former`` is put in the place of the data directory, which becomes ``rejected``."""
    content = {"phase": RETURNING, "kept": "", "former": str(former), "rejected": str(rejected)}
    receipts.write(settings, NAME, content)


def half_returned(found: dict[str, Any]) -> RefusedError:
    """Return the error of what must wait until a return to the former data directory has ended."""
    return RefusedError(
        f"the return to {found['former']} was interrupted", "run restore_finish.yml with -e keep=former again"
    )


def write(
    settings: Settings, phase: str, wanted: dict[str, Any], found: dict[str, Any], began: str, **more: object
) -> None:
    """Say how far a restore has come; ``found`` is its plan, ``began`` when the first run of it did."""
    content = {"phase": phase, "kept": found["kept"], "target": found["target"], "started": began}
    receipts.write(settings, NAME, {**content, **more, "wanted": wanted, "plan": found})


def end(settings: Settings, wanted: dict[str, Any], found: dict[str, Any], began: str) -> None:
    """Say that a restore has ended, when, and what it was; note() adds what its proof found."""
    write(settings, ENDED, wanted, found, began, ended=receipts.now(), result="", detail="", checks={})


def note(settings: Settings, receipt: dict[str, Any]) -> None:
    """Add what a proof found to the marker of a restore that has ended: once the service runs it cannot be made any more."""
    found = receipts.needed(settings, NAME)
    if found is not None and found["phase"] == ENDED:
        proven = {key: receipt[key] for key in ("result", "detail", "checks") if key in receipt}
        receipts.write(settings, NAME, {**found, **proven})


def close(settings: Settings) -> None:
    """Say that no restore is under way."""
    receipts.write(settings, NAME, {"phase": DONE, "kept": ""})


def is_of(found: dict[str, Any], goal: Target) -> bool:
    """Whether a marker is of a restore to this target; one that is to be made again is not of the one before."""
    try:
        other = target.read(found["wanted"])
    except (KeyError, BackupError):
        return False
    if goal.again and not other.again:
        return False
    where = ("kind", "value", "set", "timeline", "repository", "exclusive")
    return all(getattr(other, name) == getattr(goal, name) for name in where)
