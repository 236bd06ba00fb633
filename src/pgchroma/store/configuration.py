"""Chroma's collection configuration and schema: defaults, merging, updates and key discovery.

Both describe the same index. `configuration` is what clients show as `configuration_json`; `schema` lists, per metadata key and
value type, which indexes exist. The schema is the richer one, the configuration is derived from it.
"""

import copy
import os
from collections.abc import Mapping
from typing import Any

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import schema_rules

Json = dict[str, Any]

SPACES = ("l2", "cosine", "ip")
EMBEDDING_KEY, DOCUMENT_KEY = "#embedding", "#document"

_HNSW_DEFAULTS: Json = {
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "num_threads": os.cpu_count() or 1,
    "batch_size": 100,
    "sync_threshold": 1000,
    "resize_factor": 1.2,
}
_DEFAULTS: Json = {"space": SPACES[0], **_HNSW_DEFAULTS}
_LEGACY_PROBLEM = "Failed to parse hnsw parameters from segment metadata"
# What clients name when the caller chose no embedding function.
_DEFAULT_FUNCTION: Json = {"type": "known", "name": "default", "config": {}}
_SHOWN = ("ef_construction", "ef_search", "max_neighbors", "resize_factor", "sync_threshold")
_UPDATABLE = ("ef_search", "max_neighbors", "num_threads", "resize_factor", "sync_threshold", "batch_size")
# Metadata keys that set index parameters before there were configurations -> the parameters' names.
LEGACY_KEYS = {
    "hnsw:space": "space",
    "hnsw:construction_ef": "ef_construction",
    "hnsw:search_ef": "ef_search",
    "hnsw:M": "max_neighbors",
    "hnsw:num_threads": "num_threads",
    "hnsw:resize_factor": "resize_factor",
    "hnsw:batch_size": "batch_size",
    "hnsw:sync_threshold": "sync_threshold",
}
# value type -> (index names of that type in the schema)
_VALUE_INDEXES: dict[str, str] = {
    "string": "string_inverted_index",
    "int": "int_inverted_index",
    "float": "float_inverted_index",
    "bool": "bool_inverted_index",
}


def _validated_parameter(name: str, value: object, *, strict: bool = False) -> object:
    """Return a parameter that is of the right type and, where it is to be strict, makes sense.

    Upstream asks for sense in metadata and schema only; nothing here depends on the parameters concerned.
    """
    if name == "space":
        if value not in SPACES:
            raise InvalidArgumentError(f"space must be one of {', '.join(SPACES)}, got: {value!r}")
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgumentError(f"{name} must be a number, got: {value!r}")
    if name == "resize_factor":
        if strict and value <= 0:
            raise InvalidArgumentError(f"resize_factor must be above 0, got: {value!r}")
        return float(value)
    if not isinstance(value, int) or value < 0:
        raise InvalidArgumentError(f"{name} must be a non-negative integer, got: {value!r}")
    if strict and name in ("batch_size", "sync_threshold") and value < 2:
        raise InvalidArgumentError(f"Validation error: {name} must be at least 2, got: {value!r}")
    return value


def _hnsw_parameters(configuration: Mapping[str, Any] | None, metadata: Mapping[str, Any] | None) -> Json:
    """Return what the caller set: by the configuration or, when that says no more than the defaults, by legacy `hnsw:` metadata.

    Clients always send a configuration, even for a caller who only knows the metadata keys.
    """
    legacy = _legacy_parameters(metadata or {})
    hnsw = (configuration or {}).get("hnsw") or {}
    if not isinstance(hnsw, Mapping):
        raise InvalidArgumentError("configuration.hnsw must be an object")
    given = {
        name: _validated_parameter(name, value)
        for name, value in hnsw.items()
        if name in _DEFAULTS and value is not None
    }
    return given | legacy if _are_defaults(given) else given


def _legacy_parameters(metadata: Mapping[str, Any]) -> Json:
    parameters = {}
    for key, value in metadata.items():
        if not key.startswith("hnsw:"):
            continue
        try:
            name = LEGACY_KEYS[key]
            parameters[name] = _validated_parameter(name, value, strict=True)
        except KeyError:
            known = ", ".join(LEGACY_KEYS)
            raise InvalidArgumentError(f"{_LEGACY_PROBLEM}: {key} is not one of {known}") from None
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{_LEGACY_PROBLEM}: {key}: {error}") from error
    return parameters


def _are_defaults(parameters: Json) -> bool:
    return all(_DEFAULTS[name] == value for name, value in parameters.items())


