"""Runs a command of pgchroma for the scripts beside this file, with whichever pgchroma there is."""

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

_ROOT = Path(__file__).resolve().parent.parent
# `make venv` in a checkout, site.yml on a host; the first that is there counts.
_PLACES = (_ROOT / ".venv", Path("/opt/pgchroma/current"))
_ENTERED = "PGCHROMA_SCRIPT_ENTERED"


def run(*names: str) -> NoReturn:
    """Run `pgchroma NAMES...` with this process's arguments, under the script's own name."""
    with interruptible():
        require_pgchroma()
        import click

        from pgchroma.cli.main import cli
        from pgchroma.cli.main import run as run_command

        command: click.Command = cli
        for name in names:
            found = (
                command.get_command(click.Context(command), name)
                if isinstance(command, click.Group)
                else None
            )
            assert found is not None, name  # noqa: S101 - a slip in a script, not a user's doing
            command = found
    run_command(command, prog_name=Path(sys.argv[0]).name)


@contextmanager
def interruptible() -> Iterator[None]:
    """End quietly on Ctrl-C, as long as no command of pgchroma does so itself."""
    try:
        yield
    except KeyboardInterrupt:
        # As a shell shows it.
        sys.exit(130)


def require_pgchroma() -> None:
    """Go on as the interpreter that has pgchroma, unless this one has it."""
    if importlib.util.find_spec("pgchroma"):
        return
    for place in () if os.environ.get(_ENTERED) else _PLACES:
        if os.access(place / "bin" / "pgchroma", os.X_OK):
            python = str(place / "bin" / "python")
            os.execve(python, [python, *sys.argv], {**os.environ, _ENTERED: "1"})  # noqa: S606
    sys.stderr.write(
        f"error: pgchroma is not installed: neither {' nor '.join(str(place) for place in _PLACES)} holds it\n"
        f"  fix: run `make venv` in {_ROOT}, or install it on this host by site.yml\n"
    )
    # As any command ends whose configuration is incomplete.
    sys.exit(3)
