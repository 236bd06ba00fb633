"""Where a restore is to end: reading the operator's dictionary, and choosing the backup that leads there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from . import backup, engine, receipts, timelines
from .errors import USAGE, BackupError, RefusedError, joined
from .settings import Settings
from .timelines import lsn_number

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
    "unarchived_lost",
}
TRUE, FALSE = (True, "true", "True", "yes"), (None, False, "", "false", "False", "no")
# What stands in configuration files and in a command that PostgreSQL runs.
PLAIN_PATH = re.compile(r"/[\w@+=:,./-]*", re.ASCII)
PORTS = range(1, 65536)


@dataclass(frozen=True)
class Target:
    """What was asked for. ``moment`` is seconds since 1970 where the target is a time; ``repository`` is its number or name, or empty."""

    kind: str
    value: str
    moment: float
    set: str
    timeline: str
    repository: str
    exclusive: bool
    directory: str
    port: int
    overwrite: bool
    replicas_left: bool
    unarchived_lost: bool

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


def flag(wanted: dict[str, Any], key: str) -> bool:
    """Return a key that is true or false; what is neither is refused."""
    value = wanted.get(key)
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise usage(f"{key} is {value!r}", "give true or false")


def words(wanted: dict[str, Any], key: str) -> str:
    """Return a key that is text or a number, as text; empty where it is not given."""
    value = wanted.get(key)
    if value in (None, ""):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise usage(f"{key} is {value!r}", "give text or a number")
    return str(value).strip()


def kind_of(wanted: object) -> tuple[dict[str, Any], str]:
    """Return the dictionary, and which of the targets it gives.

    Raises:
        BackupError: it is no dictionary, has a key that is unknown, or gives none or several.
    """
    if not isinstance(wanted, dict):
        raise usage(f"restore is {wanted!r}, which is no dictionary", 'for example {"latest": true}')
    unknown = sorted(str(key) for key in set(wanted) - KEYS)
    if unknown:
        raise usage(f"restore has unknown keys: {', '.join(unknown)}", f"known are {', '.join(sorted(KEYS))}")
    given = [kind for kind in KINDS if wanted.get(kind) not in (None, False, "")]
    if len(given) != 1:
        shown = ", ".join(given) or "none"
        raise usage(
            f"restore must have exactly one of {', '.join(KINDS)}; it has {shown}",
            'for example {"latest": true}',
        )
    return wanted, given[0]


def value_of(wanted: dict[str, Any], kind: str) -> str:
    """Return the value of the target; empty where it needs none.

    Raises:
        BackupError: it is not of its form.
    """
    if kind in ("latest", "immediate"):
        if not flag(wanted, kind):
            raise usage(f"{kind} is {wanted[kind]!r}", "give true, or another target")
        return ""
    value = words(wanted, kind)
    if kind == "lsn" and not re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", value):
        raise usage(
            f"{value!r} is not an LSN",
            "it looks like 0/3000028; pg_current_wal_lsn() and restore_point.yml print one",
        )
    if kind == "xid" and not value.isdigit():
        raise usage(f"{value!r} is not a transaction id", "it is a number; pg_current_xact_id() prints one")
    return value


def side_of(wanted: dict[str, Any]) -> tuple[str, int]:
    """Return the directory and the port of a side restore, or nothing and 0.

    Raises:
        BackupError: one of them is missing, or is not of its form.
    """
    directory, port = words(wanted, "directory"), words(wanted, "port")
    if bool(directory) != bool(port):
        raise usage(
            "a side restore needs both directory and port",
            'for example {"directory": "/srv/side", "port": 5440}',
        )
    if not directory:
        return "", 0
    if not directory.strip("/"):
        raise usage(f"{directory} is no directory for a copy", "name one of its own, such as /srv/side")
    if not directory.startswith("/"):
        raise usage(f"{directory} is not an absolute path", "begin it with /")
    if not PLAIN_PATH.fullmatch(directory):
        raise usage(
            f"{directory!r} has characters that may not stand in it", "letters, digits and @+=:,./_- may"
        )
    if not port.isdigit() or int(port) not in PORTS:
        raise usage(f"{port!r} is not a port", f"give a number from {PORTS[0]} to {PORTS[-1]}")
    return directory.rstrip("/"), int(port)


def read(given: object) -> Target:
    """Return the target that a dictionary describes.

    Raises:
        BackupError: it is none, a key is unknown, none or several of the targets are given, or a value is not of its form.
    """
    wanted, kind = kind_of(given)
    value = value_of(wanted, kind)
    exclusive = flag(wanted, "exclusive")
    if exclusive and kind not in ("time", "lsn", "xid"):
        raise usage(f"exclusive says nothing about {kind}", "it goes with time, lsn or xid; leave it out")
    timeline = words(wanted, "timeline")
    if timeline and timeline not in ("latest", "current") and not timeline.isdigit():
        raise usage(f"{timeline!r} is not a timeline", "give latest, current or its number")
    if kind == "immediate" and timeline not in ("", "current"):
        raise usage("the end of a backup lies on the backup's own timeline", "leave timeline out")
    directory, port = side_of(wanted)
    return Target(
        kind=kind,
        value=value,
        moment=moment_of(value) if kind == "time" else 0.0,
        set=words(wanted, "set"),
        timeline=timeline,
        repository=words(wanted, "repository"),
        exclusive=exclusive,
        directory=directory,
        port=port,
        overwrite=flag(wanted, "overwrite"),
        replicas_left=flag(wanted, "replicas_left"),
        unarchived_lost=flag(wanted, "unarchived_lost"),
    )


Look = Callable[[int], dict[str, Any]]


def choose_repository(settings: Settings, target: Target, look: Look) -> tuple[int, dict[str, Any]]:
    """Return the repository to restore from, and what it holds: the one named, else the first that can be read and has what is needed.

    ``look`` returns the information of one repository; none after the first that fits is asked.

    Raises:
        BackupError: the one named cannot be read, or none can.
    """
    named = [settings.named(target.repository).number] if target.repository not in ("", "0") else []
    faults = []
    for number in named or [entry.number for entry in settings.repositories]:
        info = look(number)
        fault = engine.repository_fault(info, settings, number)
        held = [entry["label"] for entry in backup.backups_of(info, number)]
        if fault is not None:
            faults.append(fault)
        elif named or (held and (not target.set or target.set in held)):
            return number, info
    if faults:
        raise joined(faults)
    missing = f"the set {target.set}" if target.set else "any backup"
    raise RefusedError(
        f"no repository holds {missing} of {settings.stanza}", "backup_info.yml lists what there is"
    )


@dataclass(frozen=True)
class Way:
    """How a target is reached: the backup to begin with, and the timeline to follow from there."""

    backup: dict[str, Any]
    line: timelines.Line
    archive: timelines.Archive

    @property
    def option(self) -> str:
        """The timeline as pgBackRest is told: the youngest is not pinned, since the setting stays and a replica made later inherits it."""
        youngest = max([*self.archive.numbers, timelines.of(self.backup)])
        return str(self.line.number) if self.line.number < youngest else "latest"

    @property
    def end(self) -> str:
        """The last WAL segment of the timeline that the repository holds, or the LSN at which it began when it holds none."""
        return self.archive.end(self.backup, self.line)


def choose(settings: Settings, info: dict[str, Any], target: Target, number: int) -> Way:
    """Return the newest backup from which the target can be reached on the timeline that is meant, and that timeline.

    Raises:
        RefusedError: no backup leads there, there is no such timeline, or the target may lie on several and none was named.
        BackupError: the repository cannot be read.
    """
    held = candidates(settings, info, target, number)
    newest = held[-1]
    database = newest["database"]["id"]
    archive = timelines.archive(settings, info, number, database)
    held = [entry for entry in held if entry["database"]["id"] == database]
    followed = choose_timeline(settings, target, newest, [*archive.numbers, *map(timelines.of, held)])
    line = timelines.Line(followed, {}) if followed == timelines.of(newest) else archive.line(followed)
    for entry in reversed(held):
        if line.follows(entry):
            return Way(entry, line, archive)
    own = timelines.of(newest)
    fork = (
        f"it left timeline {own} at {line.forks[own]}"
        if own in line.forks
        else f"it never was timeline {own}"
    )
    raise RefusedError(
        f"no backup leads to {target} on timeline {followed}: {fork}, and {newest['label']} ended at {newest['lsn']['stop']} on {own}",
        f"take a full backup (backup.yml) if the cluster runs; or add timeline: {own}, an older set or another repository",
    )


def refuse_outside(target: Target, entry: dict[str, Any]) -> None:
    """Refuse a moment that has not come, or that lies before the end of the set named: recovery could only stop after it."""
    if target.kind == "time" and target.moment > time.time():
        raise RefusedError(
            f"{target.value} has not come yet; it is {receipts.now()}", "give a time that has passed"
        )
    stop = entry["timestamp"]["stop"]
    early = target.kind == "time" and target.moment <= stop
    if early or (target.kind == "lsn" and lsn_number(target.value) < lsn_number(entry["lsn"]["stop"])):
        raise RefusedError(
            f"{target} lies before the end of {entry['label']}: {receipts.stamp(stop)}, {entry['lsn']['stop']}",
            "name an older set, or none",
        )


def candidates(settings: Settings, info: dict[str, Any], target: Target, number: int) -> list[dict[str, Any]]:
    """Return the backups that ended before the target, oldest first, or the one named; a damaged one only when it is named.

    Raises:
        RefusedError: there is none: the target lies before the first backup, or cannot be placed without naming a set.
    """
    held = backup.backups_of(info, number)
    if target.set:
        for entry in held:
            if entry["label"] == target.set:
                refuse_outside(target, entry)
                return [entry]
        known = ", ".join(entry["label"] for entry in held) or "none"
        raise RefusedError(f"{settings.repository(number)} holds no set {target.set}", f"it holds {known}")
    good = [entry for entry in held if not entry["error"]]
    if not good:
        raise RefusedError(
            f"{settings.repository(number)} holds no backup without errors",
            "name a set, or another repository",
        )
    if target.kind in ("latest", "immediate"):
        return good
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
        lsn = target.value if target.kind == "lsn" else point_of(settings, target)[0]
        fitting = [entry for entry in good if lsn_number(entry["lsn"]["stop"]) <= lsn_number(lsn)]
        first = f"the first backup, {good[0]['label']}, ended at {good[0]['lsn']['stop']}"
    if not fitting:
        raise RefusedError(
            f"{target} lies before the first backup: {first}", "choose a later target, or another repository"
        )
    return fitting


def point_of(settings: Settings, target: Target) -> tuple[str, int]:
    """Return the LSN and the timeline of a restore point that was made on this host.

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
            return str(point["lsn"]), int(point["timeline"])
    digests = receipts.read(settings, f"digests/{target.value}.json") if "/" not in target.value else None
    if digests is not None:
        return str(digests["lsn"]), int(digests["wal_file"][:8], 16)
    known = ", ".join(point["name"] for point in points["points"]) or "none"
    raise RefusedError(f"this host does not know the restore point {target.value!r} (known: {known})", hint)


