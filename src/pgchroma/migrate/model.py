"""What sources, sinks and the steps between them hand to each other, and the two protocols they meet."""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias
from uuid import UUID

import numpy as np

from pgchroma.types import Collection, Record

Severity: TypeAlias = Literal["error", "notice"]
Json: TypeAlias = dict[str, Any]

# A problem lists this many ids at most; the receipt of a run lists every record that was left behind.
SHOWN_IDS = 20


@dataclass(frozen=True, slots=True)
class SourceCollection:
    """A collection as its source describes it.

    Attributes:
        configuration: what to create the target with, in the form of Chroma's `configuration_json`.
        schema: Chroma's schema JSON where the source has one (1.5 and later), else None.
        dimension: None when nothing was ever written.
        count: records that the collection holds.
        state: the part of the source's fingerprint that is about this collection.
    """

    id: UUID
    tenant: str
    database: str
    name: str
    metadata: dict[str, Any] | None
    configuration: Json
    schema: Json | None
    dimension: int | None
    count: int
    state: Json = field(default_factory=dict)

    @property
    def path(self) -> str:
        """`tenant/database/name`, the way messages and receipts name a collection."""
        return f"{self.tenant}/{self.database}/{self.name}"

    @property
    def space(self) -> str:
        """The distance: `l2`, `cosine` or `ip`."""
        return str(self.configuration["hnsw"]["space"])


@dataclass(frozen=True, slots=True)
class Problem:
    """Something about a source that its owner should know before it is moved.

    Attributes:
        severity: an `error` stops a run unless the operator accepts to leave those records behind; a `notice` does not.
        code: a stable name for programs, e.g. `vector-missing`.
        count: how many records it is about, 0 when it is about none in particular.
        ids: the first of them.
    """

    severity: Severity
    code: str
    collection: str
    message: str
    count: int = 0
    ids: tuple[str, ...] = ()

    def as_json(self) -> Json:
        """Return the problem as a JSON object."""
        return {
            "severity": self.severity,
            "code": self.code,
            "collection": self.collection,
            "message": self.message,
            "count": self.count,
            "ids": list(self.ids),
        }


@dataclass(frozen=True, slots=True)
class Skipped:
    """A record that was left behind because its vector cannot be read or cannot be kept."""

    collection: str
    id: str
    reason: str

    def as_json(self) -> Json:
        """Return the record's name and the reason as a JSON object."""
        return {"collection": self.collection, "id": self.id, "reason": self.reason}


class Source(Protocol):
    """Where records come from; opened once, read as often as needed, never written to."""

    @property
    def description(self) -> Json:
        """What a receipt says about the source: kind, path, layout."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that changes when the source's data change."""

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections in a fixed order."""

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order; `Record.seq` is the position to continue after."""

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Look through a collection for what stands in the way of moving it whole."""

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return about how many bytes a collection's texts and vectors take."""

    def changes(self) -> list[str]:
        """Return what has changed in the source since it was opened, in words; empty when nothing has."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far the copy of one collection is; kept by the sink, beside the data.

    Attributes:
        phase: `planned`, `copying`, `copied` or `verified`.
        last_position: `Record.seq` of the last record looked at.
    """

    run_id: UUID
    source_collection: UUID
    phase: str
    records: int
    skipped: int
    last_position: int


class Sink(Protocol):
    """Where records go; a batch and its checkpoint are written both or neither."""

    @property
    def description(self) -> Json:
        """What a receipt says about the target; never a password."""

    async def find(self, collection: SourceCollection) -> tuple[Collection, int] | None:
        """Return the target collection of the same tenant, database and name with its number of records, or None."""

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> Collection:
        """Create the target collection, or return the one that an earlier attempt of this run created."""

    async def write(
        self,
        target: Collection,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        skipped: int,
        position: int,
    ) -> Checkpoint:
        """Append records and move the checkpoint, in one transaction."""

    def records(self, target: Collection) -> AsyncGenerator[list[Record]]:
        """Yield pages of the target's records in insertion order."""


def unreadable_reason(record: Record, dimension: int | None) -> str | None:
    """Return why a record cannot be moved, or None when it can."""
    if record.embedding is None:
        return "its vector is missing"
    if dimension is not None and len(record.embedding) != dimension:
        return f"its vector has {len(record.embedding)} dimensions, the collection {dimension}"
    if not np.isfinite(record.embedding).all():
        return "its vector holds NaN or infinity, which pgvector cannot store"
    return None


def describe_changes(before: Mapping[str, Json], after: Mapping[str, Json]) -> list[str]:
    """Return in words what differs between two states of a source's collections, keyed by collection path."""
    found = []
    for path in sorted(before.keys() | after.keys()):
        if path not in after:
            found.append(f"{path} is gone")
        elif path not in before:
            found.append(f"{path} is new")
        else:
            old, new = before[path], after[path]
            found += [
                f"{path}: {key} was {old.get(key)}, is {new.get(key)}"
                for key in sorted(old.keys() | new.keys())
                if old.get(key) != new.get(key)
            ]
    return found
