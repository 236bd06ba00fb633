"""Random sequences as in test_http_model.py, of embeddings long enough for sketches, in collections with indexes and a tail.

The thresholds of a real server are thousands of rows; here they are dozens, so that a sequence meets segments, sketches held in memory,
pages that were read ahead, and the indexer at work in between. How good the approximate answers are is judged over all sequences.
"""

import contextlib
import http.client
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import uvicorn
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgchroma.server import read_ahead
from pgchroma.server.app import Application
from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from pgchroma.server.settings import ServerSettings
from pgchroma.store import StoreSettings, held
from support.http_model import Collection, complaints
from support.model import Write
from support.postgres import Databases
from support.server import free_port
from support.store import execute
from support.waiting import wait_for

EXAMPLES = int(os.environ.get("PGCHROMA_MODEL_EXAMPLES", "0"))
QUICK_EXAMPLES = 15
REQUESTS = 24
DIMENSION = 96
# Rows that are indexed before a sequence begins; and rows from which a tail is indexed.
FILLED, MINIMUM = 150, 40
PAGE = 20

ZERO = [0.0] * DIMENSION
_SEEDS = st.integers(0, 10_000)


class Impatient(ServerSettings):
    """Settings of a server for which a few rows are many."""

    def store_settings(self) -> StoreSettings:
        usual = ServerSettings.store_settings(self)
        return replace(usual, index_minimum_rows=MINIMUM, indexer_interval_seconds=0.02)


def embedding(seed: int, scale: float = 1.0) -> list[float]:
    """Return a point around one of some centres, as embeddings are, of this length."""
    centres = np.random.default_rng(99).standard_normal((12, DIMENSION))
    found = centres[seed % 12] + 0.7 * np.random.default_rng(seed).standard_normal(DIMENSION)
    return [float(number) for number in (scale * found / np.linalg.norm(found)).astype(np.float32)]


_UNIT = _SEEDS.map(embedding)
# A vector of another length, or of none, written to a collection of l2 or ip, ends the use of sketches there.
_ANY = st.just(ZERO) | st.builds(embedding, _SEEDS, st.sampled_from([0.25, 7.0])) | _UNIT
_IDS = st.integers(0, FILLED + 20).map(lambda number: f"row-{number}")
_METADATA = st.sampled_from([{"kind": "even"}, {"kind": "odd", "number": 120}, {"new": True}])
_NOTHING = (None, None, None)
_SELECTION = st.tuples(
    st.none() | st.none() | st.lists(_IDS, min_size=1, max_size=60),
    st.none() | st.sampled_from([{"kind": "even"}, {"kind": {"$ne": "even"}}, {"number": {"$gt": 100}}]),
    st.none() | st.none() | st.sampled_from([{"$contains": "fox"}, {"$not_contains": "a f"}]),
)
_QUERIES = st.lists(st.just(ZERO) | _ANY | _UNIT, min_size=1, max_size=2)


def _writes(embeddings: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Write]]:
    documents = st.none() | st.sampled_from(["a fox", "a dog"])
    return st.lists(
        st.builds(Write, _IDS, embeddings, documents, st.none() | _METADATA), min_size=1, max_size=8
    )


