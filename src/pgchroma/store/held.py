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
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TypeAlias

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
# How many are compared exactly: by the bits per dimension of the sketches so many times ef_search, and so many per result.
_PER_EF = {1: 2.5, 2: 1.5, 3: 1.5}
_PER_RESULT = 5
_LEAST = 100
# With more the statement takes longer than the walk.
_MOST_COMPARED = 1_500
# Rows looked at in one go, so that what lies in between stays in the processor's cache.
_BLOCK = 8_192
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
        compared = max(int(_PER_EF[entry.sketch] * ef_search), _PER_RESULT * count, _LEAST)
        if compared > _MOST_COMPARED:
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
        return _best(parts, embedding, entry.sketch, compared, count)

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
    chosen = _first(len(embedding), bits)
    distances = [_first_distances(part.first, query[chosen]) for part in parts]
    if bits == 3:
        rows = sum(len(part.seqs) for part in parts)
        wanted = max(_FIRST_PER_COMPARED * compared, int(rows * _FIRST_SHARE))
        survivors = _nearest(distances, wanted)
        distances = [
            np.bitwise_count(part.whole[places] ^ query).sum(axis=1, dtype=np.uint16)
            for part, places in zip(parts, survivors, strict=True)
        ]
        found = [places[near] for places, near in zip(survivors, _nearest(distances, compared), strict=True)]
    else:
        found = _nearest(distances, compared)
    seqs = [part.seqs[places] for part, places in zip(parts, found, strict=True)]
    return np.concatenate([*seqs, *(part.zero[:count] for part in parts)])


def _first_distances(first: Words, query: Words) -> NDArray[np.uint16]:
    """Return in how many bits the query differs from each column of `first`."""
    rows = first.shape[1]
    distances = np.empty(rows, np.uint16)
    column = query[:, None]
    for start in range(0, rows, _BLOCK):
        block = first[:, start : start + _BLOCK]
        np.add.reduce(
            np.bitwise_count(block ^ column), axis=0, dtype=np.uint16, out=distances[start : start + _BLOCK]
        )
    return distances


def _nearest(distances: Sequence[NDArray[np.uint16]], wanted: int) -> list[NDArray[np.intp]]:
    """Return the places of the `wanted` smallest over all arrays, array by array; of equal ones the first."""
    counts = np.bincount(distances[0])
    for others in distances[1:]:
        more = np.bincount(others, minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    sums = counts.cumsum()
    bound = int(np.searchsorted(sums, wanted))
    # Of those at the bound only some may be wanted; there may be many, where embeddings are alike.
    left = wanted - (int(sums[bound - 1]) if bound else 0)
    found = []
    for values in distances:
        places = np.flatnonzero(values <= bound)
        at_bound = np.flatnonzero(values[places] == bound)
        if len(at_bound) > left:
            places = np.delete(places, at_bound[left:])
        left -= min(len(at_bound), left)
        found.append(places)
    return found
