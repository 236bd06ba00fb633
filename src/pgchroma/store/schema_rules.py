"""What a schema of the caller's may say: which index can be on which key."""

import copy
from collections.abc import Mapping
from typing import Any

from pgchroma.errors import InvalidArgumentError

_VALUE_TYPES = ("string", "float_list", "sparse_vector", "int", "float", "bool")
# (value type, index, the only key that can have it, how messages call it)
_BOUND = (
    ("float_list", "vector_index", "#embedding", "Vector index"),
    ("string", "fts_index", "#document", "Full text search / regular expression index"),
)
_SPARSE_DEFAULTS: dict[str, Any] = {"embedding_function": {"type": "unknown"}, "bm25": False}


def _refuse(reason: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"Validation error: schema: {reason}")


def _enabled(entry: Mapping[str, Any], kind: str, index: str) -> bool:
    indexes = entry.get(kind)
    settings = indexes.get(index) if isinstance(indexes, Mapping) else None
    return isinstance(settings, Mapping) and bool(settings.get("enabled"))


def check(schema: Mapping[str, Any]) -> None:
    """Raise InvalidArgumentError for a schema of the wrong shape, or with an index where none of its kind can be."""
    for part in ("defaults", "keys"):
        if not isinstance(schema.get(part, {}), Mapping):
            raise InvalidArgumentError(f"Failed to reconcile schema: {part} must be an object")
    defaults, keys = schema.get("defaults") or {}, schema.get("keys") or {}
    for name, entry in (("defaults", defaults), *keys.items()):
        _check_shape(name, entry)
    for kind, index, home, called in _BOUND:
        if _enabled(defaults, kind, index):
            raise _refuse(f"{called} cannot be enabled by default. It can only be enabled on {home} field.")
        for key, entry in keys.items():
            if not key.startswith("#") and _enabled(entry, kind, index):
                raise _refuse(f"{called} can only be enabled on {home} field: {key}")
    _check_sparse(defaults, keys)


def _check_shape(name: str, entry: object) -> None:
    if not isinstance(entry, Mapping):
        raise InvalidArgumentError(
            f"Failed to reconcile schema: a key's entry must be an object, but {name} is not"
        )
    for kind in _VALUE_TYPES:
        indexes = entry.get(kind) or {}
        if not isinstance(indexes, Mapping):
            raise InvalidArgumentError(f"Failed to reconcile schema: {name}.{kind} must be an object")
        for index, settings in indexes.items():
            config = settings.get("config") if isinstance(settings, Mapping) else ()
            if settings is not None and not (config is None or isinstance(config, Mapping)):
                raise InvalidArgumentError(
                    f"Failed to reconcile schema: {name}.{kind}.{index} must be an object with 'enabled' and 'config'"
                )


def has_sparse_index(schema: Mapping[str, Any] | None) -> bool:
    """Whether a schema, which need not be valid, asks for an index over sparse vectors."""
    if not schema:
        return False
    entries = [schema.get("defaults") or {}, *(schema.get("keys") or {}).values()]
    return any(_enabled(entry, "sparse_vector", "sparse_vector_index") for entry in entries)


def _check_sparse(defaults: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    if _enabled(defaults, "sparse_vector", "sparse_vector_index"):
        raise _refuse(
            "Sparse vector index cannot be enabled by default. Please enable sparse vector index on specific keys. "
            "At most one sparse vector index is allowed for the collection."
        )
    enabled = [key for key, entry in keys.items() if _enabled(entry, "sparse_vector", "sparse_vector_index")]
    if len(enabled) > 1:
        raise _refuse(f"At most one sparse vector index is allowed for the collection: {enabled}")
    for key in enabled:
        if key.startswith("#"):
            raise _refuse(f"a sparse vector index cannot be on {key}; name a metadata key")
        source = (keys[key]["sparse_vector"]["sparse_vector_index"].get("config") or {}).get("source_key")
        if source is not None and (
            not isinstance(source, str) or (source.startswith("#") and source != "#document")
        ):
            raise _refuse(
                f"source_key of the sparse vector index on {key} must be a metadata key or '#document', got: {source!r}"
            )


def with_sparse_defaults(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a merged schema in which the configuration of every sparse index says all there is to say."""
    for entry in schema["keys"].values():
        index = (entry.get("sparse_vector") or {}).get("sparse_vector_index")
        if index is not None:
            given = {name: value for name, value in (index.get("config") or {}).items() if value is not None}
            index["config"] = copy.deepcopy(_SPARSE_DEFAULTS) | given
    return schema
