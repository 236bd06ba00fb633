"""Named restore points, and what to do with the data directory that a restore has kept."""

from __future__ import annotations

import shutil
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from . import engine, marker, planning, processes, receipts, restore, service, wal
from .errors import USAGE, BackupError, RefusedError, joined
from .settings import Settings

NAME_BYTES = 63
# What a data directory that is to go is called while it is removed: half of one must not be put back.
REMOVING = ".removing"

MAKE = "SELECT pg_create_restore_point(:'name'), (SELECT timeline_id FROM pg_control_checkpoint())"


def known(settings: Settings, name: str) -> list[dict[str, Any]]:
    """Return the restore points that there are, to which one of this name can be added.

    Raises:
        BackupError: the name is not fit, or taken; the server does not answer or does not archive.
    """
    if not name or len(name.encode()) > NAME_BYTES or not name.isprintable() or "'" in name:
        hint = (
            f"give 1 to {NAME_BYTES} printable characters without quotes, such as before-upgrade-2026-11-21"
        )
        raise BackupError(f"{name!r} cannot name a restore point", hint, USAGE)
    found = receipts.needed(settings, receipts.POINTS) or {"points": []}
    points: list[dict[str, Any]] = found["points"]
    if any(point["name"] == name for point in points):
        raise RefusedError(
            f"there is a restore point {name!r} already; recovery would stop at the first",
            "choose another name",
        )
    if engine.query(settings, "SHOW archive_mode")[0] == "off":
        raise RefusedError(
            "archive_mode is off: a restore point that is not archived leads nowhere",
            "restart PostgreSQL first",
        )
    return points


def plan(settings: Settings, name: str) -> dict[str, Any]:
    """Return what making a restore point would do, and a text for people. Changes nothing.

    Raises:
        BackupError: as known().
    """
    known(settings, name)
    lsn, segment = engine.query(
        settings, "SELECT pg_current_wal_lsn(), pg_walfile_name(pg_current_wal_lsn())"
    )[0].split("\t")
    statement = MAKE.split(",", maxsplit=1)[0].replace(":'name'", f"'{name}'")
    lines = [
        f"Name the present moment of {settings.stanza} {name}",
        f"  at         {lsn} or a little after it, timeline {int(segment[:8], 16)}",
        *(f"  sent to    {repository}" for repository in settings.repositories),
        "Commands:",
        f"  {statement}; SELECT pg_switch_wal()",
    ]
    return {"kind": "restore-point-plan", "name": name, "text": "\n".join(lines)}


def create(settings: Settings, name: str) -> dict[str, Any]:
    """Make a restore point in the running cluster, wait until it is archived, and return its receipt.

    The receipt names the repositories that hold it, and what is in the way of those that do not.

    Raises:
        BackupError: as known(), or no repository got it.
    """
    with receipts.alone(settings, "restore-point"):
        points = known(settings, name)
        lsn, timeline = engine.query(settings, MAKE, name=name)[0].split("\t")
        point = {"name": name, "lsn": lsn, "timeline": int(timeline), "time": receipts.now()}
        receipts.write(settings, receipts.POINTS, {"points": [*points, point]})
    away = wal.missing(settings, wal.switch(settings))
    if len(away) == len(settings.repositories):
        raise joined(list(away.values()))
    held = [repository.number for repository in settings.repositories if repository.number not in away]
    faults = {str(number): error.message for number, error in away.items()}
    return {"kind": "restore-point", **point, "repositories": held, "missing": faults}


def kept(settings: Settings) -> list[Path]:
    """Return the data directories that restores have kept, oldest first."""
    return sorted(settings.data.parent.glob(f"{settings.data.name}.before-restore-*"))


def half_removed(settings: Settings) -> list[Path]:
    """Return the data directories whose removal was interrupted."""
    return sorted(settings.data.parent.glob(f"{settings.data.name}{REMOVING}-*"))


