"""Configuration, schema, legacy metadata, key discovery, disabled indexes."""

import copy
from typing import Any

from chromadb.api.types import Schema

from conformance.differential import deviations as because
from conformance.differential.model import Differs, Scenario, Step, bodies

_KNOWN = {"type": "known", "name": "mine", "config": {"a": [1, {"b": None}]}}
_DEFAULT = {"type": "known", "name": "default", "config": {}}
_SHOWN = ("configuration_json", "schema", "metadata", "error", "message")


def _create(body: dict[str, object] | Differs) -> tuple[Step, Step]:
    """Create a collection and delete it again, so that the next one may have its name."""
    if isinstance(body, Differs):
        whole: object = Differs({"name": "made", **body.body}, body.deviation, body.ours)  # type: ignore[dict-item]
    else:
        whole = {"name": "made", **body}
    return Step.of("POST", "{cs}", whole, _SHOWN), Step("DELETE", "{cs}/made")


def _configured(configuration: object) -> dict[str, object] | Differs:
    if isinstance(configuration, Differs):
        return Differs({"configuration": configuration.body}, configuration.deviation, configuration.ours)
    return {"configuration": configuration}


def _schema(space: str = "l2", **keys: Any) -> dict[str, Any]:
    """Return a schema as chromadb's client sends it."""
    schema: dict[str, Any] = Schema().serialize_to_json()
    for part in (schema["defaults"], schema["keys"]["#embedding"]):
        part["float_list"]["vector_index"]["config"]["space"] = space
    schema["keys"] |= keys
    return schema


def _off(schema: dict[str, Any], kind: str, index: str) -> dict[str, Any]:
    changed = copy.deepcopy(schema)
    changed["defaults"][kind][index]["enabled"] = False
    return changed


def _key(kind: str, *, enabled: bool) -> dict[str, object]:
    return {kind: {f"{kind}_inverted_index": {"enabled": enabled, "config": {}}}}


CONFIGURATION = Scenario(
    "configuration",
    [
        step
        for configuration in bodies(
            None,
            {},
            {"hnsw": None},
            {"hnsw": {}},
            {"hnsw": {"space": "cosine"}},
            {
                "hnsw": {
                    "space": "ip",
                    "ef_construction": 50,
                    "ef_search": 60,
                    "max_neighbors": 8,
                    "num_threads": 3,
                    "batch_size": 7,
                    "sync_threshold": 9,
                    "resize_factor": 2.5,
                }
            },
            {"hnsw": {"resize_factor": 2}},
            {"hnsw": {"space": None}},
            {"hnsw": {"space": "nope"}},
            Differs({"hnsw": {"space": 5}}, because.WRONG_TYPE, 422),
            {"hnsw": {"ef_search": -1}},
            {"hnsw": {"ef_search": 0}},
            {"hnsw": {"ef_search": 1.5}},
            {"hnsw": {"ef_search": "50"}},
            {"hnsw": {"ef_search": 2**63 - 1}},
            {"hnsw": {"max_neighbors": 0}},
            {"hnsw": {"max_neighbors": 100000}},
            {"hnsw": {"ef_construction": 0}},
            {"hnsw": {"sync_threshold": 1}},
            {"hnsw": {"sync_threshold": 2}},
            {"hnsw": {"batch_size": 1}},
            {"hnsw": {"batch_size": 0}},
            {"hnsw": {"resize_factor": 0}},
            {"hnsw": {"resize_factor": -1.0}},
            {"hnsw": {"resize_factor": "x"}},
            {"hnsw": {"num_threads": 0}},
            {"hnsw": {"foo": 1}},
            {"hnsw": 5},
            {"hnsw": []},
            {"unknown": 1},
            {"spann": {}},
            {"spann": {"space": "cosine"}},
            {"spann": {"space": "cosine", "search_nprobe": 10, "ef_search": 20}},
            {"spann": {"foo": 1}},
            {"spann": {"space": "nope"}},
            {"hnsw": {}, "spann": {}},
            {"hnsw": None, "spann": None},
            {"embedding_function": None},
            {"embedding_function": {"type": "legacy"}},
            {"embedding_function": {"type": "unknown"}},
            {"embedding_function": {"type": "?"}},
            {"embedding_function": {}},
            {"embedding_function": {"type": "known"}},
            {"embedding_function": {"type": "known", "name": "x"}},
            {"embedding_function": {"type": "known", "name": 5, "config": {}}},
            {"embedding_function": _KNOWN},
            {"embedding_function": _DEFAULT},
            {"embedding_function": "default"},
            {"hnsw": {"space": "cosine"}, "embedding_function": _KNOWN},
            5,
            [],
        )
        for step in _create(_configured(configuration))
    ]
    + [
        Step(
            "POST",
            "{cs}",
            {"name": "huge", "configuration": {"hnsw": {"ef_search": 2**63}}},
            differs=because.INT64,
            ours=422,
        )
    ],
)

