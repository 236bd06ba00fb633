"""Recording what there is to restore, and what a drill found."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg

import pgchroma
from pgchroma.backup import state
from pgchroma.errors import ConfigurationError, PgchromaError
from pgchroma.store import backups
from pgchroma.store.backups import Drill, Point

# PostgreSQL's limit for the name of a restore point.
_LONGEST_NAME = 63


def default_name() -> str:
    """Return a name for a restore point made now, e.g. pgchroma-20260131T235959Z."""
    return state.now().strftime("pgchroma-%Y%m%dT%H%M%SZ")


async def record_digests(
    database_url: str,
    directory: Path,
    *,
    name: str | None = None,
    backup_label: str | None = None,
    backup_type: str | None = None,
    patience_seconds: float = 600.0,
    wait_archived_seconds: float = 60.0,
) -> tuple[Point, Path]:
    """Make a restore point, record what the database holds exactly there; return it and the file it was written to.

    Raises:
        ConfigurationError: the name is impossible or taken, or the directory cannot be written to.
        DatabaseNotReadyError, DatabaseUnreachableError, RefusedError: see store.backups.make_point.
    """
    chosen = name or default_name()
    if len(chosen.encode()) > _LONGEST_NAME or not all(
        character.isascii() and (character.isalnum() or character in "-_.") for character in chosen
    ):
        raise ConfigurationError(
            f"{chosen!r} cannot be the name of a restore point",
            hint=f"use at most {_LONGEST_NAME} characters from A-Z a-z 0-9 - _ .",
        )
    # Asked before the work, not after it.
    state.write_atomically(directory / "digests" / ".writable", "")
    point = await backups.make_point(
        database_url,
        chosen,
        backup_label=backup_label,
        backup_type=backup_type,
        patience_seconds=patience_seconds,
        wait_archived_seconds=wait_archived_seconds,
    )
    path = state.write_point(
        directory,
        point,
        backup_label=backup_label,
        backup_type=backup_type,
        version=pgchroma.__version__,
    )
    return point, path


@dataclass(frozen=True, slots=True)
class Noted:
    """Where a drill's outcome was written.

    Attributes:
        receipt: the file.
        database_error: why it is not in the database; empty when it is.
    """

    receipt: Path
    database_error: str


async def record_drill(
    database_url: str | None,
    directory: Path,
    *,
    repository: int,
    result: str,
    started_at: datetime,
    duration_seconds: float,
    backup_label: str | None,
    point: str | None,
    message: str,
    report: dict[str, Any] | None,
) -> Noted:
    """Write a drill's receipt and, where the database answers, its row; ConfigurationError when the file cannot be written."""
    receipt = state.write_drill(
        directory,
        {
            "repository": repository,
            "result": result,
            "started_at": started_at.isoformat(),
            "duration_seconds": duration_seconds,
            "backup_label": backup_label,
            "point": point,
            "message": message,
            "pgchroma_version": pgchroma.__version__,
            "report": report,
        },
    )
    if not database_url:
        return Noted(receipt, "no database is named")
    try:
        async with await backups.connect(database_url, "pgchroma backup record-drill") as connection:
            drill = Drill(started_at, duration_seconds, result, backup_label, point, message)
            await backups.add_drill(connection, drill)
    except (PgchromaError, psycopg.Error) as error:
        return Noted(receipt, str(error).strip())
    return Noted(receipt, "")