def finish_plan(settings: Settings, keep: str) -> dict[str, Any]:
    """Return what ending a restore would do, and a text for people. Changes nothing.

    Raises:
        RefusedError: there is nothing to end, or the restored cluster is not in order; or a return to the former one has begun.
    """
    began = marker.returning(settings)
    if began is not None:
        if keep == "former":
            return return_plan(settings, Path(began["former"]), began["rejected"])
        raise marker.half_returned(began)
    directories = kept(settings)
    if not directories and not (keep == "restored" and half_removed(settings)):
        raise RefusedError("no restore on this host has kept a data directory", "there is nothing to do")
    running = engine.is_running(settings)
    if keep == "restored" and (not running or engine.is_in_recovery(settings)):
        hint = "finish the restore first (restore.yml), or put the former one back: keep=former"
        raise RefusedError("the restored cluster does not run, or still replays WAL", hint)
    if keep == "former":
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
        return return_plan(settings, directories[-1], f"{settings.data_dir}.rejected-{moment}")
    directories += half_removed(settings)
    lines = [f"rm -r {path}    # {planning.used_bytes(path) // planning.MEGABYTE} MB" for path in directories]
    return finish_result(keep, directories, "", running=running, lines=lines)


def return_plan(settings: Settings, former: Path, rejected: str) -> dict[str, Any]:
    """Return the plan of putting a former data directory back, or of what is missing of that when it was interrupted."""
    running = engine.is_running(settings)
    lines = [f"systemctl stop {settings.service}"] if running else []
    if former.exists():
        lines += [f"mv {settings.data_dir} {rejected}"] if not Path(rejected).exists() else []
        lines.append(f"mv {former} {settings.data_dir}")
    lines.append(f"systemctl start {settings.service}")
    return finish_result("former", [former], rejected, running=running, lines=lines)


def finish_result(
    keep: str, directories: list[Path], rejected: str, *, running: bool, lines: list[str]
) -> dict[str, Any]:
    """Return what finish_plan() does."""
    return {
        "kind": "restore-finish",
        "keep": keep,
        "directories": [str(path) for path in directories],
        "rejected": rejected,
        "running": running,
        "text": "\n".join(["Commands:", *(f"  {line}" for line in lines)]),
    }


def begin_timeline(settings: Settings, data: Path) -> None:
    """Have the cluster in a data directory begin a new timeline at its next start. Doing it twice is doing it once.

    The archive holds the timeline of the restore that was rejected. A cluster that went on with an older one would be passed over by
    every later restore to the end of the archive, which follows the youngest.
    """
    command = f'pgbackrest --config={settings.config} --stanza={settings.stanza} archive-get %f "%p"'
    lines = [
        f"restore_command = '{command}'",
        "recovery_target_timeline = 'current'",
        "recovery_target_action = 'promote'",
    ]
    lines += [f"recovery_target{kind} = ''" for kind in ("", "_name", "_time", "_xid", "_lsn")]
    with (data / "postgresql.auto.conf").open("a", encoding="utf-8") as file:
        file.write("# Written by pgchroma-backup restore-finish\n" + "".join(f"{line}\n" for line in lines))
    (data / "recovery.signal").touch()
    shutil.chown(data / "recovery.signal", "postgres", "postgres")


def finish(settings: Settings, keep: str) -> dict[str, Any]:
    """Remove the data directories kept by restores (keep=restored), or put the newest of them back (keep=former).

    Interrupted, the same command goes on with it.

    Raises:
        RefusedError: as finish_plan().
        BackupError: the former cluster does not come up, or a process of a restore does not end.
    """
    with receipts.alone(settings, "restore"):
        processes.end_orphans()
        found = finish_plan(settings, keep)
        if keep == "restored":
            for directory in found["directories"]:
                remove(settings, Path(directory))
            marker.close(settings)
        else:
            put_back(settings, Path(found["directories"][-1]), Path(found["rejected"]))
        receipt = {**found, "time": receipts.now()}
        receipts.write(settings, f"restore-finish-{receipt['time'].replace(':', '')}.json", receipt)
        return receipt


def remove(settings: Settings, directory: Path) -> None:
    """Remove a kept data directory, under another name at once."""
    away = directory
    if not directory.name.startswith(f"{settings.data.name}{REMOVING}-"):
        away = directory.with_name(directory.name.replace(".before-restore", REMOVING, 1))
        directory.rename(away)
    shutil.rmtree(away)


def put_back(settings: Settings, former: Path, rejected: Path) -> None:
    """Exchange the data directory for a former one and start it; every step is noted first, and done only where it was not yet.

    Raises:
        BackupError: the server does not stop or start.
    """
    marker.begin_return(settings, former, rejected)
    if former.exists():
        if engine.is_running(settings):
            service.stop(settings)
        # Before it comes into service: whoever starts it then, it begins a timeline of its own.
        begin_timeline(settings, former)
        if not rejected.exists():
            settings.data.rename(rejected)
        former.rename(settings.data)
        receipts.sync(settings.data.parent)
    restore.recover(settings)
    marker.close(settings)
