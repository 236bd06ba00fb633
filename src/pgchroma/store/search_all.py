"""Searches among all records: by what is held in memory of the collection's vectors, else by its indexes, else by comparing each."""

from collections.abc import Iterator
from typing import Any

from pgchroma.store import kinds, nearest
from pgchroma.store.adapting import Numbers
from pgchroma.store.connection import Connection, Row
from pgchroma.store.entries import Entry
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

# More than are asked for, and one more for so many, in case that some are gone.
_SPARE, _SPARE_PER = 1, 10


async def unfiltered(
    connection: Connection, entry: Entry, embeddings: Float32Matrix, count: int, wanted: Wanted
) -> list[list[Row]]:
    """Return, for each of `embeddings`, the nearest of all records."""
    if not count:
        return [[] for _ in embeddings]
    found: list[list[Row] | None] = [None] * len(embeddings)
    if len(embeddings) > 1:
        found = await _all_among(connection, entry, embeddings, count, wanted)
    return [
        await _unfiltered_one(connection, entry, embedding, count, wanted) if rows is None else rows
        for embedding, rows in zip(embeddings, found, strict=True)
    ]


async def _unfiltered_one(
    connection: Connection, entry: Entry, embedding: Float32Matrix, count: int, wanted: Wanted
) -> list[Row]:
    exactly = count > kinds.MAX_EF_SEARCH or is_anywhere(entry, embedding)
    indexed = [] if exactly else entry.vectors
    candidates = None
    if indexed and connection.sketches is not None:
        # First as few as can be, then, where some of these are gone, as many as are enough after deletions.
        for spare in (_fewest(count), None):
            candidates = connection.sketches.candidates(
                entry, embedding, configured(entry), count, spare=spare
            )
            if candidates is None:
                break
            parameters = _among_parameters(entry, embedding, candidates)
            rows = _enough(
                await connection.fetch(_among(connection, entry, count, wanted), parameters),
                LEAST_FOUND * len(candidates) if spare is None else len(candidates) - spare,
            )
            if rows is not None:
                return rows
    key = ("query", wanted.include, count, bool(indexed))
    query = entry.statements.get(key)
    if query is None:
        query = statement(connection, entry, nearest.unfiltered(entry.collection, indexed, count), wanted)
        entry.statements[key] = query
    parameters = {"q": embedding, **entry.parameters}
    if indexed:
        await prepare_indexes(connection, entry, ef_search_of(entry, count))
        quantisations = {segment.quantisation for segment in indexed}
        parameters |= kinds.parameters(quantisations, entry.collection.space, embedding)
    rows = await connection.fetch(query, parameters)
    if candidates is not None and rows:
        # The entry is current, so it was deletions that left too few of the candidates.
        connection.sketches.forget(entry)
    return rows


async def _all_among(
    connection: Connection, entry: Entry, embeddings: Float32Matrix, count: int, wanted: Wanted
) -> list[list[Row] | None]:
    """Return the nearest to each of several embeddings by what is held in memory, in one journey; None for those it did not do for."""
    memory = connection.sketches
    suitable = memory is not None and entry.vectors and count <= kinds.MAX_EF_SEARCH and memory.holds(entry)
    places = [
        place for place, embedding in enumerate(embeddings) if suitable and not is_anywhere(entry, embedding)
    ]
    found: list[list[Row] | None] = [None] * len(embeddings)
    chosen: list[tuple[int, int]] = []

    def parameters() -> Iterator[dict[str, Any]]:
        for place in places:
            candidates = memory.candidates(
                entry, embeddings[place], configured(entry), count, spare=_fewest(count)
            )
            if candidates is not None:
                chosen.append((place, len(candidates)))
                yield _among_parameters(entry, embeddings[place], candidates)

    if places:
        answers = await connection.fetch_each(_among(connection, entry, count, wanted), parameters())
        for (place, size), rows in zip(chosen, answers, strict=True):
            found[place] = _enough(rows, size - _fewest(count))
    return found


def _fewest(count: int) -> int:
    return _SPARE + count // _SPARE_PER


def _among_parameters(entry: Entry, embedding: Float32Matrix, candidates: Seqs) -> dict[str, Any]:
    return {"q": embedding, "candidates": Numbers(candidates), **entry.parameters}


def _among(connection: Connection, entry: Entry, count: int, wanted: Wanted) -> bytes:
    """Return the statement for the nearest of candidates and tail."""
    key = ("among", wanted.include, count)
    query = entry.statements.get(key)
    if query is None:
        found = nearest.among(entry.collection, entry.vectors, count)
        query = entry.statements[key] = statement(connection, entry, found, wanted, counts=("found",))
    return query


def _enough(rows: list[Row], least: float) -> list[Row] | None:
    """Return the rows of that statement; None where fewer than `least` candidates were there, or the entry is out of date."""
    if not rows or rows[0][-1] < least:
        return None
    return [row[:-1] for row in rows]
