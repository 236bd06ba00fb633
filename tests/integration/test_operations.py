"""What an operator relies on: metrics, limits that say their name, and a server that stays clear when the database is not."""

import http.client
import json
import re
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.api import COLLECTIONS, Api, check
from support.postgres import Databases
from support.server import ServerProcess, running_server
from support.tokens import bearer, make_token
from support.waiting import wait_for

LIMITS = {
    "PGCHROMA_MAX_DIMENSION": "4",
    "PGCHROMA_MAX_DOCUMENT_BYTES": "1500",
    "PGCHROMA_MAX_RESULTS": "20",
    "PGCHROMA_MAX_QUERIES": "3",
    "PGCHROMA_MAX_WHERE_DEPTH": "6",
    "PGCHROMA_MAX_WHERE_CONDITIONS": "5",
    "PGCHROMA_MAX_REGEX_LENGTH": "30",
    "PGCHROMA_REGEX_TIMEOUT_SECONDS": "1",
    "PGCHROMA_STATEMENT_TIMEOUT_SECONDS": "1",
}


def samples(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample that /metrics has, by name and labels."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", "/metrics")
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    assert answer.status == 200
    assert answer.getheader("content-type") == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(port: int, metric: str, **labels: str) -> float:
    return samples(port).get((metric, tuple(sorted(labels.items()))), 0.0)


def made(api: Api, name: str = "records") -> str:
    status, body, _ = api("POST", COLLECTIONS, {"name": name})
    assert status == 200, body
    path = f"{COLLECTIONS}/{body['id']}"
    assert api("POST", f"{path}/add", {"ids": ["a"], "embeddings": [[1, 2]]})[0] == 201
    return path


@contextmanager
def locked(database_url: str) -> Iterator[None]:
    """Keep every request to the first collection's records waiting."""
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE pgchroma_data.r1 IN ACCESS EXCLUSIVE MODE")
        yield


def waiting(database_url: str) -> int:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    return int(row[0]) if row else 0


