"""Metadata out of a request body: the values that Chroma allows, in the types that it gives them."""

from collections.abc import Sequence
from typing import Any

from pgchroma.server.http import HttpError, bad_request, unimplemented, unprocessable
from pgchroma.server.payloads import MetadataJson
from pgchroma.store import bulk, sparse
from pgchroma.types import MetadataPatch

_INT64_MIN, _INT64_MAX = -(2**63), 2**63 - 1
# Upstream keeps document and URI under these; a caller who sets them would overwrite the record's own.
_RESERVED_KEYS = ("chroma:document", "chroma:uri")
_PLAIN = (str, float, bool)


def record_columns(
    metadatas: Sequence[MetadataJson | None] | None, *, allow_null: bool, allow_sparse: bool = True
) -> list[MetadataPatch | None] | None:
    """Return the metadata column of a batch; with `allow_null` a value of None deletes its key.

    Raises:
        HttpError: 422 for a value of no allowed type, 400 for a key that cannot be, 501 for a sparse vector without `allow_sparse`.
        InvalidArgumentError: a sparse vector that cannot be.
    """
    if metadatas is None:
        return None
    if _are_plain(metadatas):
        return [metadata or None for metadata in metadatas]
    columns: list[MetadataPatch | None] = [
        _converted(metadata, f"metadatas[{index}]", "metadatas", index, allow_null=allow_null)
        if metadata
        else None
        for index, metadata in enumerate(metadatas)
    ]
    if not allow_sparse:
        _refuse_sparse(columns)
    return columns


def _are_plain(metadatas: Sequence[MetadataJson | None]) -> bool:
    """Whether no key and no value in them needs a look of its own: seen by key and Python's type, of which there are few."""
    seen = bulk.types(metadatas)
    keys = {key for key, _ in seen}
    if not all(key and key[0] not in "#$" for key in keys) or not keys.isdisjoint(_RESERVED_KEYS):
        return False
    if not {kind for _, kind in seen} <= {*_PLAIN, int}:
        return False
    integers = {key for key, kind in seen if kind is int}
    return all(
        _INT64_MIN <= value <= _INT64_MAX
        for metadata in metadatas
        if metadata
        for key in integers
        if type(value := metadata.get(key)) is int
    )


def _refuse_sparse(columns: Sequence[MetadataPatch | None]) -> None:
    for key in (
        key for column in columns if column for key, value in column.items() if isinstance(value, dict)
    ):
        raise unimplemented(
            f"Unimplemented: Sparse vector is not supported for local chroma: {key} (PGCHROMA_SPARSE_VECTORS=false)"
        )


def of_collection(metadata: MetadataJson | None, member: str, *, allow_null: bool) -> MetadataPatch | None:
    """Return a collection's metadata.

    Raises:
        HttpError: as `record_columns`, and 400 when it is empty.
    """
    if metadata is None:
        return None
    if not metadata:
        raise bad_request(f"Validation error: {member}: Metadata cannot be empty")
    return _converted(metadata, member, member, None, allow_null=allow_null)


def _converted(
    metadata: MetadataJson, path: str, member: str, index: int | None, *, allow_null: bool
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in metadata.items():
        if not key or key[0] in "#$" or (index is not None and key in _RESERVED_KEYS):
            raise _bad_key(key, member, index)
        if isinstance(value, list) and not value:
            # An empty list counts as no value: nothing to add, something to delete.
            value = None
            if not allow_null:
                continue
        elif value is None and not allow_null:
            raise _no_variant(path, key)
        if isinstance(value, dict):
            if not ("indices" in value and "values" in value):
                raise _no_variant(path, key)
            if index is None:
                raise bad_request(f"{path}.{key}: a collection's metadata cannot hold a sparse vector")
            result[key] = sparse.check(value, f"{path}.{key}")
        else:
            result[key] = _value(value, path, key)
    return result


def _value(value: object, path: str, key: str) -> object:
    if isinstance(value, list):
        return _list(value, path, key)
    if type(value) is int and not _INT64_MIN <= value <= _INT64_MAX:
        return _float(value, path, key)
    return value


def _float(value: float, path: str, key: str) -> float:
    # Upstream reads integers beyond 64 bits as floats.
    try:
        return float(value)
    except OverflowError:
        raise bad_request(
            f"Failed to parse the request body as JSON: number out of range: {path}.{key}"
        ) from None


def _list(values: list[Any], path: str, key: str) -> list[Any]:
    kinds = {type(value) for value in values}
    if kinds == {int}:
        if all(_INT64_MIN <= value <= _INT64_MAX for value in values):
            return values
        return [_float(value, path, key) for value in values]
    if kinds == {int, float}:
        return [_float(value, path, key) for value in values]
    if len(kinds) == 1 and kinds <= {str, float, bool}:
        return values
    raise _no_variant(path, key)


def _no_variant(path: str, key: str) -> HttpError:
    return unprocessable(f"{path}.{key}: data did not match any variant of untagged enum MetadataValue")


def _bad_key(key: str, member: str, index: int | None) -> HttpError:
    if key in _RESERVED_KEYS:
        problem = f"Metadata key is reserved: {key}"
    elif key:
        problem = f"Metadata key cannot start with '#' or '$': {key}"
    else:
        problem = "Metadata key cannot be empty"
    if index is not None:
        problem = f"Invalid metadata at index {index}: {problem}"
    return bad_request(f"Validation error: {member}: {problem}")