def _sequences(embeddings: st.SearchStrategy[list[float]]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    plain = st.tuples(st.just("query"), st.just(_NOTHING), _QUERIES, st.integers(0, 12))
    filtered = st.tuples(st.just("query"), _SELECTION, _QUERIES, st.integers(0, 12))
    writes = (
        st.tuples(st.sampled_from(["add", "upsert"]), _writes(embeddings)),
        st.tuples(st.just("update"), _writes(embeddings | st.none())),
    )
    deletes = (
        st.tuples(st.just("delete"), _SELECTION, st.none() | st.integers(0, 4)),
        st.tuples(st.just("thin_out"), st.sampled_from([3, 20, 30])),
    )
    others = (
        st.tuples(st.just("get"), _SELECTION, st.none() | st.just(30), st.integers(0, 5)),
        st.tuples(st.just("fill"), _SEEDS),
        st.just(("settle",)),
        st.just(("export",)),
    )
    operations = st.one_of(plain, plain, filtered, filtered, *writes, *deletes, *others)
    return st.lists(operations, min_size=REQUESTS // 2, max_size=REQUESTS)


@dataclass(slots=True)
class Tally:
    """How many of the best results the answers held, of all."""

    found: int = 0
    wanted: int = 0
    examples: int = 0


class Indexed(Collection):
    """A collection whose records have an index from the start on."""

    def __init__(
        self,
        connection: http.client.HTTPConnection,
        application: Application,
        space: str,
        tally: Tally,
    ) -> None:
        self._application = application
        self._tally = tally
        super().__init__(connection, space, embedding(0))
        self._filled = 0
        self.fill(1)
        self.settle()
        before = self._held()

        def is_held() -> bool:
            # The worker reads them once it is asked, unless it reads those of another collection just then.
            self.query(_NOTHING, [embedding(5)], 10)
            return self._held() > before

        wait_for("the sketches to be read", is_held)

    def fill(self, seed: int) -> None:
        """Add enough records for an index."""
        rows = MINIMUM if self._filled else FILLED
        batch = [
            Write(
                f"row-{number}",
                embedding(seed + 7 * number),
                "a fox" if number % 3 else None,
                {"kind": "even" if number % 2 == 0 else "odd", "number": number},
            )
            for number in range(self._filled, self._filled + rows)
        ]
        self._filled += rows
        self.write("upsert", batch)

    def thin_out(self, step: int) -> None:
        """Delete one record of each `step`, most of them indexed."""
        self.delete((list(self.model.records)[::step], None, None), None)

    def settle(self) -> None:
        """Wait until the indexer has nothing to do here."""
        status = f"{self.path}/indexing_status"
        wait_for("the index", lambda: self.send("GET", status)[1]["op_indexing_progress"] == 1.0)

    def export(self) -> None:
        """Read everything out page by page."""
        found = []
        for offset in range(0, len(self.model.records) + PAGE, PAGE):
            page = self.send("POST", f"{self.path}/get", {"limit": PAGE, "offset": offset, "include": []})
            assert page[0] == 200
            found += page[1]["ids"]
        assert found == list(self.model.records)

    def compare(self, found: list[float], best: list[float]) -> None:
        """Hold approximate answers to be whole and in order; how near they are is added up."""
        assert len(found) == len(best)
        assert found == sorted(found)
        self._tally.wanted += len(best)
        self._tally.found += sum(value <= limit + 1e-5 for value, limit in zip(found, best, strict=True))

    def _held(self) -> int:
        context = self._application._context
        assert context is not None
        return context.store.sketch_bytes


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A cluster of its own, whose log nobody else writes to."""
    with temporary_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="module")
def database_url(cluster: EmbeddedPostgres) -> Iterator[str]:
    with Databases(cluster).fresh() as url:
        yield url


@pytest.fixture(scope="module")
def application(database_url: str) -> Application:
    return Application(Impatient(database_url=database_url, auth="off"))


@pytest.fixture(scope="module")
def connection(application: Application) -> Iterator[http.client.HTTPConnection]:
    """A connection to a server in this process, where its thresholds can be changed."""
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(application, port=port, lifespan="on", log_config=None, timeout_keep_alive=60)
    )
    thread = threading.Thread(target=server.run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(held, "_USES", 1)
        patch.setattr(read_ahead, "SHORTEST", PAGE)
        thread.start()
        try:
            wait_for("the server to start", lambda: server.started)
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as opened:
                yield opened
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


@settings(
    max_examples=EXAMPLES or QUICK_EXAMPLES,
    derandomize=not EXAMPLES,
    phases=(Phase.explicit, Phase.generate, Phase.shrink) if EXAMPLES else (Phase.explicit, Phase.generate),
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(
    space=st.sampled_from(["l2", "cosine", "ip"]),
    sequence=_sequences(_UNIT) | _sequences(_ANY),
)
def test_a_server_with_indexes_is_like_the_model(
    connection: http.client.HTTPConnection,
    application: Application,
    tally: Tally,
    space: str,
    sequence: list[tuple[Any, ...]],
) -> None:
    collection = Indexed(connection, application, space, tally)
    for operation in sequence:
        collection.do(operation)
    collection.export()
    collection.check()
    tally.examples += 1


def test_the_answers_are_good_and_no_statement_failed(
    connection: http.client.HTTPConnection, cluster: EmbeddedPostgres, database_url: str, tally: Tally
) -> None:
    assert tally.found >= 0.99 * tally.wanted > 0
    segments = execute(
        database_url, "SELECT count(*), count(DISTINCT collection_id) FROM pgchroma.index_segments"
    )
    # Tails came and were indexed, at least now and then.
    assert segments[0][1] >= tally.examples
    assert segments[0][0] > segments[0][1]
    assert complaints(cluster.log) == []