LEGACY = Scenario(
    "legacy",
    [
        step
        for metadata, hnsw in (
            ({"hnsw:space": "cosine"}, None),
            (
                {
                    "hnsw:space": "ip",
                    "hnsw:construction_ef": 50,
                    "hnsw:search_ef": 60,
                    "hnsw:M": 8,
                    "hnsw:num_threads": 3,
                    "hnsw:resize_factor": 1.5,
                    "hnsw:batch_size": 7,
                    "hnsw:sync_threshold": 9,
                },
                None,
            ),
            ({"hnsw:space": "cosine", "other": 1}, {"space": "l2"}),
            ({"hnsw:space": "cosine"}, {"space": "ip"}),
            ({"hnsw:space": "cosine", "hnsw:M": 20}, {"ef_search": 50}),
            ({"hnsw:space": "cosine", "hnsw:M": 20}, {"ef_search": 100}),
            ({"hnsw:space": "bad"}, None),
            ({"hnsw:space": 5}, None),
            ({"hnsw:M": "x"}, None),
            ({"hnsw:M": 8.0}, None),
            ({"hnsw:M": -1}, None),
            ({"hnsw:M": True}, None),
            ({"hnsw:resize_factor": 2}, None),
            ({"hnsw:resize_factor": 2.0}, None),
            ({"hnsw:batch_size": 1}, None),
            ({"hnsw:foo": 1}, None),
            ({"hnsw:": 1}, None),
            ({"hnsw": "x"}, None),
            ({"hnsw:space": "bad"}, {"ef_search": 50}),
        )
        for step in _create({"metadata": metadata, "configuration": {"hnsw": hnsw}})
    ],
)

MODIFY = Scenario(
    "modify",
    [
        step
        for change in bodies(
            {},
            {"hnsw": {}},
            {"hnsw": None},
            {"hnsw": {"ef_search": 50}},
            {
                "hnsw": {
                    "max_neighbors": 20,
                    "num_threads": 3,
                    "resize_factor": 1.5,
                    "sync_threshold": 50,
                    "batch_size": 20,
                }
            },
            {"hnsw": {"ef_search": 0}},
            {"hnsw": {"sync_threshold": 1}},
            {"hnsw": {"batch_size": 1}},
            {"hnsw": {"space": "ip"}},
            {"hnsw": {"ef_construction": 5}},
            {"hnsw": {"ef_search": "x"}},
            {"hnsw": {"foo": 1}},
            {"spann": {"ef_search": 50}},
            {"spann": {"search_nprobe": 50}},
            {"spann": {"space": "ip"}},
            {"hnsw": {"ef_search": 70}, "spann": {"ef_search": 50}},
            {"embedding_function": _KNOWN},
            {"embedding_function": None},
            {"embedding_function": {"type": "legacy"}},
            {"hnsw": {"ef_search": 55}, "embedding_function": _DEFAULT},
            {"unknown": 1},
            5,
            None,
        )
        for step in (Step("PUT", "{c}", {"new_configuration": change}), Step("GET", "{cs}/made", only=_SHOWN))
    ],
    setup=[Step("POST", "{cs}", {"name": "made", "configuration": {"hnsw": {"space": "cosine"}}}, save="c")],
)

_FTS_OFF = {
    "#document": {
        "string": {
            "fts_index": {"enabled": False, "config": {}},
            "string_inverted_index": {"enabled": False, "config": {}},
        }
    }
}

