"""Copying the collections of a run, page by page, each with its checkpoint."""

import asyncio
import logging
import time
from collections.abc import Coroutine, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, Final, TypeVar, cast

from pgchroma.errors import RefusedError
from pgchroma.migrate import proof as proofs
from pgchroma.migrate.digest import CollectionDigest, record_digest
from pgchroma.migrate.model import FINISHED, Checkpoint, SourceCollection
from pgchroma.migrate.pages import Page, encoded
from pgchroma.migrate.progress import Display
from pgchroma.migrate.questions import Questions
from pgchroma.migrate.run import Run
from pgchroma.store.bulk import Prepared

logger = logging.getLogger("pgchroma.migrate")

Item = TypeVar("Item")

# Pages on their way to the target beside the one that is written, each of about 16 MiB at the most.
_AHEAD: Final = 4


async def begin_early(run: Run) -> None:
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
    # The questions that follow are part of the proof, put early where a target answers better now than later.
    run.copy_seconds[collection.path] = time.monotonic() - started
    if questions and (answers := await questions.put_to(run.sink.query)):
        run.answers[collection.path] = answers
    if digest is not None:
        run.read[collection.path] = digest
    run.copied[collection.path] = checkpoint
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
