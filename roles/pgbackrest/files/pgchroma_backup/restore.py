"""Restoring the cluster, or a copy beside it: the plan first, then every step of it, resumable where it stopped."""

from __future__ import annotations

import os
import re
import shutil
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import engine, marker, proof, receipts, recovery, replicas, side, target, wal
from .errors import INTERRUPTED, UNEXPECTED, BackupError, RefusedError
from .settings import Settings
from .target import Target, Way
from .timelines import lsn_number

MEGABYTE = 1 << 20


def options_of(goal: Target, way: Way, number: int) -> list[str]:
    """Return pgBackRest's options for a target; set, repository and timeline are always named, so nothing is left to chance."""
    options = [f"--repo={number}", f"--set={way.backup['label']}"]
    if goal.kind == "latest":
        # It is promoted when it has come to the end of what the repository holds, see recovery.py.
        options.append("--type=standby")
    else:
        options.append(f"--type={goal.kind}")
        options.append("--target-action=promote")
    if goal.kind == "time":
        moment = datetime.fromtimestamp(goal.moment, UTC)
        options.append(f"--target={moment.strftime('%Y-%m-%d %H:%M:%S.%f')}+00")
    elif goal.value:
        options.append(f"--target={goal.value}")
    if goal.exclusive:
        options.append("--target-exclusive")
    # The moment a backup ended lies on its own timeline: pgBackRest refuses to be told one.
    if goal.kind != "immediate":
        options.append(f"--target-timeline={way.option}")
    return options


def free_bytes(path: Path) -> int:
    """Return the free space of the file system that a path is or will be on."""
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free


def used_bytes(path: Path) -> int:
    """Return what the files below a directory take."""
    total = 0
    for folder, _, files in os.walk(path):
        for name in files:
            try:
                total += (Path(folder) / name).lstat().st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def has_data(settings: Settings) -> bool:
    """Whether the data directory holds a cluster that a server was ever started on; a fresh initdb is no loss."""
    return (settings.data / "postmaster.opts").exists()


