"""The private PostgreSQL of `serve --embedded` and of the tests."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import psycopg
import pytest

from pgchroma.errors import ConfigurationError, DatabaseUnreachableError
from pgchroma.server import embedded
from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.server import PROGRAM
from support.store import execute
from support.waiting import wait_for


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists() and ") Z" not in Path(f"/proc/{pid}/stat").read_text()


def test_a_database_keeps_its_rows_over_a_crash_of_postgresql() -> None:
    with temporary_postgres() as postgres:
        with psycopg.connect(postgres.url(), autocommit=True) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS number")
        postgres.stop(immediate=True)
        assert postgres.pid is None
        postgres.start()
        with psycopg.connect(postgres.url()) as connection:
            assert connection.execute("SELECT number FROM kept").fetchone() == (1,)


def test_nothing_is_left_of_a_temporary_cluster() -> None:
    with temporary_postgres() as postgres:
        folder, pid = postgres.folder, postgres.pid
        assert pid is not None
        assert folder.exists()
    assert not folder.exists()
    assert not alive(pid)


def test_the_socket_is_for_its_owner_only() -> None:
    with temporary_postgres() as postgres:
        assert (postgres.folder / ".s.PGSQL.5432").stat().st_mode & 0o077 == 0


def test_postgresql_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = textwrap.dedent("""
        import sys
        from pgchroma.server.embedded import temporary_postgres
        with temporary_postgres() as postgres:
            print(postgres.folder, postgres.pid, flush=True)
            sys.stdin.read()
    """)
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": "/tmp"},
    ) as process:
        assert process.stdout is not None
        folder, pid = process.stdout.readline().split()
        process.kill()
    wait_for("PostgreSQL to end", lambda: not alive(int(pid)))
    # A killed process cannot tidy up; what it left is the test's to remove.
    subprocess.run(["rm", "-r", folder], check=True)


def test_an_embedded_server_ends_at_once_whoever_was_killed_while_connected() -> None:
    program = "import psycopg, sys; psycopg.connect(sys.argv[1]).execute('LOCK pgchroma.collections; SELECT pg_sleep(600)')"
    command = [str(PROGRAM), "serve", "--embedded", "--auth", "off", "--port", "0", "--workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            database_url = next(
                line.strip().partition("=")[2] for line in process.stdout if line.startswith("DATABASE_URL=")
            )
            # PostgreSQL goes on with the session of a client that is gone, and with its locks.
            with subprocess.Popen([sys.executable, "-c", program, database_url]) as client:
                wait_for(
                    "the client to sleep",
                    lambda: execute(
                        database_url, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
                    ),
                )
                client.kill()
            process.terminate()
            # Half of what requests in flight would be granted; there are none.
            assert process.wait(15) == 0
        finally:
            process.kill()


def test_a_setting_postgresql_refuses_is_shown() -> None:
    with (
        pytest.raises(DatabaseUnreachableError, match="no_such_setting"),
        temporary_postgres(settings={"no_such_setting": "1"}),
    ):
        pass


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    with pytest.raises(ConfigurationError, match="too long"):
        EmbeddedPostgres(folder)


def test_a_checkout_that_other_users_cannot_enter_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As below /root, where the unprivileged account that runs PostgreSQL may not go."""
    copied = embedded._copy_of(embedded.installation(), tmp_path)
    shown = subprocess.run([copied / "bin/initdb", "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.startswith("initdb (PostgreSQL)")
    monkeypatch.setattr(embedded, "_reachable_by_all", lambda folder: False)
    with temporary_postgres() as postgres, psycopg.connect(postgres.url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
