"""Starting and stopping: readiness, signals, dead workers, a taken port, the embedded database."""

import http.client
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pgchroma.exit_codes import ExitCode
from support.api import COLLECTIONS, Api, check
from support.postgres import Databases
from support.server import PROGRAM, ServerProcess, free_port, running_server
from support.waiting import wait_for


@pytest.fixture
def own_server(database_url: str, tmp_path: Path) -> Iterator[ServerProcess]:
    """A server that only this test uses, so that it may be stopped."""
    with running_server(database_url, tmp_path) as server:
        yield server


def alive(pid: int) -> bool:
    try:
        return ") Z" not in Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False


class Background(threading.Thread):
    """A request under way; `answer` is what came of it, None while nothing did, an exception when nothing will."""

    def __init__(self, api: Api, path: str, body: object) -> None:
        super().__init__(daemon=True)
        self.answer: Any = None
        self._request = (api, path, body)
        self.start()

    def run(self) -> None:
        api, path, body = self._request
        try:
            self.answer = api("POST", path, body)
        except OSError as error:
            self.answer = error


def make_collection(api: Api) -> str:
    status, body, _ = api("POST", COLLECTIONS, {"name": "records"})
    assert status == 200
    path = f"{COLLECTIONS}/{body['id']}"
    assert api("POST", f"{path}/add", {"ids": ["first"], "embeddings": [[1, 2]]})[0] == 201
    return path


@contextmanager
def held_up(database_url: str) -> Iterator[psycopg.Connection[Any]]:
    """Keep every write to the first collection waiting while the block runs."""
    with psycopg.connect(database_url) as connection:
        connection.execute("LOCK TABLE pgchroma_data.r1 IN ACCESS EXCLUSIVE MODE")
        yield connection


def writes_waiting(database_url: str) -> bool:
    with psycopg.connect(database_url) as connection:
        row = connection.execute("SELECT count(*) FROM pg_locks WHERE NOT granted").fetchone()
    return bool(row and row[0])


def stored_ids(database_url: str) -> set[str]:
    with psycopg.connect(database_url) as connection:
        return {row[0] for row in connection.execute("SELECT id FROM pgchroma_data.r1")}


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_finishes_when_the_server_is_stopped(
    own_server: ServerProcess, database_url: str, sig: signal.Signals
) -> None:
    api = Api(own_server.port)
    path = make_collection(api)
    with held_up(database_url) as connection:
        request = Background(api, f"{path}/add", {"ids": ["late"], "embeddings": [[1, 2]]})
        wait_for("the write to wait", lambda: writes_waiting(database_url))
        own_server.process.send_signal(sig)
        wait_for("new connections to be refused", lambda: own_server.status("/api/v2/heartbeat") == 0)
        assert request.answer is None
        connection.rollback()
        request.join(30)
    answer: Any = request.answer
    assert answer[:2] == (201, {})
    assert own_server.process.wait(30) == 0
    assert stored_ids(database_url) == {"first", "late"}


def test_a_request_that_takes_too_long_is_given_up_and_not_half_done(
    database_url: str, tmp_path: Path
) -> None:
    with running_server(database_url, tmp_path, environment={"PGCHROMA_SHUTDOWN_SECONDS": "1"}) as server:
        api = Api(server.port)
        path = make_collection(api)
        with held_up(database_url):
            request = Background(api, f"{path}/add", {"ids": ["late"], "embeddings": [[1, 2]]})
            wait_for("the write to wait", lambda: writes_waiting(database_url))
            assert server.stop() == 0
        request.join(30)
        answer: Any = request.answer
        check(answer, 503, "ServiceUnavailable", "stopped before the request was done")
    assert stored_ids(database_url) == {"first"}


def test_no_acknowledged_write_is_lost_when_the_server_is_stopped_under_load(
    own_server: ServerProcess, database_url: str
) -> None:
    api = Api(own_server.port)
    path = make_collection(api)
    acknowledged: set[str] = set()
    answers: set[int] = set()
    stopping = threading.Event()

    def write(writer: int) -> None:
        number = 0
        while True:
            number += 1
            batch = [f"{writer}-{number}-{position}" for position in range(20)]
            try:
                status = api("POST", f"{path}/upsert", {"ids": batch, "embeddings": [[1, 2]] * 20})[0]
            except OSError:
                assert stopping.is_set()
                return
            answers.add(status)
            acknowledged.update(batch)

    writers = [threading.Thread(target=write, args=(number,), daemon=True) for number in range(4)]
    for writer in writers:
        writer.start()
    wait_for("some writes", lambda: len(acknowledged) > 400)
    stopping.set()
    assert own_server.stop() == 0
    for writer in writers:
        writer.join(30)
        assert not writer.is_alive()
    assert answers == {200}
    assert acknowledged <= stored_ids(database_url)


