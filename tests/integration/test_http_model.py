"""Random sequences of requests against the server and against a model in memory: the same answers, and no SQL error behind them.

PGCHROMA_MODEL_EXAMPLES=2000 plays so many sequences, others in each run; `make model` does. Without it a few, the same each time.
"""

import contextlib
import http.client
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.http_model import Collection, complaints
from support.metadata import ARRAYS, KEYS, SCALARS, STRINGS
from support.model import Write
from support.postgres import Databases
from support.server import running_server
from support.store import execute
from support.waiting import wait_for

EXAMPLES = int(os.environ.get("PGCHROMA_MODEL_EXAMPLES", "0"))
QUICK_EXAMPLES = 60
REQUESTS = 20

_LONG = "long " * 1000
_IDS = st.sampled_from(["a", "b", "c", "\x00", "d'\"%s\\", "🦊" * 600, "0", _LONG]) | STRINGS.filter(bool)
# Few keys and values, so that filters find something; and any others, because nobody knows what breaks.
_POOL = ["k", "k2", "q'\"%s\\", "nul\x00", "Größe €", "a.b[0]", "long" * 300, "\n"]
_KEYS = st.sampled_from(_POOL) | KEYS.filter(lambda key: key[0] not in "#$" and not key.startswith("chroma:"))
_FINITE = SCALARS.filter(lambda value: not isinstance(value, float) or abs(value) < float("inf"))
_VALUES = (
    st.sampled_from(
        [
            "x",
            "",
            "1",
            "x\x00y",
            0,
            1,
            2,
            1.0,
            0.5,
            -0.0,
            2**63 - 1,
            -(2**63),
            2**53 + 1,
            2.0**53,
            1e16,
            True,
            False,
            2**63,
            10**30,
        ]
    )
    | _FINITE
)
_LISTS = st.sampled_from([["x", "y"], [1, 2], [1.0, 2.5], [True], [1, 2.5], [2**63], []]) | ARRAYS.filter(
    lambda values: all(not isinstance(item, float) or abs(item) < float("inf") for item in values)
)
_DOCUMENTS = (
    st.sampled_from(["", "x", "a fox", "x\x00y", "100% of a_b\\", "line\nbreak", "Größe ÄÖ"]) | STRINGS
)
_NUMBERS = st.integers(-3, 3).map(float) | st.sampled_from([0.1, 1 / 3, -0.0, 1e-3])
_EMBEDDINGS = st.lists(_NUMBERS, min_size=3, max_size=3)


def _metadata(*, nulls: bool) -> st.SearchStrategy[dict[str, Any]]:
    values = _VALUES | _LISTS
    return st.dictionaries(_KEYS, values | st.none() if nulls else values, max_size=4)


def _writes(*, nulls: bool, embeddings: bool) -> st.SearchStrategy[list[Write]]:
    return st.lists(
        st.builds(
            Write,
            _IDS,
            _EMBEDDINGS if embeddings else _EMBEDDINGS | st.none(),
            st.none() | _DOCUMENTS,
            st.none() | _metadata(nulls=nulls),
            st.none() | STRINGS,
        ),
        min_size=1,
        max_size=5,
    )


def _comparisons() -> st.SearchStrategy[dict[str, Any]]:
    number = _VALUES.filter(lambda value: type(value) in (int, float))
    operand = st.one_of(
        _VALUES,
        st.builds(
            lambda operator, value: {operator: value},
            st.sampled_from(["$eq", "$ne", "$contains", "$not_contains"]),
            _VALUES,
        ),
        st.builds(
            lambda operator, value: {operator: value}, st.sampled_from(["$gt", "$gte", "$lt", "$lte"]), number
        ),
        st.builds(
            lambda operator, values: {operator: values},
            st.sampled_from(["$in", "$nin"]),
            st.sampled_from([["x", ""], [1, 2], [0.5, 1.0], [True], [-0.0], [2**63 - 1]]),
        ),
    )
    return st.builds(lambda key, value: {key: value}, _KEYS, operand)


_TEXT_CONDITIONS = st.one_of(
    st.builds(
        lambda operator, text: {operator: text},
        st.sampled_from(["$contains", "$not_contains"]),
        st.sampled_from(["", "x", "fox", "%", "_", "\\", "\x00", "ÄÖ", "\n"]) | _DOCUMENTS,
    ),
    st.builds(
        lambda operator, pattern: {operator: pattern},
        st.sampled_from(["$regex", "$not_regex"]),
        st.sampled_from(["", "x", "^a [a-z]+", "fox|ÄÖ", r"[0-9]+%", r"\\", "\x00"]),
    ),
)


