"""The two servers that are compared, each a process of its own over a folder of its own."""

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import chromadb
import orjson
import psycopg
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.config import Settings

from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from pgchroma.store import Store
from support.postgres import Databases
from support.server import ServerProcess, free_port, running_server
from support.waiting import wait_for

OURS, UPSTREAM = "pgchroma", "chroma run"
_DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"
_never = threading.Event()
# The indexer leaves shorter tails alone, and looks every two seconds.
_LONGEST_TAIL = 2_000
QUIET_SECONDS = 5.0
# What the role postgresql would set on this host, within what an embedded cluster can have. Durability is left as it is: on.
_SHARED_BUFFERS_MB, _MAINTENANCE_MB, _WAL_MB = 1024, 512, 512
POSTGRES_SETTINGS = {
    "shared_buffers": f"{_SHARED_BUFFERS_MB}MB",
    "effective_cache_size": "8GB",
    "work_mem": "32MB",
    "maintenance_work_mem": f"{_MAINTENANCE_MB}MB",
    "jit": "off",
    "max_wal_size": "4GB",
    "min_wal_size": f"{_WAL_MB}MB",
    "checkpoint_timeout": "15min",
    "random_page_cost": "1.1",
    "effective_io_concurrency": "200",
    "max_parallel_workers_per_gather": "1",
}


def client(port: int) -> ClientAPI:
    """Return Chroma's own client of a server on this host."""
    return chromadb.HttpClient(host="127.0.0.1", port=port, settings=Settings(anonymized_telemetry=False))


@dataclass(slots=True)
class System:
    """A running server.

    Attributes:
        roots: the processes whose descendants, themselves included, make up the server.
        folder: where its data lie.
    """

    name: str
    port: int
    folder: Path
    roots: list[int]
    database_url: str = ""
    client: ClientAPI = field(init=False)

    def __post_init__(self) -> None:
        self.client = client(self.port)

    def create(self, name: str) -> Collection:
        """Create a collection by cosine distance with ef 100."""
        configuration = {"hnsw": {"space": "cosine", "ef_search": 100, "ef_construction": 100}}
        return self.client.create_collection(
            name,
            configuration=configuration,  # type: ignore[arg-type]
            embedding_function=None,
        )

    def path(self, collection: Collection, operation: str) -> str:
        """Return the path of an operation on a collection."""
        return f"{_DATABASE}/collections/{collection.id}/{operation}"

    def settle(self, collection: Collection) -> None:
        """Wait until the collection's vectors are indexed as far as they will be without more writes."""
        if self.name == OURS:
            busy = [time.monotonic()]

            def is_quiet() -> bool:
                # To look costs the cores that are to be left to the indexer.
                _never.wait(0.5)
                if self._is_building() or self.tail(collection) >= _LONGEST_TAIL:
                    busy[0] = time.monotonic()
                return time.monotonic() - busy[0] > QUIET_SECONDS

            wait_for("the indexes", is_quiet, seconds=1_800)
        # Upstream brings its index up with the log when it is asked.
        embedding = [0.0] * 383 + [1.0]
        for _ in range(3):
            collection.query(query_embeddings=embedding, n_results=1)

    def _is_building(self) -> bool:
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            return connection.execute("SELECT FROM pg_stat_progress_create_index").fetchone() is not None

    def tail(self, collection: Collection) -> int:
        """Return how much no index of ours covers: vectors, records, and all of them while documents are not indexed."""

        async def look() -> int:
            async with await Store.open(self.database_url) as store:
                found = next(entry for entry in await store.status() if entry.id == collection.id)
                return max(found.tail_rows, found.record_tail_rows, found.rows * (found.documents is None))

        return asyncio.run(look())

    def processes(self) -> list[int]:
        """Return the ids of the server's processes."""
        found, todo = [], list(self.roots)
        while todo:
            pid = todo.pop()
            found.append(pid)
            with contextlib.suppress(FileNotFoundError):
                todo += map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())
        return found

    def memory_mb(self) -> float:
        """Return the memory of the server's processes in MB, what they share counted once."""
        kilobytes = 0
        for pid in self.processes():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
                kilobytes += next(
                    int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:")
                )
        return kilobytes / 1024

    def disk_mb(self) -> float:
        """Return the size of the server's folder in MB."""
        done = subprocess.run(["du", "-sk", self.folder], capture_output=True, text=True, check=True)
        return int(done.stdout.split()[0]) / 1024


@contextlib.contextmanager
def ours(folder: Path, *, environment: dict[str, str] | None = None) -> Iterator[System]:
    """Run pgchroma with two workers over an embedded PostgreSQL."""
    folder.mkdir()
    with (
        temporary_postgres(settings=POSTGRES_SETTINGS) as postgres,
        Databases(postgres).fresh() as url,
    ):
        _season(url)
        variables = {"PGCHROMA_AUTH": "off", **(environment or {})}
        with running_server(url, folder, environment=variables) as server:
            yield System(OURS, server.port, postgres.folder, _roots(server, postgres), url)


def _season(url: str) -> None:
    """Have PostgreSQL write into WAL files that it has used before, as one does that has run for longer than a few minutes.

    One that was just initialised makes each of them, 16 MB of zeros: about 55 ms in every fifth batch of 1,000 rows.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        for _ in range(_WAL_MB // 8):
            connection.execute("SELECT pg_logical_emit_message(false, 'bench', repeat('x', 8 << 20))")
        connection.execute("CHECKPOINT")


def _roots(server: ServerProcess, postgres: EmbeddedPostgres) -> list[int]:
    assert postgres.pid is not None
    return [server.process.pid, postgres.pid]


@contextlib.contextmanager
def upstream(folder: Path) -> Iterator[System]:
    """Run `chroma run` of the installed chromadb."""
    data = folder / "data"
    data.mkdir(parents=True)
    port = free_port()
    program = Path(sys.executable).with_name("chroma")
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "run", "--path", data, "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "ANONYMIZED_TELEMETRY": "false"},
        )
    try:
        probe = ServerProcess(process, port, folder / "server.log")
        wait_for("chroma run to answer", lambda: probe.status("/api/v2/heartbeat") == 200)
        yield System(UPSTREAM, port, data, [process.pid])
    finally:
        process.terminate()
        process.wait(30)


def body(value: object) -> bytes:
    """Return a request body as JSON."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
