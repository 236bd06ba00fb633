"""The hourly check: does WAL reach every repository without a gap, and are backups and the drill as young as they must be?"""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

from . import backup, drill, engine, gaps, receipts
from .errors import BackupError
from .settings import Repository, Settings

ARCHIVER = """
SELECT current_setting('archive_mode'),
       coalesce(extract(epoch FROM now() - last_archived_time), -1)::bigint,
       (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'),
       coalesce(last_failed_wal, ''), failed_count
FROM pg_stat_archiver
"""


def result(check: str, problem: str, detail: str, hint: str) -> dict[str, str]:
    """Return one finding; an empty problem is none."""
    status = "failed" if problem else "ok"
    return {"id": check, "status": status, "detail": problem or detail, "hint": hint if problem else ""}


def archiver(settings: Settings) -> list[dict[str, str]]:
    """Judge PostgreSQL's archiver by the segments that wait, not by its count of failures, which stays 0 for a minute."""
    mode, age, ready, failed, _ = engine.query(settings, ARCHIVER)[0].split("\t")
    waiting = int(ready) > settings.ready_files_maximum
    last = "never" if int(age) < 0 else f"{age} s ago"
    detail = f"{ready} segments wait, the last was archived {last}"
    hint = "the PostgreSQL log says why archive_command fails; until it works pg_wal grows"
    return [
        result(
            "archive.mode",
            "" if mode != "off" else "archive_mode is off: nothing is archived",
            mode,
            "restart PostgreSQL",
        ),
        result(
            "archive.ready", f"{detail}; last failure at {failed or 'none'}" if waiting else "", detail, hint
        ),
    ]


def round_trip(settings: Settings) -> dict[str, str]:
    """Have PostgreSQL finish a segment and wait until every repository holds it."""
    try:
        what = "sending WAL through every repository"
        engine.pgbackrest(settings, what, "check", f"--archive-timeout={settings.archive_wait_seconds}")
    except BackupError as error:
        return result("archive.round_trip", error.message, "", error.hint)
    return result("archive.round_trip", "", "a segment reached every repository", "")


def whole(settings: Settings) -> list[dict[str, str]]:
    """See that WAL leads from the newest backup of each repository to the cluster without a gap; what another one holds is sent."""
    found = []
    for one in gaps.evened(settings):
        repository, lost = one.repository, one.lost
        name = f"wal.{repository.name}"
        if one.fault is not None:
            found.append(result(name, one.fault.message, "", one.fault.hint))
            continue
        sent = f"; {gaps.told(one.lacked)} was sent from another one" if one.lacked else ""
        problem = (
            f"{repository} lacks {gaps.told(lost)}, and so do the others: a restore from it ends before that"
            if lost
            else ""
        )
        detail = f"WAL leads on from the newest backup{sent}"
        hint = (
            f"run backup.yml with -e backup_repository={repository.number}: from that backup on it is whole"
        )
        found.append(result(name, problem, detail, hint))
    return found


def ages(settings: Settings) -> list[dict[str, str]]:
    """Judge the age of the newest backup in each repository."""
    info = engine.information(settings)
    limit = settings.backup_age_hours_maximum
    found = []
    for repository in settings.repositories:
        name = f"backup.{repository.name}"
        fault = engine.repository_fault(info, settings, repository.number)
        good = [entry for entry in backup.backups_of(info, repository.number) if not entry["error"]]
        hint = f"run backup.yml with -e backup_repository={repository.number}"
        if fault is not None:
            found.append(result(name, fault.message, "", fault.hint))
        elif not good:
            found.append(result(name, f"{repository} holds no backup without errors", "", hint))
        else:
            hours = (time.time() - good[-1]["timestamp"]["stop"]) / 3600
            detail = f"{good[-1]['label']} is {hours:.1f} h old (at most {limit} h)"
            found.append(result(name, detail if hours > limit else "", detail, hint))
    return found


def drills(settings: Settings) -> list[dict[str, str]]:
    """Judge the last drill of each repository: it must have held, and not too long ago. None counts from the first backup on.

    Repositories take turns, so each may be as much older as there are others.
    """
    repositories = drill.in_turn(settings)
    limit = settings.drill_age_days_maximum * len(repositories)
    return [last_drill(settings, repository, limit) for repository in repositories]


def last_drill(settings: Settings, repository: Repository, limit: int) -> dict[str, str]:
    """Judge the last drill of one repository."""
    name, hint = (
        f"drill.{repository.name}",
        f"run restore_drill.yml with -e restore_drill_repository={repository.number}",
    )
    last = receipts.read(settings, drill.last_of(repository))
    if last is None:
        first = receipts.read(settings, backup.first_into(repository))
        days = days_since(first["time"]) if first else 0.0
        problem = (
            f"no backup in {repository} has been restored for {days:.0f} days (at most {limit})"
            if days > limit
            else ""
        )
        return result(name, problem, "none yet", hint)
    days = days_since(last["finished"])
    detail = f"{last['result']}, {days:.1f} days ago (at most {limit}), {last['seconds']} s, {last['backup_label']}"
    bad = last["result"] != "ok" or days > limit
    return result(name, f"{detail}: {last['detail']}" if bad else "", detail, hint)


def days_since(stamp: str) -> float:
    """Return how many days ago a receipt's moment was."""
    return (time.time() - datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()) / 86400


def run(settings: Settings) -> list[dict[str, Any]]:
    """Return every finding; what cannot be asked is a finding too."""
    found: list[dict[str, Any]] = []
    try:
        found += archiver(settings)
    except BackupError as error:
        found.append(result("archive.ready", error.message, "", error.hint))
    found.append(round_trip(settings))
    found += whole(settings)
    try:
        found += ages(settings)
    except BackupError as error:
        found.append(result("backup", error.message, "", error.hint))
    found += drills(settings)
    failed = [entry["id"] for entry in found if entry["status"] != "ok"]
    receipts.write(
        settings, "check.json", {"kind": "check", "time": receipts.now(), "ok": not failed, "checks": found}
    )
    return found
