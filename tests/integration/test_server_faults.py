"""What clients notice when PostgreSQL goes away or was never ready."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import chromadb
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.api import COLLECTIONS, Api, check
from support.postgres import Databases
from support.server import PROGRAM, running_server
from support.waiting import wait_for


@pytest.fixture
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A cluster that only this test uses, so that it may be stopped."""
    with temporary_postgres() as postgres:
        yield postgres


def test_requests_fail_clearly_while_postgresql_is_away_and_succeed_again_by_themselves(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with Databases(own_postgres).fresh() as url, running_server(url, tmp_path) as server:
        api = Api(server.port)
        client = chromadb.HttpClient(host="127.0.0.1", port=server.port)
        collection = client.create_collection("kept", embedding_function=None)
        collection.add(ids=["before"], embeddings=[1.0, 2.0])

        own_postgres.stop(immediate=True)
        wait_for("the server to notice", lambda: server.status() == 503)
        answer = api("GET", "/api/v2/healthcheck")
        check(answer, 503, "ServiceUnavailable", "PostgreSQL does not answer")
        assert answer[1]["is_executor_ready"] is False
        assert answer[2]["retry-after"] == "1"
        path = f"{COLLECTIONS}/{collection.id}"
        refused = api("POST", f"{path}/add", {"ids": ["during"], "embeddings": [[1, 2]]})
        check(refused, 503, "ServiceUnavailable", "PostgreSQL does not answer")
        check(api("POST", f"{path}/get", {}), 503, "ServiceUnavailable", "PostgreSQL does not answer")
        assert api("GET", "/api/v2/heartbeat")[0] == 200

        own_postgres.start()
        server.wait_until_ready()
        collection.add(ids=["after"], embeddings=[3.0, 4.0])
        assert collection.get()["ids"] == ["before", "after"]
        assert "Traceback" not in server.log.read_text()


def test_a_server_starts_without_postgresql_and_is_ready_once_it_is_there(
    own_postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    with Databases(own_postgres).fresh() as url:
        own_postgres.stop()
        with running_server(url, tmp_path, wait=False) as server:
            wait_for("the server to live", lambda: server.status("/api/v2/heartbeat") == 200)
            check(Api(server.port)("GET", "/api/v2/healthcheck"), 503, "ServiceUnavailable", "PostgreSQL")
            own_postgres.start()
            server.wait_until_ready()


def test_a_server_over_an_unprepared_database_names_the_remedy(databases: Databases, tmp_path: Path) -> None:
    with (
        databases.fresh(migrated=False) as url,
        running_server(url, tmp_path, wait=False) as server,
    ):
        wait_for("the server to live", lambda: server.status("/api/v2/heartbeat") == 200)
        api = Api(server.port)
        check(api("GET", "/api/v2/healthcheck"), 503, "ServiceUnavailable", "pgchroma db upgrade")
        subprocess.run([PROGRAM, "db", "upgrade", "--database-url", url], check=True, capture_output=True)
        assert server.status() == 200
        assert api("POST", COLLECTIONS, {"name": "now"})[0] == 200


def test_what_goes_wrong_unforeseen_is_told_by_its_request_id_only(
    tmp_path: Path, databases: Databases
) -> None:
    with databases.fresh() as url, running_server(url, tmp_path) as server:
        api = Api(server.port)
        body = api("POST", COLLECTIONS, {"name": "broken"})[1]
        path = f"{COLLECTIONS}/{body['id']}"
        secret = "a-very-secret-document"
        batch = {"ids": ["a"], "embeddings": [[1, 2]], "documents": [secret]}
        assert api("POST", f"{path}/add", batch)[0] == 201
        # Nobody foresees a table that was damaged by hand.
        sql = "ALTER TABLE pgchroma_data.r1 DROP COLUMN document CASCADE"
        subprocess.run([databases.postgres.binary("psql"), "-q", "-c", sql, url], check=True)
        status, answer, headers = api("POST", f"{path}/add", {**batch, "ids": ["b"]})
        assert status == 500
        assert answer["error"] == "InternalError"
        assert headers["x-request-id"] in answer["message"]
        log = server.log.read_text()
        failed = [line for line in log.splitlines() if headers["x-request-id"] in line]
        assert any('"sqlstate"' in line and '"at"' in line for line in failed)
        assert secret not in log


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("PGCHROMA_PORT", "80000", ["PGCHROMA_PORT=80000", "0 to 65535"]),
        ("PGCHROMA_WORKERS", "many", ["PGCHROMA_WORKERS=many", "1 to 256"]),
        ("PGCHROMA_AUTH", "maybe", ["PGCHROMA_AUTH=maybe", "off"]),
        ("PGCHROMA_HOST", "0.0.0.0", ["PGCHROMA_HOST=0.0.0.0", "PGCHROMA_ALLOW_UNAUTHENTICATED=true"]),  # noqa: S104
        ("PGCHROMA_DATABASE_URL", "", ["no database is named", "PGCHROMA_DATABASE_URL"]),
    ],
)
def test_a_wrong_setting_stops_the_start_with_its_name(variable: str, value: str, words: list[str]) -> None:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PGCHROMA_DATABASE_URL": "postgresql:///none",
        "PGCHROMA_AUTH": "off",
        variable: value,
    }
    done = subprocess.run([PROGRAM, "serve"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CONFIGURATION
    for word in words:
        assert word in done.stderr
