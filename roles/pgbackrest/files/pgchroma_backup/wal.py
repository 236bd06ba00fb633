"""Sending the running server's WAL away: what no repository holds cannot be restored."""

from __future__ import annotations

import time

from . import engine, timelines
from .errors import UNREACHABLE, BackupError
from .settings import Settings

# A repository is asked itself only when the archiver takes longer than usual: it succeeds once all of them hold the segment.
LOOK_SECONDS = 3


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
    info = engine.information(settings, number)
    fault = engine.repository_fault(info, settings, number)
    if fault is not None:
        raise fault
    newest = max((entry["id"] for entry in info["db"]), default=0)
    for entry in info["archive"]:
        if entry["database"] == {"id": newest, "repo-key": number}:
            return f"archive/{settings.stanza}/{entry['id']}"
    raise BackupError(
        f"{settings.repository(number)} holds no WAL of the cluster",
        "site.yml creates the stanza",
        UNREACHABLE,
    )


def wait(settings: Settings, name: str, number: int) -> None:
    """Wait until a repository holds a segment, whatever becomes of the others.

    pg_stat_archiver alone does not tell: PostgreSQL counts a segment as archived only when no repository refused it.

    Raises:
        BackupError: the repository cannot be read, or did not get the segment in time.
    """
    deadline = time.monotonic() + settings.flush_seconds
    look, path = time.monotonic() + LOOK_SECONDS, ""
    while not is_everywhere(settings, name):
        if time.monotonic() > look:
            path = path or folder(settings, number)
            if name[:16] in timelines.listed(settings, number, path):
                files = timelines.listed(settings, number, f"{path}/{name[:16]}")
                if any(file.startswith(f"{name}-") for file in files):
                    return
            look = time.monotonic() + LOOK_SECONDS
        if time.monotonic() > deadline:
            raise BackupError(
                f"{name} did not come to {settings.repository(number)} within {settings.flush_seconds} s",
                "the PostgreSQL log says why archive_command fails",
                UNREACHABLE,
            )
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
            f"{error.message}; what was written last could not be restored", hint, error.code
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
