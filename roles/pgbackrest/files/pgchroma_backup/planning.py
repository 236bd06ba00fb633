"""What a restore would do: where from, into what, what is overwritten, in which commands; nothing is changed here."""

from __future__ import annotations

import os
import re
import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import condition, engine, gaps, marker, receipts, recovery, replicas, side, target, wal, ways
from .errors import RefusedError
from .settings import Settings
from .target import Target
from .timelines import lsn_number
from .ways import Way

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
        moment = datetime.fromtimestamp(goal.moment, timezone.utc)
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


def plan(settings: Settings, wanted: dict[str, Any]) -> dict[str, Any]:
    """Return what a restore would do: commands, sizes, what is overwritten, and a text for people. Changes nothing.

    Raises:
        BackupError: the target cannot be reached, there is no room, or the directory is taken.
    """
    goal = target.read(wanted)
    if goal.side:
        side.refuse(settings, goal)
        found = {**base(settings, goal), **beside(settings, goal)}
        found["command"] += side.options(settings, goal)
    else:
        now = condition.of(settings)
        left = now.ending(goal)
        if left is not None:
            return ending(settings, left, compares=now.replaying)
        over = marker.unseen(settings)
        if over is not None and now.ended and marker.is_of(over, goal):
            return ended(settings, goal, over, running=now.running)
        found = {**base(settings, goal), **in_place(settings, goal, now)}
        found["command"] += ["--delta"] if goal.overwrite or not now.moves else []
    if not found["flushes"]:
        gaps.refuse(settings, found)
    refuse_full(found, 0 if goal.overwrite or not found["fresh"] else found["bytes"])
    found["command"] = engine.command_line(settings, "restore", *found["command"])
    found["behind"] = wal.timeline(settings) if found["flushes"] and goal.kind == "latest" else 0
    found["text"] = text_of(settings, goal, found)
    return found


def base(settings: Settings, goal: Target) -> dict[str, Any]:
    """Return what a plan says of where the files come from; its command is pgBackRest's options so far."""
    number, info = ways.choose_repository(settings, goal, lambda one: engine.information(settings, one))
    way = ways.choose(settings, info, goal, number)
    if goal.kind == "lsn":
        refuse_beyond(settings, goal, way)
    return {
        "kind": "restore-plan",
        "target": str(goal),
        "repository": number,
        "set": way.backup["label"],
        "set_ended": receipts.stamp(way.backup["timestamp"]["stop"]),
        "timeline": way.line.number,
        "until": way.end if goal.kind == "latest" else "",
        "lacks": gaps.find(settings, way.archive, way.backup, way.line) if goal.kind == "latest" else [],
        "bytes": way.backup["info"]["size"],
        "side": goal.side,
        "overwrite": goal.overwrite,
        "ended": "",
        "compares": True,
        "command": options_of(goal, way, number),
    }


def beside(settings: Settings, goal: Target) -> dict[str, Any]:
    """Return what a plan says of a copy, which concerns nothing that is there; a cluster that runs here sends its WAL for it."""
    place = Path(goal.directory) / "data"
    nothing = dict.fromkeys(("running", "resumes", "moves", "ends"), False)
    serving = engine.is_running(settings) and not engine.is_in_recovery(settings)
    return {
        "directory": str(place),
        "free_bytes": free_bytes(place),
        "replicas_left": [],
        "flushes": serving,
        "kept": "",
        "fresh": True,
        **nothing,
    }


def in_place(settings: Settings, goal: Target, now: condition.Condition) -> dict[str, Any]:
    """Return what a plan says of the cluster itself.

    Raises:
        RefusedError: replicas follow it, and nobody said that they are left behind; or it cannot be moved away as a whole.
    """
    kept = aside(settings, goal) if now.resumed is None else str(now.resumed["kept"])
    if kept and now.moves:
        refuse_unmovable(settings)
    if now.resumed is not None and goal.overwrite and not Path(kept).exists():
        kept = ""
    return {
        "directory": settings.data_dir,
        "free_bytes": free_bytes(settings.data),
        "running": now.running,
        "flushes": now.serving,
        "replicas_left": replicas.refuse(settings, left=goal.replicas_left) if now.serving else [],
        "resumes": now.resumed is not None,
        "moves": now.moves and not goal.overwrite,
        "ends": False,
        "kept": kept,
        "fresh": now.moves,
    }


