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
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql

from pgchroma.errors import PgchromaError
from pgchroma.store import barrier, sketches, tables
from pgchroma.store.connection import Connection
from pgchroma.store.entries import Entry
from pgchroma.store.segments import Segment
from pgchroma.types import Float32Matrix

logger = logging.getLogger("pgchroma.store")

Words: TypeAlias = NDArray[np.uint64]
Seqs: TypeAlias = NDArray[np.int64]
Lend: TypeAlias = Callable[[], AbstractAsyncContextManager[Connection]]
_Key: TypeAlias = tuple[str, str]

# Queries of a segment after which it is worth to read its sketches.
_USES = 8
# Words of 64 bits that a query looks at, at most; more take longer than the walk through an index that they spare.
_MOST_WORDS = 1_000_000
# Where sketches have a middle threshold its bits alone choose this many times as many as are compared exactly, or this share of all.
_FIRST_PER_COMPARED = 7
_FIRST_SHARE = 1 / 30
# How many are compared exactly: so many times ef_search, more where sketches are shorter than so many bits, and so many per result.
_PER_EF, _PER_EF_BITS = 1.5, 1_152
_PER_RESULT = 5
_LEAST = 100
# With more the statement takes longer than the walk.
_MOST_COMPARED = 1_500
# After so many failures a way is not tried, until it would have been this many times.
_HOPE, _HOPELESS = 2, 100
_MOST_HOPES = 10_000
# Rows looked at in one go, so that what lies in between stays in the processor's cache.
_BLOCK = 16_384
_PAUSE_SECONDS = 0.05
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Held:
    """The sketches of one segment.

    Attributes:
        seqs: numbers of the vectors, shape (n,).
        whole: their sketches, shape (n, words).
        first: the words of the bits that say most, shape (words of these, n); all of them where no threshold is in the middle.
        zero: numbers of the vectors without a direction, which no sketch can tell from others.
    """

    seqs: Seqs
    whole: Words
    first: Words
    zero: Seqs

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return self.seqs.nbytes + self.whole.nbytes + self.first.nbytes + self.zero.nbytes


