"""Records: add, upsert, update, get, query, delete, count."""

import base64
import struct
from typing import Any

from conformance.differential import deviations as because
from conformance.differential.model import Deviation, Differs, Scenario, Step, bodies

_EVERYTHING = ["documents", "metadatas", "embeddings", "uris"]
_IDS = ("ids", "error", "message")


def _get_all(*, differs: Deviation | None = None, ours: int = 0, **body: object) -> Step:
    return Step("POST", "{c}/get", {"include": _EVERYTHING, **body}, differs=differs, ours=ours)


def _add(**body: object) -> Step:
    return Step("POST", "{c}/add", body)


def _floats(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _made(space: str = "l2") -> Step:
    return Step("POST", "{cs}", {"name": "made", "configuration": {"hnsw": {"space": space}}}, save="c")


_TWO = Step(
    "POST",
    "{c}/add",
    {
        "ids": ["a", "b"],
        "embeddings": [[1, 2], [3, 4]],
        "metadatas": [{"k": 1}, None],
        "documents": ["x", None],
    },
)

_ONE: dict[str, Any] = {"ids": ["n"], "embeddings": [[1, 2]]}


def _both(body: object) -> tuple[Step, Step]:
    return Step.of("POST", "{c}/add", body), Step.of("POST", "{c}/upsert", body)


REFUSED = Scenario(
    "refused",
    [
        *(
            step
            for body in bodies(
                {},
                [],
                "x",
                {"ids": ["n"]},
                {"embeddings": [[1, 2]]},
                {"ids": ["n"], "embeddings": None},
                {"ids": ["n"], "embeddings": [None]},
                {"ids": ["n", "m"], "embeddings": [[1, 2], None]},
                {"ids": ["n"], "embeddings": "x"},
                {"ids": ["n"], "embeddings": [5]},
                {"ids": ["n"], "embeddings": {}},
                {"ids": ["n"], "embeddings": [["x"]]},
                {"ids": ["n"], "embeddings": [[True, False]]},
                {"ids": ["n"], "embeddings": [[None, 1]]},
                {"ids": ["n"], "embeddings": [[[1, 2]]]},
                {"ids": ["n", "m"], "embeddings": [_floats(1, 2), [1, 2]]},
                {"ids": "n", "embeddings": [[1, 2]]},
                {"ids": None, "embeddings": [[1, 2]]},
                {"ids": [1], "embeddings": [[1, 2]]},
                {"ids": [None], "embeddings": [[1, 2]]},
                {**_ONE, "documents": [5]},
                {**_ONE, "documents": "x"},
                {**_ONE, "documents": []},
                {**_ONE, "documents": ["x", "y"]},
                {**_ONE, "uris": [5]},
                {**_ONE, "uris": []},
                {**_ONE, "metadatas": [5]},
                {**_ONE, "metadatas": {}},
                {**_ONE, "metadatas": []},
                {**_ONE, "metadatas": [{"a": {"b": 1}}]},
                {**_ONE, "metadatas": [{"a": [1, "x"]}]},
                {**_ONE, "metadatas": [{"a": [True, 1]}]},
                {**_ONE, "metadatas": [{"a": [[1]]}]},
                {**_ONE, "metadatas": [{"a": [None]}]},
                {**_ONE, "metadatas": [{"#d": "x"}]},
                {**_ONE, "metadatas": [{"$d": "x"}]},
                {**_ONE, "metadatas": [{"": "x"}]},
                {**_ONE, "metadatas": [{"a": {"#type": "other"}}]},
                {"ids": ["n"], "embeddings": []},
                {"ids": [], "embeddings": [[1, 2]]},
                {"ids": ["n", "m"], "embeddings": [[1, 2]]},
                {"ids": ["n"], "embeddings": [[]]},
                {"ids": ["n", "m"], "embeddings": [[1, 2], [1]]},
                {"ids": ["n", "m"], "embeddings": [[1], [1, 2]]},
                {"ids": [""], "embeddings": [[1, 2]]},
                {"ids": ["n"], "embeddings": [[1e39, 2]]},
                {"ids": ["n"], "embeddings": [[-1e39, 2]]},
                {"ids": ["n"], "embeddings": [_floats(float("nan"), 1)]},
                {"ids": ["n"], "embeddings": [_floats(float("inf"), 1)]},
                {"ids": ["n"], "embeddings": ["AACAPwAAA"]},
                {"ids": ["n"], "embeddings": ["AACAPw"]},
                {"ids": ["n"], "embeddings": ["!!"]},
                {"ids": ["n"], "embeddings": [""]},
                {"ids": ["n"], "embeddings": [_floats(1, 2)[:8]]},
                {"ids": ["n"], "embeddings": [[1, 2, 3]]},
                {"ids": ["n"], "embeddings": [_floats(1, 2, 3)]},
            )
            for step in _both(body)
        ),
        *(
            step
            for body in bodies(
                b"",
                b"{",
                b"{}}",
                b"\xff\xfe",
                b'{"ids":["n"],"embeddings":[[NaN,1]]}',
                b'{"ids":["n"],"embeddings":[[Infinity,1]]}',
                b'{"ids":["n"],"embeddings":[[1e400,1]]}',
                b'{"ids":["n"],"embeddings":[[01,1]]}',
                b'{"ids":["n"],"embeddings":[[1.,1]]}',
                b'{"ids":["n"],"embeddings":[[1,2]],}',
                b'{"ids":["\xff"],"embeddings":[[1,2]]}',
                b'{"ids":["\\ud800"],"embeddings":[[1,2]]}',
                b'{"ids":["n\n"],"embeddings":[[1,2]]}',
                b"{'ids':['n']}",
                b'{"ids":["n"],"embeddings":[[1,2]],"metadatas":[{"a":NaN}]}',
                b'{"ids":["n"],"embeddings":[[1,2]],"metadatas":[{"a":1e999}]}',
            )
            for step in _both(body)
        ),
        Step("GET", "{c}/count"),
        Step(
            "POST",
            "{c}/add",
            b'{"ids":["n"],"ids":["m"],"embeddings":[[1,2]]}',
            differs=because.REPEATED,
            ours=201,
        ),
    ],
    setup=[_made(), _TWO],
)

_NASTY = [
    "nul \x00 inside",
    "\x00",
    "tab\tnew\nline\r\x01\x7f\x85",
    "Ünïcödé ≠ ASCII 🦊 \U0010ffff",
    "\"quoted\" {json} \\u0041 'single' %s %% \\ ; --",
    "\ufdd0\ufdd1\ufdd5\ufffe\uffff",
    " leading and trailing ",
    "x" * 5000,
    "🦊" * 1300,
]

WRITES = Scenario(
    "writes",
    [
        Step("POST", "{c}/add", {"ids": [], "embeddings": []}),
        Step("POST", "{c}/upsert", {"ids": [], "embeddings": []}),
        Step("POST", "{c}/update", {"ids": []}),
        Step("GET", "{c}/count"),
        _add(
            ids=["a", "b"],
            embeddings=[[9, 9], [8, 8]],
            documents=["ignored", "ignored"],
            metadatas=[{"new": 1}, {"new": 1}],
        ),
        _get_all(),
        _add(
            ids=["q", "q"],
            embeddings=[[1, 1], [2, 2]],
            documents=["first", "second"],
            metadatas=[{"f": 1}, {"g": 2}],
        ),
        _get_all(ids=["q"]),
        Step(
            "POST",
            "{c}/upsert",
            {
                "ids": ["r", "r"],
                "embeddings": [[1, 1], [2, 2]],
                "documents": ["first", None],
                "metadatas": [{"f": 1}, {"g": 2}],
            },
        ),
        _get_all(ids=["r"]),
        Step("POST", "{c}/upsert", {"ids": ["a"], "embeddings": [[5, 5]]}),
        _get_all(ids=["a"]),
        Step(
            "POST",
            "{c}/upsert",
            {"ids": ["a"], "embeddings": [[5, 5]], "documents": [None], "metadatas": [None], "uris": [None]},
        ),
        _get_all(ids=["a"]),
        Step(
            "POST",
            "{c}/upsert",
            {
                "ids": ["a"],
                "embeddings": [[5, 5]],
                "documents": [""],
                "metadatas": [{"k": None, "b": 3}],
                "uris": [""],
            },
        ),
        _get_all(ids=["a"]),
        Step(
            "POST", "{c}/upsert", {"ids": ["new"], "embeddings": [[5, 5]], "metadatas": [{"k": None, "b": 3}]}
        ),
        _get_all(ids=["new"]),
        _add(ids=["null"], embeddings=[[1, 2]], metadatas=[{"a": None, "b": 1}]),
        _add(ids=["none"], embeddings=[[1, 2]], metadatas=[{"a": None}]),
        Step(
            "POST",
            "{c}/update",
            {
                "ids": ["a", "nope"],
                "documents": ["updated", "never"],
                "metadatas": [{"b": "now text", "c": [1, 2]}, {"x": 1}],
                "uris": ["u", "v"],
            },
        ),
        _get_all(),
        Step("POST", "{c}/update", {"ids": ["a"], "metadatas": [{"c": [3]}], "embeddings": [[6, 6]]}),
        _get_all(ids=["a"]),
        Step("POST", "{c}/update", {"ids": ["a"], "metadatas": [{"b": None, "c": None}], "documents": [""]}),
        _get_all(ids=["a"], differs=because.NO_METADATA, ours=200),
        Step("POST", "{c}/update", {"ids": ["b", "a"], "embeddings": [None, [7, 7]]}),
        Step("POST", "{c}/update", {"ids": ["b", "a"], "embeddings": [None, _floats(7.5, 7.5)]}),
        Step("POST", "{c}/get", {"ids": ["a", "b"], "include": ["embeddings"]}),
        Step(
            "POST",
            "{c}/update",
            {"ids": ["a", "a"], "documents": ["one", "two"], "metadatas": [{"x": 1, "y": 1}, {"y": 2}]},
        ),
        _get_all(ids=["a"]),
        *(
            Step("POST", "{c}/update", body)
            for body in bodies(
                {},
                {"ids": ["a"]},
                {"ids": ["a"], "embeddings": None},
                {"ids": ["a"], "embeddings": [None]},
                {"ids": ["a"], "embeddings": []},
                {"ids": ["a"], "embeddings": [[]]},
                {"ids": ["a"], "embeddings": [[1, 2, 3]]},
                {"ids": ["nope"], "embeddings": [[1, 2, 3]]},
                {"ids": ["a"], "metadatas": []},
                {"ids": ["a"], "metadatas": [{}]},
                {"ids": ["a"], "metadatas": [None]},
                {"ids": ["a"], "documents": ["x", "y"]},
                {"ids": [""], "documents": ["x"]},
                {"ids": ["a"], "embeddings": [["x"]]},
                {"ids": ["a"], "metadatas": [{"#x": 1}]},
            )
        ),
        _get_all(ids=["a"]),
        Step("POST", "{c}/delete", {"ids": ["b"]}),
        _add(ids=["b"], embeddings=[[3, 3]]),
        _get_all(),
        Step("GET", "{c}/count"),
        Step("GET", "{c}/count?read_level=index_only"),
        Step("GET", "{c}/count?read_level=index_and_wal"),
        Step("GET", "{c}/count?read_level=foo"),
        Step("GET", "{c}/count?read_level="),
    ],
    setup=[_made(), _TWO],
)

_SCALARS: list[Any] = [
    "",
    "text",
    "1",
    0,
    1,
    -1,
    2**31,
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    2**63,
    2**64,
    -(2**63) - 1,
    10**30,
    0.0,
    -0.0,
    2.0,
    0.1,
    -1.5,
    1e15,
    1e16,
    1e22,
    1e100,
    1.7976931348623157e308,
    5e-324,
    2.2250738585072014e-308,
    0.011820027604699135,
    True,
    False,
]

# As text, because -0.0 equals 0.0.
_INEXACT_UPSTREAM = ("-0.0", "0.011820027604699135")

VALUES = Scenario(
    "values",
    [
        *(
            step
            for number, value in enumerate(_SCALARS)
            for step in (
                _add(ids=[f"s{number}"], embeddings=[[1, 2]], metadatas=[{"v": value}]),
                Step(
                    "POST",
                    "{c}/get",
                    {"ids": [f"s{number}"], "include": ["metadatas"]},
                    differs=because.FLOATS if str(value) in _INEXACT_UPSTREAM else None,
                    ours=200,
                ),
            )
        ),
        *(
            step
            for number, value in enumerate(
                (
                    ["x", "y"],
                    [""],
                    [1, 2],
                    [-(2**63), 2**63 - 1],
                    [1, 2.5],
                    [1.0, 2.0],
                    [0.1],
                    [True, False],
                    [2**63],
                    [1, 2**63],
                    [],
                    ["a", "a"],
                )
            )
            for step in (
                _add(ids=[f"l{number}"], embeddings=[[1, 2]], metadatas=[{"v": value}]),
                Step("POST", "{c}/get", {"ids": [f"l{number}"], "include": ["metadatas"]}),
            )
        ),
        *(
            step
            for number, text in enumerate(_NASTY)
            for step in (
                _add(
                    ids=[text],
                    embeddings=[[1, 2]],
                    documents=[text],
                    uris=[text],
                    metadatas=[{text: text, "list": [text]}],
                ),
                _get_all(ids=[text]),
                Step("POST", "{c}/get", {"where": {text: text}, "include": []}),
                Step("POST", "{c}/get", {"where": {"list": {"$contains": text}}, "include": []}),
                Step("POST", "{c}/get", {"where_document": {"$contains": text}, "include": []}),
                Step(
                    "POST",
                    "{c}/query",
                    {
                        "query_embeddings": [[1, 2]],
                        "where": {text: {"$in": [text, "x"]}},
                        "include": ["metadatas"],
                    },
                ),
                Step(
                    "POST",
                    "{c}/update",
                    {"ids": [text], "documents": [f"{number}{text}"], "metadatas": [{text: None, "n": text}]},
                ),
                _get_all(ids=[text]),
                Step("POST", "{c}/delete", {"ids": [text]}),
            )
        ),
        Step("GET", "{c}/count"),
        *(
            Step(
                "POST",
                "{c}/add",
                {"ids": ["key"], "embeddings": [[1, 2]], "metadatas": [{key: "x"}]},
                differs=because.RESERVED,
                ours=400,
            )
            for key in ("chroma:document", "chroma:uri")
        ),
        _add(ids=["own"], embeddings=[[1, 2]], metadatas=[{"chroma:own": "x"}]),
        _get_all(ids=["own"], differs=because.RESERVED, ours=200),
    ],
    setup=[_made()],
)

_TINY = 1.401298464324817e-45
_VECTORS: list[list[float]] = [
    [1.0, 2.0],
    [-0.0, 0.0],
    [0.1, 1 / 3],
    [_TINY, -_TINY],
    [3.4028234663852886e38, 1.1754943508222875e-38],
    [1e-30, 1e30],
    [16777217, 2**40],
]

EMBEDDINGS = Scenario(
    "embeddings",
    [
        *(
            step
            for number, vector in enumerate(_VECTORS)
            for step in (
                _add(ids=[f"j{number}"], embeddings=[vector]),
                _add(ids=[f"b{number}"], embeddings=[_floats(*vector)]),
                Step("POST", "{c}/get", {"ids": [f"j{number}", f"b{number}"], "include": ["embeddings"]}),
            )
        ),
        _add(ids=["spaced"], embeddings=[_floats(1, 2) + "\n"]),
        _add(ids=["unpadded"], embeddings=[_floats(1, 2).rstrip("=")]),
        _add(ids=["url"], embeddings=["__9_fwAAgD8="]),
        Step("POST", "{cs}", {"name": "wide"}, save="wide", only=("name",)),
        Step("POST", "{wide}/add", {"ids": ["w"], "embeddings": [[float(n % 7) for n in range(16000)]]}),
        Step("POST", "{wide}/get", {"include": ["embeddings"]}),
        Step("POST", "{wide}/query", {"query_embeddings": [[float(n % 5) for n in range(16000)]]}),
        Step("POST", "{cs}", {"name": "wider"}, save="wide", only=("name",)),
        Step(
            "POST",
            "{wide}/add",
            {"ids": ["w"], "embeddings": [[1.0] * 16001]},
            differs=because.LIMITS,
            ours=400,
        ),
        Step("POST", "{cs}", {"name": "narrow"}, save="narrow", only=("name",)),
        Step("POST", "{narrow}/add", {"ids": ["w"], "embeddings": [[5]]}),
        Step("POST", "{narrow}/query", {"query_embeddings": [[7]]}),
        Step("GET", "{cs}/narrow", only=("dimension",)),
        Step("POST", "{narrow}/delete", {"ids": ["w"]}),
        Step("GET", "{cs}/narrow", only=("dimension",)),
        Step("POST", "{narrow}/add", {"ids": ["w"], "embeddings": [[1, 2]]}),
        Step("POST", "{narrow}/query", {"query_embeddings": [[1, 2]]}),
        Step("POST", "{narrow}/query", {"query_embeddings": [[1]]}),
    ],
    setup=[_made()],
)

GET = Scenario(
    "get",
    [
        Step.of("POST", "{c}/get", body)
        for body in bodies(
            {},
            {"unknown": 1},
            {"limit": 0},
            {"limit": 1},
            {"offset": 1},
            {"limit": 1, "offset": 1},
            {"offset": 5},
            {"limit": None, "offset": None},
            {"limit": -1},
            {"offset": -1},
            {"limit": 1.0},
            {"limit": "1"},
            {"limit": 2**32 - 1},
            {"limit": 2**32},
            {"limit": 2**63},
            {"limit": 2**64},
            {"limit": 10**30},
            {"offset": 2**32},
            {"offset": 10**30},
            {"ids": []},
            {"ids": None},
            {"ids": ["b", "a"]},
            {"ids": ["b", "b", "nope", ""]},
            {"ids": "a"},
            {"ids": [1]},
            {"ids": ["nul\x00"]},
            {"include": []},
            {"include": None},
            {"include": ["documents"]},
            {"include": ["metadatas", "metadatas"]},
            {"include": ["embeddings", "uris", "distances"]},
            {"include": ["data"]},
            {"include": ["nope"]},
            {"include": "documents"},
            Differs({"include": [5]}, because.WRONG_TYPE, 422),
            {"ids": ["a"], "where": {"k": 1}, "where_document": {"$contains": "x"}},
            {"ids": ["b"], "where": {"k": 1}},
            {"where": {"k": 1}, "limit": 1, "offset": 1},
            {"where": None, "where_document": None},
            b'{"where":{"k":NaN}}',
            b'{"where":{"k":{"$gt":1e999}}}',
            b'{"where":{"k":{"$in":[1,-Infinity]}}}',
            b'{"limit":1e2}',
            b'{"ids":["\xff"]}',
            b'{"include":["documents"',
            b"[]",
            b'"x"',
        )
    ],
    setup=[_made(), _TWO],
)

QUERY = Scenario(
    "query",
    [
        *(
            Step.of("POST", "{c}/query", body)
            for body in bodies(
                {},
                {"query_embeddings": []},
                {"query_embeddings": None},
                {"query_embeddings": [None]},
                {"query_embeddings": [[]]},
                {"query_embeddings": [[1, 2]]},
                {"query_embeddings": [[1, 2], [3, 4]]},
                {"query_embeddings": [[1, 2], [1]]},
                {"query_embeddings": [[1]]},
                {"query_embeddings": [[1, 2, 3]]},
                {"query_embeddings": [["x", "y"]]},
                Differs({"query_embeddings": [[1e39, 1]]}, because.INFINITE_QUERY, 400),
                Differs({"query_embeddings": [_floats(1, 2)]}, because.BASE64_QUERY, 200),
                Differs({"query_embeddings": ["!!"]}, because.BASE64_QUERY, 400),
                Differs({"query_embeddings": [_floats(float("nan"), 1)]}, because.BASE64_QUERY, 400),
                {"query_embeddings": [[1, 2]], "n_results": 0},
                {"query_embeddings": [[1, 2]], "n_results": 1},
                {"query_embeddings": [[1, 2]], "n_results": 1000},
                {"query_embeddings": [[1, 2]], "n_results": None},
                {"query_embeddings": [[1, 2]], "n_results": -1},
                {"query_embeddings": [[1, 2]], "n_results": 1.5},
                {"query_embeddings": [[1, 2]], "n_results": 2**32},
                {"query_embeddings": [[1, 2]], "n_results": 10**30},
                {"query_embeddings": [[1, 2]], "ids": []},
                {"query_embeddings": [[1, 2]], "ids": ["b"]},
                {"query_embeddings": [[1, 2]], "ids": ["b", "b"]},
                Differs({"query_embeddings": [[1, 2]], "ids": ["nope"]}, because.UNKNOWN_IDS, 400),
                Differs({"query_embeddings": [[1, 2]], "ids": ["b", "nope"]}, because.UNKNOWN_IDS, 200),
                {"query_embeddings": [[1, 2]], "ids": ["b", "nope"], "where": {"k": 1}},
                {"query_embeddings": [[1, 2]], "ids": ["a"], "where": {"k": 1}},
                {"query_embeddings": [[1, 2]], "ids": None},
                {"query_embeddings": [[1, 2]], "where": {"k": 1}},
                {
                    "query_embeddings": [[1, 2]],
                    "where": {"k": 2},
                    "include": ["documents", "metadatas", "embeddings", "uris", "distances"],
                },
                {"query_embeddings": [[1, 2], [3, 4]], "where_document": {"$contains": "x"}},
                {"query_embeddings": [[1, 2]], "include": []},
                {
                    "query_embeddings": [[1, 2]],
                    "include": ["documents", "metadatas", "embeddings", "uris", "distances"],
                },
                {"query_embeddings": [[1, 2]], "include": ["nope"]},
                {"query_embeddings": [[1, 2]], "include": None},
                {"query_embeddings": [[1, 2]], "limit": 1},
            )
        ),
        Step("POST", "{cs}", {"name": "empty"}, save="e", only=("name",)),
        Step("POST", "{e}/query", {"query_embeddings": [[1, 2], [1, 2]]}),
        Step("POST", "{e}/query", {"query_embeddings": [[1, 2]], "include": ["embeddings", "uris"]}),
        Step("POST", "{e}/query", {"query_embeddings": [[1, 2]], "ids": ["nope"]}),
        Step("POST", "{e}/query", {"query_embeddings": [[1, 2]], "where": {"$bad": 1}}),
        Step("POST", "{e}/get", {}),
        Step("POST", "{e}/get", {"where": {"$bad": 1}}),
        Step("POST", "{e}/update", {"ids": ["a"], "documents": ["x"]}),
        Step("POST", "{e}/delete", {"ids": ["a"]}, differs=because.DELETED, ours=200),
    ],
    setup=[_made(), _TWO],
)


def _distances(space: str) -> Scenario:
    return Scenario(
        f"distance-{space}",
        [
            Step(
                "POST",
                "{c}/query",
                {"query_embeddings": [query], "n_results": count, "include": ["distances", "embeddings"]},
            )
            for query in ([1, 2], [0.5, 4], [1e-3, -2e-3])
            for count in (1, 3, 10)
        ]
        + [
            Step(
                "POST",
                "{c}/query",
                {"query_embeddings": [[0, 0]], "include": ["distances"]},
                only=("distances",),
            )
        ],
        setup=[
            _made(space),
            Step(
                "POST",
                "{c}/add",
                {"ids": ["a", "b", "z", "n"], "embeddings": [[1, 2], [3, -4], [0, 0], [-1, -2.5]]},
            ),
        ],
    )


DELETE = Scenario(
    "delete",
    [
        *(
            Step("POST", "{c}/delete", body)
            for body in bodies(
                {},
                {"ids": None},
                {"ids": [], "where": None},
                {"ids": []},
                {"limit": 1},
                {"ids": ["a"], "limit": 1},
                {"where": {"k": 1}, "limit": -1},
                {"where": {"k": 1}, "limit": 2**32},
                {"where": {"k": 1}, "limit": 0},
                {"where": {"k": 77}},
                {"ids": [], "where": {"k": 1}},
                {"ids": ["b"], "where": {"k": 1}},
                {"ids": "a"},
                {"where": {}},
                {"where": {"$bad": 1}},
                {"where_document": {}},
                {"where_document": {"$contains": ""}, "limit": 1},
                {"unknown": 1},
            )
        ),
        Step("POST", "{c}/get", {"include": []}),
        Step(
            "POST",
            "{c}/upsert",
            {
                "ids": ["a", "b", "c", "d", "e"],
                "embeddings": [[n, n] for n in range(5)],
                "metadatas": [{"k": 1}] * 5,
            },
        ),
        Step("POST", "{c}/delete", {"where": {"k": 1}, "limit": 2}),
        Step("POST", "{c}/get", {"include": []}),
        Step("POST", "{c}/delete", {"ids": ["c", "e"], "where": {"k": 1}, "limit": 1}),
        Step("POST", "{c}/get", {"include": []}),
        Step("POST", "{c}/delete", {"ids": ["nope"]}, differs=because.DELETED, ours=200),
        Step("POST", "{c}/delete", {"ids": ["d", "d", "nope"]}, differs=because.DELETED, ours=200),
        Step("POST", "{c}/get", {"include": []}),
        Step("POST", "{c}/delete", {"where": {"k": {"$ne": 77}}}),
        Step("GET", "{c}/count"),
    ],
    setup=[_made(), _TWO],
)

RECORDS = (REFUSED, WRITES, VALUES, EMBEDDINGS, GET, QUERY, *map(_distances, ("l2", "cosine", "ip")), DELETE)
