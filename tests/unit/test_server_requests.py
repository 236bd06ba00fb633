"""From bytes to typed requests: routes, embeddings, metadata, answers."""

import asyncio
import base64
import json
import logging
import math
import subprocess
import sys
import uuid
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pgchroma.errors import InvalidArgumentError, InvalidDimensionError
from pgchroma.server import embeddings, errors, logs, metadata, notify, responses
from pgchroma.server.http import HttpError, Request, Response
from pgchroma.server.router import Route, Router
from pgchroma.server.routes import ROUTES
from pgchroma.types import Rows


async def nothing(_context: None, _request: Request) -> Response:
    return Response(b"")


def router(*paths: str) -> Router[None]:
    return Router(Route("GET", path, nothing, "read") for path in paths)


def test_a_fixed_segment_goes_before_a_parameter_and_falls_back_to_it() -> None:
    found = router("/c/{name}", "/c/by-id/{id}", "/c/{name}/count")
    assert found.find("GET", b"/c/by-id")[1] == {"name": "by-id"}
    assert found.find("GET", b"/c/by-id/7")[1] == {"id": "7"}
    assert found.find("GET", b"/c/x/count")[0].path == "/c/{name}/count"


@given(st.text(min_size=1))
def test_any_name_comes_through_the_path(name: str) -> None:
    try:
        quoted = "".join(f"%{byte:02X}" for byte in name.encode())
    except UnicodeEncodeError:
        return
    assert router("/t/{name}").find("GET", f"/t/{quoted}".encode())[1] == {"name": name}


@pytest.mark.parametrize("path", [b"/t", b"/t/", b"/t/a/", b"//a", b"/T/a", b"", b"t/a"])
def test_other_paths_are_not_found(path: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        router("/t/{name}").find("GET", path)
    assert caught.value.status == 404


def test_no_two_routes_collide() -> None:
    assert len({(route.method, route.path) for route in ROUTES}) == len(ROUTES)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
MATRICES = arrays.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=FLOATS)


@given(MATRICES)
def test_embeddings_are_the_same_as_numbers_and_as_base64(matrix: Any) -> None:
    numbers = msgspec.Raw(json.dumps(matrix.tolist()).encode())
    strings = msgspec.Raw(json.dumps([base64.b64encode(row.tobytes()).decode() for row in matrix]).encode())
    for raw in (numbers, strings):
        decoded, rows, count = embeddings.decode(raw)
        assert decoded is not None
        assert decoded.dtype == np.float32
        np.testing.assert_array_equal(decoded.view(np.uint32), matrix.view(np.uint32))
        assert (rows, count) == (None, len(matrix))


@given(MATRICES)
def test_embeddings_in_an_answer_are_exact(matrix: Any) -> None:
    body = orjson.dumps(
        responses.get_result(Rows(ids=["x"] * len(matrix), embeddings=matrix), ["embeddings"]),
        option=orjson.OPT_SERIALIZE_NUMPY,
    )
    read = np.array(json.loads(body)["embeddings"], dtype=np.float32)
    np.testing.assert_array_equal(read.view(np.uint32), matrix.view(np.uint32))


@pytest.mark.parametrize("text", ["[null, [1, 2]]", '[null, "AACAPwAAAEA="]', '[  null ,\n\t"AACAPwAAAEA="]'])
def test_nulls_stand_for_records_without_a_new_embedding(text: str) -> None:
    decoded, rows, count = embeddings.decode(msgspec.Raw(text.encode()), allow_null=True)
    assert decoded is not None
    assert decoded.tolist() == [[1.0, 2.0]]
    assert (rows, count) == ([1], 2)
    with pytest.raises(HttpError) as caught:
        embeddings.decode(msgspec.Raw(text.encode()))
    assert caught.value.status == 422


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("5", 422),
        ("{}", 422),
        ("[5]", 422),
        ('[["1"]]', 422),
        ('["AACAPw==", [1]]', 422),
        ("[[1], [1, 2]]", 400),
        ('["AACAPw==", "AACAPwAAAEA="]', 400),
        ('["AACAPwA="]', 400),
        ('["AACA Pw=="]', 400),
        ("[[3.5e38]]", 400),
        ("[[-3.5e38]]", 400),
    ],
)
def test_what_is_no_embedding(text: str, status: int) -> None:
    with pytest.raises(HttpError) as caught:
        embeddings.decode(msgspec.Raw(text.encode()))
    assert caught.value.status == status


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [
        (True, True),
        (2.0, 2.0),
        (-(2**63), -(2**63)),
        (2**63, float(2**63)),
        ([1, 2], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([2**63], [float(2**63)]),
        ([True], [True]),
        (["a"], ["a"]),
    ],
)
def test_metadata_keeps_its_types(given_value: Any, kept: object) -> None:
    column = metadata.record_columns([{"k": given_value, "other": "x"}], allow_null=False)
    assert column is not None
    assert column[0] == {"k": kept, "other": "x"}
    assert [type(v) for v in column[0].values()] == [type(kept), str]


