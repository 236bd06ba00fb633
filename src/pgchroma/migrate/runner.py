"""A run from beginning to end: plan, copy with checkpoints, proof, receipt; and the same continued after an interruption."""

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast
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
from pgchroma.migrate import receipt, report
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.digest import CollectionDigest, record_digest
from pgchroma.migrate.model import (
    Checkpoint,
    Json,
    Noted,
    RunNote,
    Sink,
    Source,
    SourceCollection,
    describe_changes,
)
from pgchroma.migrate.pages import Page, encoded
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.progress import Display
from pgchroma.migrate.proof import CollectionProof
from pgchroma.migrate.questions import Questions, judge, notice
from pgchroma.migrate.remote.client import RemoteError
from pgchroma.migrate.second import SecondProcess
from pgchroma.store.bulk import Prepared

logger = logging.getLogger("pgchroma.migrate")

Item = TypeVar("Item")

FINISHED = ("verified", "different")
# Pages on their way to the target beside the one that is written, each of about 16 MiB at the most.
_AHEAD = 4


@dataclass(slots=True)
class Run:
    """A run under way, and at its end what the receipt says.

    Attributes:
        read: digests of what was copied, by collection, from a source that goes on changing; the proof reads it once more.
        answers: recall of the target's answers, by collection.
        extra: further members of the receipt.
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


@contextlib.contextmanager
def _timed(run: Run, step: str) -> Iterator[None]:
    started = time.monotonic()
    try:
        yield
    finally:
        run.seconds[step] = time.monotonic() - started
        logger.info("%s of migration %s: %.1f s", step, run.run_id, run.seconds[step])


async def start(
    source: Source,
    sink: Sink,
    display: Display,
    policies: Policies,
    run_id: UUID | None = None,
    second: SecondProcess | None = None,
) -> Run:
    """Check everything that can be checked beforehand, then note a new run; nothing is written when a check fails.

    Args:
        second: a process that can read the source; it begins while the checks are made.

    Raises:
        SourceError: records that cannot be moved, and the policy about them is to fail.
        RefusedError: a target collection is in use.
    """
    run = Run(run_id or uuid4(), source, sink, policies, second=second)
    await plans.require_free_targets(source, sink)
    await _read_early(run)
    try:
        await _look_through(run, display)
        note = RunNote(run.run_id, str(source.description["path"]), source.fingerprint, policies.as_json())
        await sink.begin(note, source.collections())
    except BaseException:
        run.stop_reading()
        raise
    logger.info("migration %s of %s to %s begins", run.run_id, note.source, sink.description.get("path"))
    return run


async def _read_early(run: Run) -> None:
    """Have the second process, which looking through the source leaves idle, begin with the first collection."""
    collections = run.source.collections()
    if run.second is not None and collections:
        run.early = (collections[0].id, await _reading(run, collections[0], 0))


async def _reading(run: Run, collection: SourceCollection, after: int) -> Generator[Page]:
    """Return the pages of a collection behind a position, read ahead by a thread that runs until this is closed."""
    encode = await run.sink.encoder(collection)
    return proofs.ahead(
        encoded(run.source, collection, run.policies, run.sink.limits, after, encode, run.second), _AHEAD
    )


async def _look_through(run: Run, display: Display) -> None:
    with _timed(run, "plan"):
        total = sum(item.count for item in run.source.collections())
        step = display.step("looking through the source", total)
        run.plan = await asyncio.to_thread(plans.make, run.source, step.advance)
    run.plan.require_movable(run.policies, run.sink.limits)


def resume(noted: Noted, source: Source, sink: Sink) -> Run:
    """Take up a run of which `noted` was kept.

    Raises:
        SourceChangedError: the source is not what it was when the run began; the message says what changed.
    """
    note = noted.note
    if source.fingerprint != note.fingerprint:
        changed = describe_changes(noted.states, {item.path: item.state for item in source.collections()})
        raise SourceChangedError(
            f"{source.description['path']} changed since migration {note.run_id} began: "
            + ("; ".join(changed) or "its layout is another"),
            hint="stop the application that writes to it, delete the half-written target collections, "
            "and start a new migration with `pgchroma migrate run`",
        )
    return Run(note.run_id, source, sink, Policies(note.policies), resumed=True)


async def carry_out(
    run: Run,
    display: Display,
    receipt_path: Path,
    copy: Callable[[SourceCollection], Awaitable[None]] | None = None,
) -> Run:
    """Copy what is not copied yet, prove everything, and write the receipt.

    Args:
        copy: brings one collection over; from its checkpoint on, unless told otherwise.

    Raises:
        InterruptedMigrationError: a side went away; what was committed stands and the run can be resumed.
        SourceChangedError: the source changed meanwhile; the receipt says what.
        VerificationError: the proof found differences; the receipt lists them.
    """
    try:
        if run.resumed:
            await _look_through(run, display)
        with _timed(run, "copy"):
            for collection in run.source.collections():
                await (copy(collection) if copy else copy_collection(run, collection, display))
        with _timed(run, "proof"):
            await _prove(run, display)
    except (DatabaseUnreachableError, RemoteError) as error:
        raise InterruptedMigrationError(
            f"migration {run.run_id} was interrupted: {error.message}",
            hint="nothing is lost; when it answers again, run `pgchroma migrate resume`",
        ) from error
    finally:
        run.stopping.set()
        run.stop_reading()
    run.source_changes += await asyncio.to_thread(run.source.changes)
    if run.equal and not run.source_changes:
        run.extra |= await run.sink.publish()
    content = run.as_json()
    receipt.write(receipt_path, content)
    run.extra["report"] = str(report.write(content, receipt_path))
    await _note_end(run)
    _require_green(run, receipt_path)
    return run


def _require_green(run: Run, receipt_path: Path) -> None:
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


async def _prove(run: Run, display: Display) -> None:
    collections = run.source.collections()
    async with run.sink.written() as written:
        for collection in collections:
            step = display.step(f"proving {collection.path}", collection.count)
            found, questions = await asyncio.to_thread(
                _prove_one, run, collection, written, _unless_stopping(run, step.advance)
            )
            run.proofs.append(found)
            if questions and (answers := await questions.put_to(run.sink.query)):
                run.answers[collection.path] = answers
            judge(found, run.answers.get(collection.path))
            _require_unchanged(run, collection, found)
            # A run is unfinished until its receipt is written: the last collection stays `copied` until then.
            if collection is not collections[-1]:
                await _note_proof(run, collection, found)
        if isinstance(written, DatabaseSource):
            run.extra["horizon"] = written.snapshot.horizon()
        elif isinstance(run.source, DatabaseSource):
            run.extra["horizon"] = run.source.snapshot.horizon()


async def _note_proof(run: Run, collection: SourceCollection, found: CollectionProof) -> None:
    phase = "verified" if found.equal else "different"
    await run.sink.set_phase(run.run_id, collection, phase, found.different)


async def _note_end(run: Run) -> None:
    """Note that the receipt is written, so that nothing is left to resume."""
    collections = run.source.collections()
    if collections:
        await _note_proof(run, collections[-1], run.proofs[-1])
    if run.equal and not run.source_changes:
        await run.sink.finish()


def _prove_one(
    run: Run, collection: SourceCollection, written: Source, advance: Callable[[int], None]
) -> tuple[CollectionProof, Questions | None]:
    asked = run.sink.asks_early or collection.path in run.answers
    questions = None if asked else Questions(collection)
    found = proofs.prove(
        run.source,
        collection,
        written,
        run.policies,
        run.sink.limits,
        advance,
        see=questions.see if questions else None,
        second=run.second,
    )
    return found, questions


def _require_unchanged(run: Run, collection: SourceCollection, found: CollectionProof) -> None:
    """Note it when a source that goes on serving has shown other records to the proof than to the copy."""
    read = run.read.get(collection.path)
    if read is not None and read.hexdigest() != found.digest_source:
        run.source_changes.append(f"{collection.path}: records were changed between copy and proof")


def _unless_stopping(run: Run, advance: Callable[[int], None]) -> Callable[[int], None]:
    """Return `advance` that ends the thread it is called from when the run was told to stop."""

    def checked(records: int) -> None:
        if run.stopping.is_set():
            raise InterruptedMigrationError("stopped", hint="continue with `pgchroma migrate resume`")
        advance(records)

    return checked


async def copy_collection(run: Run, collection: SourceCollection, display: Display) -> None:
    """Copy one collection from its checkpoint on."""
    started = time.monotonic()
    checkpoint = await run.sink.checkpoint(run.run_id, collection)
    step = display.step(
        f"copying {collection.path}", collection.count, checkpoint.records + checkpoint.skipped
    )
    run.copied[collection.path] = checkpoint
    if checkpoint.phase in ("copied", *FINISHED):
        return
    await _require_own(run, collection, checkpoint)
    from_start = checkpoint.last_position == 0
    questions = Questions(collection) if run.sink.asks_early and from_start else None
    digest = CollectionDigest() if not run.source.frozen and from_start else None
    if from_start and run.early is not None and run.early[0] == collection.id:
        _, pages = run.early
        run.early = None
    else:
        pages = await _reading(run, collection, checkpoint.last_position)
    with closing(pages) as reading:
        # The first page is read while the target is made.
        page = await _first_page(reading, run.sink.prepare(run.run_id, collection))
        while page is not None:
            records, aside, position = page
            if digest is not None:
                digest.add(record_digest(record) for record in records)
            if questions is not None:
                questions.see(records)
            checkpoint = await run.sink.write(collection, checkpoint, records, aside, position)
            step.advance(len(records) + len(aside), _size(records))
            page = await asyncio.to_thread(next, reading, None)
    await run.sink.set_phase(run.run_id, collection, "copied")
    if questions and (answers := await questions.put_to(run.sink.query)):
        run.answers[collection.path] = answers
    if digest is not None:
        run.read[collection.path] = digest
    run.copied[collection.path] = checkpoint
    run.copy_seconds[collection.path] = time.monotonic() - started
    logger.info("%s: %d records copied", collection.path, checkpoint.records)


async def _first_page(pages: Iterator[Item], meanwhile: Coroutine[Any, Any, None]) -> Item | None:
    """Return the first page, None when there is none, once something else is done, too; both have ended when one has failed."""
    page, done = await asyncio.gather(asyncio.to_thread(next, pages, None), meanwhile, return_exceptions=True)
    for outcome in (done, page):
        if isinstance(outcome, BaseException):
            raise outcome
    return cast(Item | None, page)


def _size(records: Sequence[Any]) -> int:
    """Return about how many bytes records have, for the display only: that of the first times their number."""
    if not records:
        return 0
    if isinstance(records, Prepared):
        return records.nbytes
    first = records[0]
    vector = 0 if first.embedding is None else first.embedding.nbytes
    return len(records) * vector + sum(len(record.document or "") for record in records)


async def _require_own(run: Run, collection: SourceCollection, checkpoint: Checkpoint) -> None:
    existing = await run.sink.find(collection)
    if existing is None:
        return
    # A target without transactions may hold a batch that the checkpoint does not know yet, but never fewer.
    behind = existing[1] < checkpoint.records
    if existing[1] != checkpoint.records and (behind or run.sink.transactional):
        raise RefusedError(
            f"collection {collection.path} holds {existing[1]:,} records, migration {run.run_id} wrote {checkpoint.records:,}",
            hint="keep applications from writing to the target until the migration is verified; "
            "delete the collection and start anew with `pgchroma migrate run`",
        )
