"""Collection configuration and schema."""

import copy
from typing import Any

import pytest

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import configuration
from pgchroma.store.where import Compiler

SHOWN_DEFAULTS = {
    "space": "l2",
    "ef_construction": 100,
    "ef_search": 100,
    "max_neighbors": 16,
    "resize_factor": 1.2,
    "sync_threshold": 1000,
}
OFF = {"enabled": False, "config": {}}


def vector_configs(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        schema["defaults"]["float_list"]["vector_index"]["config"],
        schema["keys"]["#embedding"]["float_list"]["vector_index"]["config"],
    ]


def test_defaults_are_filled_in() -> None:
    settled, schema = configuration.build(None, None, None)
    assert settled == {"hnsw": SHOWN_DEFAULTS, "spann": None, "embedding_function": None}
    assert schema == configuration.default_schema()
    assert set(schema["keys"]) == {"#embedding", "#document"}


def test_a_configuration_shows_in_the_schema_too() -> None:
    function = {"type": "known", "name": "x", "config": {"a": 1}}
    settled, schema = configuration.build(
        {"hnsw": {"space": "cosine", "ef_search": 7, "num_threads": 3}, "embedding_function": function},
        None,
        None,
    )
    assert settled["hnsw"] == SHOWN_DEFAULTS | {"space": "cosine", "ef_search": 7}
    assert settled["embedding_function"] == function
    for config in vector_configs(schema):
        assert (config["space"], config["hnsw"]["ef_search"], config["hnsw"]["num_threads"]) == (
            "cosine",
            7,
            3,
        )
        assert config["embedding_function"] == function


def test_legacy_metadata_sets_the_configuration() -> None:
    metadata = {
        "hnsw:space": "ip", "hnsw:construction_ef": 50, "hnsw:search_ef": 51, "hnsw:M": 8, "hnsw:num_threads": 1,
        "hnsw:resize_factor": 2, "hnsw:batch_size": 10, "hnsw:sync_threshold": 20, "other": "x",
    }  # fmt: skip
    settled, schema = configuration.build(None, None, metadata)
    assert settled["hnsw"] == {
        "space": "ip", "ef_construction": 50, "ef_search": 51, "max_neighbors": 8, "resize_factor": 2.0, "sync_threshold": 20,
    }  # fmt: skip
    assert vector_configs(schema)[1]["hnsw"]["batch_size"] == 10


def test_a_configuration_counts_more_than_legacy_metadata_unless_it_says_no_more_than_the_defaults() -> None:
    settled, _ = configuration.build({"hnsw": {"space": "ip"}}, None, {"hnsw:space": "cosine"})
    assert settled["hnsw"]["space"] == "ip"
    settled, _ = configuration.build({"hnsw": SHOWN_DEFAULTS}, None, {"hnsw:space": "cosine"})
    assert settled["hnsw"]["space"] == "cosine"


@pytest.mark.parametrize(
    ("given", "metadata"),
    [
        ({"hnsw": {"space": "hamming"}}, None),
        ({"hnsw": {"ef_search": "many"}}, None),
        ({"hnsw": {"ef_search": True}}, None),
        ({"hnsw": {"ef_search": 1.5}}, None),
        ({"hnsw": {"max_neighbors": -1}}, None),
        ({"hnsw": {"resize_factor": "x"}}, None),
        (None, {"hnsw:resize_factor": 0}),
        (None, {"hnsw:batch_size": 1}),
        ({"hnsw": ["space"]}, None),
        (None, {"hnsw:M": "x"}),
        (None, {"hnsw:space": 1}),
    ],
)
def test_wrong_values_are_refused(given: dict[str, Any] | None, metadata: dict[str, Any] | None) -> None:
    with pytest.raises(InvalidArgumentError):
        configuration.build(given, None, metadata)


def test_a_schema_is_merged_field_by_field() -> None:
    mine = {
        "defaults": {"string": {"string_inverted_index": OFF}},
        "keys": {
            "#embedding": {"float_list": {"vector_index": {"config": {"space": "cosine", "hnsw": {"ef_search": 9}}}}},
            "topic": {"int": {"int_inverted_index": OFF}},
        },
    }  # fmt: skip
    settled, schema = configuration.build(None, mine, None)
    assert settled["hnsw"] == SHOWN_DEFAULTS | {"space": "cosine", "ef_search": 9}
    assert schema["defaults"]["string"]["string_inverted_index"] == OFF
    assert schema["defaults"]["string"]["fts_index"] == OFF
    assert schema["keys"]["topic"] == {"int": {"int_inverted_index": OFF}}
    assert schema["keys"]["#document"] == configuration.default_schema()["keys"]["#document"]


def test_configuration_and_schema_at_once_are_refused() -> None:
    mine = {"keys": {"topic": {"int": {"int_inverted_index": OFF}}}}
    with pytest.raises(InvalidArgumentError, match="Cannot set both"):
        configuration.build({"hnsw": {"space": "ip"}}, mine, None)
    with pytest.raises(InvalidArgumentError, match="Cannot set both"):
        configuration.build({"embedding_function": {"type": "known", "name": "x", "config": {}}}, mine, None)
    settled, _ = configuration.build({"hnsw": SHOWN_DEFAULTS}, mine, None)
    assert settled["hnsw"] == SHOWN_DEFAULTS


def sparse_index(**config: object) -> dict[str, object]:
    return {"sparse_vector": {"sparse_vector_index": {"enabled": True, "config": config}}}