class TestMetrics:
    def test_all_workers_are_counted_whichever_answers(self, server: ServerProcess) -> None:
        api = Api(server.port)
        path = made(api, "counted")
        name = "/api/v2/tenants/{tenant}/databases/{database}/collections/{collection}/count"
        labels = {"method": "GET", "route": name, "status": "200"}
        before = value(server.port, "pgchroma_requests_total", **labels)
        for _ in range(40):
            assert api("GET", f"{path}/count")[0] == 200
        # Connections of their own, so that both workers take some; each scrape may be answered by either.
        assert {value(server.port, "pgchroma_requests_total", **labels) for _ in range(10)} == {before + 40}
        assert value(server.port, "pgchroma_request_seconds_count", method="GET", route=name) == before + 40
        assert (
            value(server.port, "pgchroma_request_seconds_bucket", method="GET", route=name, le="+Inf")
            == before + 40
        )
        assert value(server.port, "pgchroma_workers") == 2

    def test_the_counts_of_a_dead_worker_stay_and_its_pool_goes(
        self, database_url: str, tmp_path: Path
    ) -> None:
        with running_server(database_url, tmp_path) as server:
            api = Api(server.port)
            # The first to be ready answers; one that is killed before it has begun was never counted.
            wait_for("both to be counted", lambda: value(server.port, "pgchroma_workers") == 2)
            for _ in range(20):
                assert api("GET", "/api/v2/version")[0] == 200
            labels = {"method": "GET", "route": "/api/v2/version", "status": "200"}
            assert value(server.port, "pgchroma_requests_total", **labels) == 20
            old = server.workers()
            for pid in old:
                signal.pidfd_send_signal(pidfd(pid), signal.SIGKILL)
            wait_for("two new workers", lambda: server.has_replaced(old))
            server.wait_until_ready()
            assert value(server.port, "pgchroma_requests_total", **labels) == 20
            wait_for("both to be counted", lambda: value(server.port, "pgchroma_workers") == 2)
            assert value(server.port, "pgchroma_worker_starts_total") == 4
            wait_for("both pools", lambda: value(server.port, "pgchroma_pool_connections_max") == 16)

    def test_errors_and_unknown_paths_have_bounded_labels(self, server: ServerProcess) -> None:
        api = Api(server.port)
        before = value(server.port, "pgchroma_errors_total", error="NotFoundError")
        for number in range(3):
            assert api("GET", f"/nothing/{number}")[0] == 404
        assert value(server.port, "pgchroma_errors_total", error="NotFoundError") == before + 3
        routes = {dict(labels).get("route") for _, labels in samples(server.port)}
        assert "none" in routes
        assert not any(route and "/nothing" in route for route in routes)

    def test_it_tells_of_collections_tails_and_the_indexer(self, server: ServerProcess) -> None:
        api = Api(server.port)
        path = made(api, "with-a-tail")
        batch = {"ids": [str(n) for n in range(50)], "embeddings": [[n, 1] for n in range(50)]}
        assert api("POST", f"{path}/upsert", batch)[0] == 200
        labels = {"tenant": "default_tenant", "database": "default_database", "collection": "with-a-tail"}
        wait_for(
            "PostgreSQL's statistics",
            lambda: value(server.port, "pgchroma_collection_tail_rows", **labels) == 51,
        )
        assert value(server.port, "pgchroma_tail_rows_max") >= 51
        assert value(server.port, "pgchroma_collections") >= 1
        assert value(server.port, "pgchroma_database_up") == 1
        assert value(server.port, "pgchroma_indexer_leaders") == 1

    def test_a_monitor_token_reads_them_and_nothing_else(self, database_url: str, tmp_path: Path) -> None:
        token = bearer(make_token(database_url, "prometheus", "monitor"))
        with running_server(database_url, tmp_path, environment={"PGCHROMA_AUTH": "token"}) as server:
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
            connection.request("GET", "/metrics", headers=token)
            answer = connection.getresponse()
            text = answer.read()
            assert answer.status == 200
            assert b"pgchroma_tokens 1.0" in text
            assert Api(server.port)("GET", COLLECTIONS, headers=token)[0] == 403

    def test_the_folder_of_the_numbers_goes_with_the_server(self, database_url: str, tmp_path: Path) -> None:
        environment = {"RUNTIME_DIRECTORY": str(tmp_path)}
        with running_server(database_url, tmp_path, environment=environment) as server:
            assert list(tmp_path.glob("pgchroma-metrics-*"))
            server.stop()
        assert not list(tmp_path.glob("pgchroma-metrics-*"))


def pidfd(pid: int) -> int:
    import os

    return os.pidfd_open(pid)


