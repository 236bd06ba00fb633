"""How a target is reached: from which repository, by which backup, on which timeline."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import backup, engine, receipts, timelines
from .errors import RefusedError, joined
from .settings import Settings
from .target import Target, is_number
from .timelines import lsn_number

Look = Callable[[int], dict[str, Any]]


def choose_repository(settings: Settings, target: Target, look: Look) -> tuple[int, dict[str, Any]]:
    """Return the repository to restore from, and what it holds: the one named, else the first that can be read and has what is needed.

    ``look`` returns the information of one repository; none after the first that fits is asked.

    Raises:
        BackupError: the one named cannot be read, or none can.
    """
    named = [entry.number for entry in settings.given(target.repository)]
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


def refuse_future(target: Target) -> None:
    """Refuse a time that has not come."""
    if target.kind == "time" and target.moment > time.time():
        raise RefusedError(
            f"{target.value} has not come yet; it is {receipts.now()}", "give a time that has passed"
        )


def refuse_outside(target: Target, entry: dict[str, Any]) -> None:
    """Refuse a moment that has not come, or that lies before the end of the set named: recovery could only stop after it."""
    refuse_future(target)
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
        refuse_future(target)
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
    points = receipts.read(settings, receipts.POINTS) or {"points": []}
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
    if is_number(target.timeline):
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
