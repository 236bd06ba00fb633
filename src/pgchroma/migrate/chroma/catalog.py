"""The collections of a Chroma folder with what they are made with: metadata, distance, configuration, schema."""

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma import hnsw
from pgchroma.migrate.chroma.layout import columns
from pgchroma.migrate.model import Json, SourceCollection
from pgchroma.store.configuration import LEGACY_KEYS


@dataclass(frozen=True, slots=True)
class Segments:
    """Where a collection's data are.

    Attributes:
        metadata: id of the segment that `embeddings` rows carry, None when there is none.
        vector: id, and folder name, of the segment with the HNSW files.
        vector_position: last log row that the HNSW files contain, None when the database does not say (0.4, or never persisted).
    """

    metadata: str | None
    vector: str | None
    vector_position: int | None


def value_of(text: object, integer: object, number: object, boolean: object) -> Any:  # noqa: ANN401 - str, int, float or bool
    """Return the one of Chroma's four typed columns that is set, as Python's type; None when none is."""
    if boolean is not None:
        return bool(boolean)
    if text is not None:
        return text
    return integer if integer is not None else number


def typed_columns(connection: sqlite3.Connection, table: str, text: str) -> str:
    """Return the select list of a table's typed values; 0.4's collection_metadata has no column for booleans."""
    boolean = "bool_value" if "bool_value" in columns(connection, table) else "NULL"
    return f"{text}, int_value, float_value, {boolean}"


def _metadata(connection: sqlite3.Connection, table: str, owner: str, ident: str) -> dict[str, Any]:
    values = typed_columns(connection, table, "str_value")
    rows = connection.execute(
        f"SELECT key, {values} FROM {table} WHERE {owner} = ? ORDER BY rowid",  # noqa: S608 - names of our own
        (ident,),
    )
    typed = {str(key): value_of(*cells) for key, *cells in rows}
    return {key: value for key, value in typed.items() if value is not None}


def position(value: object) -> int | None:
    """Return a seq_id, which is an integer since 1.0 and eight big-endian bytes before; upgraded folders mix both."""
    if isinstance(value, bytes):
        return int.from_bytes(value, "big")
    return value if isinstance(value, int) else None


def _json(text: object, what: str) -> Json:
    if text in (None, ""):
        return {}
    try:
        value = json.loads(str(text))
    except json.JSONDecodeError as error:
        raise SourceError(f"{what} is not JSON: {error}", hint="restore the folder from a backup") from error
    return value if isinstance(value, dict) else {}


def configuration_in_force(stored: Json, metadata: Json, segment_metadata: Json) -> Json:
    """Return the index parameters that were in force, as a configuration.

    Up to 0.6 the index was built from `hnsw:` metadata whatever the stored configuration says (it says l2 for a cosine
    collection), and since those versions' own defaults were never the user's choice, only what the user set is taken over.
    """
    hnsw_part = (stored.get("vector_index") or {}).get("hnsw")
    if isinstance(hnsw_part, dict):
        parameters = {key: value for key, value in hnsw_part.items() if value is not None}
    else:
        given = {**segment_metadata, **metadata}
        parameters = {name: given[key] for key, name in LEGACY_KEYS.items() if key in given}
    parameters.setdefault("space", "l2")
    configuration: Json = {"hnsw": parameters}
    if stored.get("embedding_function") is not None:
        configuration["embedding_function"] = stored["embedding_function"]
    return configuration


def space_of_schema(schema: Json) -> str:
    """Return the distance that a schema of Chroma 1.5 says."""
    entry = (schema.get("keys") or {}).get("#embedding") or schema.get("defaults") or {}
    config = ((entry.get("float_list") or {}).get("vector_index") or {}).get("config") or {}
    return str(config.get("space") or "l2")


def segments_of(connection: sqlite3.Connection, collection: UUID) -> Segments:
    """Return where a collection's data are."""
    by_scope = {
        str(scope): str(ident)
        for ident, scope in connection.execute(
            "SELECT id, scope FROM segments WHERE collection = ?", (str(collection),)
        )
    }
    vector = by_scope.get("VECTOR")
    row = connection.execute("SELECT seq_id FROM max_seq_id WHERE segment_id = ?", (vector,)).fetchone()
    return Segments(by_scope.get("METADATA"), vector, position(row[0]) if row else None)


def _state(connection: sqlite3.Connection, folder: Path, segments: Segments, described: Json) -> Json:
    """Return what changes whenever a collection's data or description change."""
    count, highest = connection.execute(
        "SELECT count(*), max(id) FROM embeddings WHERE segment_id = ?", (segments.metadata,)
    ).fetchone()
    applied = connection.execute(
        "SELECT seq_id FROM max_seq_id WHERE segment_id = ?", (segments.metadata,)
    ).fetchone()
    index = folder / (segments.vector or "-") / hnsw.PICKLE
    return {
        "records": count,
        "last_embedding_id": highest,
        "applied_seq_id": position(applied[0]) if applied else None,
        "indexed_seq_id": segments.vector_position,
        "index_sha256": hashlib.sha256(index.read_bytes()).hexdigest() if index.is_file() else None,
        "description_sha256": hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest(),
    }


def read(connection: sqlite3.Connection, folder: Path) -> list[SourceCollection]:
    """Return every live collection, ordered by tenant, database and name.

    What a dropped collection left behind (rows, folders) belongs to no live segment and is not seen.

    Args:
        connection: chroma.sqlite3, or a copy of it.
        folder: where the HNSW folders are.

    Raises:
        SourceError: an unusable entry.
    """
    present = columns(connection, "collections")
    config = "c.config_json_str" if "config_json_str" in present else "NULL"
    schema = "c.schema_str" if "schema_str" in present else "NULL"
    rows = connection.execute(
        f"SELECT c.id, d.tenant_id, d.name, c.name, c.dimension, {config}, {schema}"  # noqa: S608 - names of our own
        " FROM collections c JOIN databases d ON d.id = c.database_id"
        " ORDER BY d.tenant_id, d.name, c.name"
    ).fetchall()
    found = []
    for ident, tenant, database, name, dimension, config_text, schema_text in rows:
        path = f"{tenant}/{database}/{name}"
        try:
            uuid = UUID(ident)
        except ValueError as error:
            raise SourceError(
                f"collection {path} has the id {ident!r}, which is not a UUID",
                hint="restore the folder from a backup",
            ) from error
        segments = segments_of(connection, uuid)
        metadata = _metadata(connection, "collection_metadata", "collection_id", ident)
        stored = _json(config_text, f"the configuration of collection {path}")
        collection_schema = _json(schema_text, f"the schema of collection {path}") or None
        if collection_schema:
            configuration: Json = {"hnsw": {"space": space_of_schema(collection_schema)}}
        else:
            inherited = _metadata(connection, "segment_metadata", "segment_id", segments.vector or "")
            configuration = configuration_in_force(stored, metadata, inherited)
        described = {
            "id": ident,
            "metadata": metadata,
            "dimension": dimension,
            "config": stored,
            "schema": collection_schema,
        }
        state = _state(connection, folder, segments, described)
        found.append(
            SourceCollection(
                id=uuid,
                tenant=tenant,
                database=database,
                name=name,
                metadata=metadata or None,
                configuration=configuration,
                schema=collection_schema,
                dimension=dimension,
                count=state["records"],
                state=state,
            )
        )
    return found
