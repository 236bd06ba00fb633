"""What a folder holds that is awkward elsewhere, told by SQLite in one pass over its texts; see policies.DANGERS."""

import json
import math
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np

from pgchroma.migrate.chroma import hnsw
from pgchroma.migrate.chroma.layout import columns
from pgchroma.migrate.chroma.log import Operation, topics, vector_of
from pgchroma.migrate.model import SHOWN_IDS, Problem
from pgchroma.migrate.policies import DANGERS, LARGEST_DOCUMENT_BYTES
from pgchroma.types import MetadataValue, Record

_NUL = "x'00'"
# (danger, condition over embeddings `e` and embedding_metadata `m`)
_CONDITIONS = (
    ("id-empty", "e.embedding_id = ''"),
    (
        "nul",
        f"instr(CAST(m.string_value AS BLOB), {_NUL}) OR instr(CAST(m.key AS BLOB), {_NUL})"
        f" OR instr(CAST(e.embedding_id AS BLOB), {_NUL})",
    ),
    ("document-too-large", f"m.key = 'chroma:document' AND length(CAST(m.string_value AS BLOB)) > {LARGEST_DOCUMENT_BYTES}"),
    ("metadata-number", "m.float_value IN (9e999, -9e999)"),
    ("metadata-key", "m.key LIKE 'chroma:%' AND m.key NOT IN ('chroma:document', 'chroma:uri')"),
)  # fmt: skip
# The same of one table alone, whose scan is much quicker than a look into another for every row; numbers and keys are found in
# its indexes.
_OF_STRINGS = (
    f"SELECT max(instr(CAST(string_value AS BLOB), {_NUL})), max(length(CAST(string_value AS BLOB))), "  # noqa: S608 - our own text
    "sum(length(CAST(string_value AS BLOB))) FROM embedding_metadata NOT INDEXED WHERE string_value IS NOT NULL"
)
_OF_FLOATS = "SELECT max(abs(float_value)) FROM embedding_metadata WHERE float_value IS NOT NULL"
# Of a key it is only asked whether its characters end before its bytes do: at U+0000, and where not all of it is ASCII.
_OF_KEYS = (
    "SELECT 1 FROM embedding_metadata WHERE length(key) <> length(CAST(key AS BLOB)) OR (key >= 'chroma:' AND key < 'chroma;'"
    " AND key <> 'chroma:document' AND key <> 'chroma:uri') LIMIT 1"
)


@dataclass(frozen=True, slots=True)
class Texts:
    """What one quick look at all of a folder's texts tells.

    Attributes:
        harmless: `in_texts` would find nothing in any collection; dropped collections count.
        size_bytes: of all texts, by the metadata segment that holds them.
    """

    harmless: bool
    size_bytes: dict[str, int]


def look_at(connection: sqlite3.Connection) -> Texts:
    """Look at all texts of a folder once."""
    nul, longest, total = connection.execute(_OF_STRINGS).fetchone()
    (number,) = connection.execute(_OF_FLOATS).fetchone()
    keys = connection.execute(_OF_KEYS).fetchone()
    (ids,) = connection.execute(
        f"SELECT count(*) FROM embeddings WHERE embedding_id = '' OR instr(CAST(embedding_id AS BLOB), {_NUL})"  # noqa: S608 - our own text
    ).fetchone()
    lists = (
        columns(connection, "embedding_metadata_array")
        and connection.execute("SELECT 1 FROM embedding_metadata_array LIMIT 1").fetchone()
    )
    harmless = not (
        ids or nul or keys or lists or (longest or 0) > LARGEST_DOCUMENT_BYTES or number == math.inf
    )
    segments = [str(name) for (name,) in connection.execute("SELECT DISTINCT segment_id FROM embeddings")]
    if len(segments) == 1:
        return Texts(harmless, {segments[0]: total or 0})
    rows = connection.execute(
        "SELECT e.segment_id, sum(length(CAST(m.string_value AS BLOB))) FROM embedding_metadata m NOT INDEXED"
        " CROSS JOIN embeddings e NOT INDEXED ON e.id = m.id WHERE m.string_value IS NOT NULL GROUP BY 1"
    )
    return Texts(harmless, {str(segment): size for segment, size in rows})