def test_a_killed_worker_is_replaced(own_server: ServerProcess) -> None:
    first = own_server.workers()
    assert len(first) == 2
    os.kill(first[0], signal.SIGKILL)
    wait_for("a new worker", lambda: own_server.has_replaced(first[:1]))
    assert first[1] in own_server.workers()
    assert own_server.status() == 200
    assert "ended with status -9, replacing it" in own_server.log.read_text()


def test_a_hung_worker_does_not_delay_a_stop(own_server: ServerProcess, database_url: str) -> None:
    worker = own_server.workers()[0]
    os.kill(worker, signal.SIGSTOP)
    own_server.process.send_signal(signal.SIGTERM)
    wait_for("the parent to begin", lambda: len([pid for pid in own_server.workers() if alive(pid)]) == 1)
    os.kill(worker, signal.SIGCONT)
    assert own_server.process.wait(30) == 0


def test_workers_end_with_a_killed_parent(own_server: ServerProcess) -> None:
    workers = own_server.workers()
    own_server.process.kill()
    own_server.process.wait()
    wait_for("the workers to end", lambda: not any(map(alive, workers)))


def test_a_taken_port_is_named_with_the_remedy() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        environment = {**os.environ, "PGCHROMA_DATABASE_URL": "postgresql:///none"}
        command = [str(PROGRAM), "serve", "--port", str(port)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == ExitCode.CONFIGURATION
    assert f"127.0.0.1 port {port}" in done.stderr
    assert "PGCHROMA_PORT" in done.stderr


def test_systemd_hears_of_readiness_when_all_workers_are_ready(database_url: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with running_server(database_url, tmp_path, environment=environment, wait=False) as server:
            message = systemd.recv(4096).decode()
            assert message.splitlines()[0] == "READY=1"
            assert f"2 workers ready on {server.url}" in message
            assert server.status("/api/v2/heartbeat") == 200
            assert server.stop() == 0
            assert systemd.recv(4096).decode().splitlines()[0] == "STOPPING=1"


def test_systemd_hears_of_readiness_although_postgresql_is_away(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(30)
        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify")}
        with running_server(
            "postgresql:///none?host=/nowhere", tmp_path, environment=environment, wait=False
        ) as server:
            assert systemd.recv(4096).startswith(b"READY=1")
            assert server.status() == 503


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_the_embedded_server_leaves_nothing_behind(sig: signal.Signals, tmp_path: Path) -> None:
    port = free_port()
    command = [str(PROGRAM), "serve", "--embedded", "--allow-reset", "--auth", "off", "--port", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == f"URL=http://127.0.0.1:{port}\n"
        database_url = process.stdout.readline().strip().removeprefix("DATABASE_URL=")
        api = Api(port)
        assert api("GET", "/api/v2/healthcheck")[0] == 200
        path = make_collection(api)
        assert api("GET", f"{path}/count")[1] == 1
        assert stored_ids(database_url) == {"first"}
        assert api("POST", "/api/v2/reset")[:2] == (200, True)
        # To the whole group, as a terminal's Ctrl-C.
        os.killpg(process.pid, sig)
        assert process.wait(60) == 0
    folder = Path(database_url.partition("host=")[2])
    assert folder.name.startswith("pgchroma-")
    assert not folder.exists()


def test_reset_is_refused_unless_allowed(database_url: str, tmp_path: Path) -> None:
    with running_server(database_url, tmp_path, environment={"PGCHROMA_ALLOW_RESET": "false"}) as server:
        status, body, _ = Api(server.port)("POST", "/api/v2/reset")
    assert status == 403
    assert body == {"error": "ChromaError", "message": "Reset is disabled by config"}


def test_limits_are_named(databases: Databases, tmp_path: Path) -> None:
    limits = {"PGCHROMA_MAX_BODY_BYTES": "10000", "PGCHROMA_MAX_BATCH_SIZE": "3"}
    with databases.fresh() as url, running_server(url, tmp_path, environment=limits) as server:
        api = Api(server.port)
        path = make_collection(api)
        batch = {"ids": ["a", "b", "c", "d"], "embeddings": [[1, 2]] * 4}
        status, body, _ = api("POST", f"{path}/add", batch)
        assert (status, body["error"]) == (413, "BatchSizeExceededError")
        assert "PGCHROMA_MAX_BATCH_SIZE" in body["message"]
        status, body, _ = api("POST", f"{path}/add", b'{"ids":["' + b"x" * 20_000 + b'"]}')
        assert status == 413
        assert "10000 bytes" in body["message"]
        # Without a declared length, in chunks.
        status, body = chunked(server.port, f"{path}/add", 20_000)
        assert status == 413
        assert api("GET", f"{path}/count")[1] == 1


def chunked(port: int, path: str, size: int) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", path, iter([b"[" * 1000] * (size // 1000)), encode_chunked=True)
    answer = connection.getresponse()
    text = answer.read()
    connection.close()
    return answer.status, text
