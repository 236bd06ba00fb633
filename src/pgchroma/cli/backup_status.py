"""`pgchroma backup status`."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from pgchroma import output
from pgchroma.backup import state, status, writers
from pgchroma.backup.status import Limits, Thresholds
from pgchroma.cli.backup_options import state_option
from pgchroma.cli.options import database_options, required_url, with_password
from pgchroma.cli.verify import draw_checks
from pgchroma.errors import ConfigurationError, PgchromaError, VerificationError
from pgchroma.exit_codes import NagiosCode
from pgchroma.verify import checks as outcomes

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "": 1}
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
Command = TypeVar("Command", bound=Callable[..., Any])


class _LimitsType(click.ParamType):  # type: ignore[type-arg]
    """`WARNING:CRITICAL`, each a number with s, m, h or d behind it."""

    name = "warning:critical"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Limits:
        """Return the two limits."""
        if isinstance(value, Limits):
            return value
        parts = [_AMOUNT.fullmatch(part) for part in str(value).split(":")]
        if len(parts) != 2 or None in parts:
            self.fail(
                f"{value!r} is not of the form WARNING:CRITICAL, e.g. 26h:50h or 8:64 (s, m, h or d for times)",
                param,
                ctx,
            )
        warning, critical = (float(part[1]) * _UNITS[part[2]] for part in parts if part)
        if warning > critical:
            self.fail(f"{value!r}: the warning comes after the critical limit", param, ctx)
        return Limits(warning, critical)


def _limits(flag: str, default: str, text: str) -> Callable[[Command], Command]:
    return click.option(flag, type=_LimitsType(), default=default, show_default=True, help=text)


@click.command("status")
@database_options
@state_option
@click.option(
    "--stanza",
    envvar="PGCHROMA_BACKUP_STANZA",
    show_envvar=True,
    default="main",
    show_default=True,
    help="pgBackRest's name of the cluster.",
)
@click.option("--pgbackrest", "program", default="pgbackrest", show_default=True, help="The program to ask.")
@click.option(
    "--info-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="What `pgbackrest info --output=json` wrote, instead of asking.",
)
@_limits("--full-age", "8d:15d", "Age of the newest full backup of each repository, as WARNING:CRITICAL.")
@_limits("--backup-age", "26h:50h", "Age of the newest backup of any type.")
@_limits("--wal-age", "3m:10m", "How long the oldest finished WAL file has been waiting to be archived.")
@_limits("--ready-files", "8:64", "How many finished WAL files wait to be archived.")
@_limits(
    "--drill-age",
    "9d:16d",
    "Age of the last restore drill, times the number of repositories, which take turns.",
)
@click.option(
    "--output",
    "target",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write to a file in a folder that is there, in one step and readable by all, e.g. for node_exporter's textfile collector.",
)
@click.option(
    "--format",
    "fmt",
    type=click.Choice(["text", "json", "nagios", "prometheus"]),
    default="text",
    show_default=True,
    help="For a person, a program, Nagios (exit codes 0 ok, 1 warning, 2 critical, 3 unknown) or Prometheus.",
)
def backup_status(
    database_url: str | None,
    database_password_file: Path | None,
    state_dir: Path,
    stanza: str,
    program: str,
    info_file: Path | None,
    full_age: Limits,
    backup_age: Limits,
    wal_age: Limits,
    ready_files: Limits,
    drill_age: Limits,
    target: Path | None,
    fmt: str,
) -> int:
    """Show how fresh and how sound backups are, whether WAL is archived, and how the last restore drill of each repository ended.

    Runs as postgres; on a host with backups `pgchroma-postgres backup status` does so for root, with its settings. Ends with exit code 8 when a critical check fails; as prometheus always with 0; as nagios with
    Nagios' own codes.
    """
    thresholds = Thresholds(full_age, backup_age, wal_age, ready_files, drill_age)
    try:
        if target and not target.parent.is_dir():
            raise ConfigurationError(
                f"cannot write {target}: there is no folder {target.parent}",
                hint="make the folder, or correct --output",
            )
        url = with_password(required_url(database_url), database_password_file)
        facts = asyncio.run(status.collect(stanza, url, state_dir, program=program, recorded=info_file))
    except PgchromaError as error:
        if fmt != "nagios":
            raise
        output.line(writers.unknown(error.message))
        return NagiosCode.UNKNOWN
    checks = status.judge(facts, thresholds)
    failed = [item for item in checks if item.is_critical_failure]
    if fmt in ("nagios", "prometheus"):
        text = (
            writers.nagios(facts, checks, thresholds) + "\n"
            if fmt == "nagios"
            else writers.prometheus(facts, checks)
        )
        if target:
            state.write_atomically(target, text, mode=0o644)
        else:
            output.line(text.rstrip("\n"))
        return writers.nagios_code(checks) if fmt == "nagios" else NagiosCode.OK
    data = {**outcomes.as_json(checks), "facts": facts.as_json()}
    if target:
        state.write_atomically(target, output.as_json(data), mode=0o644)
    output.emit(data, "json" if fmt == "json" else "text", lambda console: draw_checks(console, checks))
    if failed:
        raise VerificationError(
            f"critical checks failed: {', '.join(item.id for item in failed)}", hint=failed[0].hint
        )
    return 0
