"""Proving what was restored: every page, table and index, and the collections against the digests that were recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import backup, engine, receipts
from .errors import DAMAGED, BackupError, DamagedError
from .settings import Settings
from .target import Target

# What is said of a proof where there was nothing to compare with.
NOT_MADE = {"by": "", "digests": ""}


def recorded(settings: Settings, goal: Target) -> Path | None:
    """Return the file of the digests that were recorded exactly at a target, or None where there is none."""
    path = settings.state / "digests" / f"{goal.value}.json"
    return path if goal.kind == "name" and "/" not in goal.value and path.exists() else None


def has_pgchroma(settings: Settings) -> bool:
    """Whether this host has the command that knows collections."""
    return bool(settings.pgchroma_command) and Path(settings.pgchroma_command).exists()


def check(settings: Settings, url: str, digests: Path | None, *, in_place: bool = False) -> dict[str, Any]:
    """Run pgchroma's checks on a restored cluster: pages, tables, indexes, a vector query, and digests where they were recorded.

    Raises:
        DamagedError: what was restored is not what was backed up.
        BackupError: the checks could not run.
    """
    command = [settings.pgchroma_command, "backup", "check-restored", "--format", "json"]
    command += ["--database-url", url, "--state-dir", settings.state_dir]
    command += ["--digests", str(digests)] if digests else ["--no-digests"]
    command += ["--in-place"] if in_place else []
    done = engine.run(command, timeout=7200, apart=True)
    text = engine.readable((done.errors + done.output).strip())
    if done.status not in (0, DAMAGED):
        raise BackupError(
            f"the restored cluster could not be checked (status {done.status}): {text[-1500:]}",
            "that says nothing of what was restored; mend what it names, then run verify.yml",
            done.status,
        )
    if done.status != 0:
        raise DamagedError(
            f"the restored cluster is not what was backed up (status {done.status}): {text[-1500:]}",
            "look at what it names; restore an older set or from another repository, and take a full backup of a cluster that is whole",
        )
    try:
        found: dict[str, Any] = json.loads(done.output)
    except ValueError:
        found = {"output": text}
    return {"by": "pgchroma backup check-restored", "digests": digests.stem if digests else "", **found}


def check_structure(settings: Settings, socket: str, port: int) -> dict[str, Any]:
    """Have PostgreSQL's own pg_amcheck read every table and B-tree of a copy, where there is no pgchroma to know the collections.

    Raises:
        DamagedError: it found damage.
    """
    command = [f"{settings.bin_dir}/pg_amcheck", "--all", "--install-missing", "--heapallindexed"]
    command += ["--no-password", "-h", socket, "-p", str(port), "-U", "postgres"]
    done = engine.run(command, timeout=7200)
    if done.status != 0:
        raise DamagedError(
            f"the copy is damaged: {engine.readable(done.output.strip())[-1500:]}",
            "restore an older set or from another repository",
        )
    return {"by": "pg_amcheck", "digests": ""}


def side(settings: Settings, goal: Target, place: Path) -> dict[str, Any]:
    """Prove a copy beside the cluster, or on a host that has nothing else.

    Raises:
        DamagedError: it is not what was backed up.
    """
    socket = f"{place}/socket"
    if not has_pgchroma(settings):
        return check_structure(settings, socket, goal.port)
    return check(settings, backup.database_url(settings, socket, goal.port), recorded(settings, goal))


def own(settings: Settings, goal: Target) -> dict[str, Any]:
    """Prove the restored cluster itself where the digests of exactly this target are known; else only verify.yml looks at it.

    Raises:
        DamagedError: it is not what was backed up.
    """
    digests = recorded(settings, goal)
    if digests is None or not has_pgchroma(settings):
        return dict(NOT_MADE)
    return check(settings, backup.database_url(settings), digests, in_place=True)


def keep(settings: Settings, receipt: dict[str, Any], prove: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Write the receipt of a restore with what its proof found, and return it.

    Raises:
        BackupError: the proof failed; the receipt says so.
    """
    try:
        receipt = {**receipt, "checks": prove(), "result": "ok"}
    except BackupError as error:
        result = "damaged" if error.code == DAMAGED else "unproven"
        receipt |= {"checks": {}, "result": result, "detail": str(error)}
        error.receipt = receipt
        raise
    finally:
        receipt["finished"] = receipts.now()
        receipts.write(settings, f"restore-{receipt['finished'].replace(':', '')}.json", receipt)
    return receipt
