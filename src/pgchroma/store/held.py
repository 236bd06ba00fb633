"""Sketches held in memory: which vectors of a collection may be nearest to a query, found without asking PostgreSQL.

A walk through an HNSW index costs a millisecond of PostgreSQL's time, nearly all of it for finding a page for each of more than a thousand
vectors it meets. To compare the sketches of twenty thousand vectors with that of a query takes a fifth of it, because they lie one after
the other in memory. Only the best by sketch are then compared exactly, by PostgreSQL.

What a segment covers never changes: an update writes a new vector with a new number, which is tail, and of those that are gone PostgreSQL
returns nothing. So what was read of a segment stays true for as long as its index exists.
"""

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import AbstractAsyncContextManager
from typing import TypeAlias
from uuid import UUID

import numpy as np
import psycopg
from psycopg import sql

from pgchroma.errors import PgchromaError
from pgchroma.store import barrier, shortlist, tables
from pgchroma.store.connection import Connection
from pgchroma.store.entries import Entry
from pgchroma.store.search_basis import configured
from pgchroma.store.segments import Segment
from pgchroma.store.shortlist import Held, Seqs, Widths
from pgchroma.types import Float32Matrix

logger = logging.getLogger("pgchroma.store")

Lend: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]
_Key: TypeAlias = tuple[str, str]

# Queries of a segment after which it is worth to read its sketches.
_USES = 8
# Words of 64 bits that a query looks at, at most; more take longer than the walk through an index that they spare.
_MOST_WORDS = 1_000_000
# How many the second look leaves: so many times ef_search, more where sketches are shorter than so many bits.
_PER_EF, _PER_EF_BITS, _MOST_SECOND = 1.5, 1_152, 1_500
# How many PostgreSQL compares: so many times ef_search, and so many per result.
_LEFT_PER_EF, _PER_RESULT, _LEAST, _MOST_LEFT = 0.4, 3, 30, 1_000
# With a filter the second look leaves one more for so many matches.
_SEQS_PER_SECOND = 16
# After so many failures a way is not tried, until it would have been this many times.
_HOPE, _HOPELESS = 2, 100
_MOST_HOPES = 10_000
# Sketches that find less than this part of the nearest vectors are not used.
_LEAST_RECALL = 0.95
# Segments of which is known that they do not.
_MOST_MISLEADING = 10_000
# Collections of which is known that queries are answered from here.
_MOST_SERVED = 10_000
# Filters whose matches are kept, and of how many matches at most: 32 MB at worst.
_NOTED, _MOST_NOTED = 200, 20_000
# Vectors read at a time.
_PAGE = 4_096
_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0


