"""Tokens for tests, made by the command as an operator makes them, in this process because there are many."""

import json
from typing import Any

from click.testing import CliRunner, Result

from pgchroma.cli.main import cli


def make_token(database_url: str, name: str, scope: str, *options: str) -> str:
    """Make a token and return it."""
    return str(token_command(database_url, "create", name, "--scope", scope, *options)["token"])


def token_command(database_url: str, *arguments: str) -> Any:
    """Run `pgchroma token ...` and return what it says as JSON."""
    done = invoke(database_url, *arguments, "--format", "json")
    assert done.exception is None, done.exception
    return json.loads(done.stdout)


def invoke(database_url: str, *arguments: str) -> Result:
    """Run `pgchroma token ...` and return what came of it."""
    return CliRunner().invoke(cli, ["token", *arguments], env={"PGCHROMA_DATABASE_URL": database_url})


def bearer(token: str) -> dict[str, str]:
    """The headers of a request with a token."""
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