def default_schema() -> Json:
    """Return Chroma's default schema with l2 and no embedding function."""

    def vector_index(*, enabled: bool, source_key: str | None) -> Json:
        config: Json = {"space": "l2"}
        if source_key:
            config["source_key"] = source_key
        config["hnsw"] = dict(_HNSW_DEFAULTS)
        return {"vector_index": {"enabled": enabled, "config": config}}

    def string(*, fts: bool, inverted: bool) -> Json:
        return {
            "fts_index": {"enabled": fts, "config": {}},
            "string_inverted_index": {"enabled": inverted, "config": {}},
        }

    sparse = {"enabled": False, "config": {"embedding_function": {"type": "unknown"}, "bm25": False}}
    return {
        "defaults": {
            "string": string(fts=False, inverted=True),
            "float_list": vector_index(enabled=False, source_key=None),
            "sparse_vector": {"sparse_vector_index": sparse},
            "int": {"int_inverted_index": {"enabled": True, "config": {}}},
            "float": {"float_inverted_index": {"enabled": True, "config": {}}},
            "bool": {"bool_inverted_index": {"enabled": True, "config": {}}},
        },
        "keys": {
            EMBEDDING_KEY: {"float_list": vector_index(enabled=True, source_key=DOCUMENT_KEY)},
            DOCUMENT_KEY: {"string": string(fts=True, inverted=False)},
        },
    }


def _merge(base: Json, over: Mapping[str, Any]) -> Json:
    """Return `base` with `over` laid on it, object by object; null keeps what was there."""
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(merged.get(key), dict):
            merged[key] = _merge(merged[key], value)
        elif value is not None:
            merged[key] = copy.deepcopy(value)
    return merged


def _vector_configs(schema: Json) -> list[Json]:
    return [
        schema["defaults"]["float_list"]["vector_index"]["config"],
        schema["keys"][EMBEDDING_KEY]["float_list"]["vector_index"]["config"],
    ]


def _is_default_schema(schema: Json) -> bool:
    """Whether a complete schema says no more than the default one; clients put their default embedding function into it."""
    plain = copy.deepcopy(schema)
    for config in _vector_configs(plain):
        if config.get("embedding_function") == _DEFAULT_FUNCTION:
            del config["embedding_function"]
    return plain == default_schema()


def _is_default_configuration(parameters: Json, embedding_function: object) -> bool:
    return embedding_function in (None, _DEFAULT_FUNCTION) and _are_defaults(parameters)


