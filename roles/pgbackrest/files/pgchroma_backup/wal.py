"""Sending the running server's WAL away: what no repository holds cannot be restored."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from . import engine, receipts, timelines
from .errors import UNREACHABLE, BackupError
from .settings import Settings

# How long the archiver is given before WAL is sent by hand. It succeeds once every repository holds a segment, and with one away it is at
# work on each for twenty times io-timeout, pauses for a minute and begins anew.
USUAL_SECONDS = 5
# In memory, and for postgres alone: a configuration has passphrases in it.
PLACE = Path("/run/pgbackrest")
REPOSITORY_OPTION = re.compile(r"repo(\d+)-")


def switch(settings: Settings) -> str:
    """Have the server commit something and finish its WAL segment; return the segment's name.

    A target time is only recognised by a later commit; without this one an idle hour could not be restored to.
    """
    engine.query(settings, "SELECT pg_current_xact_id()")
    return engine.query(settings, "SELECT pg_walfile_name(pg_switch_wal())")[0]


def is_everywhere(settings: Settings, name: str) -> bool:
    """Whether PostgreSQL knows that a segment is archived, which is so when every repository holds it."""
    statement = "SELECT coalesce(last_archived_wal, '') >= :'name' FROM pg_stat_archiver"
    return engine.query(settings, statement, name=name)[0] == "t"


def folder(settings: Settings, number: int) -> str:
    """Return the folder of a repository that holds the WAL of the running cluster.

    Raises:
        BackupError: the repository cannot be read, or holds no WAL of it.
    """
    info = engine.holding(settings, number)
    newest = max((entry["id"] for entry in info["db"]), default=0)
    for entry in info["archive"]:
        if entry["database"] == {"id": newest, "repo-key": number}:
            return f"archive/{settings.stanza}/{entry['id']}"
    raise BackupError(
        f"{settings.repository(number)} holds no WAL of the cluster",
        "site.yml creates the stanza",
        UNREACHABLE,
    )


def timeline(settings: Settings) -> int:
    """Return the timeline that the running server writes on."""
    return int(engine.query(settings, "SELECT pg_walfile_name(pg_current_wal_lsn())")[0][:8], 16)


def waiting(settings: Settings, name: str = "") -> list[str]:
    """Return the files of WAL that PostgreSQL has not archived yet, oldest first; with a name only those up to that segment."""
    statement = "SELECT name FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready' ORDER BY name"
    found = [line.removesuffix(".ready") for line in engine.query(settings, statement)]
    return [file for file in found if not name or file.endswith(".history") or file <= name]


@contextmanager
def only(settings: Settings, number: int) -> Iterator[Settings]:
    """Have pgBackRest know one repository alone: what is pushed goes to every one that it knows."""
    text = Path(settings.config).read_text(encoding="utf-8")
    kept = [
        line
        for line in text.splitlines()
        if (found := REPOSITORY_OPTION.match(line)) is None or int(found[1]) == number
    ]
    with tempfile.NamedTemporaryFile("w", dir=PLACE, suffix=".conf") as file:
        file.write("\n".join(kept) + "\n")
        file.flush()
        receipts.give(Path(file.name))
        yield replace(settings, config=file.name)


def push(settings: Settings, name: str, number: int) -> None:
    """Send what is not archived, up to a segment, into one repository by hand.

    Raises:
        BackupError: the repository does not take it.
    """
    held: dict[str, list[str]] = {}
    path = folder(settings, number)
    timeless = timelines.listed(settings, number, path)
    with only(settings, number) as alone:
        for file in waiting(settings, name):
            place = file[:16]
            if timelines.FOLDER.match(place) and place in timeless and place not in held:
                held[place] = timelines.listed(settings, number, f"{path}/{place}")
            if any(other.startswith(file) for other in [*timeless, *held.get(place, [])]):
                continue
            deliver(alone, settings.data / "pg_wal" / file, number)


def deliver(alone: Settings, file: Path, number: int) -> None:
    """Send a file of WAL into one repository; ``alone`` is what only() yields for it.

    Raises:
        BackupError: the repository does not take it.
    """
    done = engine.run([*engine.command_line(alone, "archive-push", "--no-archive-async"), str(file)])
    if done.status != 0:
        raise engine.explained(f"sending {file.name} into {alone.repository(number)}", done.output)


def wait(settings: Settings, name: str, number: int) -> None:
    """Have a repository hold everything up to a segment, whatever becomes of the others.

    pg_stat_archiver alone does not tell: PostgreSQL counts a segment as archived only when no repository refused it.

    Raises:
        BackupError: the repository cannot be read, or does not take the segment.
    """
    deadline = time.monotonic() + USUAL_SECONDS
    while not is_everywhere(settings, name):
        if time.monotonic() > deadline:
            try:
                push(settings, name, number)
            except BackupError:
                # What was archived meanwhile may be gone from pg_wal already.
                if not is_everywhere(settings, name):
                    raise
            return
        time.sleep(0.2)


def flush(settings: Settings, number: int) -> None:
    """Have a repository hold every moment until now.

    Raises:
        BackupError: it did not get there; nothing was stopped.
    """
    try:
        wait(settings, switch(settings), number)
    except BackupError as error:
        hint = (
            f"{error.hint}. PostgreSQL was not stopped and nothing was moved. Name a repository that answers; or with "
            '"unarchived_lost": true do without what was written last'
        )
        raise BackupError(
            f"what was written last could not be restored: {error.message}", hint, error.code
        ) from error


def missing(settings: Settings, name: str) -> dict[int, BackupError]:
    """Wait until every repository holds a segment, and return for each that does not get it what is in its way."""
    found = {}
    for repository in settings.repositories:
        try:
            wait(settings, name, repository.number)
        except BackupError as error:
            found[repository.number] = error
    return found
