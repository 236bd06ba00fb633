"""What is known of a run while it is under way, and what its receipt says of it."""

import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from uuid import UUID

import pgchroma
from pgchroma.migrate import plan as plans
from pgchroma.migrate import receipt
from pgchroma.migrate.digest import CollectionDigest
from pgchroma.migrate.model import Checkpoint, Json, Sink, Source, SourceCollection
from pgchroma.migrate.pages import Page
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.proof import CollectionProof
from pgchroma.migrate.questions import notice
from pgchroma.migrate.second import SecondProcess


@dataclass(slots=True)
class Run:
    """A run under way, and at its end what the receipt says.

    Attributes:
        read: digests of what was copied, by collection, from a source that goes on changing; the proof reads it once more.
        answers: recall of the target's answers, by collection.
        extra: further members of the receipt.
        describe: finds more of these while the records are proven; to be called with what is told of bytes that were read.
        second: the process that reads the source, where there is one.
        early: the pages of the first collection, being read while the source is looked through.
    """

    run_id: UUID
    source: Source
    sink: Sink
    policies: Policies
    resumed: bool = False
    started_at: str = field(default_factory=receipt.now)
    seconds: dict[str, float] = field(default_factory=dict)
    proofs: list[CollectionProof] = field(default_factory=list)
    copied: dict[str, Checkpoint] = field(default_factory=dict)
    copy_seconds: dict[str, float] = field(default_factory=dict)
    read: dict[str, CollectionDigest] = field(default_factory=dict)
    answers: dict[str, Json] = field(default_factory=dict)
    source_changes: list[str] = field(default_factory=list)
    extra: Json = field(default_factory=dict)
    describe: Callable[[Callable[[int], None]], Json] | None = None
    plan: plans.Plan | None = None
    second: SecondProcess | None = None
    early: tuple[UUID, Generator[Page]] | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def stop_reading(self) -> None:
        """Give up what was read early and not copied."""
        if self.early is not None:
            self.early[1].close()
            self.early = None

    @property
    def equal(self) -> bool:
        """Whether every collection was proven equal."""
        return all(item.equal for item in self.proofs)

    def as_json(self) -> Json:
        """Return the receipt's content."""
        result = "equal" if self.equal else "different"
        problems = self.plan.problems if self.plan else []
        worse = [notice(path, answers) for path, answers in self.answers.items()]
        return {
            "pgchroma_version": pgchroma.__version__,
            "run_id": str(self.run_id),
            "result": "source-changed" if self.source_changes else result,
            "source": {**self.source.description, "fingerprint": self.source.fingerprint},
            "target": self.sink.description,
            "started_at": self.started_at,
            "completed_at": receipt.now(),
            "resumed": self.resumed,
            "policies": self.policies.as_json(),
            "seconds": {step: round(seconds, 3) for step, seconds in self.seconds.items()},
            "records": sum(item.records_target for item in self.proofs),
            "bytes": sum(item.size_bytes for item in self.plan.collections) if self.plan else None,
            "skipped": [skipped.as_json() for item in self.proofs for skipped in item.skipped],
            "problems": [problem.as_json() for problem in problems if problem.severity == "error"],
            "notices": [
                problem.as_json()
                for problem in (*problems, *worse)
                if problem and problem.severity == "notice"
            ],
            "source_changes": self.source_changes,
            "collections": [
                self._collection(collection, item)
                for collection, item in zip(self.source.collections(), self.proofs, strict=True)
            ],
            **self.extra,
        }

    def _collection(self, collection: SourceCollection, item: CollectionProof) -> Json:
        copied = self.copied.get(collection.path)
        return {
            "collection": collection.path,
            "source_id": str(collection.id),
            "distance": collection.space,
            "dimension": collection.dimension,
            "metadata": collection.metadata,
            "state": collection.state,
            "written": copied.records if copied else 0,
            "skipped": len(item.skipped),
            "copy_seconds": round(self.copy_seconds.get(collection.path, 0.0), 3),
            "answers": self.answers.get(collection.path),
            **item.as_json(),
        }
