"""`pgchroma verify` says what holds and what does not, and leaves nothing behind."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from support.command import Outcome, pgchroma
from support.postgres import Databases
from support.server import free_port, running_server
from support.waiting import wait_for


def states(outcome: Outcome) -> dict[str, str]:
    return {item["id"]: item["status"] for item in outcome.json["checks"]}


def verify_database(url: str) -> Outcome:
    return pgchroma("verify", "database", "--format", "json", PGCHROMA_DATABASE_URL=url)


def verify_server(url: str) -> Outcome:
    return pgchroma("verify", "server", "--url", url, "--format", "json")


def test_a_server_in_order_passes_and_keeps_no_scratch_collection(database_url: str, tmp_path: Path) -> None:
    with running_server(database_url, tmp_path, workers=1) as server:
        done = verify_server(server.url)
        assert done.code == ExitCode.OK, done.stderr
        assert states(done) == dict.fromkeys(
            ["server-alive", "server-ready", "round-trip", "scratch-removed"], "ok"
        )
        text = pgchroma("verify", "server", PGCHROMA_URL=server.url)
        assert text.code == ExitCode.OK
        assert "round-trip" in text.stdout
    with psycopg.connect(database_url) as connection:
        assert connection.execute("SELECT count(*) FROM pgchroma.collections").fetchone() == (0,)


def test_a_server_without_its_database_is_alive_but_not_ready(tmp_path: Path) -> None:
    nowhere = f"postgresql:///nothing?host={tmp_path}"
    with running_server(nowhere, tmp_path, workers=1, wait=False) as server:
        wait_for("the server to answer", lambda: server.status("/api/v2/heartbeat") == 200)
        done = verify_server(server.url)
    assert done.code == ExitCode.VERIFICATION_FAILED
    assert states(done) == {"server-alive": "ok", "server-ready": "failed"}


def test_no_server_at_all_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = verify_server(url)
    assert done.code == ExitCode.VERIFICATION_FAILED
    assert states(done) == {"server-alive": "failed"}
    assert url in done.json["checks"][0]["detail"]


@contextmanager
def impostor() -> Iterator[str]:
    """A web server that is no Chroma server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_something_else_behind_the_url_is_noticed() -> None:
    with impostor() as url:
        done = verify_server(url)
    assert done.code == ExitCode.VERIFICATION_FAILED
    assert "not a Chroma server" in done.json["checks"][0]["hint"]


def test_a_server_that_cannot_write_fails_the_round_trip(database_url: str, tmp_path: Path) -> None:
    with running_server(database_url, tmp_path, workers=1) as server:
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute("ALTER SEQUENCE pgchroma.record_seqs RENAME TO record_seqs_away")
        done = verify_server(server.url)
    assert done.code == ExitCode.VERIFICATION_FAILED
    assert states(done) == {
        "server-alive": "ok",
        "server-ready": "ok",
        "round-trip": "failed",
        "scratch-removed": "ok",
    }


def test_a_database_in_order_passes(database_url: str) -> None:
    done = verify_database(database_url)
    assert done.code == ExitCode.OK, done.stdout
    assert done.json["result"] == "ok"
    assert {item["id"] for item in done.json["checks"]} >= {
        "database-reachable",
        "postgresql-version",
        "pgvector-version",
        "database-ready",
        "catalog-tables",
    }


@pytest.mark.parametrize(
    ("statement", "failed", "code"),
    [
        ("DELETE FROM pgchroma.schema_migrations WHERE version > 1", "database-ready", 8),
        ("DROP EXTENSION vector CASCADE", "database-ready", 8),
        ("CREATE TABLE pgchroma_data.r99 ()", "stray-tables", 0),
        (
            "INSERT INTO pgchroma.collections (id, database_id, name, configuration, schema, dimension, table_number) "
            "SELECT gen_random_uuid(), id, 'lost', '{}', '{}', 3, 99 FROM pgchroma.databases",
            "catalog-tables",
            8,
        ),
        (
            "INSERT INTO pgchroma.migration_status (run_id, source_collection_id, tenant, database, name, source_records, "
            "source, source_fingerprint, source_state, pgchroma_version) "
            "SELECT gen_random_uuid(), gen_random_uuid(), 't', 'd', 'n', 1, '/x', 'f', '{}', '0'",
            "migrations-finished",
            0,
        ),
    ],
)
def test_what_is_wrong_with_a_database_is_named(
    database_url: str, statement: str, failed: str, code: int
) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(statement.encode())
    done = verify_database(database_url)
    assert done.code == code
    (found,) = [item for item in done.json["checks"] if item["status"] == "failed"]
    assert found["id"] == failed
    assert found["hint"]


def test_an_unprepared_database_is_told_how_to_be_prepared(databases: Databases) -> None:
    with databases.fresh(migrated=False) as url:
        done = verify_database(url)
    assert done.code == ExitCode.VERIFICATION_FAILED
    assert "pgchroma db upgrade" in done.stderr


def test_an_unreachable_database_is_told_once(tmp_path: Path) -> None:
    done = verify_database(f"postgresql:///nothing?host={tmp_path}")
    assert done.code == ExitCode.VERIFICATION_FAILED
    assert states(done) == {"database-reachable": "failed"}
    assert str(tmp_path) in done.json["checks"][0]["detail"]
    assert len(done.stderr.splitlines()) == 2