def in_texts(connection: sqlite3.Connection, path: str, segment: str | None) -> list[Problem]:
    """Return what a collection's ids, documents and metadata hold of the dangers; notices, since a policy decides about each."""
    flags = ", ".join(f"max(coalesce({condition}, 0)) > 0" for _, condition in _CONDITIONS)
    found: dict[str, list[str]] = {}
    rows = connection.execute(
        f"SELECT e.embedding_id, {flags} FROM embeddings e LEFT JOIN embedding_metadata m ON m.id = e.id"  # noqa: S608 - our own text
        f" WHERE e.segment_id = ? AND ({' OR '.join(f'({condition})' for _, condition in _CONDITIONS)})"
        " GROUP BY e.id ORDER BY e.id",
        (segment,),
    )
    for name, *hits in rows:
        for (code, _), hit in zip(_CONDITIONS, hits, strict=True):
            if hit:
                found.setdefault(code, []).append(str(name))
    if columns(connection, "embedding_metadata_array"):
        lists = connection.execute(
            "SELECT DISTINCT e.embedding_id FROM embeddings e JOIN embedding_metadata_array a ON a.id = e.id"
            " WHERE e.segment_id = ? ORDER BY e.id",
            (segment,),
        ).fetchall()
        if lists:
            found["metadata-array"] = [str(name) for (name,) in lists]
    return [
        Problem(
            "notice", code, path, f"records with this: {DANGERS[code].what}", len(ids), tuple(ids[:SHOWN_IDS])
        )
        for code, ids in found.items()
    ]


def orphans(connection: sqlite3.Connection, folder: Path) -> Problem | None:
    """Return what dropped collections left behind: rows and folders that belong to no live segment; they are not moved."""
    (rows,) = connection.execute(
        "SELECT count(*) FROM embeddings WHERE segment_id NOT IN (SELECT id FROM segments)"
    ).fetchone()
    live = {str(name) for (name,) in connection.execute("SELECT id FROM segments")}
    left = sorted(
        entry.name for entry in folder.iterdir() if (entry / hnsw.HEADER).is_file() and entry.name not in live
    )
    if not rows and not left:
        return None
    return Problem(
        "notice",
        "orphans",
        "",
        f"left behind by dropped collections: {rows:,} rows, {len(left)} index folders; not moved",
        rows,
        tuple(left[:SHOWN_IDS]),
    )


def _value(patch: dict[str, Any], record: Record) -> None:
    for key, value in patch.items():
        if key == "chroma:document":
            record.document = value if isinstance(value, str) else record.document
        elif key == "chroma:uri":
            record.uri = value if isinstance(value, str) else record.uri
        elif value is None:
            (record.metadata or {}).pop(key, None)
        elif isinstance(value, str | int | float | bool | list):
            kept: MetadataValue = value
            record.metadata = {**(record.metadata or {}), key: kept}


def lost_records(
    connection: sqlite3.Connection, collection: UUID, ids: list[str], first_seq: int
) -> Iterator[Record]:
    """Yield what the log still tells of ids that have no record, put together the way Chroma applies its log.

    Args:
        first_seq: `Record.seq` of the first; the others follow.
    """
    names = topics(connection, collection)
    for seq, name in enumerate(ids, start=first_seq):
        record = Record(seq, name, None)
        for topic in names:
            rows = connection.execute(
                "SELECT operation, vector, encoding, metadata FROM embeddings_queue WHERE topic = ? AND id = ? ORDER BY seq_id",
                (topic, name),
            )
            for operation, vector, encoding, metadata in rows:
                if operation == Operation.DELETE:
                    record = Record(seq, name, None)
                    continue
                found = vector_of(vector, encoding)
                record.embedding = record.embedding if found is None else found.astype(np.float32)
                patch = json.loads(metadata) if metadata else None
                if isinstance(patch, dict):
                    _value(patch, record)
        yield record
