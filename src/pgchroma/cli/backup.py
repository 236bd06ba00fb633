"""`pgchroma backup`: digests at backup time, checks of what was restored, freshness, dumps of single collections."""

import asyncio
import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.backup import check, record, state
from pgchroma.cli.backup_dump import dump_command, load_command, verify_dump
from pgchroma.cli.backup_options import state_option
from pgchroma.cli.backup_status import backup_status
from pgchroma.cli.options import database_options, format_option, required_url, with_password
from pgchroma.cli.verify import draw_checks
from pgchroma.errors import ConfigurationError, VerificationError

_label = click.option("--backup-label", help="pgBackRest's label of the backup that this belongs to.")


@click.group()
def backup() -> None:
    """Record what there is to restore, check what was restored, show how fresh backups are; dump and load collections.

    pgBackRest makes the backups of whole clusters: docs/MONITORING.md. Dumps of single collections: docs/LOGICAL_BACKUPS.md.
    """


for command in (backup_status, dump_command, load_command, verify_dump):
    backup.add_command(command)


@backup.command("record-digests")
@database_options
@state_option
@_label
@click.option(
    "--backup-type",
    type=click.Choice(["full", "diff", "incr"]),
    help="Type of the backup that this belongs to.",
)
@click.option("--point", "name", help="Name of the restore point. Default: pgchroma-<UTC time>.")
@click.option(
    "--patience",
    "patience_seconds",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to go on trying while some write transaction is always open; writes wait 2 s at a time at most.",
)
@click.option(
    "--wait-archived",
    "wait_archived_seconds",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="Seconds to wait until the WAL up to the restore point is archived, where the cluster archives.",
)
@format_option
def record_digests(
    database_url: str | None,
    database_password_file: Path | None,
    state_dir: Path,
    backup_label: str | None,
    backup_type: str | None,
    name: str | None,
    patience_seconds: float,
    wait_archived_seconds: float,
    fmt: output.Format,
) -> None:
    """Make a named restore point and record digests of every collection exactly there.

    Run it as postgres right after a backup. Writes wait some milliseconds, reads not at all. A drill that restores to the
    point compares with `pgchroma backup check-restored`.
    """
    point, path = asyncio.run(
        record.record_digests(
            with_password(required_url(database_url), database_password_file),
            state_dir,
            name=name,
            backup_label=backup_label,
            backup_type=backup_type,
            patience_seconds=patience_seconds,
            wait_archived_seconds=wait_archived_seconds,
        )
    )
    data = {
        "point": point.name,
        "created_at": point.created_at.isoformat(),
        "lsn": point.lsn,
        "wal_file": point.wal_file,
        "archived": point.archived,
        "collections": len(point.digests.collections),
        "records": point.digests.records,
        "digest": point.digests.digest,
        "held_seconds": round(point.held_seconds, 4),
        "digest_seconds": round(point.digest_seconds, 3),
        "file": str(path),
    }

    def draw(console: Console) -> None:
        console.print(
            Text(
                f"restore point {point.name} at {point.lsn}: {data['collections']} collections, {data['records']:,} records; "
                f"writes waited {point.held_seconds * 1000:.0f} ms, digests took {point.digest_seconds:.1f} s"
            )
        )
        archived = {None: "this cluster does not archive", True: "archived", False: "not archived yet"}
        console.print(Text(f"WAL file {point.wal_file}: {archived[point.archived]}"))
        console.print(Text(f"written to {path}"))

    output.emit(data, fmt, draw)


@backup.command("record-drill")
@database_options
@state_option
@_label
@click.option(
    "--repository",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Number of the repository that it restored from; 0 where that does not matter.",
)
@click.option("--result", type=click.Choice(["ok", "failed"]), required=True, help="How the drill ended.")
@click.option(
    "--started",
    required=True,
    metavar="TIME",
    help="When it began, ISO 8601 with a time zone, e.g. 2026-01-31T03:00:00+00:00.",
)
@click.option(
    "--duration",
    "duration_seconds",
    type=click.FloatRange(min=0),
    required=True,
    help="Seconds from its beginning to an answering, checked copy.",
)
@click.option("--point", help="Restore point that it restored to.")
@click.option("--message", default="", help="What went wrong, for the person who reads the alert.")
@click.option(
    "--check-report",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="What `pgchroma backup check-restored --format json` printed; kept in the receipt.",
)
@format_option
def record_drill(
    database_url: str | None,
    database_password_file: Path | None,
    state_dir: Path,
    backup_label: str | None,
    repository: int,
    result: str,
    started: str,
    duration_seconds: float,
    point: str | None,
    message: str,
    check_report: Path | None,
    fmt: output.Format,
) -> None:
    """Note how a restore drill ended: a receipt in the state directory and, where it answers, a row in the database."""
    noted = asyncio.run(
        record.record_drill(
            with_password(database_url, database_password_file) if database_url else None,
            state_dir,
            repository=repository,
            result=result,
            started_at=_time(started),
            duration_seconds=duration_seconds,
            backup_label=backup_label,
            point=point,
            message=message,
            report=_report(check_report),
        )
    )
    data = {key: str(value) for key, value in asdict(noted).items()}

    def draw(console: Console) -> None:
        console.print(Text(f"drill {result}; receipt {noted.receipt}"))
        if noted.database_error:
            console.print(Text(f"not noted in the database: {noted.database_error}"))

    output.emit(data, fmt, draw)


def _time(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError(
            f"--started {text!r} is not a time: {error}", hint="write it as 2026-01-31T03:00:00+00:00"
        ) from error
    if found.tzinfo is None:
        raise ConfigurationError(f"--started {text!r} has no time zone", hint="append +00:00 for UTC")
    return found


def _report(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is not JSON: {error}", hint="give the output of check-restored --format json"
        ) from error
    return found if isinstance(found, dict) else {"content": found}


@backup.command("check-restored")
@database_options
@state_option
@click.option(
    "--digests",
    "digests_file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What `record-digests` wrote for the point that was restored to. Default: digests/latest.json in the state directory.",
)
@click.option(
    "--no-digests",
    is_flag=True,
    help="The cluster was restored to a time for which nothing was recorded; check only that it is whole.",
)
@click.option(
    "--in-place", is_flag=True, help="The cluster is one that stays in use; create no extensions in it."
)
@format_option
def check_restored(
    database_url: str | None,
    database_password_file: Path | None,
    state_dir: Path,
    digests_file: Path | None,
    no_digests: bool,
    in_place: bool,
    fmt: output.Format,
) -> None:
    """Check a restored cluster: every page, table and B-tree, the digests of every collection, and vector queries.

    Run it as the superuser on a sealed copy, which archives nothing and is thrown away: the extensions amcheck and pg_prewarm
    are created in it. Ends with exit code 8 when a critical check fails.
    """
    recorded = None
    if not no_digests:
        recorded = state.read_point(digests_file or state_dir / "digests/latest.json")
    report = asyncio.run(
        check.check_restored(
            with_password(required_url(database_url), database_password_file), recorded, in_place=in_place
        )
    )
    output.emit(report.as_json(), fmt, lambda console: draw_checks(console, report.checks))
    if report.failed:
        raise VerificationError(
            f"critical checks failed: {', '.join(item.id for item in report.failed)}",
            hint=report.failed[0].hint,
        )
