"""The click options that several commands share, each defined once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import psycopg
from psycopg.conninfo import make_conninfo

from pgchroma.errors import ConfigurationError

Command = TypeVar("Command", bound=Callable[..., Any])


work_folder = click.option(
    "--work-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep private copies of sources while they are read. Default: the system's temporary folder.",
)
run_id = click.option("--run", "run_id", type=click.UUID, help="The run's id, as `status` shows it.")


def receipt_out(name: str) -> Callable[[Command], Command]:
    """Return what adds `--receipt`, passed as `receipt_path`; `name` is what a receipt's file name begins with."""
    return click.option(
        "--receipt",
        "receipt_path",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Where to write the receipt. Default: receipts/{name}-<run>.json; where there is a report for people, it stands beside.",
    )


def format_option(command: Command) -> Command:
    """Add `--format`, passed as `fmt`."""
    return click.option(
        "--format",
        "fmt",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        help="How to write the result: for a person or for a program.",
    )(command)


def database_options(command: Command) -> Command:
    """Add `--database-url` and `--database-password-file`."""
    command = click.option(
        "--database-password-file",
        envvar="PGCHROMA_DATABASE_PASSWORD_FILE",
        show_envvar=True,
        type=click.Path(path_type=Path, dir_okay=False),
        help="File holding the database password, so that it stands in no URL.",
    )(command)
    return click.option(
        "--database-url",
        envvar=["PGCHROMA_DATABASE_URL", "DATABASE_URL"],
        show_envvar=True,
        help="libpq URL or DSN, e.g. postgresql:///pgchroma?host=/var/run/postgresql&user=pgchroma_app",
    )(command)


def required_url(database_url: str | None) -> str:
    """Return the URL, or raise ConfigurationError when neither the option nor the environment gives one."""
    if not database_url:
        raise ConfigurationError(
            "no database is named",
            hint="give --database-url or set PGCHROMA_DATABASE_URL, e.g. "
            "postgresql:///pgchroma?host=/var/run/postgresql&user=pgchroma_app",
        )
    return database_url


def with_password(database_url: str, password_file: Path | None) -> str:
    """Return the URL, completed by the password in a file where there is one; ConfigurationError when either is unusable."""
    try:
        password = password_file.read_text().rstrip("\n") if password_file else None
        return make_conninfo(database_url, password=password) if password else database_url
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the password file {password_file}: {error.strerror}",
            hint="check --database-password-file and the file's owner and mode",
        ) from error
    except psycopg.ProgrammingError as error:
        raise ConfigurationError(
            f"the database URL is not valid: {error}",
            hint="use postgresql://user@host/database or postgresql:///database?host=/var/run/postgresql&user=NAME",
        ) from error
