"""The contract of records: status codes, error names and bodies, as upstream's Rust server 1.5.9 answers."""

from typing import Any

import pytest

from support.api import CHROMA, INVALID, Api, check


@pytest.mark.parametrize(
    ("body", "status", "error", "message"),
    [
        ({}, 422, CHROMA, "ids"),
        ({"ids": ["n"]}, 422, CHROMA, "embeddings"),
        ({"ids": ["n"], "embeddings": None}, 422, CHROMA, "embeddings"),
        ({"ids": ["n"], "embeddings": [None]}, 422, CHROMA, "embeddings"),
        ({"ids": ["n"], "embeddings": [["x"]]}, 422, CHROMA, "embeddings"),
        ({"ids": ["n"], "embeddings": [[True]]}, 422, CHROMA, "embeddings"),
        ({"ids": ["n", "m"], "embeddings": ["AACAPwAAAEA=", [1, 2]]}, 422, CHROMA, "embeddings"),
        ({"ids": "n", "embeddings": [[1, 2]]}, 422, CHROMA, "ids"),
        ({"ids": [1], "embeddings": [[1, 2]]}, 422, CHROMA, "ids"),
        ({"ids": ["n"], "embeddings": [[1, 2]], "documents": [5]}, 422, CHROMA, "documents[0]"),
        ({"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [5]}, 422, CHROMA, "metadatas[0]"),
        (
            {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"a": {"b": 1}}]},
            422,
            CHROMA,
            "metadatas[0].a",
        ),
        (
            {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"a": [1, "x"]}]},
            422,
            CHROMA,
            "metadatas[0].a",
        ),
        ({"ids": ["n"], "embeddings": []}, 400, INVALID, "Inconsistent number of IDs"),
        ({"ids": ["n", "m"], "embeddings": [[1, 2]]}, 400, INVALID, "Inconsistent number of IDs"),
        ({"ids": ["n"], "embeddings": [[1, 2]], "documents": []}, 400, INVALID, "Inconsistent number of IDs"),
        ({"ids": ["n"], "embeddings": [[]]}, 400, INVALID, "at least 1 dimension"),
        ({"ids": ["n", "m"], "embeddings": [[1, 2], [1]]}, 400, INVALID, "Inconsistent dimensions"),
        ({"ids": [""], "embeddings": [[1, 2]]}, 400, INVALID, "Empty ID"),
        ({"ids": ["n"], "embeddings": [[1e39, 2]]}, 400, INVALID, "NaN or Infinity"),
        ({"ids": ["n"], "embeddings": ["AADAfwAAAEA="]}, 400, INVALID, "Non-finite float value"),
        ({"ids": ["n"], "embeddings": ["AACAPwAAA"]}, 400, INVALID, "Invalid base64 string"),
        ({"ids": ["n"], "embeddings": ["!!"]}, 400, INVALID, "Invalid base64 string"),
        ({"ids": ["n"], "embeddings": [""]}, 400, INVALID, "at least 1 dimension"),
        ({"ids": ["n"], "embeddings": [[1, 2, 3]]}, 400, INVALID, "embedding with dimension of 2, got 3"),
        ({"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"#d": "x"}]}, 400, INVALID, "at index 0"),
        ({"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"": "x"}]}, 400, INVALID, "at index 0"),
        (
            {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"a": {"indices": [1], "values": []}}]},
            400,
            INVALID,
            "Invalid sparse vector in metadatas[0].a: 1 indices but 0 values",
        ),
        (b'{"ids":["n"],"embeddings":[[NaN,1]]}', 400, INVALID, "Failed to parse"),
        (
            {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"a": 10**400}]},
            400,
            INVALID,
            "number out of range: metadatas[0].a",
        ),
        (
            {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"a": [1.5, 10**400]}]},
            400,
            INVALID,
            "number out of range: metadatas[0].a",
        ),
        (b'{"ids":["n"],"embeddings":[[1e400,1]]}', 400, INVALID, "Failed to parse"),
    ],
)
def test_writes_that_cannot_be(
    api: Api, records: str, body: object, status: int, error: str, message: str
) -> None:
    for action in ("add", "upsert"):
        check(api("POST", f"{records}/{action}", body), status, error, message)
    assert api("GET", f"{records}/count")[1] == 2


def test_null_in_metadata_is_for_merging_only(api: Api, records: str) -> None:
    body = {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"a": None, "b": 1}]}
    check(api("POST", f"{records}/add", body), 422, CHROMA, "metadatas[0].a")
    assert api("POST", f"{records}/upsert", body)[0] == 200
    assert api("POST", f"{records}/get", {"ids": ["n"]})[1]["metadatas"] == [{"b": 1}]


