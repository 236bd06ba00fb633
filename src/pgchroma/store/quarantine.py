"""The table pgchroma.migration_quarantine: records that a migration put aside, whole, so that they can be recovered."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np

from pgchroma.store import metadata, text
from pgchroma.store.connection import Connection
from pgchroma.types import Record


@dataclass(frozen=True, slots=True)
class Entry:
    """One record that was put aside, with the danger's name and the reason in words."""

    run_id: UUID
    collection: str
    code: str
    reason: str
    record: Record


def _encoded(value: str | None) -> str | None:
    return None if value is None else text.encode_any(value)


def _metadata(record: Record) -> tuple[bytes | None, str | None]:
    """Return (jsonb text, exact text); the first is None where a text is no Unicode, which jsonb cannot hold."""
    if not record.metadata:
        return None, None
    try:
        return metadata.encode(record.metadata)
    except UnicodeEncodeError:
        return None, json.dumps(record.metadata)


async def add(connection: Connection, source_collection: UUID, entries: Sequence[Entry]) -> None:
    """Put records aside, in the caller's transaction."""
    rows: list[tuple[Any, ...]] = []
    for entry in entries:
        record = entry.record
        stored, exact = _metadata(record)
        rows.append(
            (
                entry.run_id,
                source_collection,
                record.seq,
                entry.collection,
                entry.code,
                entry.reason,
                text.encode_any(record.id),
                None if record.embedding is None else record.embedding.tolist(),
                _encoded(record.document),
                stored.decode() if stored else None,
                exact,
                _encoded(record.uri),
            )
        )
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO pgchroma.migration_quarantine (run_id, source_collection_id, position, collection, code, reason, id, "
            "embedding, document, metadata, metadata_exact, uri) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s, %s::real[], %s, %s::jsonb, %s, %s)",
            rows,
        )


async def read(connection: Connection, run_id: UUID | None = None) -> list[Entry]:
    """Return what was put aside by one run, or by all, in the order of the sources."""
    cursor = await connection.execute(
        "SELECT run_id, collection, code, reason, position, id, embedding, document, metadata::text, metadata_exact, uri "
        "FROM pgchroma.migration_quarantine WHERE %(run)s::uuid IS NULL OR run_id = %(run)s "
        "ORDER BY run_id, collection, position",
        {"run": run_id},
    )
    return [
        Entry(
            run,
            collection,
            code,
            reason,
            Record(
                seq=position,
                id=text.decode_any(name),
                embedding=None if vector is None else np.array(vector, dtype=np.float32),
                document=document and text.decode_any(document),
                metadata=metadata.decode(stored, exact),
                uri=uri and text.decode_any(uri),
            ),
        )
        for run, collection, code, reason, position, name, vector, document, stored, exact, uri in await cursor.fetchall()
    ]