def test_a_sparse_index_keeps_its_embedding_function() -> None:
    function = {"type": "known", "name": "chroma_bm25", "config": {"k": 1.2}}
    mine = {"keys": {"s": sparse_index(source_key="#document", embedding_function=function, bm25=None)}}
    _, schema = configuration.build(None, mine, None)
    wanted = {"source_key": "#document", "embedding_function": function, "bm25": False}
    assert schema["keys"]["s"]["sparse_vector"]["sparse_vector_index"] == {"enabled": True, "config": wanted}
    assert configuration.sparse_key(schema) == "s"
    assert configuration.sparse_config(schema, "s") == wanted
    with pytest.raises(InvalidArgumentError, match="key 'other' with type 'SparseVector'"):
        configuration.sparse_config(schema, "other")


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"keys": {"s": sparse_index(), "t": sparse_index()}}, "At most one sparse vector index"),
        ({"defaults": sparse_index()}, "Sparse vector index cannot be enabled by default"),
        ({"keys": {"s": sparse_index(source_key="#embedding")}}, "source_key.*#embedding"),
        ({"keys": {"#document": sparse_index()}}, "cannot be on #document"),
        ({"keys": {"#other": {"string": {"string_inverted_index": OFF}}}}, "#other"),
        ({"keys": {"k": {"float_list": {"vector_index": {"enabled": True}}}}}, "Vector index can only be.*k"),
        ({"defaults": {"string": {"fts_index": {"enabled": True}}}}, "cannot be enabled by default"),
        ({"keys": {"k": 1}}, "k is not"),
        ({"keys": {"k": {"string": 1}}}, "k.string must be"),
        ({"keys": {"k": {"string": {"fts_index": 1}}}}, "k.string.fts_index must be"),
    ],
)
def test_indexes_where_none_can_be_are_refused(schema: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=named):
        configuration.build(None, schema, None)


def test_an_update_shows_in_both() -> None:
    _, schema = configuration.build({"hnsw": {"space": "cosine"}}, None, None)
    before = copy.deepcopy(schema)
    settled, changed = configuration.update(schema, {"hnsw": {"ef_search": 33, "max_neighbors": None}})
    assert settled["hnsw"] == SHOWN_DEFAULTS | {"space": "cosine", "ef_search": 33}
    assert [config["hnsw"]["ef_search"] for config in vector_configs(changed)] == [33, 33]
    assert schema == before


@pytest.mark.parametrize("name", ["space", "ef_construction"])
def test_what_is_fixed_at_creation_cannot_be_updated(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=name):
        configuration.update(configuration.default_schema(), {"hnsw": {name: SHOWN_DEFAULTS[name]}})


def test_new_keys_are_discovered_by_type() -> None:
    schema = configuration.default_schema()
    grown = configuration.discover(schema, {("a", "int"), ("b", "string"), ("chroma:x", "string")})
    assert grown is not None
    assert set(grown["keys"]) == {"#embedding", "#document", "a", "b"}
    assert grown["keys"]["a"] == {"int": schema["defaults"]["int"]}
    assert configuration.discover(grown, {("a", "int"), ("chroma:x", "string")}) is None
    again = configuration.discover(grown, {("a", "float")})
    assert again is not None
    assert set(again["keys"]["a"]) == {"int", "float"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [("x", "string"), (1, "int"), (True, "bool"), (1.0, "float"), ([1.0], "float"), ([True], "bool"), (["x"], "string")],
)  # fmt: skip
def test_an_array_counts_as_its_elements(value: object, kind: str) -> None:
    assert configuration.value_type(value) == kind


@pytest.mark.parametrize(
    ("mine", "clause", "shown"),
    [
        ({"keys": {"k": {"string": {"string_inverted_index": OFF}}}}, {"k": "x"}, "Str"),
        ({"keys": {"k": {"int": {"int_inverted_index": OFF}}}}, {"k": {"$in": [1]}}, "Int"),
        ({"defaults": {"float": {"float_inverted_index": OFF}}}, {"k": {"$gt": 1.0}}, "Float"),
        (
            {"defaults": {"bool": {"bool_inverted_index": OFF}}},
            {"$and": [{"k": {"$contains": True}}]},
            "Bool",
        ),
    ],
)
def test_a_filter_needs_its_index(mine: dict[str, Any], clause: dict[str, Any], shown: str) -> None:
    _, schema = configuration.build(None, mine, None)
    with pytest.raises(
        InvalidArgumentError, match=f"metadata key 'k' with type '{shown}' because indexing is disabled"
    ):
        Compiler(schema).where(clause)


def test_a_filter_needs_only_its_own_index() -> None:
    _, schema = configuration.build(None, {"keys": {"k": {"string": {"string_inverted_index": OFF}}}}, None)
    Compiler(schema).where({"$and": [{"k": 1}, {"other": "x"}, {"#document": {"$contains": "x"}}]})


def test_documents_are_searched_only_with_their_index() -> None:
    _, schema = configuration.build(None, {"keys": {"#document": {"string": {"fts_index": OFF}}}}, None)
    with pytest.raises(InvalidArgumentError, match="FTS indexing is disabled"):
        Compiler(schema).where({"#document": {"$contains": "x"}})
    with pytest.raises(InvalidArgumentError, match="FTS indexing is disabled"):
        Compiler(schema).where_document({"$contains": "x"})