def test_writes_that_are_fine(api: Api, records: str) -> None:
    assert api("POST", f"{records}/add", {"ids": [], "embeddings": []})[:2] == (201, {})
    body = {"ids": ["c"], "embeddings": ["AACAPwAAAEA="], "metadatas": [{}], "uris": ["u"], "extra": 5}
    assert api("POST", f"{records}/add", body)[:2] == (201, {})
    body = {
        "ids": ["d"],
        "embeddings": [[1, 2]],
        "metadatas": [{"e": [], "big": 99999999999999999999, "f": [1, 2.5]}],
    }
    assert api("POST", f"{records}/add", body)[0] == 201
    found = api(
        "POST", f"{records}/get", {"ids": ["c", "d"], "include": ["embeddings", "uris", "metadatas"]}
    )[1]
    assert found["embeddings"] == [[1.0, 2.0], [1.0, 2.0]]
    assert found["uris"] == ["u", None]
    assert found["metadatas"] == [None, {"big": 1e20, "f": [1.0, 2.5]}]


@pytest.mark.parametrize(
    "body",
    [
        {"ids": ["a"]},
        {"ids": ["a"], "embeddings": None},
        {"ids": ["a"], "embeddings": [None]},
        {"ids": ["a", "b"], "embeddings": [None, [5, 6]]},
        {"ids": ["a", "b"], "embeddings": [None, "AACgQAAAwEA="]},
        {"ids": ["a"], "metadatas": [{}]},
        {"ids": []},
        {"ids": [], "embeddings": []},
    ],
)
def test_updates_that_leave_most_alone(api: Api, records: str, body: dict[str, Any]) -> None:
    assert api("POST", f"{records}/update", body)[:2] == (200, {})
    found = api("POST", f"{records}/get", {"include": ["embeddings", "metadatas", "documents"]})[1]
    moved = [5.0, 6.0] if len(body["ids"]) == 2 else [3.0, 4.0]
    assert found["embeddings"] == [[1.0, 2.0], moved]
    assert found["metadatas"] == [{"k": 1}, None]
    assert found["documents"] == ["x", None]


def test_updates_that_cannot_be(api: Api, records: str) -> None:
    for body, status in (
        ({}, 422),
        ({"ids": ["a"], "embeddings": []}, 400),
        ({"ids": ["a"], "embeddings": [[]]}, 400),
        ({"ids": ["a"], "embeddings": [[1, 2, 3]]}, 400),
        ({"ids": ["a"], "metadatas": []}, 400),
        ({"ids": ["a"], "documents": ["x", "y"]}, 400),
        ({"ids": [""], "embeddings": [[1, 2]]}, 400),
        ({"ids": ["zz"], "embeddings": [["x"]]}, 422),
    ):
        assert api("POST", f"{records}/update", body)[0] == status, body


@pytest.mark.parametrize(
    ("body", "ids"),
    [
        ({}, ["a", "b"]),
        ({"limit": 0}, []),
        ({"limit": 1}, ["a"]),
        ({"offset": 1}, ["b"]),
        ({"offset": 5, "limit": 1}, []),
        ({"ids": []}, []),
        ({"ids": ["b", "a", "b"]}, ["a", "b"]),
        ({"ids": ["", "nope"]}, []),
        ({"where": None, "where_document": None}, ["a", "b"]),
        ({"where": {"k": 1}}, ["a"]),
        ({"where": {"$and": []}}, ["a", "b"]),
        ({"where": {"$or": []}}, []),
    ],
)
def test_get(api: Api, records: str, body: object, ids: list[str]) -> None:
    status, found, _ = api("POST", f"{records}/get", body)
    assert status == 200
    assert found["ids"] == ids
    assert len(found["documents"]) == len(found["metadatas"]) == len(ids)
    assert (found["embeddings"], found["uris"]) == (None, None)
    assert found["include"] == ["documents", "metadatas"]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"limit": -1}, 422, "limit"),
        ({"limit": "x"}, 422, "limit"),
        ({"limit": 1.5}, 422, "limit"),
        ({"limit": 4294967296}, 422, "limit"),
        ({"offset": -1}, 422, "offset"),
        ({"ids": "a"}, 422, "ids"),
        ({"ids": [None]}, 422, "ids"),
        ({"include": None}, 422, "include"),
        ({"include": ["nope"]}, 422, "nope"),
        ({"include": ["data"]}, 422, "data"),
        ({"where": {}}, 400, "Invalid where clause"),
        ({"where": 5}, 400, "Invalid where clause"),
        ({"where": {"a": 1, "b": 2}}, 400, "Invalid where clause"),
        ({"where": {"a": {"$foo": 1}}}, 400, "Invalid where clause"),
        ({"where": {"a": None}}, 400, "Invalid where clause"),
        ({"where": {"a": {"$in": []}}}, 400, "Invalid where clause"),
        ({"where_document": {}}, 400, "Invalid where document clause"),
        ({"where_document": "x"}, 400, "Invalid where document clause"),
        ({"where_document": {"$contains": 5}}, 400, "Invalid where document clause"),
        ({"where_document": {"$foo": "x"}}, 400, "Invalid where document clause"),
        (b'{"where":' + b'{"$and":[' * 3000 + b"]}" * 3000 + b"}", 400, ""),
    ],
)
def test_selections_that_cannot_be(api: Api, records: str, body: Any, status: int, message: str) -> None:
    error = CHROMA if status == 422 else INVALID
    check(api("POST", f"{records}/get", body), status, error, message)
    if isinstance(body, dict) and message.startswith("Invalid"):
        check(api("POST", f"{records}/query", {"query_embeddings": [[1, 2]], **body}), status, error, message)
        check(api("POST", f"{records}/delete", body), status, error, message)


