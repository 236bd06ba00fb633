"""A run from beginning to end: plan, copy with checkpoints, proof, receipt; and the same continued after an interruption."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

from pgchroma.errors import (
    DatabaseUnreachableError,
    InterruptedMigrationError,
    SourceChangedError,
    VerificationError,
)
from pgchroma.migrate import copying, receipt, report
from pgchroma.migrate import plan as plans
from pgchroma.migrate import proof as proofs
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.model import (
    Noted,
    RunNote,
    Sink,
    Source,
    SourceCollection,
    describe_changes,
)
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.progress import Display
from pgchroma.migrate.proof import CollectionProof
from pgchroma.migrate.questions import Questions, judge
from pgchroma.migrate.remote.client import RemoteError
from pgchroma.migrate.run import Run
from pgchroma.migrate.second import SecondProcess

logger = logging.getLogger("pgchroma.migrate")


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
    await copying.begin_early(run)
    try:
        await _look_through(run, display)
        note = RunNote(run.run_id, str(source.description["path"]), source.fingerprint, policies.as_json())
        await sink.begin(note, source.collections())
    except BaseException:
        run.stop_reading()
        raise
    logger.info("migration %s of %s to %s begins", run.run_id, note.source, sink.description.get("path"))
    return run


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
                await (copy(collection) if copy else copying.copy_collection(run, collection, display))
        with _timed(run, "proof"):
            await asyncio.gather(_prove(run, display), _describe(run))
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


async def _describe(run: Run) -> None:
    """Find what else the receipt says, beside the proof, which leaves both the disk and a core idle at times."""
    if run.describe:
        run.extra |= await asyncio.to_thread(run.describe, _unless_stopping(run, lambda _: None))


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
