"""What can break under a storm of writes, each as a function that breaks it and waits until writing goes on.

The controls break a promise on purpose, to show that the storm would notice: they must lose writes.
"""

import contextlib
import http.client
import http.server
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ClassVar

import psycopg

from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.postgres import Databases
from support.server import ServerProcess, running_server
from support.storm import Outcome, Storm
from support.waiting import wait_for

# Batches that every writer gets through between two blows.
_CALM = 5


@dataclass(slots=True)
class Stage:
    """What a scenario plays on."""

    postgres: EmbeddedPostgres
    database_url: str
    servers: list[ServerProcess]
    storm: Storm

    def calm(self) -> None:
        """Wait until every writer has had successes again."""
        wait_for("every writer to write again", self.storm.more(_CALM), seconds=90)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault and how it is brought about.

    Attributes:
        strike: is called `times` times, each time when all writers write.
        settings: PostgreSQL's.
        servers: how many servers with two workers each.
        is_control: must lose acknowledged writes.
    """

    name: str
    strike: Callable[[Stage], None]
    times: int = 3
    settings: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    servers: int = 1
    is_control: bool = False
    through: Callable[[int], contextlib.AbstractContextManager[int]] = contextlib.nullcontext

    def play(self, *, times: int | None = None) -> Outcome:
        """Run it from an empty cluster and return what became of the writes."""
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgchroma-faults-")))
            postgres = stack.enter_context(temporary_postgres(settings=self.settings))
            url = stack.enter_context(Databases(postgres).fresh())
            environment = {"PGCHROMA_AUTH": "off", **self.environment}
            servers = [
                stack.enter_context(running_server(url, folder, environment=environment))
                for _ in range(self.servers)
            ]
            ports = [stack.enter_context(self.through(server.port)) for server in servers]
            storm = Storm(ports)
            stage = Stage(postgres, url, servers, storm)
            with storm.blowing():
                for _ in range(times or self.times):
                    stage.calm()
                    self.strike(stage)
                stage.calm()
            storm.ports = [server.port for server in servers]
            return storm.outcome()


def nothing(stage: Stage) -> None:
    """Break nothing."""


def kill_worker(stage: Stage) -> None:
    """SIGKILL a worker of every server and wait until it was replaced."""
    for server in stage.servers:
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        wait_for("a new worker", partial(_is_replaced, server, before))


def kill_workers_with_requests(stage: Stage) -> None:
    """SIGKILL every worker once writes have been acknowledged that none of them has done yet."""
    for server in stage.servers:
        before = server.workers()
        for pid in before:
            os.kill(pid, signal.SIGSTOP)
        # Each writer gets to be told yes to one batch that then waits before the workers.
        wait_for(
            "a batch of every writer to wait", lambda: len(_Forgetful.passing) == len(stage.storm.writers)
        )
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        wait_for("new workers", partial(_are_replaced, server, before))


def _are_replaced(server: ServerProcess, before: list[int]) -> bool:
    now = set(server.workers())
    return len(now) == len(before) and not now.intersection(before)


def _is_replaced(server: ServerProcess, before: list[int]) -> bool:
    now = set(server.workers())
    return len(now) == len(before) and before[0] not in now


def cut_connections(stage: Stage) -> None:
    """End every connection of the servers, wherever in its transaction it is."""
    with psycopg.connect(stage.postgres.url(), autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgchroma'"
        )


def kill_backend(stage: Stage) -> None:
    """SIGKILL one of PostgreSQL's processes: it ends all others and recovers."""
    with psycopg.connect(stage.postgres.url(), autocommit=True) as connection:
        row = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgchroma' ORDER BY state_change DESC LIMIT 1"
        ).fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGKILL)


def restart_postgres(stage: Stage) -> None:
    """Stop PostgreSQL the usual way, which ends all sessions, and start it."""
    stage.postgres.stop()
    stage.postgres.start()


def kill_postgres(stage: Stage) -> None:
    """SIGKILL all of PostgreSQL's processes at once, so that none can write anything any more, and start it."""
    pid = stage.postgres.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for child in [*map(int, children), pid]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    wait_for("PostgreSQL's processes to be gone", lambda: not any(map(_lives, children)))
    stage.postgres.stop()
    stage.postgres.start()


def kill_postgres_with_commits_in_memory(stage: Stage) -> None:
    """Suspend the process that brings commits to disk where these do not wait for it, let writers go on, then kill everything."""
    with psycopg.connect(stage.postgres.url(), autocommit=True) as connection:
        row = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'"
        ).fetchone()
    assert row is not None
    os.kill(row[0], signal.SIGSTOP)
    stage.calm()
    kill_postgres(stage)


def _lives(pid: str) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def exhaust_pool(stage: Stage) -> None:
    """Keep every write waiting for longer than a request waits for a connection, then let go."""
    with psycopg.connect(stage.database_url) as connection:
        connection.execute("LOCK TABLE pgchroma_data.r1 IN SHARE ROW EXCLUSIVE MODE")
        doubtful = sum(len(writer.doubtful) for writer in stage.storm.writers)
        wait_for(
            "a request to be refused",
            lambda: sum(len(writer.doubtful) for writer in stage.storm.writers) > doubtful,
        )


class _Forgetful(http.server.BaseHTTPRequestHandler):
    """Says yes before it has asked the server behind it."""

    protocol_version = "HTTP/1.1"
    behind = 0
    # The threads that have said yes and are not done.
    passing: ClassVar[set[int]] = set()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if not self.path.endswith("/upsert"):
            self._answer(*self._pass_on(body))
            return
        self._answer(200, b"{}")
        self.passing.add(threading.get_ident())
        try:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self._pass_on(body)
        finally:
            self.passing.discard(threading.get_ident())

    def _answer(self, status: int, text: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)
        self.wfile.flush()

    def _pass_on(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.behind, timeout=30)
        try:
            connection.request("POST", self.path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def forgetful(port: int) -> Iterator[int]:
    """Run a proxy before a server that acknowledges writes before they are done."""
    handler = type("Handler", (_Forgetful,), {"behind": port})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


# Commits are acknowledged before they are on disk, and nothing but the WAL writer brings them there.
_HASTY = {"synchronous_commit": "off", "wal_buffers": "64MB"}
# Few connections, for which requests wait half a second.
_NARROW = {"PGCHROMA_POOL_SIZE": "2"}

SCENARIOS = (
    Scenario("no fault, two servers", nothing, servers=2),
    Scenario("a worker of each of two servers killed with -9", kill_worker, servers=2),
    Scenario("every database connection cut", cut_connections, times=6, servers=2),
    Scenario("the pool exhausted", exhaust_pool, times=1, environment=_NARROW),
    Scenario("PostgreSQL restarted", restart_postgres),
    Scenario("a process of PostgreSQL's killed with -9", kill_backend),
    Scenario("all of PostgreSQL killed with -9", kill_postgres),
    Scenario(
        "control: commits acknowledged before they are on disk, all of PostgreSQL killed with -9",
        kill_postgres_with_commits_in_memory,
        settings=_HASTY,
        is_control=True,
    ),
    Scenario(
        "control: a proxy acknowledges before the server, every worker killed with -9",
        kill_workers_with_requests,
        is_control=True,
        through=forgetful,
    ),
)