def test_query(api: Api, records: str) -> None:
    body = {"query_embeddings": [[1, 2], [3, 4]], "n_results": 1}
    status, found, _ = api("POST", f"{records}/query", body)
    assert status == 200
    assert found == {
        "ids": [["a"], ["b"]],
        "distances": [[0.0], [0.0]],
        "documents": [["x"], [None]],
        "metadatas": [[{"k": 1}], [None]],
        "embeddings": None,
        "uris": None,
        "include": ["documents", "metadatas", "distances"],
    }
    path = f"{records}/query"
    assert api("POST", path, {"query_embeddings": [], "include": []})[1]["ids"] == []
    assert api("POST", path, {"query_embeddings": [[1, 2]], "n_results": None})[1]["ids"] == [["a", "b"]]
    assert api("POST", path, {"query_embeddings": [[1, 2]], "n_results": 0})[1]["documents"] == [[]]
    assert api("POST", path, {"query_embeddings": [[1, 2]], "ids": ["b", "nope"]})[1]["ids"] == [["b"]]
    assert api("POST", path, {"query_embeddings": [[1, 2]], "ids": []})[1]["distances"] == [[]]
    unknown = {"query_embeddings": [[1, 2]], "ids": ["nope"]}
    check(api("POST", path, unknown), 400, INVALID, "Error finding id")
    assert api("POST", path, {**unknown, "n_results": 0})[1]["ids"] == [[]]
    assert api("POST", path, {**unknown, "where": {"k": 1}})[1]["ids"] == [[]]
    check(api("POST", path, {}), 422, CHROMA, "query_embeddings")
    check(api("POST", path, {"query_embeddings": [None]}), 422, CHROMA, "query_embeddings")
    check(api("POST", path, {"query_embeddings": [[1]]}), 400, INVALID, "dimension of 2, got 1")
    check(api("POST", path, {"query_embeddings": [[1, 2], [1]]}), 400, INVALID, "Inconsistent dimensions")
    check(api("POST", path, {"query_embeddings": [[1, 2]], "n_results": -1}), 422, CHROMA, "n_results")


def test_delete(api: Api, records: str) -> None:
    path = f"{records}/delete"
    assert api("POST", path, {})[:2] == (200, {"deleted": 0})
    assert api("POST", path, {"ids": None})[:2] == (200, {"deleted": 0})
    check(api("POST", path, {"ids": []}), 400, INVALID, "Either ids or where must be specified")
    check(api("POST", path, {"limit": 1}), 400, INVALID, "limit can only be specified when a where clause")
    check(api("POST", path, {"ids": ["a"], "limit": 1}), 400, INVALID, "limit can only be specified")
    check(api("POST", path, {"where": {"k": 1}, "limit": -1}), 422, CHROMA, "limit")
    assert api("POST", path, {"where": {"k": 1}, "limit": 0})[1] == {"deleted": 0}
    assert api("POST", path, {"ids": [], "where": {"k": 1}})[1] == {"deleted": 0}
    assert api("POST", path, {"ids": ["a", "b"], "where": {"k": 1}})[1] == {"deleted": 1}
    assert api("POST", path, {"ids": ["b"]})[1] == {"deleted": 1}
    assert api("GET", f"{records}/count")[:2] == (200, 0)


def test_count_takes_the_read_levels(api: Api, records: str) -> None:
    for level in ("index_and_wal", "index_only", "index_and_bounded_wal"):
        assert api("GET", f"{records}/count?read_level={level}")[:2] == (200, 2)
    check(api("GET", f"{records}/count?read_level=foo"), 400, INVALID, "unknown variant `foo`")
