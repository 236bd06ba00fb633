"""Where a restore is to end: reading the operator's dictionary, and choosing the backup that leads there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from . import backup, engine, receipts
from .errors import USAGE, BackupError, RefusedError
from .settings import Settings

KINDS = ("latest", "time", "name", "lsn", "xid", "immediate")
KEYS = {
    *KINDS,
    "set",
    "timeline",
    "repository",
    "exclusive",
    "directory",
    "port",
    "overwrite",
    "replicas_left",
}
TRUE = (True, "true", "yes")


@dataclass(frozen=True)
class Target:
    """What was asked for. ``moment`` is seconds since 1970 where the target is a time."""

    kind: str
    value: str
    moment: float
    set: str
    timeline: str
    repository: int
    exclusive: bool
    directory: str
    port: int
    overwrite: bool
    replicas_left: bool

    @property
    def side(self) -> bool:
        """Whether it goes to another directory and leaves the cluster alone."""
        return bool(self.directory)

    def __str__(self) -> str:
        if self.kind in ("latest", "immediate"):
            return {"latest": "the end of the archive", "immediate": "the end of the backup itself"}[
                self.kind
            ]
        return f"{self.kind} {self.value}" + (", just before it" if self.exclusive else "")


def usage(message: str, hint: str) -> BackupError:
    """Return the error of a dictionary that cannot be read."""
    return BackupError(message, hint, USAGE)


def lsn_number(text: str) -> int:
    """Return an LSN such as ``0/3000028`` as a number; ValueError if it is none."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def moment_of(text: str) -> float:
    """Return the seconds since 1970 of a time with its zone.

    Raises:
        BackupError: it is no time, or does not say its zone.
    """
    example = 'such as "2026-11-21 08:00:00Z" or "2026-11-21 09:00:00+01:00"'
    # Python 3.9 and 3.10 read neither Z nor +01.
    plain = re.sub(r"([+-]\d{2})$", r"\1:00", text.strip().replace("Z", "+00:00").replace(" UTC", "+00:00"))
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError as error:
        raise usage(f"{text!r} is not a time", f"give it {example}") from error
    if moment.tzinfo is None:
        raise usage(
            f"the time {text!r} does not say its time zone", f"add Z for UTC, or the offset, {example}"
        )
    return moment.timestamp()


def read(wanted: dict[str, Any]) -> Target:
    """Return the target that a dictionary describes.

    Raises:
        BackupError: a key is unknown, none or several of the targets are given, or a value is not of its form.
    """
    unknown = sorted(set(wanted) - KEYS)
    if unknown:
        raise usage(f"restore has unknown keys: {', '.join(unknown)}", f"known are {', '.join(sorted(KEYS))}")
    given = [kind for kind in KINDS if wanted.get(kind) not in (None, False, "")]
    if len(given) != 1:
        shown = ", ".join(given) or "none"
        raise usage(
            f"restore must have exactly one of {', '.join(KINDS)}; it has {shown}",
            'for example {"latest": true}',
        )
    kind = given[0]
    value = "" if wanted[kind] is True else str(wanted[kind]).strip()
    if kind == "lsn" and not re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", value):
        raise usage(
            f"{value!r} is not an LSN",
            "it looks like 0/3000028; pg_current_wal_lsn() and restore_point.yml print one",
        )
    if kind == "xid" and not value.isdigit():
        raise usage(f"{value!r} is not a transaction id", "it is a number; pg_current_xact_id() prints one")
    timeline = str(wanted.get("timeline") or "")
    if timeline and timeline not in ("latest", "current") and not timeline.isdigit():
        raise usage(f"{timeline!r} is not a timeline", "give latest, current or its number")
    if kind == "immediate" and timeline not in ("", "current"):
        raise usage("the end of a backup lies on the backup's own timeline", "leave timeline out")
    directory, port = str(wanted.get("directory") or ""), int(wanted.get("port") or 0)
    if bool(directory) != bool(port):
        raise usage(
            "a side restore needs both directory and port",
            'for example {"directory": "/srv/side", "port": 5440}',
        )
    if directory and not directory.startswith("/"):
        raise usage(f"{directory} is not an absolute path", "begin it with /")
    return Target(
        kind=kind,
        value=value,
        moment=moment_of(value) if kind == "time" else 0.0,
        set=str(wanted.get("set") or ""),
        timeline=timeline,
        repository=int(wanted.get("repository") or 0),
        exclusive=wanted.get("exclusive") in TRUE,
        directory=directory.rstrip("/"),
        port=port,
        overwrite=wanted.get("overwrite") in TRUE,
        replicas_left=wanted.get("replicas_left") in TRUE,
    )


