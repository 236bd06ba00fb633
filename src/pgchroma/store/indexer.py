"""Builds the indexes over what is new in the background and moves the watermarks.

One leader among all workers and servers, by a session advisory lock on a connection of its own. A build is
CREATE INDEX CONCURRENTLY over a range of numbers; when it is done the segment is recorded and queries use it. A new
segment takes the smaller ones before it along, so that their number grows with the logarithm of the rows.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from uuid import UUID

import psycopg
from psycopg import sql

from pgchroma.errors import NotFoundError
from pgchroma.store import builds, catalog, configuration, kinds, operations, segments, tables, tails
from pgchroma.store.connection import Connection, StoreSettings
from pgchroma.store.kinds import Kind
from pgchroma.store.segments import RecordSegment, Segment
from pgchroma.types import Collection

logger = logging.getLogger("pgchroma.indexer")

LEADER_LOCK = 0x70676978
# A tail that is still growing is left alone until it is this many times longer than the minimum: a build takes a core that the
# writer could use, and what it has built is soon built again with more. Where nobody reads, it can wait for longer.
_PATIENCE = 5
_PATIENCE_UNREAD = 25
# Scans of the vectors from one look to the next, beyond which somebody reads; the looks themselves make one or two.
_OWN_SCANS = 5
# A collection that could not be indexed is left alone for the first time, and twice as long after each further failure.
_FIRST_PAUSE_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 600.0
# What comes of a collection, or of its tables, being deleted meanwhile.
_GONE = (NotFoundError, psycopg.errors.UndefinedTable, psycopg.errors.ForeignKeyViolation)


@dataclass(frozen=True, slots=True)
class _Sight:
    """What tells whether a collection has changed since it was last looked at: rows ever inserted and deleted, and its revision."""

    inserted: int
    deleted: int
    revision: int


@dataclass(frozen=True, slots=True)
class _Setback:
    """A collection could not be indexed: for how long it is left alone, and until when, as `time.monotonic` has it."""

    pause: float
    until: float


class Indexer:
    """The background job; `run` goes on until it is cancelled."""

    def __init__(self, conninfo: str, settings: StoreSettings) -> None:
        self._conninfo = conninfo
        self._settings = settings
        # table number -> as it was at the last look, and as it was when nothing was left to do
        self._seen: dict[int, _Sight] = {}
        self._settled: dict[int, _Sight] = {}
        self._has_looked = False
        # table number -> scans of its vectors ever, as of the last look that found it growing
        self._scans: dict[int, int] = {}
        # table number -> a kind of index that its vectors turned out to be too large for
        self._refused: dict[int, Kind] = {}
        # table number -> what came of the last try, where it failed
        self._setbacks: dict[int, _Setback] = {}
        # How documents are indexed in this database.
        self._method = "function"

    async def run(self) -> None:
        """Become the leader, index, and start over whenever the connection is lost."""
        while True:
            try:
                connection = await Connection.connect(
                    self._conninfo, autocommit=True, application_name=tables.INDEXER
                )
                async with connection:
                    await self._lead(connection)
            except psycopg.Error as error:
                logger.info("indexer lost its connection: %s", error)
            await asyncio.sleep(self._settings.indexer_interval_seconds)

    async def _lead(self, connection: Connection) -> None:
        # Not a blocking lock: a waiting session would hold a snapshot that CREATE INDEX CONCURRENTLY waits for.
        while not await self._is_leader(connection):  # noqa: ASYNC110 - the lock is in another process
            await asyncio.sleep(self._settings.indexer_interval_seconds)
        logger.info("this process is the indexer's leader")
        await connection.execute("SET statement_timeout = 0")
        await builds.remove_leftovers(connection)
        self._method = await builds.document_method(connection)
        # PostgreSQL counts from 0 again after a crash.
        self._seen.clear()
        self._settled.clear()
        self._scans.clear()
        self._has_looked = False
        while True:
            await self.look(connection)
            await operations.settle(connection, self._settings.index_minimum_rows)
            await asyncio.sleep(self._settings.indexer_interval_seconds)

    async def _is_leader(self, connection: Connection) -> bool:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [LEADER_LOCK])
        row = await cursor.fetchone()
        return bool(row and row[0])

    async def look(self, connection: Connection) -> None:
        """Index every collection whose tail is long enough and has stopped growing, or is very long.

        However many collections there are, one statement tells which have changed; only those are looked at more closely.
        """
        cursor = await connection.execute(
            "SELECT c.id, c.table_number, coalesce(pg_stat_get_tuples_inserted(t.oid), 0), "
            "coalesce(pg_stat_get_tuples_deleted(t.oid), 0), c.revision "
            "FROM pgchroma.collections c LEFT JOIN pg_class t ON t.relnamespace = to_regnamespace('pgchroma_data') "
            "AND t.relname = 'v' || c.table_number AND t.relkind = 'r' WHERE c.table_number IS NOT NULL"
        )
        # A collection that appears between two looks is being filled, most likely.
        is_first_look, self._has_looked = not self._has_looked, True
        for collection_id, number, inserted, deleted, revision in await cursor.fetchall():
            sight = _Sight(inserted, deleted, revision)
            if self._settled.get(number) == sight:
                continue
            before = self._seen.get(number)
            self._seen[number] = sight
            growing = not is_first_look if before is None else before.inserted != inserted
            setback = self._setbacks.get(number)
            if setback is not None and time.monotonic() < setback.until:
                continue
            if await self._try(connection, collection_id, number, growing=growing) and not growing:
                self._settled[number] = sight

    async def _try(self, connection: Connection, collection_id: UUID, number: int, *, growing: bool) -> bool:
        """Build what one collection lacks; whether nothing is left to do. What goes wrong there holds up no other one."""
        # Deleted meanwhile: nothing to do.
        with suppress(*_GONE):
            try:
                done = await self._advance(connection, collection_id, growing=growing)
            except _GONE:
                raise
            except psycopg.errors.QueryCanceled:
                # By someone who deletes the collection; should that fail, half an index is left.
                await builds.remove_leftovers(connection)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other collections are to be indexed
                # Fails, too, when it is the connection that is lost; then all starts over.
                await builds.remove_leftovers(connection)
                self._put_off(number, collection_id, error)
            else:
                self._setbacks.pop(number, None)
                return done
        return False

    def _put_off(self, number: int, collection_id: UUID, error: Exception) -> None:
        before = self._setbacks.get(number)
        pause = _FIRST_PAUSE_SECONDS if before is None else min(2 * before.pause, _LONGEST_PAUSE_SECONDS)
        self._setbacks[number] = _Setback(pause, time.monotonic() + pause)
        # Its further lines could quote records.
        reason = str(error).partition("\n")[0] or type(error).__name__
        logger.warning(
            "cannot index the collection %s now, trying again in %g s: %s", collection_id, pause, reason
        )

    async def _advance(self, connection: Connection, collection_id: UUID, *, growing: bool) -> bool:
        """Build what one collection lacks; whether nothing is left to do."""
        collection = await catalog.get_collection_by_id(connection, collection_id)
        vectors, records = await segments.load_both(connection, collection_id)
        number = collection.table_number
        if number is None:
            return False
        enough = self._settings.index_minimum_rows
        if growing:
            enough *= _PATIENCE if await self._is_read(connection, number) else _PATIENCE_UNREAD
        done = True
        rows, high = await _tail(connection, tables.records(number), segments.watermark(records))
        if high is not None and rows >= enough:
            await self._use_cores(connection)
            low = segments.absorb(records, rows)
            await builds.build_records(connection, collection, RecordSegment(low, high, ""))
            done = False
        done = not await self._advance_vectors(connection, collection, vectors, enough) and done
        if growing:
            # Documents come last, when the writers are done: their index takes longest and the fewest queries ask for it.
            return False
        return not await self._advance_documents(connection, collection) and done

    async def _is_read(self, connection: Connection, number: int) -> bool:
        """Whether somebody has searched a collection's vectors since the last look that found it growing."""
        cursor = await connection.execute(
            "SELECT seq_scan + coalesce(idx_scan, 0) FROM pg_stat_user_tables WHERE relid = to_regclass(%s)",
            [f"{tables.SCHEMA}.v{number}"],
        )
        row = await cursor.fetchone()
        scans = int(row[0]) if row else 0
        before = self._scans.get(number, 0)
        self._scans[number] = scans
        return scans - before > _OWN_SCANS

    async def _advance_documents(self, connection: Connection, collection: Collection) -> bool:
        """Index the documents of a segment that lacks it, or has it by another method; whether there was one."""
        if not configuration.has_full_text(collection.schema):
            return False
        _, records = await segments.load_both(connection, collection.id)
        for segment in records:
            if segment.method != self._method:
                await self._use_cores(connection)
                await builds.build_documents(connection, collection, segment, self._method)
                return True
        return False

    async def _advance_vectors(
        self, connection: Connection, collection: Collection, found: list[Segment], enough: int
    ) -> bool:
        """Bring a collection's vector indexes to the kind it asks for, and over its tail; whether there was anything to do."""
        number = collection.table_number
        if number is None:
            return False
        kind = self._possible(collection)
        watermark = segments.watermark(found)
        rows, high = await _tail(connection, tables.embeddings(number), watermark)
        due = kind is not None and rows >= self._settings.index_minimum_rows
        await tails.note(connection, collection.id, rows, watermark, due=due)
        if kind is None:
            if found:
                await builds.drop_segments(connection, collection)
            return bool(found)
        others = [part for part in found if Kind(part.kind, part.quantisation, part.options) != kind]
        if high is not None and rows >= enough:
            segment = Segment(segments.absorb(found, rows), high, "")
        elif others:
            segment = Segment(others[0].low, watermark, "")
        else:
            return False
        await self._use_cores(connection)
        try:
            await builds.build_segment(connection, collection, kind, segment)
        except psycopg.errors.NumericValueOutOfRange as error:
            logger.warning("%s cannot have an index of %s: %s", collection.path, kind.quantisation, error)
            self._refused[number] = kind
            await builds.remove_leftovers(connection)
        return True

    def _possible(self, collection: Collection) -> Kind | None:
        kind = kinds.wanted(collection)
        if kind is None or self._refused.get(collection.table_number or 0) != kind:
            return kind
        longest = kinds.LONGEST["none"]
        return replace(kind, quantisation="none") if (collection.dimension or 0) <= longest else None

    async def _use_cores(self, connection: Connection) -> None:
        """Let a build use several cores where nobody else is at work, and one where somebody is."""
        alone = False
        if self._settings.parallel_index_builds:
            cursor = await connection.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' "
                "AND pid <> pg_backend_pid()"
            )
            row = await cursor.fetchone()
            alone = bool(row and not row[0])
        await connection.execute(
            "RESET max_parallel_maintenance_workers" if alone else "SET max_parallel_maintenance_workers = 0"
        )


async def _tail(connection: Connection, table: sql.Identifier, watermark: int) -> tuple[int, int | None]:
    """Return how many rows lie above a watermark and the highest number among them."""
    query = sql.SQL("SELECT count(*), max(seq) FROM {} WHERE seq > %s").format(table)
    row = await (await connection.execute(query, [watermark])).fetchone()
    return (int(row[0]), row[1]) if row else (0, None)