class SketchMemory:
    """The sketches that this process holds, up to a number of bytes; those used last are kept."""

    def __init__(self, lend: Lend, most_bytes: int) -> None:
        self._lend = lend
        self._most_bytes = most_bytes
        self._held: OrderedDict[_Key, Held] = OrderedDict()
        self._bytes = 0
        self._noted: OrderedDict[Hashable, tuple[str, Seqs]] = OrderedDict()
        self._hopes: dict[Hashable, int] = {}
        self._uses: OrderedDict[_Key, int] = OrderedDict()
        self._served: set[UUID] = set()
        self._misleading: set[_Key] = set()
        self._loading: asyncio.Task[None] | None = None

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._bytes

    async def close(self) -> None:
        """Give up what is being read."""
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading

    def candidates(
        self, entry: Entry, embedding: Float32Matrix, ef_search: int, count: int, *, spare: int | None = None
    ) -> Seqs | None:
        """Return the numbers of the indexed vectors that may be among the `count` nearest, in no order.

        Args:
            embedding: shape (dimension,), not zero.
            ef_search: how thoroughly to look, as for HNSW.
            spare: how many of the nearest may turn out to be gone, if no more are needed than this; None for as many as usual.

        Returns:
            None where an index has to be asked: what is needed is not held yet, cannot be had, or would take longer.
        """
        parts = self._parts(entry) if _PER_RESULT * count <= _MOST_LEFT else None
        if parts is None:
            self._served.discard(entry.collection.id)
            return None
        if len(self._served) > _MOST_SERVED:
            self._served.clear()
        self._served.add(entry.collection.id)
        second, left = _widths(entry, embedding, ef_search, count)
        sure = 0 if spare is None else count + spare
        return shortlist.of_all(parts, embedding, entry.sketch, Widths(second, left, sure))

    def among(
        self, entry: Entry, seqs: Seqs, embedding: Float32Matrix, ef_search: int, count: int
    ) -> Seqs | None:
        """Return which of the vectors with these numbers may be among the `count` nearest of them; as `candidates` does."""
        parts = self._parts(entry) if _PER_RESULT * count <= _MOST_LEFT else None
        if parts is None:
            return None
        second, left = _widths(entry, embedding, ef_search, count)
        # Many that match a filter may all be about as far from the query.
        second = min(2 * second + len(seqs) // _SEQS_PER_SECOND, 2 * _MOST_SECOND)
        return shortlist.of_these(parts, seqs, embedding, entry.sketch, Widths(second, left, count))

    def serves(self, collection_id: UUID) -> bool:
        """Whether the last query of a collection found its candidates here."""
        return collection_id in self._served

    def holds(self, entry: Entry) -> bool:
        """Whether everything that is needed of a collection is held."""
        return self._parts(entry) is not None

    def misleads(self, entry: Entry) -> bool:
        """Whether the sketches of a collection's vectors are known not to tell well enough which are near each other."""
        return bool(self._misleading) and any(
            (entry.identity, segment.index_name) in self._misleading for segment in entry.vectors
        )

    def _parts(self, entry: Entry) -> list[Held] | None:
        if not self._suits(entry) or self.misleads(entry):
            return None
        parts = []
        for segment in entry.vectors:
            key = (entry.identity, segment.index_name)
            held = self._held.get(key)
            if held is None:
                self._miss(key, entry)
                return None
            self._held.move_to_end(key)
            parts.append(held)
        return parts

    def is_hopeful(self, key: Hashable) -> bool:
        """Whether a way through memory that not every query can take is worth trying for what `key` stands for."""
        hope = self._hopes.get(key, _HOPE)
        if hope <= 0:
            self._hopes[key] = hope - 1 if hope > -_HOPELESS else 1
        return hope > 0

    def learn(self, key: Hashable, change: int) -> None:
        """Take down whether it was (1) or was not (-1) worth trying."""
        if len(self._hopes) > _MOST_HOPES:
            self._hopes.clear()
        self._hopes[key] = min(self._hopes.get(key, _HOPE) + change, 2 * _HOPE)

    def recall(self, key: Hashable) -> tuple[str, Seqs] | None:
        """Return what `note` was given for `key`, if it is still there."""
        found = self._noted.get(key)
        if found is not None:
            self._noted.move_to_end(key)
        return found

    def note(self, key: Hashable, snapshot: str, seqs: Seqs) -> None:
        """Keep the numbers of the vectors that a filter selected, and the snapshot in which it did."""
        if len(seqs) > _MOST_NOTED:
            return
        self._noted[key] = (snapshot, seqs)
        self._noted.move_to_end(key)
        while len(self._noted) > _NOTED:
            self._noted.popitem(last=False)

    def forget(self, entry: Entry) -> None:
        """Drop what is held of a collection, because much of it has been deleted; the next queries have it read again."""
        for segment in entry.vectors:
            held = self._held.pop((entry.identity, segment.index_name), None)
            self._bytes -= held.size if held is not None else 0

    def _suits(self, entry: Entry) -> bool:
        if not entry.sketch or not entry.vectors or not self._most_bytes:
            return False
        words = shortlist.first_words(entry.collection.dimension or 0, entry.sketch)
        rows = sum(segment.rows for segment in entry.vectors)
        # Other kinds were asked for by name.
        usual = all(part.kind == "hnsw" and part.quantisation != "binary" for part in entry.vectors)
        return usual and rows * words <= _MOST_WORDS

    def _miss(self, key: _Key, entry: Entry) -> None:
        """Count a query that could not be answered from memory; read what it lacks once it has become worth it."""
        self._uses[key] = self._uses.pop(key, 0) + 1
        while len(self._uses) > 1_000:
            self._uses.popitem(last=False)
        if self._uses[key] >= _USES and self._loading is None:
            # Should it fail, it is worth another attempt after as many queries again.
            self._uses[key] = 0
            self._loading = asyncio.create_task(self._load(entry), name="sketches")
            self._loading.add_done_callback(self._loaded)

    def _loaded(self, task: "asyncio.Task[None]") -> None:
        self._loading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("sketches could not be read, indexes are used instead: %s", error)

    async def _load(self, entry: Entry) -> None:
        missing = [
            segment for segment in entry.vectors if (entry.identity, segment.index_name) not in self._held
        ]
        try:
            await self._wait_for_writers()
            async with self._lend() as connection:
                for segment in missing:
                    held = await _read(connection, entry, segment)
                    if held is None:
                        continue
                    key = (entry.identity, segment.index_name)
                    recall = await asyncio.to_thread(_recall, entry, held)
                    if recall >= _LEAST_RECALL:
                        self._keep(key, held)
                        continue
                    logger.info(
                        "sketches of %s find %.0f %% of the nearest only; its indexes are used instead",
                        entry.collection.path,
                        100 * recall,
                    )
                    if len(self._misleading) >= _MOST_MISLEADING:
                        self._misleading.clear()
                    self._misleading.add(key)
        except (PgchromaError, psycopg.Error) as error:
            # The queries say so themselves where it concerns them.
            logger.info("sketches of %s are not held: %s", entry.collection.path, error)

    async def _wait_for_writers(self) -> None:
        """Return when every write that is under way has ended: it may hold a number that a segment covers.

        Raises:
            PgchromaError: one takes too long.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE_SECONDS
        writers = await self._writers()
        while writers and writers & await self._writers():
            if loop.time() > deadline:
                raise PgchromaError("a write that is under way takes long")
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _writers(self) -> set[str]:
        # Requests need the connection more than one who waits.
        async with self._lend() as connection:
            return await barrier.holders(connection)

    def _keep(self, key: _Key, held: Held) -> None:
        if held.size > self._most_bytes:
            return
        self._held[key] = held
        self._bytes += held.size
        while self._bytes > self._most_bytes:
            self._bytes -= self._held.popitem(last=False)[1].size


async def _read(connection: Connection, entry: Entry, segment: Segment) -> Held | None:
    """Return what is to be held of a segment; None where some records have no sketch."""
    number, dimension = entry.collection.table_number, entry.collection.dimension
    if number is None or dimension is None:
        return None
    parameters = {"low": segment.low, "high": segment.high}
    size = -(-dimension * entry.sketch // 8)
    # bit_send() begins with the number of bits, vector_send() with that of the coordinates.
    query = sql.SQL(
        "SELECT count(*), count(sketch), string_agg(int8send(vseq) || substr(bit_send(sketch), 5), '') FROM {} "
        "WHERE vseq > %(low)s AND vseq <= %(high)s GROUP BY vseq >> 13"
    ).format(tables.records(number))
    parts = await connection.fetch(query.as_bytes(connection), parameters, prepare=False)
    if any(rows != sketched for rows, sketched, _ in parts):
        return None
    sketched = np.frombuffer(
        b"".join(part for _, _, part in parts), np.dtype([("seq", ">i8"), ("value", np.uint8, (size,))])
    )
    query = sql.SQL(
        "SELECT max(seq), string_agg(int8send(seq) || substr(vector_send(embedding), 5), '' ORDER BY seq) FROM "
        "(SELECT seq, embedding FROM {} WHERE seq > %(low)s AND seq <= %(high)s ORDER BY seq LIMIT %(page)s) AS page"
    ).format(tables.embeddings(number))
    row = np.dtype([("seq", ">i8"), ("value", ">f4", (dimension,))])
    seqs, codes, scales = (
        [np.empty(0, np.int64)],
        [np.empty((0, dimension), np.int8)],
        [np.empty(0, np.float32)],
    )
    while True:
        ((last, page),) = await connection.fetch(query.as_bytes(connection), {**parameters, "page": _PAGE})
        if last is None:
            break
        parameters["low"] = last
        found = np.frombuffer(page, row)
        seqs.append(found["seq"].astype(np.int64))
        steps, step = shortlist.encode(found["value"].astype(np.float32))
        codes.append(steps)
        scales.append(step)
    # What was deleted between the two statements is in one of them only.
    both, here, there = np.intersect1d(
        sketched["seq"].astype(np.int64), np.concatenate(seqs), assume_unique=True, return_indices=True
    )
    return shortlist.hold(
        both,
        sketched["value"][here],
        np.concatenate(codes)[there],
        np.concatenate(scales)[there],
        entry.sketch,
    )


def _recall(entry: Entry, held: Held) -> float:
    """Return which part of the ten nearest the candidates of an ordinary query hold."""
    dimension = held.codes.shape[1]
    widths = Widths(*_widths(entry, np.empty(dimension, np.float32), configured(entry), 10))
    return shortlist.recall(held, entry.sketch, widths)


def _widths(entry: Entry, embedding: Float32Matrix, ef_search: int, count: int) -> tuple[int, int]:
    """Return how many the second look leaves, and how many PostgreSQL compares."""
    thoroughness = _PER_EF * max(1.0, _PER_EF_BITS / (entry.sketch * len(embedding)))
    left = max(int(ef_search * _LEFT_PER_EF), _PER_RESULT * count, _LEAST)
    return max(min(int(thoroughness * ef_search), _MOST_SECOND), 2 * left), min(left, _MOST_LEFT)
