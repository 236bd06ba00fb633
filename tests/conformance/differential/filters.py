"""`where` and `where_document`."""

from typing import Any

from conformance.differential import deviations as because
from conformance.differential.model import Scenario, Step, bodies

_IDS = ("ids", "error", "message")

_METADATAS: list[Any] = [
    {"a": 1},
    {"a": 2.5},
    None,
    {"a": "1"},
    {"a": True},
    {"a": 1.0, "tags": ["x", "y"], "nums": [1, 2], "fl": [1.0, 2.5], "bo": [True, False]},
    {"a": 2**53 + 1, "q\"%'\n\\": "v%_\\'\"", "ü€ 🦊": "ÄÖ", "s": "long text with words"},
    {"a": -(2**63), "z": 0, "n": -1.5, "e": ""},
    {"a": False, "tags": ["x"], "$": 1} | {},
]
del _METADATAS[8]["$"]
_DOCUMENTS = [
    None,
    "l1\nl2 x1",
    "ÄÖ ß straße",
    "",
    "ABC abc",
    "100% of a_b\\c 'quoted' \"d\"",
    "٣ digits 42",
    "the cat sat",
    "tab\there\r\n",
]

_RECORDS = {
    "ids": [f"m{number}" for number in range(1, 10)],
    "embeddings": [[number, -number] for number in range(9)],
    "metadatas": _METADATAS,
    "documents": _DOCUMENTS,
}
_SETUP = (Step("POST", "{cs}", {"name": "made"}, save="c"), Step("POST", "{c}/add", _RECORDS))

_VALUES: list[Any] = [
    1,
    1.0,
    2.5,
    "1",
    "x",
    True,
    False,
    0,
    -1,
    2**53,
    2**53 + 1,
    2.0**53,
    -(2**63),
    2**63 - 1,
    2**63,
    10**30,
    0.0,
    -0.0,
    0.1,
    "",
    "nope",
]

_CLAUSES: list[Any] = [
    {},
    [],
    5,
    "x",
    {"a": 1, "b": 2},
    {"a": None},
    {"a": []},
    {"a": [1]},
    {"a": {}},
    {"a": {"$eq": 1, "$ne": 2}},
    {"a": {"$eq": None}},
    {"a": {"$eq": [1]}},
    {"a": {"$eq": {"b": 1}}},
    {"a": {"$bad": 1}},
    {"a": {"eq": 1}},
    {"a": {"$regex": "x"}},
    {"a": {"$in": []}},
    {"a": {"$in": 1}},
    {"a": {"$in": [1, "x"]}},
    {"a": {"$in": [1, 2.5]}},
    {"a": {"$in": [True, 1]}},
    {"a": {"$in": [None]}},
    {"a": {"$in": [[1]]}},
    {"a": {"$nin": []}},
    {"a": {"$in": [1, 2]}},
    {"a": {"$in": [1.0, 2.5]}},
    {"a": {"$in": ["1", "x"]}},
    {"a": {"$in": [True]}},
    {"a": {"$nin": [1]}},
    {"a": {"$nin": ["1"]}},
    {"a": {"$nin": [2.5, 7.5]}},
    {"tags": {"$in": ["x"]}},
    {"tags": "x"},
    {"tags": {"$ne": "x"}},
    {"tags": {"$contains": "x"}},
    {"tags": {"$contains": "z"}},
    {"tags": {"$not_contains": "x"}},
    {"tags": {"$contains": 1}},
    {"tags": {"$contains": ["x"]}},
    {"tags": {"$contains": None}},
    {"nums": {"$contains": 1}},
    {"nums": {"$contains": 1.0}},
    {"nums": {"$not_contains": 1}},
    {"nums": {"$gt": 0}},
    {"nums": 1},
    {"fl": {"$contains": 1.0}},
    {"fl": {"$contains": 1}},
    {"fl": {"$contains": 2.5}},
    {"bo": {"$contains": True}},
    {"bo": {"$contains": 1}},
    {"s": {"$contains": "text"}},
    {"s": {"$not_contains": "text"}},
    {"a": {"$gt": "0"}},
    {"a": {"$gt": True}},
    {"a": {"$gt": None}},
    {"a": {"$gt": []}},
    {"z": {"$gte": 0.1}},
    {"z": {"$gt": -0.5}},
    {"z": {"$lte": -0.1}},
    {"z": {"$lt": 0.5}},
    {"n": {"$lt": -1}},
    {"n": {"$lte": -1.5}},
    {"n": {"$gt": -2}},
    {"e": ""},
    {"e": {"$ne": ""}},
    {"q\"%'\n\\": "v%_\\'\""},
    {"ü€ 🦊": {"$ne": "ÄÖ"}},
    {"never": 1},
    {"never": {"$ne": 1}},
    {"never": {"$nin": ["x"]}},
    {"": 1},
    {"$bad": 1},
    {"$eq": 1},
    {"#x": 1},
    {"#id": "m1"},
    {"#document": "x"},
    {"#document": {"$eq": "x"}},
    {"#document": {"$contains": "ABC"}},
    {"#document": {"$not_contains": "ABC"}},
    {"#document": {"$regex": "^the"}},
    {"#document": {"$not_regex": "^the"}},
    {"#document": {"$contains": 5}},
    {"#document": {"$contains": "a", "$regex": "b"}},
    {"$and": []},
    {"$or": []},
    {"$and": [{"a": 1}]},
    {"$or": [{"a": 1}]},
    {"$and": {"a": 1}},
    {"$and": None},
    {"$and": [5]},
    {"$and": [{}]},
    {"$and": [{"a": {"$ne": 1}}, {"a": {"$ne": True}}]},
    {"$or": [{"a": 1}, {"tags": {"$contains": "x"}}, {"#document": {"$contains": "cat"}}]},
    {"$and": [{"$or": [{"a": 1}, {"a": 2.5}]}, {"a": {"$gt": 1}}]},
    {"$and": [{"$and": []}, {"$or": []}]},
    {"$or": [{"$and": []}, {"$or": []}]},
    {"$not": {"a": 1}},
    {"$and": [{"a": 1}], "$or": [{"a": 1}]},
]


