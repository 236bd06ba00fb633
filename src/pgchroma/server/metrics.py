"""What Prometheus reads at `/metrics`: the same from whichever worker answers.

prometheus_client's multiprocess mode: every worker keeps its numbers in files of a folder in memory, an answer adds them up. The
parent makes the folder before it starts the workers, because prometheus_client looks for it when it is imported.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

import pgchroma
from pgchroma.store import gauges

CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
# Of a path that is no route: a label for each would let anyone fill the memory.
NO_ROUTE = "none"
# From a point read to a large batch, in seconds.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Make the folder for the workers' numbers, in memory where that can be had, and remove it at the end."""
    runtime = os.environ.get("RUNTIME_DIRECTORY")
    parent = runtime or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)  # noqa: S108 - mkdtemp is safe there
    made = Path(tempfile.mkdtemp(prefix="pgchroma-metrics-", dir=parent))
    before = os.environ.get(FOLDER_VARIABLE)
    os.environ[FOLDER_VARIABLE] = str(made)
    try:
        yield made
    finally:
        if before is None:
            del os.environ[FOLDER_VARIABLE]
        else:
            os.environ[FOLDER_VARIABLE] = before
        shutil.rmtree(made, ignore_errors=True)


def forget(pid: int) -> None:
    """Leave a dead worker's momentary numbers out; what it counted stays."""
    if path := os.environ.get(FOLDER_VARIABLE):
        multiprocess.mark_process_dead(pid, path)  # type: ignore[no-untyped-call]


class _Answer(NamedTuple):
    number: Counter
    seconds: Histogram


class Metrics:
    """The numbers of one worker."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._answers: dict[tuple[str, str | None, int], _Answer] = {}
        self._errors: dict[str, Counter] = {}
        self._pool_before: dict[str, int] = {}
        self._requests = Counter(
            "pgchroma_requests",
            "Requests answered, by route template and status.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "pgchroma_request_seconds",
            "Time from a request's head to its answer.",
            ["method", "route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._failures = Counter(
            "pgchroma_errors",
            "Answers with a status of 400 or more, by the name of the error.",
            ["error"],
            registry=self.registry,
        )
        self._started = Counter(
            "pgchroma_worker_starts", "Workers started, replaced ones included.", registry=self.registry
        )
        self._waits = Counter(
            "pgchroma_pool_waits", "Requests that had to wait for a connection.", registry=self.registry
        )
        self._wait_seconds = Counter(
            "pgchroma_pool_wait_seconds", "Time they waited.", registry=self.registry
        )
        self._timeouts = Counter(
            "pgchroma_pool_refusals", "Requests that got no connection in time.", registry=self.registry
        )

        def live(name: str, text: str) -> Gauge:
            return Gauge(name, text, multiprocess_mode="livesum", registry=self.registry)

        self._workers = live("pgchroma_workers", "Workers that run.")
        self._in_progress = live("pgchroma_requests_in_progress", "Requests being worked on.")
        self._connections = live("pgchroma_pool_connections", "Connections of the pools.")
        self._idle = live("pgchroma_pool_connections_idle", "Those that no request uses.")
        self._most = live("pgchroma_pool_connections_max", "How many there may be.")
        self._waiting = live("pgchroma_pool_requests_waiting", "Requests waiting for a connection.")
        self._sketches = live("pgchroma_sketch_bytes", "Memory that holds sketches of vectors.")
        self._started.inc()
        self._workers.set(1)

    def answered(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count an answer; `route` None for a path that is none."""
        if method not in _METHODS:
            method = "other"
        answer = self._answers.get((method, route, status))
        if answer is None:
            path = route or NO_ROUTE
            answer = self._answers[method, route, status] = _Answer(
                self._requests.labels(method, path, str(status)), self._seconds.labels(method, path)
            )
        answer.number.inc()
        answer.seconds.observe(seconds)

    def failed(self, error: str) -> None:
        """Count an error by the name that its answer gives it."""
        counter = self._errors.get(error)
        if counter is None:
            counter = self._errors[error] = self._failures.labels(error)
        counter.inc()

    def sample(self, in_progress: int, pool: Mapping[str, int], sketch_bytes: int) -> None:
        """Take down what is true at this moment; `pool` are psycopg_pool's counters."""
        self._in_progress.set(in_progress)
        self._sketches.set(sketch_bytes)
        self._connections.set(pool.get("pool_size", 0))
        self._idle.set(pool.get("pool_available", 0))
        self._most.set(pool.get("pool_max", 0))
        self._waiting.set(pool.get("requests_waiting", 0))

        def grown(name: str) -> int:
            return pool.get(name, 0) - self._pool_before.get(name, 0)

        self._waits.inc(grown("requests_queued"))
        self._wait_seconds.inc(grown("requests_wait_ms") / 1000)
        self._timeouts.inc(grown("requests_errors"))
        self._pool_before = dict(pool)

    def text(self, database: Iterable[gauges.Gauge], *, database_up: bool) -> bytes:
        """Return everything in Prometheus's text format: all workers' numbers and the database's figures."""
        registry = CollectorRegistry()
        if path := os.environ.get(FOLDER_VARIABLE):
            multiprocess.MultiProcessCollector(registry, path=path)  # type: ignore[no-untyped-call]
        else:
            registry = self.registry
        found = [
            gauges.single(
                "pgchroma_database_up", "Whether PostgreSQL answered just now.", float(database_up)
            ),
            gauges.Gauge("pgchroma_info", "The release.", [({"version": pgchroma.__version__}, 1.0)]),
            *database,
        ]
        return generate_latest(registry) + generate_latest(_Figures(found))


class _Figures(Collector):
    """Presents figures as prometheus_client wants to collect them."""

    def __init__(self, figures: list[gauges.Gauge]) -> None:
        self._figures = figures

    def collect(self) -> Iterator[Metric]:
        """Yield a family for each figure."""
        for figure in self._figures:
            names = list(figure.samples[0][0]) if figure.samples else []
            family = GaugeMetricFamily(figure.name, figure.help, labels=names)
            for labels, value in figure.samples:
                family.add_metric([labels[name] for name in names], value)
            yield family
