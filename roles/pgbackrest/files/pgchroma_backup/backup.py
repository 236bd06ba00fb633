"""Taking backups and judging them by what the repository then holds, never by pgBackRest's exit status alone."""

from __future__ import annotations

import json
import re
import time
from typing import Any

from . import engine, receipts
from .errors import BackupError, DamagedError, joined
from .settings import Repository, Settings

# The receipt of a backup: its label, such as 20261121-080000F_20261122-080000I, and the name of its repository.
RECEIPT = re.compile(r"backup-(?P<label>\d{8}-\d{6}F(?:_\d{8}-\d{6}[DI])?)-(?P<name>.+)\.json")
# The lock that is held for as long as backups are taken and their digests are not recorded yet.
AT_WORK = "backup"


def backups_of(info: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """Return the backups in one repository, oldest first."""
    return [entry for entry in info["backup"] if entry["database"]["repo-key"] == number]


def stored_bytes(entry: dict[str, Any]) -> int:
    """Return what a backup takes in its repository beyond those it builds on."""
    stored = entry["info"]["repository"]
    return int(stored.get("delta", stored.get("size", 0)))


def labels(settings: Settings, repository: Repository) -> list[dict[str, Any]]:
    """Return the backups in one repository as it is now, oldest first.

    Raises:
        BackupError: it cannot be read.
    """
    return backups_of(engine.holding(settings, repository.number), repository.number)


def record_digests(settings: Settings, last: dict[str, Any]) -> dict[str, Any]:
    """Have pgchroma make a restore point right after a backup and record the digest of every collection exactly there.

    A drill restores to that point and must find the same. Returns ``{"recorded": bool, "detail": ...}``; a failure is told, and the
    backup counts all the same.
    """
    if not settings.pgchroma_command:
        return {"recorded": False, "detail": "no pgchroma on this host"}
    command = [settings.pgchroma_command, "backup", "record-digests", "--format", "json"]
    command += ["--database-url", database_url(settings), "--state-dir", settings.state_dir]
    command += ["--backup-label", last["label"], "--backup-type", last["type"]]
    try:
        done = engine.run(command, timeout=3600)
    except BackupError as error:
        return {"recorded": False, "detail": str(error)}
    if done.status != 0:
        return {"recorded": False, "detail": engine.readable(done.output.strip())[-600:]}
    try:
        return {"recorded": True, "detail": json.loads(done.output)}
    except ValueError:
        return {"recorded": True, "detail": done.output.strip()[-600:]}


def database_url(settings: Settings, socket: str = "", port: int = 0) -> str:
    """Return the URL by which the superuser reaches the database of pgchroma."""
    where = f"host={socket or settings.socket_dir}&port={port or settings.port}&user=postgres"
    return f"postgresql:///{settings.database}?{where}"


def met(settings: Settings) -> list[BackupError]:
    """Return what is to be said of damaged pages that PostgreSQL has met, or of its not telling."""
    try:
        failures = checksum_failures(settings)
    except BackupError as error:
        return [error]
    if not failures:
        return []
    text = f"PostgreSQL has met {failures} pages with a wrong checksum since its statistics were reset"
    hint = "find them with `pg_amcheck --all`; when they are repaired, reset the count: SELECT pg_stat_reset() in that database"
    return [DamagedError(text, hint)]


def checksum_failures(settings: Settings) -> int:
    """Return how many pages with a wrong checksum PostgreSQL has met since its statistics were last reset."""
    statement = "SELECT coalesce(sum(checksum_failures), 0) FROM pg_stat_database"
    return int(engine.query(settings, statement)[0])


def damage(settings: Settings, repository: Repository, entry: dict[str, Any]) -> str:
    """Return which files of the cluster had a wrong page checksum in a backup, or the empty string when none had."""
    if not entry["error"]:
        return ""
    options = (f"--repo={repository.number}", f"--set={entry['label']}", "--log-level-console=off")
    text = engine.pgbackrest(settings, "reading the backup", "info", *options)
    for line in text.splitlines():
        if "error(s) detected" in line or "page checksum error" in line:
            return line.strip()
    return "page checksum errors"


def take(settings: Settings, kind: str, repository: Repository) -> dict[str, Any]:
    """Take one backup into one repository and return its receipt, which is also kept in the state directory.

    Raises:
        DamagedError: pages of the cluster have a wrong checksum; the backup is kept, older ones are not to be expired.
        BackupError: no backup was taken.
        OSError: it was taken, and its receipt could not be written.
    """
    what = f"{kind} backup into {repository}"
    before = {entry["label"] for entry in labels(settings, repository)}
    started = time.time()
    engine.pgbackrest(settings, what, "backup", *options_of(repository, kind))
    made = [entry for entry in labels(settings, repository) if entry["label"] not in before]
    if not made:
        raise BackupError(
            f"{what}: pgBackRest ended well, but the repository holds no new backup",
            "see /var/log/pgbackrest",
        )
    entry = made[-1]
    found = damage(settings, repository, entry)
    receipt = {
        "kind": "backup",
        "stanza": settings.stanza,
        "label": entry["label"],
        "type": entry["type"],
        "repository": {"number": repository.number, "name": repository.name, "type": repository.kind},
        "started": receipts.stamp(started),
        "finished": receipts.now(),
        "seconds": round(time.time() - started, 1),
        "cluster_bytes": entry["info"]["size"],
        "stored_bytes": stored_bytes(entry),
        "lsn": entry["lsn"],
        "wal": entry["archive"],
        "result": "damaged" if found else "ok",
        "detail": found,
    }
    keep(settings, receipt)
    if found:
        error = DamagedError(
            f"{what}: {entry['label']} was taken, but holds damaged pages: {found}",
            "Nothing was expired. Find the table with `pg_amcheck --all` and `SELECT ...::regclass`, restore the newest backup before it "
            "(restore.yml with set), then take a full backup",
        )
        error.receipt = receipt
        raise error
    return receipt


def tidy(settings: Settings, repository: Repository, kind: str) -> None:
    """Expire what a repository need not hold any more, after a good backup of a kind was taken into it, and the receipts of that.

    Raises:
        BackupError: it could not be done; the backup is there all the same.
    """
    note_first(settings, repository)
    try:
        if kind == "full":
            drop_damaged(settings, repository)
        what = f"expiring old backups of {repository}"
        engine.pgbackrest(settings, what, "expire", f"--repo={repository.number}")
        forget(settings, repository)
    except BackupError as error:
        hint = f"the new backup is there and good; old ones stay until the next one. {error.hint}"
        raise BackupError(error.message, hint, error.code) from error


def built_on(entry: dict[str, Any], entries: list[dict[str, Any]]) -> set[str]:
    """Return the labels of the backups that one is built on, its full one last of all."""
    by_label = {other["label"]: other for other in entries}
    found: set[str] = set()
    while entry["prior"] in by_label:
        entry = by_label[entry["prior"]]
        found.add(entry["label"])
    return found


def drop_damaged(settings: Settings, repository: Repository) -> None:
    """Remove damaged backups that no good one is built on, now that there is a good full one.

    Retention counts a damaged one like any other: left there, it would push a good one out.
    """
    entries = labels(settings, repository)
    needed = {label for entry in entries if not entry["error"] for label in built_on(entry, entries)}
    # The newest first: what is built on a damaged one goes before it.
    for entry in reversed(entries):
        if entry["error"] and entry["label"] not in needed:
            options = (f"--repo={repository.number}", f"--set={entry['label']}")
            engine.pgbackrest(
                settings, f"removing the damaged {entry['label']} of {repository}", "expire", *options
            )


def keep(settings: Settings, receipt: dict[str, Any]) -> None:
    """Write the receipt of a backup."""
    receipts.write(settings, f"backup-{receipt['label']}-{receipt['repository']['name']}.json", receipt)


def first_into(repository: Repository) -> str:
    """Return the name of the receipt that outlives every backup: since when there has been one to drill."""
    return f"first-backup-{repository.name}.json"


def note_first(settings: Settings, repository: Repository) -> None:
    """Note when the first backup was taken into a repository, once."""
    name = first_into(repository)
    if receipts.read(settings, name) is None:
        where = {"number": repository.number, "name": repository.name}
        receipts.write(settings, name, {"kind": "first-backup", "repository": where, "time": receipts.now()})


def forget(settings: Settings, repository: Repository) -> None:
    """Remove the receipts of backups that have expired."""
    known = {entry["label"] for entry in labels(settings, repository)}
    # Labels hold no hyphen but the first: "backup-20261121-080000F-NAME.json", where NAME may hold some.
    for path in settings.state.glob(f"backup-*-{repository.name}.json"):
        found = RECEIPT.match(path.name)
        if found and found["name"] == repository.name and found["label"] not in known:
            path.unlink(missing_ok=True)


def options_of(repository: Repository, kind: str) -> tuple[str, ...]:
    """Return pgBackRest's options for a backup; it must not expire any: a damaged backup would push a good one out."""
    return (f"--repo={repository.number}", f"--type={kind}", "--no-expire-auto")


def plan(settings: Settings, kind: str, wanted: list[str]) -> dict[str, Any]:
    """Return what taking backups would do, and a text for people; a repository that cannot be read is shown as such. Changes nothing.

    Raises:
        BackupError: there is no repository of that number or name.
    """
    lines = []
    for repository in settings.chosen(wanted):
        lines.append(f"Take {'an' if kind == 'incr' else 'a'} {kind} backup into {repository}")
        try:
            held = labels(settings, repository)
        except BackupError as error:
            lines.append(f"  CANNOT BE READ: {error.message}")
            continue
        newest = (
            f"the newest is {held[-1]['label']}, ended {receipts.stamp(held[-1]['timestamp']['stop'])}"
            if held
            else "it will be a full one"
        )
        lines.append(f"  backups    {len(held)}; {newest}")
        command = engine.command_line(settings, "backup", *options_of(repository, kind))
        lines.append(f"  {' '.join(command)}")
    return {"kind": "backup-plan", "text": "\n".join(lines)}


def run(
    settings: Settings, kind: str, wanted: list[str], *, only_if_none: bool = False
) -> list[dict[str, Any]]:
    """Take a backup into each repository named, or into all that this host backs up into; return the receipts.

    One repository that fails does not keep the others from their backup. With ``only_if_none`` those that hold one already are passed
    over.

    Raises:
        BackupError: at least one backup was not taken or is damaged, or old ones could not be expired; the message names each.
    """
    chosen = settings.chosen(wanted)
    if only_if_none:
        info = engine.information(settings)
        chosen = [repository for repository in chosen if not backups_of(info, repository.number)]
    if not chosen:
        return []
    done: list[dict[str, Any]] = []
    errors: list[BackupError] = []
    with receipts.at_work(settings, AT_WORK):
        for repository in chosen:
            try:
                done.append(take(settings, kind, repository))
                tidy(settings, repository, done[-1]["type"])
            except BackupError as error:
                errors.append(error)
            except OSError as error:
                errors.append(engine.on_this_host(f"{kind} backup into {repository}", error))
        digests = record_digests(settings, done[-1]) if done else {}
    try:
        for receipt in done:
            receipt["digests"] = digests
            keep(settings, receipt)
    except OSError as error:
        errors.append(engine.on_this_host("the receipts of the backups", error))
    errors += met(settings)
    if errors:
        error = joined(errors)
        damaged = [entry.receipt for entry in errors if entry.receipt is not None]
        error.receipt = {"kind": "backups", "backups": [*done, *damaged]}
        raise error
    if settings.pgchroma_command and not digests["recorded"]:
        hint = "the backups are good; without digests a drill cannot compare records. Run the command by hand to see why"
        raise BackupError(f"the collections' digests were not recorded: {digests['detail']}", hint)
    return done
