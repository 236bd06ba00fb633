"""`pgchroma token`: who may use the server."""

import asyncio
import dataclasses
import os
import re
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.cli.options import database_options, format_option, required_url
from pgchroma.errors import ConfigurationError
from pgchroma.output import Format
from pgchroma.store import Store, StoreSettings
from pgchroma.store.tokens import SCOPES, UNBOUND, Scope, TokenEntry
from pgchroma.store.watch import LOOK_SECONDS
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT

Result = TypeVar("Result")

_COLUMNS = ("name", "id", "scope", "tenant", "databases", "state", "created", "expires", "last used")
_SPAN = re.compile(r"(\d{1,5})([hd])")


class Moment(click.ParamType[datetime]):
    """A span from now (`12h`, `90d`) or a date or time in ISO form, UTC where it names no zone."""

    name = "when"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return the moment, or fail as a usage error."""
        if isinstance(value, datetime):
            return value
        text = str(value)
        if match := _SPAN.fullmatch(text):
            number = int(match[1])
            return datetime.now(UTC) + (
                timedelta(hours=number) if match[2] == "h" else timedelta(days=number)
            )
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            self.fail(f"{text} is neither a span like 12h or 90d nor a date like 2030-01-31", param, ctx)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if moment <= datetime.now(UTC):
            self.fail(f"{text} has passed", param, ctx)
        return moment


@click.group()
def token() -> None:
    """Create, list and revoke the tokens of the server's clients, as the owner of the database.

    A token belongs to one tenant and reaches all of its databases or those given. Scopes: read; write (records and collections,
    too); admin (databases, too); operator (everything in every tenant: creates tenants, resets); monitor (only /metrics).
    A running server knows a new token at once and refuses a revoked one at once.
    """


@token.command()
@click.argument("name")
@click.option("--scope", type=click.Choice(SCOPES), required=True, help="What the token may do.")
@click.option(
    "--tenant", help=f"The tenant it belongs to. [default: {DEFAULT_TENANT}; none for operator and monitor]"
)
@click.option(
    "--database", "databases", multiple=True, help="A database it reaches; may be repeated. [default: all]"
)
@click.option("--expires", type=Moment(), help="When it ends: 12h, 90d, 2030-01-31. [default: never]")
@click.option(
    "--create-missing", is_flag=True, help="Create the tenant and the databases where they are missing."
)
@click.option("--replace", is_flag=True, help="Revoke the token that has this name now.")
@click.option(
    "--output",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token to this file (mode 0600) instead of showing it.",
)
@click.option(
    "--if-needed",
    is_flag=True,
    help="Do nothing when the file of --output holds a good token of this name that may do just this; else replace it.",
)
@database_options
@format_option
def create(
    name: str,
    scope: Scope,
    tenant: str | None,
    databases: tuple[str, ...],
    expires: datetime | None,
    create_missing: bool,
    replace: bool,
    file: Path | None,
    if_needed: bool,
    database_url: str | None,
    database_password_file: Path | None,
    fmt: Format,
) -> None:
    """Make a token and show it, this once: the database keeps only a hash of it."""
    if if_needed and file is None:
        raise click.UsageError("--if-needed looks at the file of --output, and none is given")
    if scope not in UNBOUND:
        tenant = tenant or DEFAULT_TENANT
    kept = _kept(file) if if_needed and file is not None else ""

    async def work(store: Store) -> tuple[str, TokenEntry, bool]:
        known = await store.tokens.identify(kept, time.time()) if kept else None
        if known is not None and _rights(known) == (name, scope, tenant, sorted(set(databases)) or None):
            return "", known, False
        if create_missing and tenant is not None:
            for database in databases or (DEFAULT_DATABASE,):
                await store.ensure_database(tenant, database)
        secret, entry = await store.tokens.create(
            name,
            scope,
            tenant=tenant,
            databases=databases or None,
            expires_at=expires,
            replace=replace or if_needed,
        )
        return secret, entry, True

    if file is None:
        secret, entry, _ = _with_store(database_url, database_password_file, work)
        data = {"token": secret, **_shown(entry), "changed": True}
        output.emit(data, fmt, lambda console: _draw_new(console, entry, secret))
        return
    with _replacing(file) as keep:
        secret, entry, changed = _with_store(database_url, database_password_file, work)
        if changed:
            keep(secret)
    data = {"file": str(file), **_shown(entry), "changed": changed}
    line = f"{file} holds the token {entry.name}" + ("" if changed else " already")
    output.emit(data, fmt, lambda console: console.print(Text(line)))


@token.command("list")
@click.option("--revoked", is_flag=True, help="Show revoked ones, too.")
@database_options
@format_option
def list_tokens(
    revoked: bool, database_url: str | None, database_password_file: Path | None, fmt: Format
) -> None:
    """Show the tokens: what each may do, until when, and when it was last used. No secrets."""
    entries = _with_store(
        database_url, database_password_file, lambda store: store.tokens.entries(revoked=revoked)
    )
    data = {"tokens": [_shown(entry) for entry in entries]}
    output.emit(data, fmt, lambda console: _draw_list(console, entries))


@token.command()
@click.argument("name_or_id")
@database_options
@format_option
def revoke(
    name_or_id: str, database_url: str | None, database_password_file: Path | None, fmt: Format
) -> None:
    """Revoke a token, by its name or id; returns when servers refuse it.

    A server that is cut off from PostgreSQL refuses it after five seconds at the latest.
    """
    entry = _with_store(database_url, database_password_file, lambda store: store.tokens.revoke(name_or_id))
    # They are told at once; where something between them and PostgreSQL keeps that back, they have looked by then.
    time.sleep(LOOK_SECONDS)
    line = f"revoked {entry.name} ({entry.id})"
    output.emit(_shown(entry), fmt, lambda console: console.print(Text(line)))


def _with_store(
    database_url: str | None, password_file: Path | None, work: Callable[[Store], Awaitable[Result]]
) -> Result:
    settings = StoreSettings(password_file=password_file, pool_size=1)
    url = required_url(database_url)

    async def run() -> Result:
        async with await Store.open(url, settings) as store:
            await store.check_ready(settings.pool_timeout_seconds)
            return await work(store)

    return asyncio.run(run())


def _kept(file: Path) -> str:
    """Return the token in a file, empty when there is no file."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"cannot read {file}: {error}", hint="check its owner and mode") from error