SCHEMAS = Scenario(
    "schemas",
    [
        step
        for body in bodies(
            {"schema": None},
            {"schema": {}},
            {"schema": 5},
            {"schema": []},
            {"schema": {"defaults": {}, "keys": {}}},
            {"schema": {"defaults": {}}},
            {"schema": {"keys": {}}},
            {"schema": {"defaults": None, "keys": None}},
            {"schema": {"defaults": {}, "keys": {}, "unknown": 1}},
            {"schema": {"defaults": {"unknown": {}}, "keys": {}}},
            {"schema": {"defaults": {"string": {"nope": {}}}, "keys": {}}},
            {"schema": {"defaults": {"string": None}, "keys": {}}},
            {"schema": {"defaults": {"int": {"int_inverted_index": {"enabled": False}}}, "keys": {}}},
            {
                "schema": {
                    "defaults": {"int": {"int_inverted_index": {"enabled": False, "config": {}}}},
                    "keys": {},
                }
            },
            {
                "schema": {
                    "defaults": {"int": {"int_inverted_index": {"enabled": 5, "config": {}}}},
                    "keys": {},
                }
            },
            {"schema": _schema()},
            {"schema": _schema("cosine")},
            {"schema": _schema("nope")},
            {"schema": _schema("cosine"), "configuration": {"hnsw": {"space": "l2"}}},
            {"schema": _schema("cosine"), "configuration": {"hnsw": {"space": "cosine"}}},
            {"schema": _schema("cosine"), "configuration": {"hnsw": {"ef_search": 101}}},
            {"schema": _schema("cosine"), "configuration": {"embedding_function": _DEFAULT}},
            {"schema": _schema("cosine"), "configuration": {"embedding_function": _KNOWN}},
            {"schema": _schema("cosine"), "metadata": {"hnsw:space": "ip"}},
            {"schema": _schema(), "metadata": {"hnsw:space": "ip"}},
            {"schema": _schema(), "configuration": {"hnsw": {"space": "ip"}}},
            {"schema": _schema("cosine"), "configuration": {"spann": {"space": "l2"}}},
            {"schema": _schema(year=_key("int", enabled=False), title=_key("string", enabled=True))},
            {"schema": _schema("l2", **_FTS_OFF)},
            {
                "schema": _off(
                    _off(_schema(), "string", "string_inverted_index"), "bool", "bool_inverted_index"
                )
            },
            {"schema": {"defaults": {}, "keys": {"year": {}}}},
            {"schema": {"defaults": {}, "keys": {"year": None}}},
            {"schema": {"defaults": {}, "keys": {"year": 5}}},
            {"schema": {"defaults": {}, "keys": {"#embedding": _key("int", enabled=False)}}},
            {"schema": {"defaults": {}, "keys": {"#document": _key("int", enabled=False)}}},
            {"schema": {"defaults": {}, "keys": {"#other": _key("int", enabled=False)}}},
            {"schema": {"defaults": {}, "keys": {"nul\x00": _key("int", enabled=False)}}},
            {"schema": {"defaults": {}, "keys": {"q\"'%": _key("int", enabled=False)}}},
            {
                "schema": {
                    "defaults": {},
                    "keys": {
                        "emb": {"float_list": {"vector_index": {"enabled": True, "config": {"space": "ip"}}}}
                    },
                }
            },
            {
                "schema": {
                    "defaults": {},
                    "keys": {
                        "#embedding": {
                            "float_list": {
                                "vector_index": {
                                    "enabled": True,
                                    "config": {"space": "ip", "hnsw": {"ef_search": 33}},
                                }
                            }
                        }
                    },
                }
            },
            {
                "schema": {
                    "defaults": {
                        "float_list": {
                            "vector_index": {
                                "enabled": False,
                                "config": {"space": "ip", "hnsw": {"ef_search": 33}},
                            }
                        }
                    },
                    "keys": {},
                }
            },
            Differs(
                {
                    "schema": {
                        "defaults": {},
                        "keys": {
                            "#embedding": {
                                "float_list": {
                                    "vector_index": {"enabled": True, "config": {"hnsw": {"batch_size": 1}}}
                                }
                            }
                        },
                    }
                },
                because.WORDS,
                400,
            ),
            {
                "schema": {
                    "defaults": {},
                    "keys": {
                        "#embedding": {
                            "float_list": {
                                "vector_index": {"enabled": True, "config": {"spann": {"search_nprobe": 5}}}
                            }
                        }
                    },
                }
            },
            {
                "schema": {
                    "defaults": {},
                    "keys": {
                        "#embedding": {"float_list": {"vector_index": {"enabled": False, "config": {}}}}
                    },
                }
            },
            {
                "schema": {
                    "defaults": {},
                    "keys": {
                        "#embedding": {
                            "float_list": {
                                "vector_index": {
                                    "enabled": True,
                                    "config": {"embedding_function": _KNOWN, "source_key": "body"},
                                }
                            }
                        }
                    },
                }
            },
        )
        for step in _create(body)
    ],
)

