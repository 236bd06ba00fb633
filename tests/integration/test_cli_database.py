"""`pgchroma db` and `pgchroma status` as an operator runs them."""

import json
import subprocess
from pathlib import Path
from typing import Any

import psycopg

from pgchroma.exit_codes import ExitCode
from support.api import COLLECTIONS, Api
from support.command import pgchroma
from support.postgres import Databases
from support.server import PROGRAM, ServerProcess


def run(*arguments: str, code: ExitCode = ExitCode.OK) -> tuple[str, str]:
    done = subprocess.run([str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def run_json(*arguments: str) -> Any:
    return json.loads(run(*arguments, "--format", "json")[0])


def test_upgrade_prepares_once_and_then_changes_nothing(databases: Databases) -> None:
    with databases.fresh(migrated=False) as url:
        version = run_json("db", "version", "--database-url", url)
        assert version["installed"] == 0
        assert not version["ready"]
        first = run_json("db", "upgrade", "--database-url", url)
        assert first["changed"]
        assert first["version"] == version["required"]
        assert len(first["applied"]) == first["version"]
        again = run_json("db", "upgrade", "--database-url", url)
        assert not again["changed"]
        assert "nothing to do" in run("db", "upgrade", "--database-url", url)[0]
        assert run_json("db", "version", "--database-url", url)["ready"]


def test_upgrade_grants_the_roles_what_they_need_and_no_more(databases: Databases) -> None:
    with databases.fresh(migrated=False) as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CREATE ROLE t_app LOGIN")
            connection.execute("CREATE ROLE t_monitor LOGIN")
        try:
            roles = ("--app-role", "t_app", "--monitor-role", "t_monitor")
            report = run_json("db", "upgrade", "--database-url", url, *roles)
            assert {line.partition(":")[0] for line in report["granted"]} == {"t_app", "t_monitor"}
            assert not run_json("db", "upgrade", "--database-url", url, *roles)["changed"]
            as_app = url.replace("postgres@", "t_app@")
            assert run_json("status", "--database-url", as_app) == {"collections": []}
            run(
                "db",
                "upgrade",
                "--database-url",
                url,
                "--app-role",
                "nobody",
                code=ExitCode.DATABASE_NOT_READY,
            )
        finally:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("DROP OWNED BY t_app, t_monitor CASCADE")
                connection.execute("DROP ROLE t_app, t_monitor")


def test_status_counts_what_the_server_wrote(server: ServerProcess, module_database_url: str) -> None:
    api = Api(server.port)
    body = api("POST", COLLECTIONS, {"name": "counted"})[1]
    batch = {"ids": ["a", "b", "c"], "embeddings": [[1, 2]] * 3}
    assert api("POST", f"{COLLECTIONS}/{body['id']}/add", batch)[0] == 201
    (found,) = run_json("status", "--database-url", module_database_url)["collections"]
    assert found["path"] == "default_tenant/default_database/counted"
    assert (found["id"], found["rows"], found["tail_rows"], found["dimension"]) == (body["id"], 3, 3, 2)
    shown, _ = run("status", "--database-url", module_database_url)
    assert "counted" in shown
    assert "1 collections, 3 records" in shown


def test_a_database_that_is_not_there_is_named() -> None:
    for command in (("db", "upgrade"), ("db", "version"), ("status",)):
        _, shown = run(
            *command,
            "--database-url",
            "postgresql:///none?host=/nowhere",
            code=ExitCode.DATABASE_UNREACHABLE,
        )
        assert "PostgreSQL does not answer" in shown


def test_why_there_is_no_connection_is_told_once(tmp_path: Path) -> None:
    """Not by a line of the pool's for every attempt, beside an error that says only that it was in vain."""
    outcome = pgchroma("status", "--database-url", f"postgresql:///none?host={tmp_path}")
    assert outcome.code == ExitCode.DATABASE_UNREACHABLE
    assert outcome.stderr.startswith("error: PostgreSQL does not answer: ")
    assert "No such file or directory" in outcome.stderr
    assert "error connecting" not in outcome.stderr


def test_a_database_that_is_not_prepared_is_named(databases: Databases) -> None:
    with databases.fresh(migrated=False) as url:
        _, shown = run("status", "--database-url", url, code=ExitCode.DATABASE_NOT_READY)
    assert "pgchroma db upgrade" in shown


def test_a_url_that_is_none_is_a_configuration_error() -> None:
    run("status", "--database-url", "mysql://x", code=ExitCode.CONFIGURATION)
