"""Chroma's write-ahead log (table `embeddings_queue`): the vectors that are not in the HNSW files yet."""

import sqlite3
from enum import IntEnum
from typing import Final
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pgchroma.migrate.chroma.hnsw import HnswIndex

# SQLite's limit on variables in one statement was 999 before 3.32.
_CHUNK: Final = 900
_ENCODINGS = {"FLOAT32": "<f4", "INT32": "<i4"}


class Operation(IntEnum):
    """What a row of the log does to a record."""

    ADD = 0
    UPDATE = 1
    UPSERT = 2
    DELETE = 3


def prepare(connection: sqlite3.Connection) -> None:
    """Add what makes the log quick to read per collection; the connection is to our own copy."""
    connection.execute("CREATE INDEX IF NOT EXISTS pgchroma_log ON embeddings_queue (topic, seq_id)")


def topics(connection: sqlite3.Connection, collection: UUID) -> list[str]:
    """Return the topics under which a collection's writes stand in the log."""
    # The topic is persistent://<tenant>/<namespace>/<collection id>; the first two are configuration of the writer.
    suffix = f"/{collection}"
    found = connection.execute("SELECT DISTINCT topic FROM embeddings_queue")
    return [str(topic) for (topic,) in found if str(topic).endswith(suffix)]


def vector_of(vector: object, encoding: object) -> NDArray[np.float32] | None:
    """Return the vector of a log row; None when it is absent or of unknown encoding."""
    kind = _ENCODINGS.get(str(encoding))
    if kind is None or not isinstance(vector, bytes) or len(vector) % 4:
        return None
    return np.frombuffer(vector, dtype=kind).astype(np.float32)


def is_complete(connection: sqlite3.Connection) -> bool:
    """Whether the log still holds every write ever made (Chroma 0.4 never purged it)."""
    lowest, highest, count = connection.execute(
        "SELECT min(seq_id), max(seq_id), count(*) FROM embeddings_queue"
    ).fetchone()
    return bool(lowest == 1 and count == highest)


class LogOverlay:
    """Which ids the log gives a vector or takes it from, on top of an index.

    Attributes:
        last: id -> seq_id of the log row that holds the id's vector, or None where the log deletes the id.
    """

    def __init__(
        self, connection: sqlite3.Connection, collection: UUID, after: int, base: HnswIndex | None
    ) -> None:
        self._connection = connection
        self.last: dict[str, int | None] = {}
        # With a broken index nobody knows what it held; then every row of the log counts.
        known = base.ids if base else {}
        blind = base is not None and base.damage is not None
        for topic in topics(connection, collection):
            rows = connection.execute(
                "SELECT seq_id, operation, id, vector IS NOT NULL FROM embeddings_queue"
                " WHERE topic = ? AND seq_id > ? ORDER BY seq_id",
                (topic, after),
            )
            for seq_id, operation, name, has_vector in rows:
                present = self.last[name] is not None if name in self.last else name in known
                if operation == Operation.DELETE:
                    self.last[name] = None
                elif (
                    (operation == Operation.ADD and not present)
                    or (operation == Operation.UPDATE and (present or blind) and has_vector)
                    or (operation == Operation.UPSERT and has_vector)
                ):
                    self.last[name] = seq_id

    def fetch(self, seq_ids: list[int]) -> dict[int, NDArray[np.float32]]:
        """Return the vectors of log rows; one that is absent or of unknown encoding is left out."""
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(seq_ids), _CHUNK):
            chunk = seq_ids[start : start + _CHUNK]
            marks = ",".join("?" * len(chunk))
            rows = self._connection.execute(
                f"SELECT seq_id, vector, encoding FROM embeddings_queue WHERE seq_id IN ({marks})",  # noqa: S608 - only marks
                chunk,
            )
            for seq_id, vector, encoding in rows:
                read = vector_of(vector, encoding)
                if read is not None:
                    found[seq_id] = read
        return found
