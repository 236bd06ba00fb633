"""`pgchroma token`: the secret is shown once and kept nowhere, names are unique, a file is written only when it has to be."""

import hashlib
import re
import stat
from pathlib import Path

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from support.command import Outcome, pgchroma
from support.tokens import invoke, make_token, token_command


def run(url: str, *arguments: object) -> Outcome:
    return pgchroma("token", *arguments, PGCHROMA_DATABASE_URL=url)


def test_the_database_keeps_a_hash_of_the_secret_only(database_url: str) -> None:
    token = make_token(database_url, "app", "write")
    assert re.fullmatch(r"pgc_[A-Za-z0-9]{12}_[A-Za-z0-9_-]{43}", token)
    _, identifier, secret = token.split("_", 2)
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT id, digest, tokens::text FROM pgchroma.tokens").fetchone()
    assert row is not None
    assert (row[0], row[1]) == (identifier, hashlib.sha256(secret.encode()).digest())
    assert secret not in row[2]


def test_text_shows_the_token_alone_on_standard_output(database_url: str) -> None:
    done = run(database_url, "create", "app", "--scope", "read")
    assert done.code == ExitCode.OK
    assert re.fullmatch(r"pgc_\S+\n", done.stdout)
    assert "shown this once" in done.stderr


def test_lists_hold_no_secret(database_url: str) -> None:
    token = make_token(database_url, "app", "read", "--expires", "90d")
    make_token(database_url, "ops", "operator")
    for outcome in (run(database_url, "list"), run(database_url, "list", "--format", "json")):
        assert token.split("_", 2)[2] not in outcome.stdout
        assert "digest" not in outcome.stdout
        assert "app" in outcome.stdout
    entries = {entry["name"]: entry for entry in token_command(database_url, "list")["tokens"]}
    assert entries["app"]["tenant"] == "default_tenant"
    assert entries["app"]["databases"] is None
    assert entries["app"]["expires_at"] is not None
    assert (entries["ops"]["tenant"], entries["ops"]["state"]) == (None, "active")


def test_a_name_is_taken_until_it_is_revoked_or_replaced(database_url: str) -> None:
    first = make_token(database_url, "app", "read")
    taken = run(database_url, "create", "app", "--scope", "read")
    assert taken.code != ExitCode.OK
    assert "--replace" in taken.stderr
    assert make_token(database_url, "app", "write", "--replace") != first
    states = [entry["state"] for entry in token_command(database_url, "list", "--revoked")["tokens"]]
    assert sorted(states) == ["active", "revoked"]
    assert token_command(database_url, "revoke", "app")["state"] == "revoked"
    again = run(database_url, "revoke", "app")
    assert again.code != ExitCode.OK
    assert "there is no token app" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a b", "--scope", "read"], "cannot be the name"),
        (["x", "--scope", "read", "--tenant", "nobody"], "no tenant nobody"),
        (["x", "--scope", "read", "--database", "nowhere"], "no database nowhere"),
        (["x", "--scope", "operator", "--tenant", "default_tenant"], "belongs to no tenant"),
        (["x", "--scope", "read", "--expires", "soon"], "neither a span"),
        (["x", "--scope", "read", "--expires", "2001-01-01"], "has passed"),
        (["x", "--scope", "read", "--if-needed"], "--output"),
        (["x"], "--scope"),
    ],
)
def test_what_makes_no_sense_is_refused(database_url: str, arguments: list[str], words: str) -> None:
    done = invoke(database_url, "create", *arguments)
    assert done.exit_code != ExitCode.OK
    assert words in done.stderr + str(done.exception)
    assert token_command(database_url, "list")["tokens"] == []


def test_a_file_is_private_and_written_only_when_it_has_to_be(database_url: str, tmp_path: Path) -> None:
    file = tmp_path / "token"

    def ensure(scope: str = "write") -> bool:
        options = ("--scope", scope, "--output", str(file), "--if-needed")
        return bool(token_command(database_url, "create", "verify", *options)["changed"])

    assert ensure()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_text()
    assert not ensure()
    assert file.read_text() == before
    assert ensure("read"), "other rights"
    token_command(database_url, "revoke", "verify")
    assert ensure("read"), "revoked"
    file.write_text("pgc_not_mine")
    assert ensure("read"), "not a token of this database"
    assert not ensure("read")
    assert len(token_command(database_url, "list")["tokens"]) == 1
    assert list(tmp_path.iterdir()) == [file]


def test_no_token_is_made_that_cannot_be_kept(database_url: str, tmp_path: Path) -> None:
    done = run(database_url, "create", "x", "--scope", "read", "--output", tmp_path / "missing" / "token")
    assert done.code == ExitCode.CONFIGURATION
    assert token_command(database_url, "list")["tokens"] == []
