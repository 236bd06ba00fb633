"""The migrator as the role that hosts give it: it may write collections, owns no schema and is no superuser."""

import json
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from support import chroma
from support.command import pgchroma
from support.postgres import Databases

_OWNER, _APP = "m_owner", "m_app"
# What roles/postgresql grants: nothing to everybody, the owner its database, the application a connection to it.
_ROLES = f"""
CREATE ROLE {_OWNER} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
CREATE ROLE {_APP} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE;
"""


def _as(url: str, role: str) -> str:
    return url.replace("postgres@", f"{role}@", 1)


@pytest.fixture
def app_url(databases: Databases) -> Iterator[str]:
    """A database that its owner has prepared, as the application's role reaches it."""
    with databases.fresh(migrated=False) as url:
        name = url.partition("?")[0].rpartition("/")[2]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(_ROLES)
            connection.execute(f"ALTER DATABASE {name} OWNER TO {_OWNER}")
            connection.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC")
            connection.execute(f"GRANT CONNECT, TEMPORARY ON DATABASE {name} TO {_APP}")
            connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            connection.execute(f"GRANT USAGE ON SCHEMA public TO {_OWNER}, {_APP}")
        try:
            upgraded = pgchroma("db", "upgrade", "--database-url", _as(url, _OWNER), "--app-role", _APP)
            assert upgraded.code == ExitCode.OK, upgraded.stderr
            yield _as(url, _APP)
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
                connection.execute(f"DROP OWNED BY {_APP}, {_OWNER} CASCADE")
                connection.execute(f"DROP ROLE {_APP}, {_OWNER}")


def test_the_low_rights_role_moves_proves_and_exports(app_url: str, tmp_path: Path) -> None:
    folder, receipt = chroma.extract("1.5.9", tmp_path), tmp_path / "receipt.json"
    with psycopg.connect(app_url) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
        connection.execute("CREATE TABLE public.mine ()")
    database = ("--database-url", app_url)
    for arguments in (
        ("plan", folder, *database),
        ("run", folder, *database, "--receipt", receipt),
        ("verify", *database, "--receipt", receipt, "--source", folder),
        ("status", *database),
        ("quarantine", *database),
        ("export", tmp_path / "all.jsonl.zst", *database, "--receipt", tmp_path / "export.json"),
    ):
        done = pgchroma("migrate", *arguments, "--format", "json")
        assert done.code == ExitCode.OK, done.stderr
    assert json.loads(receipt.read_text())["result"] == "equal"
    assert json.loads((tmp_path / "export.json").read_text())["result"] == "equal"
    assert sum(item["written"] for item in json.loads(receipt.read_text())["collections"]) == 465