class _replacing:  # noqa: N801 - reads as a verb where it is used
    """Opens a file beside `path` before anything is done in the database, so that no token is made that cannot be kept."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}")
        self._descriptor = -1

    def __enter__(self) -> Callable[[str], None]:
        try:
            self._descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self._path}: {error.strerror}",
                hint="name a file in a folder that you may write to",
            ) from error
        return self._keep

    def _keep(self, secret: str) -> None:
        os.write(self._descriptor, f"{secret}\n".encode())
        os.fsync(self._descriptor)
        self._temporary.replace(self._path)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        self._temporary.unlink(missing_ok=True)


def _rights(entry: TokenEntry) -> tuple[object, ...]:
    return (entry.name, entry.scope, entry.tenant, entry.databases)


def _shown(entry: TokenEntry) -> dict[str, Any]:
    return {
        name: value.astimezone(UTC).isoformat(timespec="seconds") if isinstance(value, datetime) else value
        for name, value in dataclasses.asdict(entry).items()
    }


def _draw_new(console: Console, entry: TokenEntry, secret: str) -> None:
    console.print(Text(secret), soft_wrap=True)
    output.note(
        f"This is the token {entry.name}. It is shown this once; give it to its application, keep no copy."
    )


def _draw_list(console: Console, entries: list[TokenEntry]) -> None:
    rows = [
        (
            entry.name,
            entry.id,
            entry.scope,
            entry.tenant,
            ", ".join(entry.databases) if entry.databases else ("all" if entry.tenant else None),
            Text(entry.state, style="green" if entry.state == "active" else "yellow"),
            *(_moment(moment) for moment in (entry.created_at, entry.expires_at, entry.last_used_at)),
        )
        for entry in entries
    ]
    console.print(output.table("", _COLUMNS, rows))


def _moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M")