class TestLimits:
    @pytest.fixture(scope="class")
    @classmethod
    def limited(
        cls, module_database_url: str, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[ServerProcess]:
        folder = tmp_path_factory.mktemp("limits")
        with running_server(module_database_url, folder, workers=1, environment=LIMITS) as process:
            yield process

    @pytest.mark.parametrize(
        ("action", "body", "setting"),
        [
            ("add", {"ids": ["x"], "embeddings": [[1, 2, 3, 4, 5]]}, "PGCHROMA_MAX_DIMENSION"),
            ("query", {"query_embeddings": [[1, 2, 3, 4, 5]]}, "PGCHROMA_MAX_DIMENSION"),
            (
                "add",
                {"ids": ["x"], "embeddings": [[1]], "documents": ["a" * 1501]},
                "PGCHROMA_MAX_DOCUMENT_BYTES",
            ),
            (
                "upsert",
                {"ids": ["x"], "embeddings": [[1]], "documents": ["ü" * 751]},
                "PGCHROMA_MAX_DOCUMENT_BYTES",
            ),
            ("update", {"ids": ["x", "y"], "documents": [None, "\0" * 251]}, "PGCHROMA_MAX_DOCUMENT_BYTES"),
            ("query", {"query_embeddings": [[1, 2]] * 4}, "PGCHROMA_MAX_QUERIES"),
            ("query", {"query_embeddings": [[1, 2]], "n_results": 21}, "PGCHROMA_MAX_RESULTS"),
            ("get", {"where": {"$and": [{"k": 1}] * 6}}, "PGCHROMA_MAX_WHERE_CONDITIONS"),
            (
                "delete",
                {"where": {"$and": [{"$or": [{"$and": [{"$or": [{"$and": [{"$or": [{"k": 1}]}]}]}]}]}]}},
                "PGCHROMA_MAX_WHERE_DEPTH",
            ),
            (
                "get",
                {"where_document": {"$and": [{"$contains": str(n)} for n in range(6)]}},
                "PGCHROMA_MAX_WHERE_CONDITIONS",
            ),
            ("search", {"searches": [{"limit": {"limit": 21}}]}, "PGCHROMA_MAX_RESULTS"),
            ("get", {"where_document": {"$regex": "x" * 31}}, "PGCHROMA_MAX_REGEX_LENGTH"),
            (
                "query",
                {"query_embeddings": [[1]], "where": {"$or": [{"#document": {"$not_regex": "x" * 31}}]}},
                "PGCHROMA_MAX_REGEX_LENGTH",
            ),
        ],
    )
    def test_each_names_itself_and_its_setting(
        self, limited: ServerProcess, action: str, body: object, setting: str
    ) -> None:
        api = Api(limited.port)
        name = f"limited-{action}-{setting}".lower().replace("_", "-")
        found = api("POST", COLLECTIONS, {"name": name, "get_or_create": True})
        answer = api("POST", f"{COLLECTIONS}/{found[1]['id']}/{action}", body)
        check(answer, 400, "InvalidArgumentError", f"({setting})")
        assert str(LIMITS[setting]) in answer[1]["message"]

    def test_what_is_just_allowed_passes(self, limited: ServerProcess) -> None:
        api = Api(limited.port)
        ident = api("POST", COLLECTIONS, {"name": "allowed"})[1]["id"]
        path = f"{COLLECTIONS}/{ident}"
        documents = ["a" * 1500, "ü" * 750, "\0" * 250]
        add = {"ids": ["x", "y", "z"], "embeddings": [[1, 2, 3, 4]] * 3, "documents": documents}
        assert api("POST", f"{path}/add", add)[0] == 201
        query = {
            "query_embeddings": [[1, 2, 3, 4]] * 3,
            "n_results": 20,
            "where": {"$or": [{"k": n} for n in range(5)]},
        }
        assert api("POST", f"{path}/query", query)[0] == 200

    def test_a_pattern_that_takes_too_long_keeps_nobody_waiting_and_names_its_setting(
        self, database_url: str, tmp_path: Path
    ) -> None:
        roomy = {**LIMITS, "PGCHROMA_MAX_DOCUMENT_BYTES": "100000"}
        with running_server(database_url, tmp_path, workers=1, environment=roomy) as server:
            self._ask_dearly(Api(server.port))

    def _ask_dearly(self, api: Api) -> None:
        path = f"{COLLECTIONS}/{api('POST', COLLECTIONS, {'name': 'regex'})[1]['id']}"
        records = {"ids": [str(number) for number in range(25)], "embeddings": [[1, 2]] * 25}
        assert api("POST", f"{path}/add", {**records, "documents": ["слово " * 3_600] * 25})[0] == 201
        dear = {"where_document": {"$regex": r"(?:\b\w+\b ){50}zzz"}, "limit": 1}
        answers: list[tuple[int, Any, dict[str, str]]] = []
        asking = threading.Thread(target=lambda: answers.append(api("POST", f"{path}/get", dear)))
        asking.start()
        beats = 0
        while not answers:
            assert api("GET", "/api/v2/heartbeat")[0] == 200
            beats += 1
        asking.join()
        check(answers[0], 400, "InvalidArgumentError", "1 s (PGCHROMA_REGEX_TIMEOUT_SECONDS)")
        # One alone would have been answered after the pattern had had its time.
        assert beats > 5
        assert api("POST", f"{path}/get", {"where_document": {"$regex": "zzz"}})[1]["ids"] == []

    def test_a_statement_that_takes_too_long_names_its_setting(
        self, database_url: str, tmp_path: Path
    ) -> None:
        with running_server(database_url, tmp_path, workers=1, environment=LIMITS) as server:
            api = Api(server.port)
            path = made(api)
            with locked(database_url):
                answer = api("POST", f"{path}/get", {})
            check(answer, 400, "InvalidArgumentError", "1 s (PGCHROMA_STATEMENT_TIMEOUT_SECONDS)")
            assert api("POST", f"{path}/get", {})[0] == 200

    def test_a_request_that_takes_too_long_is_given_up_whole(self, database_url: str, tmp_path: Path) -> None:
        limit = {"PGCHROMA_REQUEST_TIMEOUT_SECONDS": "1"}
        with running_server(database_url, tmp_path, workers=1, environment=limit) as server:
            api = Api(server.port)
            path = made(api)
            with locked(database_url):
                answer = api("POST", f"{path}/add", {"ids": ["late"], "embeddings": [[1, 2]]})
            check(answer, 408, "ChromaError", "1 s (PGCHROMA_REQUEST_TIMEOUT_SECONDS)")
            assert answer[2]["retry-after"] == "1"
            assert api("GET", f"{path}/count")[1] == 1
            wait_for("nothing to be left behind", lambda: waiting(database_url) == 0)

    def test_what_is_wanted_whole_has_no_deadline(self, database_url: str, tmp_path: Path) -> None:
        limit = {"PGCHROMA_REQUEST_TIMEOUT_SECONDS": "1"}
        with running_server(database_url, tmp_path, workers=1, environment=limit) as server:
            api = Api(server.port)
            path = made(api)
            answers: list[tuple[int, Any, dict[str, str]]] = []
            fork = threading.Thread(
                target=lambda: answers.append(api("POST", f"{path}/fork", {"new_name": "copy"}))
            )
            with locked(database_url):
                fork.start()
                # Begun before that, given up before it would have been: the fork has outlived its own second.
                check(api("POST", f"{path}/get", {}), 408, "ChromaError", "PGCHROMA_REQUEST_TIMEOUT")
                check(api("POST", f"{path}/get", {}), 408, "ChromaError", "PGCHROMA_REQUEST_TIMEOUT")
            fork.join(30)
            assert [answer[0] for answer in answers] == [200]

    def test_a_body_that_does_not_come_is_not_waited_for(self, database_url: str, tmp_path: Path) -> None:
        limit = {"PGCHROMA_REQUEST_TIMEOUT_SECONDS": "1"}
        with (
            running_server(database_url, tmp_path, workers=1, environment=limit) as server,
            socket.create_connection(("127.0.0.1", server.port), timeout=20) as slow,
        ):
            head = f"POST {COLLECTIONS} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{{"
            slow.sendall(head.encode())
            answer = slow.makefile("rb").read().decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "PGCHROMA_REQUEST_TIMEOUT_SECONDS" in answer


class TestPool:
    SMALL = {  # noqa: RUF012
        "PGCHROMA_POOL_SIZE": "2",
        "PGCHROMA_POOL_TIMEOUT_SECONDS": "1",
        "PGCHROMA_POOL_WAITING": "3",
    }

    def test_an_exhausted_pool_is_named_and_recovers_and_readiness_does_not_care(
        self, database_url: str, tmp_path: Path
    ) -> None:
        with running_server(database_url, tmp_path, workers=1, environment=self.SMALL) as server:
            api = Api(server.port)
            path = made(api)
            answers: list[tuple[int, Any, dict[str, str]]] = []

            def get() -> None:
                answers.append(api("POST", f"{path}/get", {}))

            threads = [threading.Thread(target=get) for _ in range(10)]
            with locked(database_url):
                for thread in threads[:2]:
                    thread.start()
                wait_for("both connections to be in use", lambda: waiting(database_url) == 2)
                for thread in threads[2:]:
                    thread.start()
                wait_for("the others to be refused", lambda: len(answers) == 8)
                for answer in answers:
                    check(answer, 503, "ServiceUnavailable", "all 2 database connections of this worker")
                    assert "PGCHROMA_POOL_SIZE" in answer[1]["message"]
                    assert answer[2]["retry-after"] == "1"
                reasons = "".join(answer[1]["message"] for answer in answers)
                assert "3 requests wait for one already" in reasons
                assert "none became free in time" in reasons
                assert server.status() == 200, "ready: PostgreSQL is, and the pool will be"
                assert value(server.port, "pgchroma_database_up") == 1
            for thread in threads:
                thread.join(30)
            assert [answer[0] for answer in answers].count(200) == 2
            assert api("POST", f"{path}/get", {})[0] == 200
            assert value(server.port, "pgchroma_pool_refusals_total") >= 3


class TestPostgresqlAway:
    @pytest.fixture
    def own_postgres(self) -> Iterator[EmbeddedPostgres]:
        with temporary_postgres() as postgres:
            yield postgres

    def test_requests_are_refused_at_once_and_served_again_at_once(
        self, own_postgres: EmbeddedPostgres, tmp_path: Path
    ) -> None:
        with Databases(own_postgres).fresh() as url:
            token = bearer(make_token(url, "app", "write"))
            with running_server(url, tmp_path, environment={"PGCHROMA_AUTH": "token"}) as server:
                api = Api(server.port)
                ident = api("POST", COLLECTIONS, {"name": "kept"}, headers=token)[1]["id"]
                path = f"{COLLECTIONS}/{ident}/count"
                assert api("GET", path, headers=token)[0] == 200
                own_postgres.stop(immediate=True)
                wait_for("the server to notice", lambda: server.status() == 503)
                # More than the token is trusted for.
                refusals = []
                until = time.monotonic() + 6
                while time.monotonic() < until:
                    started = time.monotonic()
                    answer = api("GET", path, headers=token)
                    refusals.append(time.monotonic() - started)
                    check(answer, 503, "ServiceUnavailable", "PostgreSQL")
                # Far below the 5 s that a request waits for a busy pool; the machine may be busy, too.
                assert sorted(refusals)[len(refusals) // 2] < 1
                assert api("GET", "/api/v2/heartbeat")[0] == 200
                own_postgres.start()
                server.wait_until_ready()
                for _ in range(10):
                    answer = api("GET", path, headers=token)
                    assert answer[:2] == (200, 0), answer
                log = server.log.read_text()
            assert "PostgreSQL does not answer" in log
            assert "PostgreSQL answers again" in log


class TestLogs:
    def test_every_line_is_json_with_the_callers_request_id_and_no_content(
        self, server: ServerProcess
    ) -> None:
        api = Api(server.port)
        path = made(api, "logged")
        ident = "order-4711.retry_2"
        headers = {"Content-Type": "application/json", "X-Request-Id": ident}
        batch = {
            "ids": ["an-id-nobody-logs"],
            "embeddings": [[1, 2]],
            "documents": ["a document nobody logs"],
            "metadatas": [{"k": "metadata nobody logs"}],
        }
        answer = api("POST", f"{path}/add", batch, headers=headers)
        assert answer[0] == 201
        assert answer[2]["x-request-id"] == answer[2]["chroma-trace-id"] == ident
        where = {
            "where": {"k": "metadata nobody logs"},
            "where_document": {"$contains": "a document nobody logs"},
        }
        assert api("POST", f"{path}/get", where)[0] == 200
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        (line,) = [line for line in lines if line.get("request_id") == ident]
        assert (line["method"], line["status"], line["logger"]) == ("POST", 201, "pgchroma.access")
        assert line["route"].endswith("/collections/{collection}/add")
        assert line["bytes_in"] > 0
        assert line["milliseconds"] > 0
        assert "nobody" not in server.log.read_text()

    @pytest.mark.parametrize("ident", ["", "with space", "x" * 129, 'quote"', "newline%0a"])
    def test_an_unusable_request_id_is_replaced(self, server: ServerProcess, ident: str) -> None:
        answer = Api(server.port)("GET", "/api/v2/version", headers={"X-Request-Id": ident})
        assert re.fullmatch(r"[0-9a-f]{32}", answer[2]["x-request-id"])
