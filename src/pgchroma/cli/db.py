"""`pgchroma db upgrade` and `pgchroma db version`."""

import asyncio
import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.cli.options import database_options, format_option, required_url
from pgchroma.output import Format
from pgchroma.store import StoreSettings, migrations


@click.group()
def db() -> None:
    """Create or upgrade the database schema, show its version."""


@db.command()
@click.option("--app-role", help="Role the server connects as; gets what it needs and no more.")
@click.option("--monitor-role", help="Role that may read the catalog.")
@database_options
@format_option
def upgrade(
    app_role: str | None,
    monitor_role: str | None,
    database_url: str | None,
    database_password_file: Path | None,
    fmt: Format,
) -> None:
    """Bring the schema to this release's version, as the database's owner.

    Runs under a lock, in one transaction, forward only; a second run changes nothing. The extension vector must exist.
    """
    settings = StoreSettings(password_file=database_password_file, statement_timeout_seconds=0)
    report = asyncio.run(
        migrations.upgrade(required_url(database_url), settings, app_role=app_role, monitor_role=monitor_role)
    )
    lines = [*(f"applied {name}" for name in report.applied), *(f"granted {what}" for what in report.granted)]
    lines.append(f"the schema is at version {report.version}" + ("" if report.changed else ", nothing to do"))
    data = {**dataclasses.asdict(report), "changed": report.changed}
    output.emit(data, fmt, lambda console: _print(console, lines))


@db.command()
@database_options
@format_option
def version(database_url: str | None, database_password_file: Path | None, fmt: Format) -> None:
    """Show the schema's version in the database and the one this release needs."""
    settings = StoreSettings(password_file=database_password_file)
    installed, required = asyncio.run(migrations.schema_versions(required_url(database_url), settings))
    data = {"installed": installed, "required": required, "ready": installed == required}
    line = f"installed {installed or 'none'}, this release needs {required}"
    output.emit(data, fmt, lambda console: _print(console, [line]))


def _print(console: Console, lines: list[str]) -> None:
    for line in lines:
        console.print(Text(line))