def plan(settings: Settings, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return what a restore would do: commands, sizes, what is overwritten, and a text for people. Changes nothing.

    Raises:
        BackupError: the target cannot be reached, there is no room, or the directory is taken.
    """
    goal = target.read(wanted)
    running = engine.is_running(settings)
    left = None if goal.side else marker.read(settings)
    # Still replaying, or done with it since: what the command did not see the end of.
    recovering = left is not None and left["phase"] == marker.RECOVERING
    if left is not None and recovering and running and marker.is_of(left, goal):
        return ending(settings, left)
    replaying = running and not goal.side and engine.is_in_recovery(settings)
    if replaying and not recovering:
        raise RefusedError(
            f"PostgreSQL on {settings.data_dir} replays WAL, or takes no connections yet, and no restore of this command began that",
            f"wait until it has ended; or stop it (systemctl stop {settings.service}) and run this again: what it has not archived is "
            "left behind then",
        )
    number, info = target.choose_repository(settings, goal, lambda one: engine.information(settings, one))
    way = target.choose(settings, info, goal, number)
    chosen = way.backup
    options = options_of(goal, way, number)
    # A server that serves has been started since: what it holds now is no half-copied directory, whatever the marker says.
    stopped = left if not running or replaying else None
    if goal.side:
        side.refuse(settings, goal)
        place = Path(goal.directory) / "data"
        options += side.options(settings, goal)
    else:
        place = settings.data
    serving = running and not replaying
    if goal.kind == "lsn":
        refuse_beyond(settings, goal, way, serving=serving)
    resumes = stopped is not None
    moves = stopped is None or stopped["phase"] == marker.MOVING
    end = way.end if goal.kind == "latest" else ""
    if not goal.side and (goal.overwrite or not moves):
        options.append("--delta")
    needed = 0 if goal.overwrite or not moves else chosen["info"]["size"]
    free = free_bytes(place)
    if needed + 64 * MEGABYTE > free:
        hint = "make room, or restore over the present files instead of keeping them: add overwrite: true"
        raise RefusedError(
            f"{place} has {free // MEGABYTE} MB free, the restored cluster takes {needed // MEGABYTE} MB",
            hint,
        )
    serving = serving and not goal.side
    followers = replicas.refuse(settings, left=goal.replicas_left) if serving else []
    kept = ""
    if not goal.side:
        kept = stopped["kept"] if stopped is not None else aside(settings, goal)
        if stopped is not None and goal.overwrite and kept and not Path(kept).exists():
            kept = ""
    found = {
        "kind": "restore-plan",
        "target": str(goal),
        "repository": number,
        "set": chosen["label"],
        "set_ended": receipts.stamp(chosen["timestamp"]["stop"]),
        "timeline": way.line.number,
        "until": end,
        "bytes": chosen["info"]["size"],
        "free_bytes": free,
        "directory": str(place),
        "side": goal.side,
        "overwrite": goal.overwrite,
        "running": running and not goal.side,
        "flushes": serving,
        "replicas_left": followers,
        "resumes": resumes,
        "moves": moves and not goal.side and not goal.overwrite,
        "ends": False,
        "kept": kept,
        "command": engine.command_line(settings, "restore", *options),
    }
    found["text"] = text_of(settings, goal, found)
    return found


def refuse_beyond(settings: Settings, goal: Target, way: Way, *, serving: bool) -> None:
    """Refuse an LSN that the timeline has not come to.

    Raises:
        RefusedError: it lies after the end of what the repository holds of the timeline, or of what the running server has written on it.
    """
    end = ""
    if serving:
        now, name = engine.query(
            settings, "SELECT pg_current_wal_lsn(), pg_walfile_name(pg_current_wal_lsn())"
        )[0].split("\t")
        end = now if int(name[:8], 16) == way.line.number else ""
    # On a bare host nothing tells how large a segment is: there recovery finds out, and resumes.
    if not end and (settings.data / "global/pg_control").exists():
        end = way.end
    if end and lsn_number(goal.value) > recovery.must_pass(settings, recovery.own_server(settings), end):
        raise RefusedError(
            f"{goal} lies after the end of timeline {way.line.number}, which has come to {end}",
            "give an LSN before that, or latest",
        )


def ending(settings: Settings, left: dict[str, Any]) -> dict[str, Any]:
    """Return the plan of seeing a restore to its end whose files are in place and whose server runs: there is only to be waited."""
    found = {**left["plan"], "resumes": True, "moves": False, "ends": True, "flushes": False, "running": True}
    kept = found["kept"] or "nothing: there was no cluster before it"
    lines = [
        f"Restore {settings.stanza} to {found['target']}",
        f"  ends       the restore that began at {left['started']} and was interrupted while WAL was replayed: its files are in place",
        f"  backup     {found['set']}, ended {found['set_ended']}; timeline {found['timeline']}",
        f"  kept       {kept}",
        "To restore anew, run it once more when this has ended.",
        "Commands:",
        f"  ({settings.service} runs: nothing is stopped, moved or copied; it is waited for)",
    ]
    return {**found, "text": "\n".join(lines)}


def aside(settings: Settings, goal: Target) -> str:
    """Return where the present data directory goes, or the empty string when it is not kept."""
    if goal.overwrite or not has_data(settings):
        return ""
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{settings.data_dir}.before-restore-{moment}"


def text_of(settings: Settings, goal: Target, found: dict[str, Any]) -> str:
    """Return the plan for people."""
    size, free = found["bytes"] // MEGABYTE, found["free_bytes"] // MEGABYTE
    lines = [
        f"Restore {settings.stanza} to {found['target']}",
        f"  from       {settings.repository(found['repository'])}",
        f"  backup     {found['set']}, ended {found['set_ended']}, {size} MB; timeline {found['timeline']}",
        f"  into       {found['directory']} ({free} MB free)",
    ]
    if found["until"]:
        lines.insert(3, f"  WAL        up to {found['until']}, the last that the repository holds")
    if goal.side:
        lines.append(
            f"  beside     the cluster: port {goal.port}, socket only, archiving off; {settings.data_dir} is not touched"
        )
    elif found["resumes"]:
        lines.append("  resumes    a restore that stopped half-way")
        lines.append(f"  kept       {found['kept'] or 'nothing: there was no cluster before it'}")
    elif found["kept"]:
        taken = used_bytes(settings.data) // MEGABYTE
        lines.append(
            f"  moved away {settings.data_dir} ({taken} MB) to {found['kept']}; playbooks/restore_finish.yml removes it or puts it back"
        )
    elif goal.overwrite:
        lines.append(f"  OVERWRITES {settings.data_dir}: what it holds now is lost")
    else:
        lines.append(f"  replaces   {settings.data_dir}, which no server was ever started on")
    if found["flushes"] and goal.unarchived_lost:
        lines.append(
            f"  LEFT       what {settings.repository(found['repository'])} does not get within {settings.flush_seconds} s"
        )
    lines += [f"  left behind {entry}: make it anew afterwards" for entry in found["replicas_left"]]
    if not goal.side:
        lines.append(
            "  tokens     revoked since that moment are good again, those made since are unknown: pgchroma-admin token list --revoked"
        )
    lines.append("Commands:")
    if not goal.side:
        lines.append(
            f"  systemctl stop {settings.service}"
            if found["running"]
            else f"  ({settings.service} does not run)"
        )
        if found["kept"] and found["moves"]:
            lines.append(f"  mv {settings.data_dir} {found['kept']}")
    lines.append("  " + " ".join(quoted(word) for word in found["command"]))
    lines.append(
        f"  systemctl start {settings.service}" if not goal.side else side.start_line(settings, goal)
    )
    return "\n".join(lines)


def quoted(word: str) -> str:
    """Return a word as a shell would need it."""
    return word if re.fullmatch(r"[\w@%+=:,./-]+", word) else "'" + word.replace("'", "'\\''") + "'"


def send(settings: Settings, wanted: dict[str, Any]) -> dict[str, Any]:
    """Have the repository of a planned restore hold everything until now, before anything is stopped for it; returns the plan.

    Raises:
        BackupError: what plan() refuses, or the repository does not get the WAL and the target does not allow for that.
    """
    found = plan(settings, wanted)
    return {**found, **flushed(settings, wanted, found)} if found["flushes"] else found


def flushed(settings: Settings, wanted: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Send the running server's WAL away and return what that changes in the plan.

    Raises:
        BackupError: the repository does not get it, and the target does not allow for that.
    """
    try:
        wal.flush(settings, found["repository"])
    except BackupError as error:
        if not target.read(wanted).unarchived_lost:
            raise
        return {"unarchived": error.message}
    return {"unarchived": "", "until": plan(settings, wanted)["until"] if found["until"] else ""}


def run(settings: Settings, wanted: dict[str, Any], *, stop: bool) -> dict[str, Any]:
    """Carry out a restore and return its receipt. With ``stop`` a running server is stopped first.

    Raises:
        RefusedError: the server runs and may not be stopped, or what plan() refuses; nothing was changed.
        BackupError: a step failed; the message says how to go on.
    """
    with receipts.alone(settings, "restore"):
        found = plan(settings, wanted)
        started = time.time()
        if found["side"]:
            return side.run(settings, target.read(wanted), found)
        left = marker.read(settings) if found["resumes"] else None
        began = left["started"] if left is not None else receipts.stamp(started)
        if not found["ends"]:
            found = fill(settings, wanted, found, stop=stop, began=began)
            marker.write(settings, marker.RECOVERING, wanted, found, began)
        copied = time.time()
        recover(settings, found["until"])
        marker.close(settings)
        now = engine.query(settings, "SELECT timeline_id FROM pg_control_checkpoint()")
        receipt = {
            **found,
            "kind": "restore",
            "started": began,
            "copy_seconds": round(copied - started, 1),
            "seconds": round(time.time() - started, 1),
            "timeline_now": int(now[0]),
        }
        goal = target.read(wanted)
        return proof.keep(settings, receipt, lambda: proof.own(settings, goal))


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
        found = {**found, **flushed(settings, wanted, found)}
    if found["running"]:
        control(settings, "stop")
    if found["moves"]:
        # Before it is done: a run that is killed now must not lose where the former data directory is.
        marker.write(settings, marker.MOVING, wanted, found, began)
        make_way(settings, found)
    marker.write(settings, marker.COPYING, wanted, found, began)
    copy(found)
    return found


def control(settings: Settings, verb: str) -> None:
    """Start or stop the server's unit.

    Raises:
        BackupError: systemd could not.
    """
    done = engine.run_as_root(["systemctl", verb, settings.service])
    if done.status != 0:
        hint = f"journalctl -u {settings.service} and the PostgreSQL log say why"
        raise BackupError(
            f"systemctl {verb} {settings.service} failed: {done.output.strip()}", hint, UNEXPECTED
        )


def make_way(settings: Settings, found: dict[str, Any]) -> None:
    """Move the present data directory away and make an empty one; a run that was killed in the middle of that has left a part to do."""
    if found["kept"] and not Path(found["kept"]).exists():
        settings.data.rename(found["kept"])
    elif settings.data.exists():
        shutil.rmtree(settings.data)
    settings.data.mkdir(mode=0o700)
    shutil.chown(settings.data, "postgres", "postgres")


def copy(found: dict[str, Any]) -> None:
    """Run pgBackRest's restore.

    Raises:
        BackupError: it failed; the same command resumes it.
    """
    done = engine.run(found["command"])
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
        control(settings, "start")
    except BackupError as error:
        raise recovery.reason(server, error) from error
    try:
        recovery.wait(settings, server, lambda: engine.is_running(settings), end)
    except BackupError as error:
        # What only takes longer goes on, and the next run sees its end. Else it serves nothing but reads as it stands, and would go on
        # trying in vain.
        if end and error.code != INTERRUPTED and engine.is_running(settings):
            control(settings, "stop")
        raise