def choose_timeline(settings: Settings, target: Target, newest: dict[str, Any], known: list[int]) -> int:
    """Return the timeline to follow; with several to choose from, only the operator can know which one was meant.

    ``newest`` is the newest backup before the target, ``known`` are the timelines of the archive.

    Raises:
        RefusedError: there are timelines younger than the backup's, the target may be on each of them, and none was named; or there is
            none of the number that was named.
    """
    own, shown = timelines.of(newest), ", ".join(map(str, sorted(set(known))))
    if target.timeline.isdigit():
        if int(target.timeline) not in known:
            raise RefusedError(f"the archive has no timeline {target.timeline}", f"it has {shown}")
        return int(target.timeline)
    if target.timeline == "current" or target.kind == "immediate":
        return own
    if target.timeline == "latest" or target.kind == "latest":
        return max(known)
    if target.kind == "name":
        try:
            return point_of(settings, target)[1]
        except RefusedError:
            # Then a set was named, and the point may have been made on another host.
            if not target.set:
                raise
    younger = sorted({entry for entry in known if entry > own})
    if not younger:
        return own
    raise RefusedError(
        f"after {newest['label']} the archive holds timelines {', '.join(map(str, [own, *younger]))}: each restore began a new one, "
        f"and {target} may exist on several",
        f"add timeline: {own} for what was before the restores, {younger[-1]} (or latest) for what came after the last one",
    )
