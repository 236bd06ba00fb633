"""Restoring the cluster, or a copy beside it, as planned: every step of it, resumable where it stopped."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from . import engine, gaps, marker, processes, proof, receipts, recovery, service, side, target, wal
from .errors import INTERRUPTED, UNEXPECTED, BackupError, DamagedError, RefusedError
from .planning import plan
from .settings import Settings


def send(settings: Settings, wanted: dict[str, Any]) -> dict[str, Any]:
    """Have the repository of a planned restore hold everything until now, before anything is stopped for it; returns the plan.

    Raises:
        BackupError: what plan() refuses, or the repository does not get the WAL and the target does not allow for that.
    """
    found = plan(settings, wanted)
    return flushed(settings, wanted, found) if found["flushes"] else found


def flushed(settings: Settings, wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Send the running server's WAL away and return the plan anew: with it came the end of the archive, maybe a timeline.

    What the repository lacks on the way there and another one holds is sent, too.

    Raises:
        BackupError: the repository does not get it, and neither does the target allow for that nor is it a copy beside the cluster.
        RefusedError: it lacks WAL on the way to its end, and so do the others; nothing was changed.
    """
    try:
        wal.flush(settings, found["repository"])
    except BackupError as error:
        goal = target.read(wanted)
        if not goal.unarchived_lost and not goal.side:
            raise
        gaps.refuse(settings, found)
        return {**found, "unarchived": error.message}
    found = plan(settings, wanted)
    if found["lacks"]:
        gaps.mend(settings, found["repository"], found["lacks"])
        found = plan(settings, wanted)
        gaps.refuse(settings, found)
    return {**found, "unarchived": ""}


def run(
    settings: Settings,
    wanted: dict[str, Any],
    *,
    stop: bool,
    unseen: bool = False,
    ended: str | None = None,
) -> dict[str, Any]:
    """Carry out a restore and return its receipt. With ``stop`` a running server is stopped first.

    With ``unseen`` the same restore is not made anew until seen() was called: whoever began it may be gone before it ends. ``ended`` is
    what the plan that was shown says of that.

    Raises:
        RefusedError: the server runs and may not be stopped, what plan() refuses, or it is not as was shown; nothing was changed.
        BackupError: a step failed; the message says how to go on.
    """
    with receipts.alone(settings, "restore"):
        found = plan(settings, wanted)
        started = time.time()
        if ended not in (None, found["ended"]):
            what = f"ended at {found['ended']}" if found["ended"] else "not ended lately"
            raise RefusedError(
                f"the restore has {what} by now, which is not what the plan said",
                "run the same command again, and look at the plan anew",
            )
        if found["side"]:
            found = flushed(settings, wanted, found) if found["flushes"] else found
            return side.run(settings, target.read(wanted), found)
        over = marker.unseen(settings) if found["ended"] else None
        left = marker.read(settings) if found["resumes"] else None
        began = (over or left or {"started": receipts.stamp(started)})["started"]
        if not found["ends"]:
            found = fill(settings, wanted, found, stop=stop, began=began)
            marker.write(settings, marker.RECOVERING, wanted, found, began)
        copied = time.time()
        recover(settings, found["until"])
        if over is None:
            marker.end(settings, wanted, found, began)
            gaps.even_out_later(settings)
        now = engine.query(settings, "SELECT timeline_id FROM pg_control_checkpoint()")
        receipt = {
            **found,
            "kind": "restore" if over is None else "restore-ended",
            "started": began,
            "copy_seconds": round(copied - started, 1),
            "seconds": round(time.time() - started, 1),
            "timeline_now": int(now[0]),
        }
        goal = target.read(wanted)
        return proven(settings, receipt, goal, over, unseen=unseen)


