"""A collection in memory: what Chroma's contract says of records and filters, in as few words as Python allows."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_ORDER = {
    "$gt": lambda value, operand: value > operand,
    "$gte": lambda value, operand: value >= operand,
    "$lt": lambda value, operand: value < operand,
    "$lte": lambda value, operand: value <= operand,
}
_COMPLEMENTS = {
    "$ne": "$eq",
    "$nin": "$in",
    "$not_contains": "$contains",
    "$not_regex": "$regex",
}


@dataclass(slots=True)
class Entry:
    """A record; `embedding` holds float32 numbers."""

    embedding: list[float]
    document: str | None = None
    metadata: dict[str, Any] | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One record of a batch; None leaves a column alone, and so does a value of None within `metadata`, which deletes its key."""

    id: str
    embedding: list[float] | None
    document: str | None = None
    metadata: dict[str, Any] | None = None
    uri: str | None = None


class Model:
    """Records by id, in insertion order, which is the order of the dictionary."""

    def __init__(self) -> None:
        self.records: dict[str, Entry] = {}

    def add(self, batch: Sequence[Write]) -> None:
        """Take the first of every id that is new."""
        for write in batch:
            if write.id not in self.records:
                self._insert(write)

    def upsert(self, batch: Sequence[Write]) -> None:
        """Take new ids, merge into the others."""
        for write in batch:
            if write.id in self.records:
                self._merge(write)
            else:
                self._insert(write)

    def update(self, batch: Sequence[Write]) -> None:
        """Merge into the ids that exist."""
        for write in batch:
            if write.id in self.records:
                self._merge(write)

    def _insert(self, write: Write) -> None:
        assert write.embedding is not None
        self.records[write.id] = Entry(
            float32(write.embedding), write.document, _merged({}, write.metadata or {}), write.uri
        )

    def _merge(self, write: Write) -> None:
        entry = self.records[write.id]
        if write.embedding is not None:
            entry.embedding = float32(write.embedding)
        if write.document is not None:
            entry.document = write.document
        if write.uri is not None:
            entry.uri = write.uri
        if write.metadata is not None:
            entry.metadata = _merged(entry.metadata or {}, write.metadata)

    def select(
        self,
        ids: Iterable[str] | None,
        where: Mapping[str, Any] | None,
        where_document: Mapping[str, Any] | None,
    ) -> list[str]:
        """Return the ids of the records that match, in insertion order."""
        wanted = None if ids is None else set(ids)
        return [
            record_id
            for record_id, entry in self.records.items()
            if (wanted is None or record_id in wanted)
            and (where is None or matches(entry, where))
            and (where_document is None or document_matches(entry, where_document))
        ]

    def delete(self, ids: Iterable[str]) -> None:
        """Delete records that exist."""
        for record_id in list(ids):
            del self.records[record_id]


def float32(values: Sequence[float]) -> list[float]:
    """Return numbers rounded to float32."""
    return [float(value) for value in np.array(values, dtype=np.float32)]


def _merged(old: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any] | None:
    merged = {**old, **{key: stored(value) for key, value in patch.items()}}
    return {key: value for key, value in merged.items() if value is not None} or None


def stored(value: Any) -> Any:
    """Return a value as it is kept: integers beyond 64 bits as floats, mixed numbers as floats, an empty list as nothing."""
    if isinstance(value, list):
        if not value:
            return None
        whole = all(type(item) is int and -(2**63) <= item < 2**63 for item in value)
        numbers = all(type(item) in (int, float) for item in value)
        return [float(item) for item in value] if numbers and not whole else value
    if type(value) is int and not -(2**63) <= value < 2**63:
        return float(value)
    return value


def matches(entry: Entry, clause: Mapping[str, Any]) -> bool:
    """Whether a record matches a `where` clause."""
    ((key, operand),) = clause.items()
    if key in ("$and", "$or"):
        return (all if key == "$and" else any)(matches(entry, part) for part in operand)
    if key == "#document":
        return document_matches(entry, operand)
    if not isinstance(operand, dict):
        operand = {"$eq": operand}
    ((operator, expected),) = operand.items()
    if operator in _COMPLEMENTS:
        return not matches(entry, {key: {_COMPLEMENTS[operator]: expected}})
    value = (entry.metadata or {}).get(key)
    if value is None:
        return False
    if operator == "$contains":
        return isinstance(value, list) and any(
            type(item) is type(expected) and item == expected for item in value
        )
    if isinstance(value, list):
        return False
    if operator == "$in":
        return any(_equal(value, item) for item in expected)
    if operator == "$eq":
        return _equal(value, expected)
    return type(value) in (int, float) and bool(_ORDER[operator](value, expected))


def _equal(value: object, expected: object) -> bool:
    numbers = (int, float)
    alike = type(value) is type(expected) or (type(value) in numbers and type(expected) in numbers)
    return alike and value == expected


def document_matches(entry: Entry, clause: Mapping[str, Any]) -> bool:
    """Whether a record matches a `where_document` clause."""
    ((operator, operand),) = clause.items()
    if operator in ("$and", "$or"):
        return (all if operator == "$and" else any)(document_matches(entry, part) for part in operand)
    if operator in _COMPLEMENTS:
        return not document_matches(entry, {_COMPLEMENTS[operator]: operand})
    if entry.document is None:
        return False
    if operator == "$contains":
        return operand in entry.document
    return re.search(operand, entry.document) is not None


def distance(space: str, one: Sequence[float], other: Sequence[float]) -> float:
    """Return Chroma's distance of two embeddings; that of a zero vector by cosine is 1."""
    a, b = np.array(one, dtype=np.float64), np.array(other, dtype=np.float64)
    if space == "l2":
        return float(((a - b) ** 2).sum())
    if space == "ip":
        return float(1 - a @ b)
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 if lengths == 0 else float(1 - a @ b / lengths)