_BY_VALUE = ({"z": {"$gte": 0.1}}, {"z": {"$gt": -0.5}}, {"z": {"$lte": -0.1}}, {"z": {"$lt": 0.5}})
_DOCUMENT_KEY = ({"#document": "x"}, {"#document": {"$eq": "x"}})


def _big(value: object) -> dict[str, Any]:
    return {"differs": because.BIG_OPERAND, "ours": 200} if value == 2**63 and isinstance(value, int) else {}


def _by_clause(clause: object) -> dict[str, Any]:
    if clause in _BY_VALUE:
        return {"differs": because.BY_VALUE, "ours": 200}
    if clause == {"#id": "m1"}:
        return {"differs": because.ID_KEY, "ours": 200}
    return {"differs": because.DOCUMENT_KEY, "ours": 400} if clause in _DOCUMENT_KEY else {}


def _nested(depth: int) -> dict[str, Any]:
    clause: dict[str, Any] = {"a": 1}
    for _ in range(depth):
        clause = {"$and": [clause]}
    return clause


WHERE = Scenario(
    "where",
    [
        *(
            Step(
                "POST",
                "{c}/get",
                {"where": {"a": {operator: value}}, "include": []},
                only=_IDS,
                **_big(value),
            )
            for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte")
            for value in _VALUES
        ),
        *(
            Step("POST", "{c}/get", {"where": {"a": value}, "include": []}, only=_IDS, **_big(value))
            for value in _VALUES
        ),
        *(
            Step("POST", "{c}/get", {"where": clause, "include": []}, only=_IDS, **_by_clause(clause))
            for clause in _CLAUSES
        ),
        *(
            Step(
                "POST", "{c}/query", {"query_embeddings": [[1, 1]], "where": clause, "include": []}, only=_IDS
            )
            for clause in bodies(
                {},
                {"a": {"$ne": 1}},
                {"tags": {"$contains": "x"}},
                {"$or": []},
                {"a": {"$bad": 1}},
                {"#document": {"$regex": "c"}},
            )
        ),
        *(
            Step("POST", "{c}/delete", {"where": clause, "limit": 0}, only=("deleted", "error", "message"))
            for clause in ({"a": {"$ne": 1}}, {"a": {"$bad": 1}}, {"#document": {"$regex": "("}})
        ),
        Step("POST", "{c}/get", {"where": _nested(20), "include": []}, only=_IDS),
        Step(
            "POST",
            "{c}/get",
            {"where": _nested(60), "include": []},
            only=_IDS,
            differs=because.LIMITS,
            ours=400,
        ),
        Step("POST", "{c}/get", {"where": {"$or": [{"a": n} for n in range(500)]}, "include": []}, only=_IDS),
        Step("POST", "{c}/get", {"where": {"a": {"$in": list(range(2000))}}, "include": []}, only=_IDS),
        Step("POST", "{c}/get", {"where": {"k" * 5000: "v" * 5000}, "include": []}, only=_IDS),
    ],
    setup=_SETUP,
)

