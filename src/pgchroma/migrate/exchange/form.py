"""What both kinds of exchange files have in common: how a collection and a record's metadata are written; docs/EXCHANGE_FORMAT.md."""

import json
import math
from typing import Any, Final
from uuid import UUID

import orjson

from pgchroma.errors import SourceError
from pgchroma.migrate.digest import CollectionDigest
from pgchroma.migrate.model import Json, SourceCollection

FORMAT: Final = "pgchroma-exchange/1"


def damaged(path: object, what: str) -> SourceError:
    """Return the error that stands for an exchange file that is not as it was written."""
    return SourceError(
        f"{path} is damaged: {what}", hint="export again, or take the file from a copy that is whole"
    )


def require_digest(path: object, collection: SourceCollection, found: CollectionDigest) -> None:
    """Raise SourceError unless all records of a collection were read and are those that its digest speaks of."""
    if (found.count, found.hexdigest()) != (collection.count, collection.state["sha256"]):
        raise damaged(
            path,
            f"the records of {collection.path} have the digest {found.hexdigest()}, not {collection.state['sha256']}",
        )


def collection_to_json(collection: SourceCollection) -> Json:
    """Return a collection's description as a JSON object."""
    return {
        "id": str(collection.id),
        "tenant": collection.tenant,
        "database": collection.database,
        "name": collection.name,
        "metadata": metadata_to_text(collection.metadata),
        "configuration": collection.configuration,
        "schema": collection.schema,
        "dimension": collection.dimension,
        "distance": collection.space,
        "records": collection.count,
    }


def collection_from_json(told: Json, records: int, state: Json) -> SourceCollection:
    """Return the collection that `collection_to_json` described."""
    return SourceCollection(
        id=UUID(told["id"]),
        tenant=told["tenant"],
        database=told["database"],
        name=told["name"],
        metadata=metadata_from_text(told["metadata"]),
        configuration=told["configuration"],
        schema=told["schema"],
        dimension=told["dimension"],
        count=records,
        state=state,
    )


def _is_plain(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return all(map(_is_plain, value)) if isinstance(value, list) else True


def metadata_to_text(metadata: dict[str, Any] | None) -> str | None:
    """Return metadata as JSON text in which a float always has a point or an exponent and an integer never has.

    NaN, Infinity and -Infinity stand in it by these names, as Python's json module writes and reads them.
    """
    if not metadata:
        return None
    if all(map(_is_plain, metadata.values())):
        try:
            return orjson.dumps(metadata).decode()
        except orjson.JSONEncodeError:
            # A text that is no Unicode, of a record that was put aside: it can still be escaped.
            return json.dumps(metadata, separators=(",", ":"))
    return json.dumps(metadata, ensure_ascii=False, separators=(",", ":"))


def metadata_from_text(text: str | None) -> dict[str, Any] | None:
    """Return the metadata that `metadata_to_text` wrote."""
    if text is None:
        return None
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        found = json.loads(text)
    # orjson reads an integer beyond 64 bits as a float.
    if any(isinstance(value, float) and abs(value) >= 2**63 for value in found.values()):
        found = json.loads(text)
    return found or None