_WRITTEN = [
    {
        "s": "x",
        "i": 1,
        "f": 1.5,
        "b": True,
        "ls": ["x"],
        "li": [1],
        "lf": [1.0],
        "lb": [True],
        "chroma:mine": 1,
    },
    {"s": 1, "i": "x", "ü€'\"%": 1},
]

DISCOVERY = Scenario(
    "discovery",
    [
        Step("POST", "{c}/add", {"ids": ["a", "b"], "embeddings": [[1, 2], [3, 4]], "metadatas": _WRITTEN}),
        Step("GET", "{cs}/made", only=_SHOWN),
        Step(
            "POST",
            "{c}/update",
            {"ids": ["a", "nope"], "metadatas": [{"new": 1.5, "i": True, "gone": None}, {"never": 1}]},
        ),
        Step("GET", "{cs}/made", only=_SHOWN),
        Step("POST", "{c}/upsert", {"ids": ["c"], "embeddings": [[1, 2]], "metadatas": [{"up": "x"}]}),
        Step("GET", "{cs}/made", only=_SHOWN),
        Step("POST", "{c}/add", {"ids": ["a"], "embeddings": [[1, 2]], "metadatas": [{"ignored": "x"}]}),
        Step("GET", "{cs}/made", only=_SHOWN),
        Step("POST", "{c}/delete", {"ids": ["a", "b", "c"]}),
        Step("GET", "{cs}/made", only=(*_SHOWN, "dimension", "log_position")),
        Step("POST", "{c}/upsert", {"ids": ["c"], "embeddings": [[1, 2]], "metadatas": [{"empty": []}]}),
        Step("GET", "{cs}/made", only=_SHOWN, differs=because.EMPTY_LIST, ours=200),
    ],
    setup=[Step("POST", "{cs}", {"name": "made"}, save="c")],
)

_ALL_KINDS = {"s": "x", "i": 1, "f": 1.5, "b": True, "ls": ["x"], "li": [1], "other": "y", "free": "z"}


def _disabled_filters() -> list[Step]:
    clauses: list[dict[str, object]] = [
        {"s": "x"},
        {"i": 1},
        {"i": 1.0},
        {"i": {"$gt": 0}},
        {"i": {"$gt": 0.5}},
        {"f": 1.5},
        {"b": True},
        {"ls": {"$contains": "x"}},
        {"li": {"$contains": 1}},
        {"s": {"$ne": "x"}},
        {"s": {"$in": ["x"]}},
        {"s": {"$nin": ["x"]}},
        {"never": 1},
        {"never": "x"},
        {"never": True},
        {"free": "z"},
        {"$and": [{"free": "z"}, {"i": 1}]},
        {"$or": [{"free": "z"}, {"b": True}]},
        {"#document": {"$contains": "x"}},
    ]
    return [
        step
        for clause in clauses
        for step in (
            Step("POST", "{c}/get", {"where": clause}, only=("ids", "error", "message")),
            Step(
                "POST",
                "{c}/query",
                {"query_embeddings": [[1, 2]], "where": clause},
                only=("ids", "error", "message"),
            ),
            Step("POST", "{c}/delete", {"where": clause, "limit": 0}),
        )
    ]


DISABLED = Scenario(
    "disabled",
    [
        *_disabled_filters(),
        Step("POST", "{c}/get", {"where_document": {"$contains": "x"}}, only=("ids", "error", "message")),
        Step("POST", "{c}/get", {"where_document": {"$regex": "x"}}, only=("ids", "error", "message")),
        Step("GET", "{cs}/made", only=_SHOWN),
    ],
    setup=[
        Step(
            "POST",
            "{cs}",
            {
                "name": "made",
                "schema": {
                    "defaults": {"bool": {"bool_inverted_index": {"enabled": False, "config": {}}}},
                    "keys": {
                        "i": _key("int", enabled=False),
                        "s": _key("string", enabled=False),
                        "ls": _key("string", enabled=False),
                        **_FTS_OFF,
                    },
                },
            },
            save="c",
        ),
        Step(
            "POST",
            "{c}/add",
            {
                "ids": ["a", "b"],
                "embeddings": [[1, 2], [3, 4]],
                "metadatas": [_ALL_KINDS, None],
                "documents": ["x", None],
            },
        ),
    ],
)

INDEXES = (CONFIGURATION, LEGACY, MODIFY, SCHEMAS, DISCOVERY, DISABLED)
