"""What sources, sinks and the steps between them hand to each other, and the two protocols they meet."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias
from uuid import UUID

from pgchroma.types import Float32Matrix, Record

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
class Quarantined:
    """A record that was put aside because the target cannot hold it or the source lost part of it, with why.

    Attributes:
        code: the danger's name, see policies.DANGERS.
        record: all that is known of it, so that it can be recovered.
    """

    collection: str
    code: str
    reason: str
    record: Record

    def as_json(self) -> Json:
        """Return the record's name and the reason as a JSON object, for the receipt."""
        return {
            "collection": self.collection,
            "id": self.record.id,
            "code": self.code,
            "reason": self.reason,
        }


@dataclass(frozen=True, slots=True)
class Limits:
    """What a target cannot hold; a pgchroma database holds nearly everything.

    Attributes:
        vectors: float32 values a vector can have at most.
        name: characters of a collection's name at most.
        finite_vectors: NaN and infinity in a vector are refused.
        plain_metadata: integers beyond 64 bits, NaN, infinity and keys that start with `chroma:` are refused.
        arrays, sparse: metadata may hold lists, and sparse vectors.
        ids: the empty id is refused.
        missing_vectors: a record may come without one.
        batch: records it takes at a time at most, and best; 0 where that makes no difference.
    """

    vectors: int = 16_000
    name: int = 512
    finite_vectors: bool = True
    plain_metadata: bool = False
    arrays: bool = True
    sparse: bool = True
    ids: bool = True
    missing_vectors: bool = False
    batch: int = 0


class Source(Protocol):
    """Where records come from; opened once, read as often as needed, never written to."""

    @property
    def description(self) -> Json:
        """What a receipt says about the source: kind, path, layout; never a password."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of everything that changes when the source's data change."""

    @property
    def frozen(self) -> bool:
        """Whether every read shows the state of the moment of opening."""

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections in a fixed order."""

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order; `Record.seq` is the position to continue after."""

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield the records that the source's application lost and that can still be put together; their seq is beyond all others."""

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Look through a collection for what stands in the way of moving it whole, as far as that is quicker than moving it."""

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return about how many bytes a collection's texts and vectors take."""

    def changes(self) -> list[str]:
        """Return what has changed in the source since it was opened, in words; empty when nothing has."""


# The phases of a collection after which nothing is left to do.
FINISHED: Final = ("verified", "different")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How far the copy of one collection is; kept by the sink, beside the data where the target can.

    Attributes:
        phase: `planned`, `copying`, `copied`, `verified` or `different`.
        last_position: `Record.seq` of the last record looked at.
    """

    run_id: UUID
    source_collection: UUID
    phase: str
    records: int
    skipped: int
    last_position: int


@dataclass(frozen=True, slots=True)
class RunNote:
    """What a sink keeps about a run from its first moment.

    Attributes:
        policies: danger -> action, as the operator chose them.
    """

    run_id: UUID
    source: str
    fingerprint: str
    policies: dict[str, str]


@dataclass(frozen=True, slots=True)
class Noted:
    """What was kept of an interrupted run.

    Attributes:
        states: of the source's collections, by their paths.
        names: what its collections are called in the target, by their ids in the source.
    """

    note: RunNote
    states: dict[str, Json]
    names: dict[UUID, str]


Encode: TypeAlias = Callable[[list[Record]], Sequence[Record]]


def as_they_are(records: list[Record]) -> Sequence[Record]:
    """Return the records: the encoder of a sink that needs none."""
    return records


class Sink(Protocol):
    """Where records go; writing a batch again that was written before an interruption changes nothing."""

    @property
    def description(self) -> Json:
        """What a receipt says about the target; never a password."""

    @property
    def limits(self) -> Limits:
        """What the target cannot hold."""

    @property
    def transactional(self) -> bool:
        """Whether a batch and its checkpoint are written both or neither."""

    @property
    def asks_early(self) -> bool:
        """Whether questions can be put only until the proof begins."""

    async def find(self, collection: SourceCollection) -> tuple[SourceCollection, int] | None:
        """Return the target collection of the same tenant, database and name with its number of records, or None."""

    async def begin(self, note: RunNote, collections: Sequence[SourceCollection]) -> None:
        """Note a new run with all its collections."""

    async def noted(self, run_id: UUID | None) -> Noted:
        """Take up the newest interrupted run, or the one of this id; RefusedError when there is none."""

    async def checkpoint(self, run_id: UUID, collection: SourceCollection) -> Checkpoint:
        """Return how far the copy of a collection is."""

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> None:
        """Create the target collection, or take up the one that an earlier attempt of this run created."""

    async def encoder(self, collection: SourceCollection) -> Encode:
        """Return what makes of a page what is handed to `write`: as much of its work as can be done ahead, in any process."""

    async def write(
        self,
        collection: SourceCollection,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        quarantined: Sequence[Quarantined],
        position: int,
    ) -> Checkpoint:
        """Append records, put others aside, and move the checkpoint."""

    async def set_phase(
        self, run_id: UUID, collection: SourceCollection, phase: str, errors: int | None = None
    ) -> None:
        """Note a collection's phase and, after the proof, how many differences it found."""

    async def query(
        self, collection: SourceCollection, vectors: Float32Matrix, count: int
    ) -> list[list[str]] | None:
        """Return the ids nearest to each vector, nearest first; None where nobody can be asked."""

    def written(self) -> AbstractAsyncContextManager[Source]:
        """Open what was written, as a source to compare with; called when everything is copied."""

    async def publish(self) -> Json:
        """Put the result in its place once it is proven; return what the receipt says about that."""

    async def finish(self) -> None:
        """Forget what was kept for resuming: the receipt is written."""

    async def close(self) -> None:
        """Let go of whatever is open; called in any case."""


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
