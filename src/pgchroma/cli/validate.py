"""Which command proves a migration once more: that which its receipt is of."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click

from pgchroma.cli.migrate import migrate
from pgchroma.cli.tables import tables
from pgchroma.errors import PgchromaError
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.tables.runner import KIND

_FLAGS: Final = ("--skip-unreadable", "--help", "-h")


def verifier(arguments: Sequence[str]) -> tuple[click.Command, list[str]]:
    """Return the command that verifies the receipt among the arguments, and the arguments as it takes them."""
    given = list(arguments)
    found: Path | None = None
    for n, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--receipt":
            found = Path(value or "".join(arguments[n + 1 : n + 2]))
            break
        is_value = n > 0 and arguments[n - 1].startswith("-") and arguments[n - 1] not in _FLAGS
        if not argument.startswith("-") and not is_value and Path(argument).suffix == ".json":
            found = Path(argument)
            given[n : n + 1] = ["--receipt", argument]
            break
    # What is wrong with a receipt the command itself says.
    with contextlib.suppress(PgchromaError):
        if found and receipts.read(found).get("kind") == KIND:
            return tables.commands["verify"], given
    return migrate.commands["verify"], given
