"""The `pgchroma` command group: loads a sub-command's module only when it is asked for, and turns errors into exit codes."""

import importlib
import itertools
import logging
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import NoReturn

import click

import pgchroma
from pgchroma import output
from pgchroma.cli.logfile import log_error
from pgchroma.errors import PgchromaError
from pgchroma.exit_codes import ExitCode

# name -> (module, attribute, one line of help). The help stands here so that `pgchroma --help` imports nothing.
COMMANDS: dict[str, tuple[str, str, str]] = {
    "serve": ("pgchroma.cli.serve", "serve", "Run the HTTP server."),
    "db": ("pgchroma.cli.db", "db", "Create or upgrade the database schema, show its version."),
    "token": ("pgchroma.cli.token", "token", "Create, list and revoke the tokens of the server's clients."),
    "status": ("pgchroma.cli.status", "status", "Show collections, records and how far the indexes are."),
    "migrate": ("pgchroma.cli.migrate", "migrate", "Move a Chroma folder into pgchroma and prove it."),
    "backup": ("pgchroma.cli.backup", "backup", "Record, check and show backups; dump and load collections."),
    "chroma-backup": (
        "pgchroma.cli.chroma_backup",
        "chroma_backup",
        "Copy an embedded Chroma folder in use, check copies, restore.",
    ),
    "tables": (
        "pgchroma.cli.tables",
        "tables",
        "Move an application's SQLite tables to PostgreSQL and prove it.",
    ),
    "verify": ("pgchroma.cli.verify", "verify", "Check a running server or a database."),
}


def run(
    command: click.Command, args: Sequence[str] | None = None, *, prog_name: str | None = None
) -> NoReturn:
    """Run a command and leave the process with one of the codes of `pgchroma.exit_codes`, without a traceback for expected errors."""
    output.begin()
    # It logs every attempt to connect, beside the error that a command ends with; the server sets a level of its own.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    try:
        code = command.main(args, prog_name=prog_name, standalone_mode=False)
    except BaseException as exc:  # noqa: BLE001 - the one place that turns whatever happens into an exit status
        try:
            exit_with(exc)
        except SystemExit as end:
            if _asks_for_json(sys.argv[1:] if args is None else args) and end is not exc:
                output.error_as_json(exc, int(end.code or 0))
            raise
    sys.exit(code if isinstance(code, int) else ExitCode.OK)


def _asks_for_json(args: Sequence[str]) -> bool:
    """Whether a command line that may be wrong asks for JSON."""
    return "--format=json" in args or ("--format", "json") in itertools.pairwise(args)


def exit_with(exc: BaseException) -> NoReturn:
    """Report an exception on standard error and leave the process with its exit code."""
    if isinstance(exc, SystemExit):
        raise exc
    code = _code(exc)
    log_error(exc, code)
    if isinstance(exc, PgchromaError):
        output.error(exc)
    elif isinstance(exc, click.ClickException):
        exc.show()
    elif isinstance(exc, click.Abort | KeyboardInterrupt):
        output.note("interrupted")
    elif isinstance(exc, BrokenPipeError):
        # The reader of our output has gone (`| head`); keep the interpreter from complaining once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    else:
        output.note("".join(traceback.format_exception(exc)).rstrip())
        output.error(exc)
    sys.exit(code)


def _code(exc: BaseException) -> int:
    if isinstance(exc, PgchromaError):
        return exc.exit_code
    if isinstance(exc, click.Abort | KeyboardInterrupt):
        return ExitCode.STOPPED
    return ExitCode.USAGE if isinstance(exc, click.ClickException) else ExitCode.UNEXPECTED


class LazyGroup(click.Group):
    """A group that imports `module:attribute` of a sub-command on first use."""

    lazy: Mapping[str, tuple[str, str, str]] = COMMANDS

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all sub-commands."""
        return [*super().list_commands(ctx), *self.lazy]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a sub-command."""
        if cmd_name not in self.lazy:
            return super().get_command(ctx, cmd_name)
        module, attribute, _ = self.lazy[cmd_name]
        if cmd_name == "migrate":
            # It multiplies small matrices beside a busy PostgreSQL: more threads for that would only take its cores. NumPy reads this
            # when it is imported.
            os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101 - a slip in COMMANDS, not a user's doing
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of sub-commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, _, help_line) in self.lazy.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(pgchroma.__version__, prog_name="pgchroma")
def cli() -> None:
    """Chroma's HTTP API over PostgreSQL and pgvector.

    Exit codes: 0 ok, 1 unexpected, 2 usage, 3 configuration, 4 database unreachable, 5 database not ready, 6 source
    unreadable, 7 source changed, 8 verification failed, 9 refused, 10 interrupted and resumable, 130 stopped by Ctrl-C.
    """


def main() -> None:
    """Run the command; `pgchroma.__main__` is the entry point of the `pgchroma` script."""
    run(cli)