def refuse_unmovable(settings: Settings) -> None:
    """Refuse to keep a data directory that is not one directory of files.

    Raises:
        RefusedError: it is a link or a file system of its own, or parts of the cluster lie elsewhere, which both would use.
    """
    data = settings.data
    spaces = data / "pg_tblspc"
    why = ""
    if data.is_symlink():
        why = f"it is a link to {data.readlink()}"
    elif data.is_mount():
        why = "a file system is mounted there"
    elif spaces.is_dir() and any(spaces.iterdir()):
        why = f"it has tablespaces ({', '.join(str(path) for path in sorted(spaces.iterdir()))}), which lie outside it"
    if why:
        raise RefusedError(
            f"{data} cannot be moved away and kept: {why}",
            "take a backup, then restore over it: add overwrite: true; or restore beside it, with directory and port",
        )


def refuse_full(found: dict[str, Any], needed: int) -> None:
    """Refuse a file system without room for the files.

    Raises:
        RefusedError: there is none.
    """
    if needed + 64 * MEGABYTE > found["free_bytes"]:
        other = (
            "name a directory of another file system"
            if found["side"]
            else "restore over the present files instead of keeping them: add overwrite: true"
        )
        raise RefusedError(
            f"{found['directory']} has {found['free_bytes'] // MEGABYTE} MB free, the restored cluster takes {needed // MEGABYTE} MB",
            f"make room, or {other}",
        )


def refuse_beyond(settings: Settings, goal: Target, way: Way) -> None:
    """Refuse an LSN that the timeline has not come to.

    Raises:
        RefusedError: it lies after the end of what the repository holds of the timeline, or of what the running server has written on it.
    """
    end = ""
    if engine.is_running(settings) and not engine.is_in_recovery(settings):
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


def gone_on_with(begun: dict[str, Any], **now: object) -> dict[str, Any]:
    """Return the plan in a restore's marker as it is now that its files are in place."""
    return {**begun["plan"], "resumes": True, "moves": False, "ends": True, "flushes": False, **now}


def kept_line(found: dict[str, Any]) -> str:
    """Return where the data directory from before is, for people."""
    return f"  kept       {found['kept'] or 'nothing: there was no cluster before it'}"


def what_was_restored(found: dict[str, Any]) -> list[str]:
    """Return what a restore whose files are in place was made of, and what it has kept, for people."""
    backup = f"  backup     {found['set']}, ended {found['set_ended']}; timeline {found['timeline']}"
    return [backup, kept_line(found)]


def ending(settings: Settings, left: dict[str, Any], *, compares: bool) -> dict[str, Any]:
    """Return the plan of seeing a restore to its end whose files are in place and whose server runs: there is only to be waited.

    ``compares`` is whether its records can be compared with what was recorded: once it takes writes that says nothing any more.
    """
    found = gone_on_with(left, ended="", compares=compares, running=True)
    lines = [
        f"Restore {settings.stanza} to {found['target']}",
        f"  ends       the restore that began at {left['started']} and was interrupted while WAL was replayed: its files are in place",
        *what_was_restored(found),
        "To restore anew, run it once more when this has ended.",
        "Commands:",
        f"  ({settings.service} runs: nothing is stopped, moved or copied; it is waited for)",
    ]
    return {**found, "text": "\n".join(lines)}


def ended(settings: Settings, goal: Target, over: dict[str, Any], *, running: bool) -> dict[str, Any]:
    """Return the plan of a restore that has ended, of which only what comes after it is left to do."""
    found = gone_on_with(over, ended=over["ended"], compares=False, running=running)
    again = "run pgchroma-backup restore-seen on this host first" if goal.again else 'add "again": true'
    lines = [
        f"Restore {settings.stanza} to {found['target']}",
        f"  HAS ENDED  at {over['ended']}; it began at {over['started']}, and the playbook did not come to its own end after it",
        *what_was_restored(found),
        *([f"  DAMAGED    {over['detail']}"] if over["result"] == "damaged" else []),
        f"To restore anew, which loses what was written since, {again}.",
        "Commands:",
        f"  ({'' if running else f'systemctl start {settings.service}; '}nothing is stopped, moved, copied or restored)",
    ]
    return {**found, "text": "\n".join(lines)}


def aside(settings: Settings, goal: Target) -> str:
    """Return where the present data directory goes, or the empty string when it is not kept."""
    if goal.overwrite or not condition.has_data(settings):
        return ""
    moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
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
    if found["behind"] > found["timeline"]:
        lines.append(
            f"  but        the cluster is on timeline {found['behind']} since it was last restored: that is sent first, and set and end are chosen anew"
        )
    if found["lacks"]:
        lines.append(
            f"  lacks      {gaps.told(found['lacks'])}: what another repository holds of it is sent there first"
        )
    if goal.side:
        lines.append(
            f"  beside     the cluster: port {goal.port}, socket only, archiving off; {settings.data_dir} is not touched"
        )
    elif found["resumes"]:
        lines.append("  resumes    a restore that stopped half-way")
        lines.append(kept_line(found))
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
        lines.append(f"  LEFT       what {settings.repository(found['repository'])} does not take")
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