Look = Callable[[int], dict[str, Any]]


def choose_repository(settings: Settings, target: Target, look: Look) -> tuple[int, dict[str, Any]]:
    """Return the repository to restore from, and what it holds: the one named, else the first that can be read and has what is needed.

    ``look`` returns the information of one repository; none after the first that fits is asked.

    Raises:
        BackupError: the one named cannot be read, or none can.
    """
    if target.repository:
        settings.repository(target.repository)
    faults = []
    for number in (
        [target.repository] if target.repository else [entry.number for entry in settings.repositories]
    ):
        info = look(number)
        fault = engine.repository_fault(info, settings, number)
        held = [entry["label"] for entry in backup.backups_of(info, number)]
        if fault is not None:
            faults.append(fault)
        elif target.repository or (held and (not target.set or target.set in held)):
            return number, info
    if faults:
        raise backup.joined(faults)
    missing = f"the set {target.set}" if target.set else "any backup"
    raise RefusedError(
        f"no repository holds {missing} of {settings.stanza}", "backup_info.yml lists what there is"
    )


def choose_set(settings: Settings, info: dict[str, Any], target: Target, number: int) -> dict[str, Any]:
    """Return the newest backup from which the target can be reached; a damaged one only when it is named.

    Raises:
        RefusedError: there is none: the target lies before the first backup, or cannot be placed without naming a set.
    """
    held = backup.backups_of(info, number)
    if target.set:
        for entry in held:
            if entry["label"] == target.set:
                return entry
        known = ", ".join(entry["label"] for entry in held) or "none"
        raise RefusedError(f"{settings.repository(number)} holds no set {target.set}", f"it holds {known}")
    good = [entry for entry in held if not entry["error"]]
    if not good:
        raise RefusedError(
            f"{settings.repository(number)} holds no backup without errors",
            "name a set, or another repository",
        )
    if target.kind in ("latest", "immediate"):
        return good[-1]
    if target.kind == "time":
        if target.moment > time.time():
            raise RefusedError(
                f"{target.value} has not come yet; it is {receipts.now()}", "give a time that has passed"
            )
        fitting = [entry for entry in good if entry["timestamp"]["stop"] < target.moment]
        first = (
            f"the first backup, {good[0]['label']}, ended at {receipts.stamp(good[0]['timestamp']['stop'])}"
        )
    else:
        lsn = target.value if target.kind == "lsn" else point_lsn(settings, target)
        fitting = [entry for entry in good if lsn_number(entry["lsn"]["stop"]) <= lsn_number(lsn)]
        first = f"the first backup, {good[0]['label']}, ended at {good[0]['lsn']['stop']}"
    if not fitting:
        raise RefusedError(
            f"{target} lies before the first backup: {first}", "choose a later target, or another repository"
        )
    return fitting[-1]


def point_lsn(settings: Settings, target: Target) -> str:
    """Return the LSN of a restore point that restore_point.yml made on this host.

    Raises:
        RefusedError: it is not known here, nor is where a transaction stands; then the operator must name the set.
    """
    hint = "add set: the label of a backup that ended before it; backup_info.yml lists them with their times"
    if target.kind == "xid":
        raise RefusedError(
            f"where transaction {target.value} stands in the WAL is not known without reading it", hint
        )
    points = receipts.read(settings, "restore-points.json") or {"points": []}
    for point in reversed(points["points"]):
        if point["name"] == target.value:
            return str(point["lsn"])
    digests = receipts.read(settings, f"digests/{target.value}.json") if "/" not in target.value else None
    if digests is not None:
        return str(digests["lsn"])
    known = ", ".join(point["name"] for point in points["points"]) or "none"
    raise RefusedError(f"this host does not know the restore point {target.value!r} (known: {known})", hint)


