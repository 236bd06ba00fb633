"""Running `pgchroma` the way a person, a cron job or a playbook does."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner

from pgchroma.cli.main import cli, run
from pgchroma.errors import PgchromaError


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a command left."""

    code: int
    stdout: str
    stderr: str

    @property
    def json(self) -> Any:
        """The result of a command that was asked for JSON."""
        return json.loads(self.stdout)


def pgchroma(*arguments: object, prelude: str = "", **environment: str) -> Outcome:
    """Run `pgchroma` in a process of its own.

    Args:
        prelude: Python that runs first in that process, to break it at a chosen place.
        environment: variables to set; those of pgchroma that the test run itself has are not passed on.
    """
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("PGCHROMA_") and key != "DATABASE_URL"
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{prelude}\nfrom pgchroma.cli.main import main\nmain()",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**inherited, **environment},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def here(*arguments: object) -> Outcome:
    """Run `pgchroma` in this process, which saves its start; for what neither kills nor changes the process."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
        try:
            run(cli, [str(argument) for argument in arguments], prog_name="pgchroma")
        except SystemExit as ended:
            code = ended.code
    return Outcome(int(code or 0), stdout.getvalue(), stderr.getvalue())


def within(*arguments: object) -> Outcome:
    """Run `pgchroma` in this process: the same commands without the second that starting Python and importing takes."""
    result = CliRunner().invoke(cli, list(map(str, arguments)))
    error = result.exception
    if isinstance(error, PgchromaError):
        return Outcome(int(error.exit_code), result.stdout, f"{error.message}\n{error.hint}")
    if error is not None and not isinstance(error, SystemExit):
        raise error
    return Outcome(result.exit_code, result.stdout, result.stderr)
