"""Searches among the records that a filter selects: which statement one needs, and which to try next when one found too little."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, LiteralString

import numpy as np
from pgvector import Bit
from psycopg import sql

from pgchroma.store import kinds, nearest, sketches, tables, wire
from pgchroma.store.adapting import Numbers
from pgchroma.store.connection import Connection, Row
from pgchroma.store.entries import GUARD, Entry
from pgchroma.store.search_basis import (
    LEAST_FOUND,
    Wanted,
    configured,
    ef_search_of,
    is_anywhere,
    prepare_indexes,
    statement,
)
from pgchroma.store.shortlist import Seqs
from pgchroma.types import Collection, Float32Matrix

# Up to so many matches it is cheapest to look at the sketch of each; about as long as a walk through an index takes at worst.
_FEW_MATCHES = 40_000
# Pages that a sample of a large collection reads, and the least share of it that pays a walk through the indexes.
_SAMPLED_PAGES = 60
_WORTH_WALKING = 0.04
_WALK_EF_SEARCH = 400
# Of the best by sketch so many are compared exactly, at least and per result, by the bits per dimension that sketches have, and one
# more for so many records: where a filter selects thousands that are all about as far from the query, sketches tell them apart poorly.
_COMPARED = {1: (900, 40), 2: (650, 25), 3: (450, 15)}
_RECORDS_PER_COMPARED = 400
_MOST_COMPARED = 2_000
# With a filter so many times as many are chosen; this share of them must match, and so many per result.
_BROADER, _LEAST_MATCHING, _PER_RESULT = 4, 1 / 6, 3
# Filters with longer values are not worth remembering.
_LONGEST_VALUES = 2_000
# Texts of statements that an entry keeps; filters of many shapes would make it grow for ever.
_MOST_STATEMENTS = 200
# Without indexes by which to walk, more than so many results are compared exactly.
_MOST_WALKED = 200


@dataclass(frozen=True, slots=True)
class Matching:
    """What a filter selects.

    Attributes:
        source: where records are selected from, see where.py.
        chosen: the condition over `record`.
        parameters: what both refer to.
    """

    source: sql.Composable
    chosen: sql.Composed
    parameters: dict[str, Any]


async def filtered(
    connection: Connection,
    entry: Entry,
    embedding: Float32Matrix,
    count: int,
    matching: Matching,
    wanted: Wanted,
) -> list[Row]:
    """Return the nearest of the records that a filter selects."""
    if not count:
        return []
    chosen = sql.SQL("{} AND {}").format(matching.chosen, sql.SQL(GUARD))
    return await _Search(
        connection,
        entry,
        embedding,
        count,
        wanted,
        matching,
        chosen,
        shape=(wanted.include, count, _digest(chosen.as_bytes(connection))),
        parameters={**matching.parameters, **entry.parameters, "q": embedding, "k": count},
    ).run()


def _digest(text: bytes) -> bytes:
    """Return what stands for a text in keys that are kept by the thousand."""
    return hashlib.blake2b(text, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _Search:
    """One search, and the ways in which it can be done.

    Attributes:
        embedding: float32, shape (dimension,).
        count: how many records are wanted.
        chosen: the filter's condition over `record`, `GUARD` included.
        shape: stands for all but the values: filters of the same shape have the same statements, whose texts are dear to make.
        parameters: what the statements refer to.
    """

    connection: Connection
    entry: Entry
    embedding: Float32Matrix
    count: int
    wanted: Wanted
    matching: Matching
    chosen: sql.Composed
    shape: tuple[object, ...]
    parameters: dict[str, Any]

    async def run(self) -> list[Row]:
        """Return the nearest matches, by the quickest way that finds enough."""
        if not is_anywhere(self.entry, self.embedding):
            for way in (self._matching_among, self._by_memory, self._walk):
                rows = await way()
                if rows is not None:
                    return rows
            memory = self.connection.sketches
            if self.entry.sketch and not (memory is not None and memory.misleads(self.entry)):
                return await self._sketched()
        return await self._each("exact", nearest.exact, {})

    def _statement(self, key: tuple[object, ...], make: Callable[[], bytes]) -> bytes:
        """Return the text of a statement, made where it is not remembered; `key` tells it from others of this shape."""
        statements = self.entry.statements
        key = (*key, self.shape)
        query = statements.get(key)
        if query is None:
            query = make()
            if wire.is_lasting(query):
                if len(statements) >= _MOST_STATEMENTS:
                    statements.clear()
                statements[key] = query
        return query

    def _source(self) -> bytes:
        """Return what stands for where records are selected from, in keys; not every way needs it."""
        return _digest(self.matching.source.as_bytes(self.connection))

    def _around(self, found: sql.Composed, *counts: LiteralString) -> bytes:
        return statement(self.connection, self.entry, found, self.wanted, counts=counts)

    async def _matching_among(self) -> list[Row] | None:
        """Return the nearest matches among some hundred candidates chosen by sketches in memory.

        None where too few of the candidates match, as with most filters: a filter's shape that was found so is not tried for a while.
        """
        memory, entry, count = self.connection.sketches, self.entry, self.count
        if memory is None or not entry.vectors:
            return None
        if not memory.is_hopeful(key := (entry.identity, self.shape)):
            return None
        candidates = memory.candidates(entry, self.embedding, _BROADER * configured(entry), count)
        if candidates is None:
            return None
        query = self._statement(
            ("among",),
            lambda: self._around(
                nearest.matching_among(entry.collection, entry.vectors, self.chosen, count),
                "found",
                "matched",
            ),
        )
        rows = await self.connection.fetch(query, {**self.parameters, "candidates": Numbers(candidates)})
        if len(rows) == count and rows[0][-2] < LEAST_FOUND * len(candidates):
            memory.forget(entry)
        elif len(rows) == count and rows[0][-1] >= max(
            _LEAST_MATCHING * len(candidates), _PER_RESULT * count
        ):
            memory.learn(key, 1)
            return [row[:-2] for row in rows]
        memory.learn(key, -1)
        return None

    async def _by_memory(self) -> list[Row] | None:
        """Return the nearest matches: PostgreSQL tells which match, memory which of them may be nearest, PostgreSQL how near they are.

        None where not everything is held, or the collection has changed in between.
        """
        memory, entry = self.connection.sketches, self.entry
        if memory is None or not memory.holds(entry):
            return None
        source, values = self._source(), repr(self.matching.parameters)
        noted = None
        if len(values) <= _LONGEST_VALUES:
            noted = (entry.identity, entry.revision, source, self.shape, values)
        # What matched in this very snapshot still does: nothing at all has been written since.
        known = memory.recall(noted)
        if known is not None:
            rows = await self._compare(*known)
            if rows is not None:
                return rows
        query = self._statement(
            ("numbers", source),
            lambda: nearest.numbers(self.matching.source, self.chosen).as_bytes(self.connection),
        )
        ((snapshot, numbers),) = await self.connection.fetch(query, self.parameters, prepare=False)
        if numbers is None:
            return []
        seqs = np.frombuffer(numbers, ">i8").astype(np.int64)
        if noted is not None:
            memory.note(noted, snapshot, seqs)
        return await self._compare("", seqs)

    async def _compare(self, snapshot: str, seqs: Seqs) -> list[Row] | None:
        """Return the nearest of the vectors with these numbers; None where something has changed, or they are too many."""
        entry, count = self.entry, self.count
        candidates = self.connection.sketches.among(entry, seqs, self.embedding, configured(entry), count)
        if candidates is None or len(candidates) > _MOST_COMPARED:
            return None
        query = self._statement(
            ("compare",),
            lambda: self._around(nearest.matching_these(entry.collection, self.chosen, count)),
        )
        # Its plan is the same for all values: from the candidates to their records.
        parameters = {**self.parameters, "candidates": Numbers(candidates), "snapshot": snapshot}
        rows = await self.connection.fetch(query, parameters)
        return rows if len(rows) == min(count, len(seqs)) else None

    async def _walk(self) -> list[Row] | None:
        """Return the nearest matches that a walk through the indexes finds; None where it does not pay, or finds too few."""
        entry, count = self.entry, self.count
        if not await self._pays_to_walk():
            return None
        await prepare_indexes(self.connection, entry, max(_WALK_EF_SEARCH, ef_search_of(entry, 2 * count)))
        quantisations = {segment.quantisation for segment in entry.vectors}
        parameters = self.parameters | kinds.parameters(quantisations, entry.collection.space, self.embedding)
        found = nearest.walking(
            entry.collection, entry.vectors, self.chosen, count, kept=max(4 * count, 60), looked_at=5_000
        )
        rows = await self.connection.fetch(self._around(found), parameters, prepare=False)
        return rows if len(rows) == count else None

    async def _pays_to_walk(self) -> bool:
        """Estimate from a sample of the records whether the matches are too many to look at each."""
        entry = self.entry
        if not entry.vectors or self.count > _MOST_WALKED or entry.rows <= _FEW_MATCHES or not entry.pages:
            return False
        query = sql.SQL(
            "SELECT count(*), count(*) FILTER (WHERE {}) FROM {} AS record TABLESAMPLE SYSTEM ({})"
        ).format(
            self.chosen,
            tables.records(entry.collection.table_number or 0),
            sql.Literal(min(100.0, 100.0 * _SAMPLED_PAGES / entry.pages)),
        )
        cursor = await self.connection.execute(query, self.parameters, prepare=False)
        row = await cursor.fetchone()
        seen, matching = row or (0, 0)
        share = matching / seen if seen else 0.0
        return share >= _WORTH_WALKING and share * entry.rows > _FEW_MATCHES

    async def _sketched(self) -> list[Row]:
        """Compare the best by sketch."""
        entry = self.entry
        sketch = sketches.encode(self.embedding[None], entry.sketch)[0]
        least, per_result = _COMPARED[entry.sketch]
        more = min(entry.rows // _RECORDS_PER_COMPARED, _MOST_COMPARED)
        parameters = {
            "q_sketch": Bit(np.unpackbits(sketch)[: self.embedding.size * entry.sketch]),
            "compared": max(least + more, per_result * self.count),
        }
        return await self._each("sketched", nearest.sketched, parameters)

    async def _each(
        self,
        name: str,
        choose: Callable[[Collection, sql.Composable, sql.Composed], sql.Composed],
        parameters: dict[str, Any],
    ) -> list[Row]:
        """Look at each match."""
        query = self._statement(
            (name, self._source()),
            lambda: self._around(choose(self.entry.collection, self.matching.source, self.chosen)),
        )
        return await self.connection.fetch(query, self.parameters | parameters, prepare=False)