def proven(
    settings: Settings,
    receipt: dict[str, Any],
    goal: target.Target,
    over: dict[str, Any] | None,
    *,
    unseen: bool,
) -> dict[str, Any]:
    """Prove what was restored, or take what was found before the service came to it; return the receipt, which is kept.

    Raises:
        BackupError: it is not what was backed up, or could not be compared.
    """

    def prove() -> dict[str, Any]:
        if receipt["compares"]:
            return proof.own(settings, goal)
        if over is None:
            return dict(proof.NOT_MADE)
        if over["result"] == "damaged":
            raise DamagedError(over["detail"], "")
        return over["checks"] or dict(proof.NOT_MADE)

    def leave(found: dict[str, Any]) -> None:
        if unseen:
            marker.note(settings, found)
        else:
            marker.seen(settings)

    try:
        receipt = proof.keep(settings, receipt, prove)
    except BackupError as error:
        leave(error.receipt or {})
        raise
    leave(receipt)
    return receipt


def seen(settings: Settings) -> dict[str, Any]:
    """Say that all that the last restore was for is done; does nothing where there is none."""
    with receipts.alone(settings, "restore"):
        marker.seen(settings)
    return {"kind": "restore-seen"}


def fill(
    settings: Settings, wanted: dict[str, Any], found: dict[str, Any], *, stop: bool, began: str
) -> dict[str, Any]:
    """Have the backup's files in the data directory, the server stopped; returns the plan as it was carried out.

    Raises:
        RefusedError: the server runs and may not be stopped; nothing was changed.
        BackupError: a step failed; the same command goes on from there.
    """
    if found["running"] and not stop:
        hint = "playbooks/restore.yml stops it in order; or restore beside it, with directory and port"
        raise RefusedError(
            f"PostgreSQL runs on {settings.data_dir}; a restore would take its files away", hint
        )
    if found["flushes"]:
        found = flushed(settings, wanted, found)
    if found["running"]:
        service.stop(settings)
    if found["moves"]:
        # Before it is done: a run that is killed now must not lose where the former data directory is.
        marker.write(settings, marker.MOVING, wanted, found, began)
        make_way(settings, found)
    marker.write(settings, marker.COPYING, wanted, found, began)
    copy(found)
    return found


def make_way(settings: Settings, found: dict[str, Any]) -> None:
    """Move the present data directory away and make an empty one; a run that was killed in the middle of that has left a part to do.

    One that is not kept is emptied, not removed: it may be a file system of its own.
    """
    if found["kept"] and not Path(found["kept"]).exists():
        settings.data.rename(found["kept"])
    settings.data.mkdir(mode=0o700, exist_ok=True)
    for entry in settings.data.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    shutil.chown(settings.data, "postgres", "postgres")


def copy(found: dict[str, Any]) -> None:
    """Run pgBackRest's restore.

    Raises:
        BackupError: it failed; the same command resumes it.
    """
    done = processes.run_restore(found["command"])
    if done.status == 0:
        return
    error = engine.explained(f"restoring {found['set']}", done.output)
    hint = f"{error.hint}. {found['directory']} is incomplete and cannot be started; run the same playbook again to resume"
    hint += f". The data directory from before is {found['kept']}" if found["kept"] else ""
    raise BackupError(error.message, hint, error.code if error.code != UNEXPECTED else INTERRUPTED)


def recover(settings: Settings, end: str = "") -> None:
    """Start the server and wait until recovery has ended and it takes writes; ``end`` is what it must have replayed before.

    Raises:
        BackupError: recovery could not reach the target, or did not end in time.
    """
    server = recovery.own_server(settings)
    try:
        service.start(settings)
    except BackupError as error:
        raise recovery.reason(server, error) from error
    try:
        recovery.wait(settings, server, lambda: engine.is_running(settings), end)
    except BackupError as error:
        # What only takes longer goes on, and the next run sees its end. Else it serves nothing but reads as it stands, and would go on
        # trying in vain.
        # One that was promoted is in service, whatever failed after that.
        if (
            end
            and error.code != INTERRUPTED
            and engine.is_running(settings)
            and engine.is_in_recovery(settings)
        ):
            service.stop(settings)
        raise
