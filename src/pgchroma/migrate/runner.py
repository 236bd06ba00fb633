"""A run from beginning to end: plan, copy with checkpoints, proof, receipt; and the same continued after an interruption."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID, uuid4

import pgchroma
from pgchroma.errors import (
    DatabaseUnreachableError,
    InterruptedMigrationError,
    RefusedError,
    SourceChangedError,
    VerificationError,
)
from pgchroma.migrate import plan as plans
from pgchroma.migrate import proof as proofs
from pgchroma.migrate import receipt
from pgchroma.migrate.model import (
    Checkpoint,
    Json,
    Source,
    SourceCollection,
    describe_changes,
    unreadable_reason,
)
from pgchroma.migrate.progress import Display
from pgchroma.migrate.proof import CollectionProof
from pgchroma.migrate.sink import StoreSink
from pgchroma.store.migration_status import StatusRow
from pgchroma.types import Collection

FINISHED = ("verified", "different")


@dataclass(slots=True)
class Run:
    """A run under way, and at its end what the receipt says."""

    run_id: UUID
    source: Source
    sink: StoreSink
    skip_unreadable: bool
    resumed: bool = False
    started_at: str = field(default_factory=receipt.now)
    seconds: dict[str, float] = field(default_factory=dict)
    proofs: list[CollectionProof] = field(default_factory=list)
    copied: dict[str, Checkpoint] = field(default_factory=dict)
    source_changes: list[str] = field(default_factory=list)
    plan: plans.Plan | None = None

    @property
    def equal(self) -> bool:
        """Whether every collection was proven equal."""
        return all(item.equal for item in self.proofs)

    def as_json(self) -> Json:
        """Return the receipt's content."""
        result = "equal" if self.equal else "different"
        return {
            "pgchroma_version": pgchroma.__version__,
            "run_id": str(self.run_id),
            "result": "source-changed" if self.source_changes else result,
            "source": {**self.source.description, "fingerprint": self.source.fingerprint},
            "target": self.sink.description,
            "started_at": self.started_at,
            "completed_at": receipt.now(),
            "resumed": self.resumed,
            "skip_unreadable": self.skip_unreadable,
            "seconds": {step: round(seconds, 3) for step, seconds in self.seconds.items()},
            "records": sum(item.records_target for item in self.proofs),
            "skipped": [skipped.as_json() for item in self.proofs for skipped in item.skipped],
            "notices": [
                problem.as_json()
                for problem in (self.plan.problems if self.plan else [])
                if problem.severity == "notice"
            ],
            "source_changes": self.source_changes,
            "collections": [
                self._collection(collection, item)
                for collection, item in zip(self.source.collections(), self.proofs, strict=True)
            ],
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
            **item.as_json(),
        }