def _check_user_key(key: str, entry: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError, in upstream's words, for an entry that its key cannot have."""
    kinds = {kind for kind, indexes in entry.items() if indexes is not None}
    vector = (entry.get("float_list") or {}).get("vector_index") or {}
    config = vector.get("config") or {}
    problem = ""
    if key == EMBEDDING_KEY and kinds - {"float_list"}:
        problem = f"Embedding field cannot have any value types other than float_list: {key}"
    elif key == DOCUMENT_KEY and kinds - {"string"}:
        problem = f"Document field cannot have any value types other than string: {key}"
    elif key not in (EMBEDDING_KEY, DOCUMENT_KEY) and key.startswith("#"):
        problem = f"key cannot begin with '#'. Keys starting with '#' are reserved for system use: {key}"
    elif key != EMBEDDING_KEY and vector.get("enabled"):
        problem = f"Vector index can only be enabled on {EMBEDDING_KEY} field: {key}"
    elif config.get("source_key") not in (None, DOCUMENT_KEY):
        problem = f"Vector index can only source from {DOCUMENT_KEY}"
    if problem:
        raise InvalidArgumentError(f"Validation error: schema: {problem}")
    for name, value in (config.get("hnsw") or {}).items():
        try:
            _validated_parameter(name, value, strict=True)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(
                f"Failed to reconcile schema: Invalid HNSW configuration: {error}"
            ) from error


def build(
    configuration: Mapping[str, Any] | None,
    schema: Mapping[str, Any] | None,
    metadata: Mapping[str, Any] | None,
) -> tuple[Json, Json]:
    """Return (configuration, schema) of a new collection, with every default filled in.

    Raises:
        InvalidArgumentError: a wrong value, or configuration and schema both given and both not the default.
    """
    parameters = _hnsw_parameters(configuration, metadata)
    embedding_function = (configuration or {}).get("embedding_function")
    full = default_schema()
    if schema:
        schema_rules.check(schema)
        for key, entry in (schema.get("keys") or {}).items():
            _check_user_key(key, entry)
        given = schema_rules.with_sparse_defaults(_merge(full, schema))
        if not _is_default_schema(given):
            # The schema says everything; clients send a configuration of defaults along with it.
            if not _is_default_configuration(parameters, embedding_function):
                raise InvalidArgumentError(
                    "Failed to reconcile schema: Cannot set both collection config and schema simultaneously"
                )
            full, parameters, embedding_function = given, {}, None
    for config in _vector_configs(full):
        config.pop("spann", None)
        config["hnsw"] = _merge(_HNSW_DEFAULTS, config.get("hnsw") or {})
        for name, value in parameters.items():
            (config if name == "space" else config["hnsw"])[name] = value
        _validated_parameter("space", config.setdefault("space", "l2"))
        if embedding_function is not None:
            config["embedding_function"] = copy.deepcopy(embedding_function)
    return derive(full), full


def derive(schema: Json) -> Json:
    """Return the `configuration_json` that a complete schema amounts to."""
    config = _vector_configs(schema)[1]
    return {
        "hnsw": {"space": config["space"], **{name: config["hnsw"][name] for name in _SHOWN}},
        "spann": None,
        "embedding_function": copy.deepcopy(config.get("embedding_function")),
    }


def update(schema: Json, change: Mapping[str, Any]) -> tuple[Json, Json]:
    """Return (configuration, schema) after a modify request's `new_configuration`.

    Raises:
        InvalidArgumentError: space or ef_construction, which are fixed at creation, or a wrong value.
    """
    hnsw = change.get("hnsw") or {}
    for name in hnsw:
        if name not in _UPDATABLE:
            raise InvalidArgumentError(
                f"{name} cannot be changed; it is fixed when the collection is created"
            )
    changed = copy.deepcopy(schema)
    for config in _vector_configs(changed):
        for name, value in hnsw.items():
            if value is not None:
                config["hnsw"][name] = _validated_parameter(name, value)
        if change.get("embedding_function") is not None:
            config["embedding_function"] = copy.deepcopy(change["embedding_function"])
    return derive(changed), changed


_VALUE_TYPES: dict[type, str] = {
    bool: "bool",
    int: "int",
    float: "float",
    str: "string",
    dict: "sparse_vector",
}


def value_type(value: object) -> str:
    """Return the schema's name of a metadata value's type; a list counts as its elements, an object is a sparse vector."""
    if isinstance(value, list):
        return value_type(value[0]) if value else "string"
    return _VALUE_TYPES.get(type(value), "string")


def discover(schema: Json, seen: set[tuple[str, str]]) -> Json | None:
    """Return the schema with the (key, value type) pairs of new metadata added, or None when it knows them all."""
    missing = [
        (key, kind)
        for key, kind in seen
        if not key.startswith("chroma:") and kind not in schema["keys"].get(key, {})
    ]
    if not missing:
        return None
    grown = copy.deepcopy(schema)
    for key, kind in sorted(missing):
        grown["keys"].setdefault(key, {})[kind] = copy.deepcopy(schema["defaults"][kind])
    return grown


def require_filterable(schema: Json, key: str, kind: str) -> None:
    """Raise InvalidArgumentError when the index that a filter on `key` needs is switched off."""
    name = _VALUE_INDEXES[kind]
    entry = schema["keys"].get(key, {}).get(kind) or schema["defaults"].get(kind) or {}
    if not entry.get(name, {}).get("enabled", True):
        shown = {"string": "Str", "int": "Int", "float": "Float", "bool": "Bool"}[kind]
        raise InvalidArgumentError(
            f"Cannot filter using metadata key '{key}' with type '{shown}' because indexing is disabled"
        )


def sparse_key(schema: Json) -> str | None:
    """Return the metadata key whose sparse vectors are indexed; a schema has one at most, fixed when it is created."""
    for key, entry in schema["keys"].items():
        if entry.get("sparse_vector", {}).get("sparse_vector_index", {}).get("enabled"):
            return str(key)
    return None


def sparse_config(schema: Json, key: str) -> Json:
    """Return the configuration of the sparse index on `key`.

    Raises:
        InvalidArgumentError: it is off, or there is none.
    """
    index = schema["keys"].get(key, {}).get("sparse_vector", {}).get("sparse_vector_index", {})
    if not index.get("enabled"):
        raise InvalidArgumentError(
            f"Cannot filter using metadata key '{key}' with type 'SparseVector' because indexing is disabled",
            hint="create the collection with a schema that enables a sparse vector index on this key",
        )
    config: Json = index.get("config") or {}
    return config


def has_full_text(schema: Json) -> bool:
    """Whether documents may be searched for substrings and patterns."""
    return bool(schema["keys"][DOCUMENT_KEY]["string"]["fts_index"]["enabled"])


def require_full_text(schema: Json) -> None:
    """Raise InvalidArgumentError when full-text search over documents is switched off."""
    if not has_full_text(schema):
        raise InvalidArgumentError("Cannot filter using full-text search because FTS indexing is disabled")
