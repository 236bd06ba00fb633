"""How fresh and how sound backups are: facts, collected from pgBackRest, PostgreSQL and the drills' receipts, and what to think of them."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from pgchroma.backup import pgbackrest, state
from pgchroma.backup.pgbackrest import Repository
from pgchroma.errors import PgchromaError
from pgchroma.store import backups, failures
from pgchroma.store.backups import Archiver, StoredPoint
from pgchroma.verify.checks import Check, check

_MINUTE, _HOUR, _DAY = 60.0, 3_600.0, 86_400.0


@dataclass(frozen=True, slots=True)
class Limits:
    """From where on a value is a warning, and from where on critical."""

    warning: float
    critical: float


@dataclass(frozen=True, slots=True)
class Thresholds:
    """What counts as too old or too many; ages in seconds."""

    full_age: Limits = Limits(8 * _DAY, 15 * _DAY)
    backup_age: Limits = Limits(26 * _HOUR, 50 * _HOUR)
    wal_age: Limits = Limits(3 * _MINUTE, 10 * _MINUTE)
    ready_files: Limits = Limits(8, 64)
    drill_age: Limits = Limits(9 * _DAY, 16 * _DAY)


@dataclass(slots=True)
class Facts:
    """What is known of the backups of a cluster; an `*_error` says why something is not.

    Attributes:
        now: seconds since 1970, when this was collected.
        point: the newest restore point whose digests are complete.
        drills: the newest drill's receipt of each repository.
        first_backups: when the first backup was taken into each repository.
    """

    stanza: str
    now: float
    repositories: list[Repository] = field(default_factory=list)
    repositories_error: str = ""
    archiver: Archiver | None = None
    point: StoredPoint | None = None
    database_error: str = ""
    database_remedy: str = ""
    drills: list[dict[str, Any]] = field(default_factory=list)
    drill_error: str = ""
    first_backups: dict[int, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the facts as a JSON object."""
        return asdict(self)

    @property
    def drills_by_repository(self) -> dict[int, dict[str, Any]]:
        """The newest drill's receipt by its repository; those of repositories that are no more are left out."""
        known = {0, *(item.key for item in self.repositories)}
        return {
            drill["repository"]: drill
            for drill in self.drills
            if self.repositories_error or drill["repository"] in known
        }

    @property
    def never_drilled(self) -> dict[int, float]:
        """Since when there has been a backup in the repositories that were never drilled, in seconds since 1970."""
        drilled = self.drills_by_repository
        keys = [item.key for item in self.repositories if item.key not in drilled and 0 not in drilled]
        return {key: self.first_backups[key] for key in keys if key in self.first_backups}


def drill_started(drill: dict[str, Any]) -> float:
    """Return when a drill began, in seconds since 1970."""
    return datetime.fromisoformat(drill["started_at"]).timestamp()


async def collect(
    stanza: str, database_url: str, directory: Path, *, program: str, recorded: Path | None = None
) -> Facts:
    """Return the facts; what cannot be had is noted in them and is no error."""
    facts = Facts(stanza, datetime.now(UTC).timestamp())
    try:
        facts.repositories = pgbackrest.info(stanza, program, recorded)
    except PgchromaError as error:
        facts.repositories_error = error.message
    try:
        async with await backups.connect(database_url, "pgchroma backup status") as connection:
            facts.archiver = await backups.archiver(connection)
            facts.point = next(iter(await backups.newest_points(connection, completed=True)), None)
    except (PgchromaError, psycopg.Error) as error:
        known = error if isinstance(error, PgchromaError) else failures.explained(error)
        if isinstance(known, PgchromaError):
            facts.database_error, facts.database_remedy = known.message, known.hint
        else:
            facts.database_error = failures.reason(known)
    try:
        facts.drills = state.read_drills(directory)
    except PgchromaError as error:
        facts.drill_error = error.message
    facts.first_backups = state.read_first_backups(directory)
    return facts