@contextlib.contextmanager
def _timed(run: Run, step: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        run.seconds[step] = time.monotonic() - started


async def start(
    source: Source, sink: StoreSink, display: Display, *, skip_unreadable: bool, run_id: UUID | None = None
) -> Run:
    """Check everything that can be checked beforehand, then note a new run; nothing is written when a check fails.

    Raises:
        SourceError: records that cannot be moved, and no leave to skip them.
        RefusedError: a target collection is in use.
    """
    run = Run(run_id or uuid4(), source, sink, skip_unreadable)
    await plans.require_free_targets(source, sink)
    _look_through(run, display)
    await sink.begin(run.run_id, source, skip_unreadable=skip_unreadable)
    return run


def _look_through(run: Run, display: Display) -> None:
    with _timed(run, "plan"):
        total = sum(item.count for item in run.source.collections())
        run.plan = plans.make(run.source, display.step("looking through the source", total).advance)
    run.plan.require_readable(skip_unreadable=run.skip_unreadable)


def latest_unfinished(rows: list[StatusRow]) -> list[StatusRow]:
    """Return the rows of the newest run that is not through; RefusedError when there is none."""
    for row in rows:
        if row.phase not in FINISHED:
            return [other for other in rows if other.run_id == row.run_id]
    raise RefusedError(
        "there is no interrupted migration in this database",
        hint="start one with `pgchroma migrate run`; see `pgchroma migrate status`",
    )


def resume(rows: list[StatusRow], source: Source, sink: StoreSink, display: Display) -> Run:
    """Take up the run that `rows` are of.

    Raises:
        SourceError: records that cannot be moved, and the run began without leave to skip them.
        SourceChangedError: the source is not what it was when the run began; the message says what changed.
    """
    first = rows[0]
    if source.fingerprint != first.source_fingerprint:
        changed = describe_changes(
            {row.path: row.source_state for row in rows},
            {item.path: item.state for item in source.collections()},
        )
        raise SourceChangedError(
            f"{source.description['path']} changed since migration {first.run_id} began: "
            + ("; ".join(changed) or "its layout is another"),
            hint="stop the application that writes to it, delete the half-written target collections, "
            "and start a new migration with `pgchroma migrate run`",
        )
    run = Run(first.run_id, source, sink, first.skip_unreadable, resumed=True)
    _look_through(run, display)
    return run


async def carry_out(run: Run, display: Display, receipt_path: Path) -> Run:
    """Copy what is not copied yet, prove everything, and write the receipt.

    Raises:
        InterruptedMigrationError: the database went away; what was committed stands and the run can be resumed.
        SourceChangedError: the source changed meanwhile; the receipt says what.
        VerificationError: the proof found differences; the receipt lists them.
    """
    try:
        with _timed(run, "copy"):
            targets = [await _copy(run, collection, display) for collection in run.source.collections()]
        with _timed(run, "proof"):
            for collection, target in zip(run.source.collections(), targets, strict=True):
                step = display.step(f"proving {collection.path}", collection.count)
                found = await proofs.prove(run.source, collection, run.sink, target, step.advance)
                run.proofs.append(found)
                phase = "verified" if found.equal else "different"
                await run.sink.set_phase(run.run_id, collection, phase, found.different)
    except DatabaseUnreachableError as error:
        raise InterruptedMigrationError(
            f"migration {run.run_id} was interrupted: {error.message}",
            hint="nothing is lost; when PostgreSQL is back, run `pgchroma migrate resume`",
        ) from error
    run.source_changes = run.source.changes()
    receipt.write(receipt_path, run.as_json())
    if run.source_changes:
        raise SourceChangedError(
            "the source changed while it was copied: " + "; ".join(run.source_changes),
            hint=f"the copy is whole as of the beginning (see {receipt_path}); stop the application, delete the target "
            "collections and run again",
        )
    if not run.equal:
        different = [item for item in run.proofs if not item.equal]
        raise VerificationError(
            "the proof found differences in "
            + ", ".join(f"{item.path} ({item.different:,})" for item in different),
            hint=f"they are listed in {receipt_path}",
        )
    return run


async def _copy(run: Run, collection: SourceCollection, display: Display) -> Collection | None:
    checkpoint = await run.sink.checkpoint(run.run_id, collection)
    done = checkpoint.records + checkpoint.skipped
    step = display.step(f"copying {collection.path}", collection.count, done)
    if checkpoint.phase in ("copied", *FINISHED):
        run.copied[collection.path] = checkpoint
        existing = await run.sink.find(collection)
        return existing[0] if existing else None
    existing = await run.sink.find(collection)
    if existing and existing[1] != checkpoint.records:
        raise RefusedError(
            f"collection {collection.path} holds {existing[1]:,} records, migration {run.run_id} wrote {checkpoint.records:,}",
            hint="keep applications from writing to the target until the migration is verified; "
            "delete the collection and start anew with `pgchroma migrate run`",
        )
    target = await run.sink.prepare(run.run_id, collection)
    async with aclosing(proofs.in_thread(run.source.records(collection, checkpoint.last_position))) as pages:
        async for page in pages:
            records = [record for record in page if unreadable_reason(record, collection.dimension) is None]
            checkpoint = await run.sink.write(
                target, checkpoint, records, len(page) - len(records), page[-1].seq
            )
            step.advance(len(page))
    await run.sink.set_phase(run.run_id, collection, "copied")
    run.copied[collection.path] = checkpoint
    return target