def choose_timeline(
    settings: Settings, info: dict[str, Any], target: Target, chosen: dict[str, Any], number: int
) -> str:
    """Return the timeline to follow; with several to choose from, only the operator can know which one was meant.

    Raises:
        RefusedError: the archive has timelines younger than the backup's, the target needs one, and none was named.
    """
    own = int(chosen["archive"]["start"][:8], 16)
    if target.timeline:
        return target.timeline
    younger = [entry for entry in timelines(settings, info, chosen, number) if entry > own]
    if not younger or target.kind in ("latest", "immediate"):
        return "latest" if target.kind != "immediate" else "current"
    shown = ", ".join(str(entry) for entry in [own, *younger])
    raise RefusedError(
        f"after {chosen['label']} the archive holds timelines {shown}: each restore began a new one, and {target} may exist on several",
        f"add timeline: {own} for what was before the restores, {younger[-1]} (or latest) for what came after the last one",
    )


def timelines(settings: Settings, info: dict[str, Any], chosen: dict[str, Any], number: int) -> list[int]:
    """Return the numbers of the timelines that branched off, as the archive's history files tell."""
    names = listed(settings, number, archive_path(settings, info, chosen, number))
    return sorted(int(name[:8], 16) for name in names if name.endswith(".history"))


def archive_end(
    settings: Settings, info: dict[str, Any], chosen: dict[str, Any], number: int, timeline: str
) -> str:
    """Return the last WAL segment of the timeline to follow that a repository holds, or the LSN at which it began when it holds none.

    Raises:
        BackupError: the repository cannot be read.
    """
    path = archive_path(settings, info, chosen, number)
    names = listed(settings, number, path)
    own = int(chosen["archive"]["start"][:8], 16)
    if timeline in ("", "latest"):
        followed = max([own, *(int(name[:8], 16) for name in names if name.endswith(".history"))])
    else:
        followed = own if timeline == "current" else int(timeline)
    folders = [name for name in names if re.fullmatch(f"{followed:08X}[0-9A-F]{{8}}", name)]
    for folder in sorted(folders, reverse=True):
        segments = [
            name[:24]
            for name in listed(settings, number, f"{path}/{folder}")
            if re.fullmatch(r"[0-9A-F]{24}-[0-9a-f]{40}.*", name)
        ]
        if segments:
            return max(segments)
    if followed == own:
        return str(chosen["archive"]["stop"])
    history = stored(settings, number, "repo-get", f"{path}/{followed:08X}.history")
    return history.strip().splitlines()[-1].split()[1]


def archive_path(settings: Settings, info: dict[str, Any], chosen: dict[str, Any], number: int) -> str:
    """Return the folder of a repository that holds the WAL of a backup's cluster."""
    database = {"id": chosen["database"]["id"], "repo-key": number}
    found = next(entry["id"] for entry in info["archive"] if entry["database"] == database)
    return f"archive/{settings.stanza}/{found}"


def listed(settings: Settings, number: int, path: str) -> list[str]:
    """Return the names in a folder of a repository.

    Raises:
        BackupError: the repository cannot be read.
    """
    return stored(settings, number, "repo-ls", path).split()


def stored(settings: Settings, number: int, verb: str, path: str) -> str:
    """Return what pgBackRest prints of a path in a repository: a folder's names, or a file.

    Raises:
        BackupError: the repository cannot be read.
    """
    options = (f"--repo={number}", "--log-level-console=off")
    done = engine.run([*engine.command_line(settings, verb, *options), path])
    if done.status != 0:
        raise engine.explained(f"reading the archive of {settings.repository(number)}", done.output)
    return done.output