def age(seconds: float) -> str:
    """Return a length of time for a person, e.g. `3 d 4 h`."""
    whole = int(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 2 * _HOUR:
        return f"{whole // 60} min"
    if whole < 2 * _DAY:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def _limited(ident: str, value: float, limits: Limits, detail: str, hint: str) -> Check:
    critical = value >= limits.critical
    return check(ident, "critical" if critical else "warning", value < limits.warning, detail, hint)


def judge(facts: Facts, thresholds: Thresholds) -> list[Check]:
    """Return the outcome of every check of the facts."""
    return [*_repositories(facts, thresholds), *_archiving(facts, thresholds), *_drills(facts, thresholds)]


def _repositories(facts: Facts, thresholds: Thresholds) -> Iterator[Check]:
    if facts.repositories_error:
        yield check(
            "repositories",
            "critical",
            False,
            facts.repositories_error,
            "without an answer from pgBackRest nothing is known about backups",
        )
        return
    for repository in facts.repositories:
        name = f"repository-{repository.key}"
        yield check(
            name,
            "critical",
            repository.code == 0,
            repository.message,
            repository.remedy,
        )
        for ident, types, limits in (
            (f"{name}-full", ("full",), thresholds.full_age),
            (f"{name}-newest", (), thresholds.backup_age),
        ):
            newest = repository.newest(*types)
            if newest is None:
                detail = "there is none without damaged pages" if repository.backups else "there is none"
                yield check(ident, "critical", False, detail, "run playbooks/backup.yml")
                continue
            old = facts.now - newest.stopped
            yield _limited(
                ident,
                old,
                limits,
                f"{newest.label}, {age(old)} old",
                "see why the timer's last run failed: systemctl list-timers, journalctl",
            )
        last = repository.last
        if last is not None:
            yield check(
                f"{name}-sound",
                "critical",
                not last.damaged,
                f"{last.label}: " + ("pages with a wrong checksum" if last.damaged else "no damaged pages"),
                "the cluster itself is damaged: fail over or restore an older set, see docs/runbooks/",
            )


def _archiving(facts: Facts, thresholds: Thresholds) -> Iterator[Check]:
    seen = facts.archiver
    if seen is None or facts.database_error:
        yield check(
            "database",
            "critical" if seen is None else "warning",
            False,
            facts.database_error,
            facts.database_remedy or "start PostgreSQL, or name it by --database-url",
        )
    if seen is None:
        return
    last = "never" if seen.last_archived_seconds is None else f"{age(seen.last_archived_seconds)} ago"
    yield check(
        "archiving",
        "critical",
        seen.archiving,
        f"archive_mode is on, last file archived {last}" if seen.archiving else "archive_mode is off",
        "set archive_mode and archive_command; the role pgbackrest does",
    )
    if seen.ready_files is None:
        yield check(
            "wal-waiting",
            "warning",
            False,
            "not known: the role may not look",
            "connect as a member of pg_monitor",
        )
    else:
        detail = f"{seen.ready_files} WAL files wait to be archived"
        if seen.ready_files:
            detail += f", the oldest for {age(seen.oldest_ready_seconds)}"
        hint = "what was written since is lost with this host; see PostgreSQL's log and `pgbackrest check`"
        yield _limited("wal-waiting", seen.oldest_ready_seconds, thresholds.wal_age, detail, hint)
        yield _limited("wal-files", seen.ready_files, thresholds.ready_files, detail, hint)
    yield check(
        "archive-command",
        "warning",
        not seen.failing,
        f"{seen.failed_count} failures, {seen.archived_count} files archived",
        "the last attempt failed: see PostgreSQL's log",
    )
    yield check(
        "page-checksums",
        "critical",
        seen.checksum_failures == 0,
        f"{seen.checksum_failures} pages with a wrong checksum were read",
        "the cluster is damaged: fail over or restore, see docs/runbooks/",
    )
    yield _digests(facts)


def _digests(facts: Facts) -> Check:
    newest = max((found.stopped for item in facts.repositories if (found := item.newest())), default=None)
    point = facts.point
    if point is None:
        detail, holds = "none recorded", newest is None
    else:
        detail = f"{point.name}, {point.records or 0:,} records"
        holds = newest is None or (
            # The start of the backup that follows is not yet behind a point; an hour is more than any digest takes.
            point.completed_at is not None and point.created_at.timestamp() > newest - _HOUR
        )
    return check(
        "digests",
        "warning",
        holds,
        detail if holds else f"{detail}: the newest backup has none",
        "run `pgchroma backup record-digests` after every backup; on a host `pgchroma-postgres backup record-digests`",
    )


def _drills(facts: Facts, thresholds: Thresholds) -> Iterator[Check]:
    if facts.drill_error:
        yield check("drill", "warning", False, facts.drill_error, "run playbooks/restore_drill.yml")
    drilled = facts.drills_by_repository
    if 0 in drilled:
        yield from _drill("drill", drilled[0], facts.now, thresholds.drill_age)
        return
    # They take turns, so each may be as much older as there are others.
    turns = max(1, len(facts.repositories))
    limits = Limits(thresholds.drill_age.warning * turns, thresholds.drill_age.critical * turns)
    for key in sorted({*drilled, *(item.key for item in facts.repositories)}):
        name = f"repository-{key}-drill"
        if key in drilled:
            yield from _drill(name, drilled[key], facts.now, limits)
        else:
            hint = f"run playbooks/restore_drill.yml with -e restore_drill_repository={key}"
            yield check(name, "warning", False, "no backup in it was ever restored for a test", hint)


def _drill(name: str, drill: dict[str, Any], now: float, limits: Limits) -> Iterator[Check]:
    message = f": {drill['message']}" if drill.get("message") else ""
    yield check(
        name,
        "critical",
        drill["result"] == "ok",
        f"{drill['result']} after {age(drill['duration_seconds'])}{message}",
        "backups may be useless: read the drill's receipt and its log, then run playbooks/restore_drill.yml",
    )
    old = now - drill_started(drill)
    yield _limited(f"{name}-age", old, limits, f"{age(old)} old", "run playbooks/restore_drill.yml")
