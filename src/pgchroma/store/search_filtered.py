"""Searches among the records that a filter selects: which statement one needs, and which to try next when one found too little."""

import hashlib
from dataclasses import dataclass
from typing import Any

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
from pgchroma.types import Float32Matrix

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
    collection = entry.collection
    chosen = sql.SQL("{} AND {}").format(matching.chosen, sql.SQL(GUARD))
    parameters = {**matching.parameters, **entry.parameters, "q": embedding, "k": count}
    shape = (wanted.include, count, _digest(chosen.as_bytes(connection)))
    rows = await _matching_among(connection, entry, embedding, count, chosen, shape, parameters, wanted)
    if rows is not None:
        return rows
    rows = await _by_memory(connection, entry, embedding, count, matching, chosen, shape, parameters, wanted)
    if rows is not None:
        return rows
    by_sketch = False
    if not is_anywhere(entry, embedding):
        if await _pays_to_walk(connection, entry, count, chosen, parameters):
            rows = await _walk(connection, entry, embedding, count, chosen, parameters, wanted)
            if len(rows) == count:
                return rows
        if entry.sketch:
            sketch = sketches.encode(embedding[None], entry.sketch)[0]
            parameters["q_sketch"] = Bit(np.unpackbits(sketch)[: embedding.size * entry.sketch])
            least, per_result = _COMPARED[entry.sketch]
            more = min(entry.rows // _RECORDS_PER_COMPARED, _MOST_COMPARED)
            parameters["compared"] = max(least + more, per_result * count)
            by_sketch = True
    # Texts of statements are dear to make; filters of the same shape have the same.
    key = (by_sketch, *shape, _digest(matching.source.as_bytes(connection)))
    query = entry.statements.get(key)
    if query is None:
        choose = nearest.sketched if by_sketch else nearest.exact
        query = statement(connection, entry, choose(collection, matching.source, chosen), wanted)
        _remember(entry, key, query)
    return await connection.fetch(query, parameters, prepare=False)


def _digest(text: bytes) -> bytes:
    """Return what stands for a text in keys that are kept by the thousand."""
    return hashlib.blake2b(text, digest_size=16).digest()


def _remember(entry: Entry, key: object, query: bytes) -> None:
    if not wire.is_lasting(query):
        return
    if len(entry.statements) >= _MOST_STATEMENTS:
        entry.statements.clear()
    entry.statements[key] = query


async def _matching_among(
    connection: Connection,
    entry: Entry,
    embedding: Float32Matrix,
    count: int,
    chosen: sql.Composed,
    shape: object,
    parameters: dict[str, Any],
    wanted: Wanted,
) -> list[Row] | None:
    """Return the nearest matches among some hundred candidates chosen by sketches in memory.

    None where too few of the candidates match, as with most filters: a filter's shape that was found so is not tried for a while.
    """
    memory = connection.sketches
    if memory is None or not entry.vectors or is_anywhere(entry, embedding):
        return None
    if not memory.is_hopeful(key := (entry.identity, shape)):
        return None
    candidates = memory.candidates(entry, embedding, _BROADER * configured(entry), count)
    if candidates is None:
        return None
    query = entry.statements.get(shape)
    if query is None:
        found = nearest.matching_among(entry.collection, entry.vectors, chosen, count)
        query = statement(connection, entry, found, wanted, counts=("found", "matched"))
        _remember(entry, shape, query)
    rows = await connection.fetch(query, {**parameters, "candidates": Numbers(candidates)})
    if len(rows) == count and rows[0][-2] < LEAST_FOUND * len(candidates):
        memory.forget(entry)
    elif len(rows) == count and rows[0][-1] >= max(_LEAST_MATCHING * len(candidates), _PER_RESULT * count):
        memory.learn(key, 1)
        return [row[:-2] for row in rows]
    memory.learn(key, -1)
    return None


async def _by_memory(
    connection: Connection,
    entry: Entry,
    embedding: Float32Matrix,
    count: int,
    matching: Matching,
    chosen: sql.Composed,
    shape: object,
    parameters: dict[str, Any],
    wanted: Wanted,
) -> list[Row] | None:
    """Return the nearest matches: PostgreSQL tells which match, memory which of them may be nearest, PostgreSQL how near they are.

    None where not everything is held, or the collection has changed in between.
    """
    memory = connection.sketches
    if memory is None or is_anywhere(entry, embedding) or not memory.holds(entry):
        return None
    numbered = ("numbers", _digest(matching.source.as_bytes(connection)), shape)
    values = repr(matching.parameters)
    noted = (entry.identity, entry.revision, numbered, values) if len(values) <= _LONGEST_VALUES else None
    # What matched in this very snapshot still does: nothing at all has been written since.
    known = memory.recall(noted)
    if known is not None:
        before, seqs = known
        rows = await _compare(
            connection, entry, embedding, count, before, seqs, chosen, shape, parameters, wanted
        )
        if rows is not None:
            return rows
    query = entry.statements.get(numbered)
    if query is None:
        query = nearest.numbers(matching.source, chosen).as_bytes(connection)
        _remember(entry, numbered, query)
    ((snapshot, numbers),) = await connection.fetch(query, parameters, prepare=False)
    if numbers is None:
        return []
    seqs = np.frombuffer(numbers, ">i8").astype(np.int64)
    if noted is not None:
        memory.note(noted, snapshot, seqs)
    return await _compare(connection, entry, embedding, count, "", seqs, chosen, shape, parameters, wanted)


async def _compare(
    connection: Connection,
    entry: Entry,
    embedding: Float32Matrix,
    count: int,
    snapshot: str,
    seqs: Seqs,
    chosen: sql.Composed,
    shape: object,
    parameters: dict[str, Any],
    wanted: Wanted,
) -> list[Row] | None:
    """Return the nearest of the vectors with these numbers; None where something has changed, or they are too many."""
    candidates = connection.sketches.among(entry, seqs, embedding, configured(entry), count)
    if candidates is None or len(candidates) > _MOST_COMPARED:
        return None
    compared = ("compare", shape)
    query = entry.statements.get(compared)
    if query is None:
        query = statement(connection, entry, nearest.matching_these(entry.collection, chosen, count), wanted)
        _remember(entry, compared, query)
    # Its plan is the same for all values: from the candidates to their records.
    rows = await connection.fetch(
        query, {**parameters, "candidates": Numbers(candidates), "snapshot": snapshot}
    )
    return rows if len(rows) == min(count, len(seqs)) else None


async def _pays_to_walk(
    connection: Connection, entry: Entry, count: int, chosen: sql.Composed, parameters: dict[str, Any]
) -> bool:
    """Estimate from a sample of the records whether the matches are too many to look at each."""
    if not entry.vectors or count > _MOST_WALKED or entry.rows <= _FEW_MATCHES or not entry.pages:
        return False
    query = sql.SQL(
        "SELECT count(*), count(*) FILTER (WHERE {}) FROM {} AS record TABLESAMPLE SYSTEM ({})"
    ).format(
        chosen,
        tables.records(entry.collection.table_number or 0),
        sql.Literal(min(100.0, 100.0 * _SAMPLED_PAGES / entry.pages)),
    )
    cursor = await connection.execute(query, parameters, prepare=False)
    row = await cursor.fetchone()
    seen, matching = row or (0, 0)
    share = matching / seen if seen else 0.0
    return share >= _WORTH_WALKING and share * entry.rows > _FEW_MATCHES


async def _walk(
    connection: Connection,
    entry: Entry,
    embedding: Float32Matrix,
    count: int,
    chosen: sql.Composed,
    parameters: dict[str, Any],
    wanted: Wanted,
) -> list[Row]:
    await prepare_indexes(connection, entry, max(_WALK_EF_SEARCH, ef_search_of(entry, 2 * count)))
    quantisations = {segment.quantisation for segment in entry.vectors}
    parameters = parameters | kinds.parameters(quantisations, entry.collection.space, embedding)
    found = nearest.walking(
        entry.collection, entry.vectors, chosen, count, kept=max(4 * count, 60), looked_at=5_000
    )
    return await connection.fetch(statement(connection, entry, found, wanted), parameters, prepare=False)
