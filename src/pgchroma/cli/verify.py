"""`pgchroma verify server` and `pgchroma verify database`."""

import asyncio
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.cli.options import database_options, format_option, required_url
from pgchroma.errors import VerificationError
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT
from pgchroma.verify import checks as outcomes
from pgchroma.verify.checks import Check
from pgchroma.verify.database import check_database
from pgchroma.verify.server import Front, check_server


@click.group()
def verify() -> None:
    """Check a running server or a database.

    Ends with exit code 8 when a critical check fails. To prove a migration again, see `pgchroma migrate verify`.
    """


@verify.command()
@click.option(
    "--url",
    envvar="PGCHROMA_URL",
    show_envvar=True,
    default="http://127.0.0.1:8000",
    show_default=True,
    help="Where clients reach the server: scheme, host and port.",
)
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Tenant of the scratch collection.")
@click.option(
    "--database", default=DEFAULT_DATABASE, show_default=True, help="Database of the scratch collection."
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds that each request may take.",
)
@click.option(
    "--ca-file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Certificate that the server's must be signed by. Default: those the system trusts.",
)
@click.option(
    "--token-file",
    envvar="PGCHROMA_TOKEN_FILE",
    show_envvar=True,
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="File with a token that may write to that database. Default: none, for a server that asks for none.",
)
@format_option
def server(
    url: str,
    tenant: str,
    database: str,
    timeout_seconds: float,
    ca_file: Path | None,
    token_file: Path | None,
    fmt: output.Format,
) -> None:
    """Check that a server is alive and ready, and write, read, search and delete in a scratch collection.

    Can be run at any time: the collection has a name of its own and is removed again.
    """
    token = token_file.read_text(encoding="utf-8").strip() if token_file else None
    front = Front(url, timeout_seconds, str(ca_file) if ca_file else None, token)
    _finish(check_server(front, tenant, database), fmt)


@verify.command()
@database_options
@format_option
def database(database_url: str | None, database_password_file: Path | None, fmt: output.Format) -> None:
    """Check PostgreSQL, pgvector, the schema and whether the catalog is true to the tables; reads only."""
    _finish(asyncio.run(check_database(required_url(database_url), database_password_file)), fmt)


def _finish(checks: list[Check], fmt: output.Format) -> None:
    output.emit(outcomes.as_json(checks), fmt, lambda console: draw_checks(console, checks))
    failed = [item for item in checks if item.is_critical_failure]
    if failed:
        raise VerificationError(
            f"critical checks failed: {', '.join(item.id for item in failed)}",
            hint=failed[0].hint,
        )


def draw_checks(console: Console, checks: list[Check]) -> None:
    """Draw a table of the outcomes, and below it what to do about those that failed."""
    rows = []
    for item in checks:
        shown = "warning" if item.status == "failed" and item.severity == "warning" else item.status
        rows.append((item.id, output.status_text(shown), item.detail))
    console.print(output.table("", ("check", "result", "detail"), rows))
    for item in checks:
        if item.hint:
            console.print(Text(f"{item.id}: {item.hint}"))