def _words(packed: NDArray[np.uint8]) -> Words:
    """Return sketches as words of 64 bits, shape (n, words); what is missing of the last one is zero."""
    count, size = packed.shape
    padded = np.zeros((count, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = packed
    return padded.view(np.uint64)


def _first(dimension: int, bits: int) -> slice:
    """Return which words hold the bits of the middle threshold, which halves the coordinates; all where there is none."""
    if bits != 3:
        return slice(None)
    return slice(dimension // 64, -(-2 * dimension // 64))


class SketchMemory:
    """The sketches that this process holds, up to a number of bytes; those used last are kept."""

    def __init__(self, lend: Lend, most_bytes: int) -> None:
        self._lend = lend
        self._most_bytes = most_bytes
        self._held: OrderedDict[_Key, Held] = OrderedDict()
        self._bytes = 0
        self._hopes: dict[Hashable, int] = {}
        self._uses: OrderedDict[_Key, int] = OrderedDict()
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

    def candidates(self, entry: Entry, embedding: Float32Matrix, ef_search: int, count: int) -> Seqs | None:
        """Return the numbers of the indexed vectors that may be among the `count` nearest, in no order.

        Args:
            embedding: shape (dimension,), not zero.
            ef_search: how thoroughly to look, as for HNSW.

        Returns:
            None where an index has to be asked: sketches are not held yet, cannot be had, or would take longer.
        """
        if not self._suits(entry):
            return None
        thoroughness = _PER_EF * max(1.0, _PER_EF_BITS / (entry.sketch * len(embedding)))
        if _PER_RESULT * count > _MOST_COMPARED:
            return None
        compared = max(min(int(thoroughness * ef_search), _MOST_COMPARED), _PER_RESULT * count, _LEAST)
        parts = []
        for segment in entry.vectors:
            key = (entry.identity, segment.index_name)
            held = self._held.get(key)
            if held is None:
                self._miss(key, entry)
                return None
            self._held.move_to_end(key)
            parts.append(held)
        return _best(parts, embedding, entry.sketch, compared, count)

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

    def forget(self, entry: Entry) -> None:
        """Drop what is held of a collection, because much of it has been deleted; the next queries have it read again."""
        for segment in entry.vectors:
            held = self._held.pop((entry.identity, segment.index_name), None)
            self._bytes -= held.size if held is not None else 0

    def _suits(self, entry: Entry) -> bool:
        if not entry.sketch or not self._most_bytes:
            return False
        words = -(-(entry.collection.dimension or 0) * (1 if entry.sketch == 3 else entry.sketch) // 64)
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
            async with self._lend() as connection:
                await _wait_for_writers(connection)
                for segment in missing:
                    held = await _read(connection, entry, segment)
                    if held is not None:
                        self._keep((entry.identity, segment.index_name), held)
        except (PgchromaError, psycopg.Error) as error:
            # The queries say so themselves where it concerns them.
            logger.info("sketches of %s are not held: %s", entry.collection.path, error)

    def _keep(self, key: _Key, held: Held) -> None:
        if held.size > self._most_bytes:
            return
        self._held[key] = held
        self._bytes += held.size
        while self._bytes > self._most_bytes:
            self._bytes -= self._held.popitem(last=False)[1].size


async def _wait_for_writers(connection: Connection) -> None:
    """Return when every write that is under way has ended: it may hold a number that a segment covers.

    Raises:
        PgchromaError: one takes too long.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE_SECONDS
    writers = await barrier.holders(connection)
    while writers and writers & await barrier.holders(connection):
        if loop.time() > deadline:
            raise PgchromaError("a write that is under way takes long")
        await asyncio.sleep(_PAUSE_SECONDS)


async def _read(connection: Connection, entry: Entry, segment: Segment) -> Held | None:
    """Return the sketches of a segment; None where some have none."""
    number, dimension = entry.collection.table_number, entry.collection.dimension
    if number is None or dimension is None:
        return None
    size = -(-dimension * entry.sketch // 8)
    row = np.dtype([("seq", ">i8"), ("sketch", np.uint8, (size,))])
    query = sql.SQL(
        # bit_send() begins with the number of bits.
        "SELECT count(*), count(sketch), string_agg(int8send(vseq) || substr(bit_send(sketch), 5), '') FROM {} "
        "WHERE vseq > %(low)s AND vseq <= %(high)s GROUP BY vseq >> 13"
    ).format(tables.records(number))
    parameters = {"low": segment.low, "high": segment.high}
    parts = await connection.fetch(query.as_bytes(connection), parameters, prepare=False)
    if any(rows != sketched for rows, sketched, _ in parts):
        return None
    found = np.frombuffer(b"".join(part for _, _, part in parts), row)
    seqs = found["seq"].astype(np.int64)
    whole = _words(found["sketch"])
    first = np.ascontiguousarray(whole[:, _first(dimension, entry.sketch)].T)
    return Held(seqs, whole, first, np.sort(seqs[~whole.any(axis=1)]))


def _best(parts: Sequence[Held], embedding: Float32Matrix, bits: int, compared: int, count: int) -> Seqs:
    query = _words(sketches.encode(embedding[None], bits))[0]
    chosen = query[_first(len(embedding), bits)]
    distances = _together([_distances_by_column(part.first, chosen) for part in parts])
    wanted = (
        compared if bits != 3 else max(_FIRST_PER_COMPARED * compared, int(len(distances) * _FIRST_SHARE))
    )
    places = _nearest(distances, wanted)
    if bits == 3:
        near = _nearest(_distances_by_row(_rows([part.whole for part in parts], places), query), compared)
        places = places[near]
    return np.concatenate(
        [_rows([part.seqs for part in parts], places), *(part.zero[:count] for part in parts)]
    )


def _together(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _rows(arrays: Sequence[NDArray[Any]], places: NDArray[np.intp]) -> NDArray[Any]:
    """Return the rows at ascending places of the arrays put one after the other."""
    if len(arrays) == 1:
        return arrays[0].take(places, axis=0)
    starts = np.cumsum([0, *map(len, arrays)])
    edges = np.searchsorted(places, starts)
    return np.concatenate(
        [
            array.take(places[low:high] - start, axis=0)
            for array, start, low, high in zip(arrays, starts, edges, edges[1:], strict=False)
        ]
    )


def _distances_by_column(columns: Words, query: Words) -> NDArray[np.uint16]:
    """Return in how many bits the query differs from each column, shape (words, n)."""
    rows = columns.shape[1]
    distances = np.empty(rows, np.uint16)
    column = query[:, None]
    for start in range(0, rows, _BLOCK):
        counts = np.bitwise_count(columns[:, start : start + _BLOCK] ^ column)
        np.add.reduce(counts, axis=0, dtype=np.uint16, out=distances[start : start + _BLOCK])
    return distances


def _distances_by_row(rows: Words, query: Words) -> NDArray[np.float32]:
    """Return in how many bits the query differs from each row, shape (n, words)."""
    # The quickest way to add up short rows.
    counts = np.bitwise_count(rows ^ query).astype(np.float32)
    return np.asarray(counts @ np.ones(len(query), np.float32))


def _nearest(distances: NDArray[Any], wanted: int) -> NDArray[np.intp]:
    """Return the places of the `wanted` smallest, ascending; a few more where several are equal to the last of them."""
    if len(distances) <= wanted:
        return np.arange(len(distances))
    bound = np.partition(distances, wanted - 1)[wanted - 1]
    places = np.flatnonzero(distances <= bound)
    if len(places) > 2 * wanted:
        # Embeddings that are all alike.
        nearer = np.flatnonzero(distances < bound)
        equal = np.flatnonzero(distances == bound)[: wanted - len(nearer)]
        places = np.sort(np.concatenate([nearer, equal]))
    return places