@pytest.mark.parametrize("value", [[True, 1], [1, "x"], [None], [[1]], {"a": 1}])
def test_metadata_of_no_allowed_type(value: Any) -> None:
    with pytest.raises(HttpError) as caught:
        metadata.record_columns([{"k": value}], allow_null=True)
    assert caught.value.status == 422


def test_an_empty_list_adds_nothing_and_deletes_in_an_update() -> None:
    assert metadata.record_columns([{"k": [], "l": 1}], allow_null=False) == [{"l": 1}]
    assert metadata.record_columns([{"k": [], "l": 1}], allow_null=True) == [{"k": None, "l": 1}]


@pytest.mark.parametrize("key", ["", "#x", "$x", "chroma:document", "chroma:uri"])
def test_keys_that_cannot_be(key: str) -> None:
    with pytest.raises(HttpError, match="at index 1") as caught:
        metadata.record_columns([None, {"fine": [1], key: "x"}], allow_null=True)
    assert caught.value.status == 400


def test_a_wrong_dimension_is_an_invalid_argument_to_clients() -> None:
    for error in (InvalidDimensionError("text"), InvalidArgumentError("text")):
        answer = errors.response_to(error)
        assert answer.status == 400
        assert json.loads(answer.body) == {"error": "InvalidArgumentError", "message": "text"}


def test_an_unforeseen_error_says_nothing_of_itself(caplog: pytest.LogCaptureFixture) -> None:
    logs.request_id.set("id-7")
    try:
        raise ValueError("a document's text")
    except ValueError as error:
        answer = errors.response_to(error)
    assert answer.status == 500
    assert b"id-7" in answer.body
    assert b"document" not in answer.body
    line = logs.JsonFormatter().format(caplog.records[-1])
    entry = json.loads(line)
    assert entry["request_id"] == "id-7"
    assert entry["exception"]["type"] == "builtins.ValueError"
    assert "test_server_requests.py" in entry["exception"]["at"][-1]
    assert "document" not in line


def test_a_log_line_is_one_line_of_json() -> None:
    record = logging.LogRecord("name", logging.INFO, "file", 1, "two\nlines %s", ("é",), None)
    record.fields = {"path": "/x", "id": uuid.UUID(int=0), "number": math.inf}
    line = logs.JsonFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "two\nlines é"


def test_a_warning_of_a_library_is_a_line_of_json_too() -> None:
    script = "from pgchroma.server import logs; logs.configure('info'); import numpy; numpy.zeros(1) / 0"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    (line,) = done.stderr.splitlines()
    assert "invalid value" in json.loads(line)["message"]


def test_systemd_is_left_alone_when_it_did_not_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify.notify("READY=1")


def body_of(
    messages: list[dict[str, Any]], *, limit: int = 10, headers: dict[bytes, bytes] | None = None
) -> bytes:
    remaining = iter(messages)

    async def receive() -> dict[str, Any]:
        return next(remaining)

    scope = {"headers": list((headers or {}).items()), "query_string": b""}
    return asyncio.run(Request(scope, receive, {}, max_body_bytes=limit).body())


def chunk(data: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": data, "more_body": more}


def test_a_body_is_put_together_from_its_parts() -> None:
    assert body_of([chunk(b"ab", more=False)]) == b"ab"
    assert body_of([chunk(b"ab", more=True), chunk(b"cd", more=True), chunk(b"", more=False)]) == b"abcd"


@pytest.mark.parametrize(
    ("messages", "headers", "status"),
    [
        ([chunk(b"x" * 11, more=False)], {}, 413),
        ([chunk(b"x" * 6, more=True), chunk(b"x" * 6, more=True)], {}, 413),
        ([], {b"content-length": b"11"}, 413),
        ([chunk(b"x", more=True), {"type": "http.disconnect"}], {}, 400),
        ([], {b"content-type": b"text/plain"}, 415),
    ],
)
def test_bodies_that_are_not_taken(
    messages: list[dict[str, Any]], headers: dict[bytes, bytes], status: int
) -> None:
    with pytest.raises(HttpError) as caught:
        body_of(messages, headers=headers)
    assert caught.value.status == status
