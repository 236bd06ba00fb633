"""PostgreSQL on a host, as its users meet it: who may be whom, and what is refused."""

import pytest
from testinfra.host import Host


def psql(user: str, role: str, statement: str, *, database: str = "pgchroma", server: str = "") -> str:
    """Return a shell command that runs a statement as an operating system user logging in as a role; never asks for a password."""
    where = f"--host={server}" if server else ""
    return f'cd / && runuser -u {user} -- psql -XAtq --no-password --username={role} {where} --dbname={database} -c "{statement}"'


def test_runs_now_and_after_the_next_boot(host: Host) -> None:
    assert host.service("postgresql@17-main").is_running
    assert host.service("postgresql").is_enabled


def test_server_user_is_the_application_role_without_a_password(host: Host) -> None:
    assert host.check_output(psql("pgchroma", "pgchroma_app", "SELECT current_user")) == "pgchroma_app"


@pytest.mark.parametrize("role", ["pgchroma_owner", "pgchroma_app", "pgchroma_monitor"])
def test_root_may_be_each_role(host: Host, role: str) -> None:
    assert host.check_output(psql("root", role, "SELECT current_user")) == role


@pytest.mark.parametrize(
    ("user", "role"),
    [
        ("pgchroma", "pgchroma_owner"),
        ("pgchroma", "postgres"),
        ("nobody", "pgchroma_app"),
        ("nobody", "postgres"),
    ],
)
def test_nobody_else_may(host: Host, user: str, role: str) -> None:
    result = host.run(psql(user, role, "SELECT 1"))
    assert result.rc != 0
    assert "Peer authentication failed" in result.stderr


@pytest.mark.parametrize("role", ["pgchroma_app", "pgchroma_owner"])
def test_tcp_wants_a_password(host: Host, role: str) -> None:
    result = host.run(psql("root", role, "SELECT 1", server="127.0.0.1"))
    assert result.rc != 0
    assert "no password supplied" in result.stderr


def test_superuser_is_not_reached_over_tcp(host: Host) -> None:
    result = host.run(psql("root", "postgres", "SELECT 1", database="postgres", server="127.0.0.1"))
    assert result.rc != 0
    assert "pg_hba.conf rejects" in result.stderr or "no pg_hba.conf entry" in result.stderr


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE ROLE intruder",
        "CREATE TABLE public.intruder ()",
        "CREATE EXTENSION citext",
        "ALTER SYSTEM SET fsync = off",
        "DROP TABLE pgchroma.collections",
    ],
)
def test_application_role_may_not_change_the_server(host: Host, statement: str) -> None:
    result = host.run(psql("pgchroma", "pgchroma_app", statement))
    assert result.rc != 0
    assert "permission denied" in result.stderr or "must be owner" in result.stderr


def test_monitor_reads_the_catalog_but_no_records(host: Host) -> None:
    assert host.run(psql("root", "pgchroma_monitor", "SELECT count(*) FROM pgchroma.collections")).rc == 0
    assert host.run(psql("root", "pgchroma_monitor", "DELETE FROM pgchroma.collections")).rc != 0


def test_checksums_are_on(host: Host) -> None:
    assert host.check_output(psql("postgres", "postgres", "SHOW data_checksums", database="postgres")) == "on"