def _nested(leaves: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.recursive(
        leaves,
        lambda parts: st.builds(
            lambda operator, clauses: {operator: clauses},
            st.sampled_from(["$and", "$or"]),
            st.lists(parts, max_size=3),
        ),
        max_leaves=4,
    )


_WHERE = st.none() | _nested(_comparisons() | _TEXT_CONDITIONS.map(lambda clause: {"#document": clause}))
_WHERE_DOCUMENT = st.none() | _nested(_TEXT_CONDITIONS)
_SOME_IDS = st.none() | st.lists(_IDS, max_size=4)
_SELECTION = st.tuples(_SOME_IDS, _WHERE, _WHERE_DOCUMENT)
_SMALL = st.none() | st.integers(0, 4)
_MISTAKES: st.SearchStrategy[tuple[str, Any]] = st.sampled_from(
    [
        ("add", {"ids": ["bad"], "embeddings": [[1, 2]]}),
        ("add", {"ids": [""], "embeddings": [[1, 2, 3]]}),
        ("upsert", {"ids": ["bad", "worse"], "embeddings": [[1, 2, 3]]}),
        ("upsert", {"ids": ["bad"], "embeddings": [[1e39, 2, 3]]}),
        ("upsert", {"ids": ["bad"], "embeddings": [[1, 2, 3]], "metadatas": [{"#k": "x"}]}),
        ("update", {"ids": ["a"], "metadatas": [{"k": {"nested": 1}}]}),
        ("update", {"ids": ["a"], "documents": [5]}),
        ("get", {"where": {"k": {"$nope": 1}}}),
        ("get", {"where": {"k'": {"$gt": "x'"}}}),
        ("get", {"where_document": {"$regex": "("}}),
        ("get", {"limit": 2**64}),
        ("get", {"offset": -1}),
        ("query", {"query_embeddings": [[1]]}),
        ("query", {"query_embeddings": [[1, 2, 3]], "n_results": 2**40}),
        ("delete", {"ids": []}),
        ("delete", {"where": {}}),
    ]
)
_OPERATIONS = st.one_of(
    st.tuples(st.just("add"), _writes(nulls=False, embeddings=True)),
    st.tuples(st.just("upsert"), _writes(nulls=True, embeddings=True)),
    st.tuples(st.just("update"), _writes(nulls=True, embeddings=False)),
    st.tuples(st.just("delete"), _SELECTION, _SMALL),
    st.tuples(st.just("get"), _SELECTION, _SMALL, _SMALL),
    st.tuples(st.just("query"), _SELECTION, st.lists(_EMBEDDINGS, min_size=1, max_size=2), st.integers(0, 6)),
    st.tuples(st.just("mistake"), _MISTAKES),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[EmbeddedPostgres]:
    """A cluster of its own, whose log nobody else writes to."""
    with temporary_postgres() as postgres:
        yield postgres


@pytest.fixture(scope="module")
def connection(
    cluster: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[http.client.HTTPConnection]:
    folder: Path = tmp_path_factory.mktemp("model")
    with (
        Databases(cluster).fresh() as url,
        running_server(url, folder, environment={"PGCHROMA_AUTH": "off"}) as server,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)) as opened,
    ):
        yield opened


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
    operations=st.lists(_OPERATIONS, min_size=REQUESTS // 2, max_size=REQUESTS),
)
def test_the_server_is_like_the_model(
    connection: http.client.HTTPConnection, space: str, operations: list[tuple[Any, ...]]
) -> None:
    collection = Collection(connection, space, [1.0, 2.0, 3.0])
    for operation in operations:
        collection.do(operation)
    collection.check()


def test_no_statement_failed(cluster: EmbeddedPostgres, connection: http.client.HTTPConnection) -> None:
    """Whatever the sequences held, PostgreSQL had nothing to complain about; when it has, it does so where this looks."""
    assert complaints(cluster.log) == []
    with pytest.raises(psycopg.errors.DivisionByZero):
        execute(cluster.url(), "SELECT 1 / 0")
    wait_for("PostgreSQL to log the error", lambda: len(complaints(cluster.log)) == 1)