_PATTERNS = [
    "l1.l2", "(?s)l1.l2", "^l2", "(?m)^l2", "l1$", r"\bx1\b", "[[:alpha:]]+ß", "(?i)STRASSE", "(?i)äö", r"\p{Lu}", "a{2,", "^$", "", r"\d", r"^\d",
    "[^a-zA-Z0-9 ]", "ABC|xyz", r"\x41BC", r"\x{41}BC", r"\s", ".", "(?i)c(?-i)at", r"^\w\w ", r"\z", r"\A", r"(?P<n>a)", "(?<n>a)", r"[\p{L}--a]",
    "(?=a)", "(?!a)", "(?<=a)b", r"(a)\1", "*", "a**", "[", "(", ")", "]", "{", "}", "a{,2}", "a{2}", "[z-a]", r"\q", r"\Qa\E", "(?x) a b c", r"\u0041BC",
    r"[\d\s]", r"[^\w]", r"\D", r"\W", r"\S", "(?U)a+", r"[a&&b]", r"\pL", r"\p{Greek}", r"\p{nope}", "a|", "|", "(?:)", "\x00", "ß", "[Ä-Ö]", r"\.", "%", "_", "'",
    r"\t", r"\r\n", "(?R)$", r"\b{start}", "x*", "(a|b)+c", "(?i)abc ABC", "(?i)[a-c]{3}", "(?i)ß", "(?i)ẞ", r"\bß\b", r"stra\Bß", r"Ö\b", r"\bÖ", "(?x) ß # street", r"[\p{L}--[A-Z]]{4}", r"[\w&&\P{L}]", "[x[y-z]]",
]  # fmt: skip
_REFUSED_PATTERNS = ("[a&&b]", "(?R)$", r"\b{start}")
_TEXTS: list[Any] = [
    "ÄÖ", "äö", "l1\nl2", "", "ss", "ß", "\\", "'", '"', "%", "_", "a_b", "ab", "100%", "ABC", "abc", "bc a", "🦊", "\x00", "\r\n", "x" * 5000, " ",
    None, 5, True, [], ["x"], {}, {"a": 1},
]  # fmt: skip
_DOCUMENT_CLAUSES: list[Any] = [
    {},
    [],
    5,
    "x",
    None,
    {"$bad": "x"},
    {"contains": "x"},
    {"$eq": "x"},
    {"a": 1},
    {"$contains": "a", "$not_contains": "b"},
    {"$and": []},
    {"$or": []},
    {"$and": [{"$contains": "a"}, {"$not_contains": "A"}]},
    {"$or": [{"$contains": "cat"}, {"$regex": "^l1"}]},
    {"$and": [{"$or": [{"$contains": "a"}, {"$contains": "l"}]}, {"$not_regex": "x"}]},
    {"$and": [{}]},
    {"$and": 5},
    {"$or": [{"a": {"$eq": 1}}]},
    {"#document": {"$contains": "a"}},
]

WHERE_DOCUMENT = Scenario(
    "where-document",
    [
        *(
            Step(
                "POST",
                "{c}/get",
                {"where_document": {operator: text}, "include": []},
                only=_IDS,
                differs=because.NUL if text == "\x00" else None,
                ours=200,
            )
            for operator in ("$contains", "$not_contains")
            for text in _TEXTS
        ),
        *(
            Step(
                "POST",
                "{c}/get",
                {"where_document": {operator: pattern}, "include": []},
                only=_IDS,
                differs=because.REGEX if pattern in _REFUSED_PATTERNS else None,
                ours=400,
            )
            for pattern in _PATTERNS
            for operator in ("$regex", "$not_regex")
        ),
        *(
            Step("POST", "{c}/get", {"where_document": {"$regex": value}, "include": []}, only=_IDS)
            for value in bodies(None, 5, [], {})
        ),
        *(
            Step("POST", "{c}/get", {"where_document": clause, "include": []}, only=_IDS)
            for clause in _DOCUMENT_CLAUSES
        ),
        Step(
            "POST",
            "{c}/query",
            {"query_embeddings": [[1, 1]], "where_document": {"$contains": "a"}, "include": []},
            only=_IDS,
        ),
        Step(
            "POST",
            "{c}/query",
            {"query_embeddings": [[1, 1]], "where_document": {"$regex": "("}, "include": []},
            only=_IDS,
        ),
        Step("POST", "{c}/delete", {"where_document": {"$contains": "cat"}}),
        Step(
            "POST",
            "{c}/get",
            {"where": {"a": 1}, "where_document": {"$not_contains": "z"}, "include": []},
            only=_IDS,
        ),
    ],
    setup=_SETUP,
)

FILTERS = (WHERE, WHERE_DOCUMENT)
