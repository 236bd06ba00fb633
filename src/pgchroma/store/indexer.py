"""Builds vector indexes over the tail in the background and moves the watermark.

One leader among all workers and servers, by a session advisory lock on a connection of its own. A build is
CREATE INDEX CONCURRENTLY over a range of vector numbers; when it is done the segment is recorded and queries use it. A new
segment takes the smaller ones before it along, so that their number grows with the logarithm of the rows.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from uuid import UUID

import psycopg
from psycopg import sql

from pgchroma.errors import NotFoundError
from pgchroma.store import catalog, operations, segments, tables, vectors
from pgchroma.store.connection import Connection, StoreSettings
from pgchroma.store.segments import Segment
from pgchroma.types import Collection

logger = logging.getLogger("pgchroma.indexer")

LEADER_LOCK = 0x70676978
_OPERATOR_CLASSES = {"l2": "vector_l2_ops", "cosine": "vector_cosine_ops", "ip": "vector_ip_ops"}
# A tail that is still growing is left alone until it is this many times longer than the minimum.
_PATIENCE = 5


@dataclass(frozen=True, slots=True)
class _Candidate:
    collection_id: UUID
    table_number: int


class Indexer:
    """The background job; `run` goes on until it is cancelled."""

    def __init__(self, conninfo: str, settings: StoreSettings) -> None:
        self._conninfo = conninfo
        self._settings = settings
        # table number -> rows ever inserted, as of the last look
        self._seen: dict[int, int] = {}

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
        if not self._settings.parallel_index_builds:
            await connection.execute("SET max_parallel_maintenance_workers = 0")
        await remove_leftovers(connection)
        # PostgreSQL counts from 0 again after a crash.
        self._seen.clear()
        while True:
            await self.look(connection)
            await operations.settle(connection, self._settings.index_minimum_rows)
            await asyncio.sleep(self._settings.indexer_interval_seconds)

    async def _is_leader(self, connection: Connection) -> bool:
        cursor = await connection.execute("SELECT pg_try_advisory_lock(%s)", [LEADER_LOCK])
        row = await cursor.fetchone()
        return bool(row and row[0])

    async def look(self, connection: Connection) -> None:
        """Index every collection whose tail is long enough and has stopped growing, or is very long."""
        cursor = await connection.execute(
            "SELECT c.id, c.table_number, coalesce(s.n_tup_ins, 0) FROM pgchroma.collections c "
            "LEFT JOIN pg_stat_user_tables s ON s.schemaname = 'pgchroma_data' AND s.relname = 'v' || c.table_number "
            "WHERE c.table_number IS NOT NULL AND c.dimension <= %s",
            [vectors.MAX_INDEXED_DIMENSION],
        )
        for collection_id, number, inserted in await cursor.fetchall():
            before = self._seen.get(number)
            if inserted != before:
                self._seen[number] = inserted
                growing = before is not None
            elif inserted < self._settings.index_minimum_rows:
                continue
            else:
                growing = False
            # Deleted meanwhile: nothing to do.
            with suppress(psycopg.errors.UndefinedTable, NotFoundError):
                try:
                    await self._advance(connection, _Candidate(collection_id, number), growing=growing)
                except psycopg.errors.QueryCanceled:
                    # By someone who deletes the collection; should that fail, half an index is left.
                    await remove_leftovers(connection)

    async def _advance(self, connection: Connection, candidate: _Candidate, *, growing: bool) -> None:
        found = await segments.load(connection, candidate.collection_id)
        watermark = segments.watermark(found)
        cursor = await connection.execute(
            sql.SQL("SELECT count(*), max(seq) FROM {} WHERE seq > %s").format(
                tables.embeddings(candidate.table_number)
            ),
            [watermark],
        )
        row = await cursor.fetchone()
        rows, high = (int(row[0]), row[1]) if row else (0, None)
        minimum = self._settings.index_minimum_rows
        if high is None or rows < minimum or (growing and rows < _PATIENCE * minimum):
            return
        collection = await catalog.get_collection_by_id(connection, candidate.collection_id)
        low = absorb(found, rows)
        await build_segment(connection, collection, Segment(low, high, "", rows))


def absorb(found: Sequence[Segment], rows: int) -> int:
    """Return where a new segment of `rows` should begin: it takes along the newest ones, those no more than twice as large."""
    low = found[-1].high if found else 0
    for segment in reversed(found):
        if segment.rows > 2 * rows:
            break
        low = segment.low
        rows += segment.rows
    return low


async def build_segment(connection: Connection, collection: Collection, segment: Segment) -> None:
    """Build the index of one segment, record it in the place of all that begin no earlier, then drop theirs."""
    number = collection.table_number
    if number is None:
        return
    name = f"v{number}_hnsw_{segment.low}_{segment.high}"
    hnsw = collection.configuration["hnsw"]
    m = min(max(int(hnsw["max_neighbors"]), 2), 100)
    statement = sql.SQL(
        "CREATE INDEX CONCURRENTLY {} ON {} USING hnsw (embedding {}) WITH (m = {}, ef_construction = {}) "
        "WHERE seq > {} AND seq <= {}"
    ).format(
        sql.Identifier(name),
        tables.embeddings(number),
        sql.SQL(_OPERATOR_CLASSES[collection.space]),
        sql.Literal(m),
        sql.Literal(min(max(int(hnsw["ef_construction"]), 2 * m, 4), 1_000)),
        sql.Literal(segment.low),
        sql.Literal(segment.high),
    )
    started = time.monotonic()
    logger.info("building index %s over %d new rows of %s", name, segment.rows, collection.path)
    await connection.execute(statement)
    seconds = time.monotonic() - started
    # Without fresh statistics the planner reads the whole table to find a tail that is empty by now.
    for table in (tables.embeddings(number), tables.records(number)):
        await connection.execute(sql.SQL("ANALYZE {}").format(table))
    cursor = await connection.execute(
        sql.SQL("SELECT count(*) FROM {} WHERE seq > %s AND seq <= %s").format(tables.embeddings(number)),
        [segment.low, segment.high],
    )
    row = await cursor.fetchone()
    async with connection.transaction():
        cursor = await connection.execute(
            "DELETE FROM pgchroma.index_segments WHERE collection_id = %s AND low_seq >= %s RETURNING index_name",
            [collection.id, segment.low],
        )
        replaced = [name for (name,) in await cursor.fetchall()]
        await connection.execute(
            "INSERT INTO pgchroma.index_segments (collection_id, low_seq, high_seq, index_name, row_count, build_seconds) "
            "SELECT id, %s, %s, %s, %s, %s FROM pgchroma.collections WHERE id = %s",
            [segment.low, segment.high, name, row[0] if row else 0, seconds, collection.id],
        )
    for old in replaced:
        await _drop_index(connection, old)
    logger.info(
        "index %s built in %.1f s; the watermark of %s is %d", name, seconds, collection.path, segment.high
    )


async def remove_leftovers(connection: Connection) -> None:
    """Drop vector indexes that no segment knows: what a crashed build or a crashed clean-up left behind."""
    cursor = await connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_am a ON a.oid = c.relam "
        "WHERE c.relnamespace = to_regnamespace('pgchroma_data') AND a.amname IN ('hnsw', 'ivfflat') "
        "AND (NOT i.indisvalid OR NOT EXISTS (SELECT FROM pgchroma.index_segments s WHERE s.index_name = c.relname))"
    )
    for (name,) in await cursor.fetchall():
        logger.info("dropping index %s, which no segment uses", name)
        await connection.execute("DELETE FROM pgchroma.index_segments WHERE index_name = %s", [name])
        await _drop_index(connection, name)


async def _drop_index(connection: Connection, name: str) -> None:
    await connection.execute(
        sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(tables.SCHEMA, name))
    )
