"""Searches among all records: by what is held in memory of the collection's vectors, else by its indexes, else by comparing each."""

from collections.abc import Iterator, Sequence
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
from pgchroma.store.segments import Segment
from pgchroma.types import Float32Matrix

# More than are asked for, and one more for so many, in case that some are gone.
_SPARE, _SPARE_PER = 1, 10


async def unfiltered(
    connection: Connection, entry: Entry, embeddings: Float32Matrix, count: int, wanted: Wanted
) -> list[list[Row]]:
    """Return, for each of `embeddings`, the nearest of all records."""
    if not count:
        return [[] for _ in embeddings]
    indexed = [
        place
        for place, embedding in enumerate(embeddings)
        if entry.vectors and count <= kinds.MAX_EF_SEARCH and not is_anywhere(entry, embedding)
    ]
    found: dict[int, list[Row]] = {}
    # First as few as can be, then, where some of these are gone, as many as are enough after deletions.
    gone = indexed
    for spare in (_fewest(count), None):
        gone = await _in_memory(connection, entry, embeddings, gone, count, wanted, spare, found)
    for place, embedding in enumerate(embeddings):
        if place not in found:
            segments = entry.vectors if place in indexed else []
            found[place] = await _in_postgresql(connection, entry, embedding, segments, count, wanted)
            if segments and len(found[place]) < count:
                # A walk does not leave many equal vectors, which are neighbours of each other alone; deleted ones neither, until the
                # table is vacuumed. Whether there are so few records at all only a look at each tells.
                found[place] = await _in_postgresql(connection, entry, embedding, [], count, wanted)
            if place in gone and found[place]:
                # The entry is current, so it was deletions that left too few of the candidates.
                connection.sketches.forget(entry)
    return [found[place] for place in range(len(embeddings))]


async def _in_memory(
    connection: Connection,
    entry: Entry,
    embeddings: Float32Matrix,
    places: list[int],
    count: int,
    wanted: Wanted,
    spare: int | None,
    found: dict[int, list[Row]],
) -> list[int]:
    """Find the nearest to the embeddings at some places among candidates held in memory, in one journey.

    Args:
        spare: see SketchMemory.candidates.
        found: takes in the answers, by place.

    Returns:
        The places where too many of the candidates are gone, or the entry is out of date; none where nothing is held.
    """
    memory = connection.sketches
    if memory is None or not places:
        return []
    least: dict[int, float] = {}

    def parameters() -> Iterator[dict[str, Any]]:
        for place in places:
            embedding = embeddings[place]
            candidates = memory.candidates(entry, embedding, configured(entry), count, spare=spare)
            if candidates is None:
                return
            least[place] = LEAST_FOUND * len(candidates) if spare is None else len(candidates) - spare
            yield {"q": embedding, "candidates": Numbers(candidates), **entry.parameters}

    answers = await connection.fetch_each(_among(connection, entry, count, wanted), parameters())
    found |= {
        place: [row[:-1] for row in rows]
        for place, rows in zip(least, answers, strict=True)
        if rows and rows[0][-1] >= least[place]
    }
    return [place for place in least if place not in found]


async def _in_postgresql(
    connection: Connection,
    entry: Entry,
    embedding: Float32Matrix,
    segments: Sequence[Segment],
    count: int,
    wanted: Wanted,
) -> list[Row]:
    """Return the nearest by the indexes of segments and what these do not cover; by comparing each record where there are none."""
    key = ("query", wanted.include, count, bool(segments))
    query = entry.statements.get(key)
    if query is None:
        query = statement(connection, entry, nearest.unfiltered(entry.collection, segments, count), wanted)
        entry.statements[key] = query
    parameters = {"q": embedding, **entry.parameters}
    if segments:
        await prepare_indexes(connection, entry, ef_search_of(entry, count))
        quantisations = {segment.quantisation for segment in segments}
        parameters |= kinds.parameters(quantisations, entry.collection.space, embedding)
    return await connection.fetch(query, parameters)


def _fewest(count: int) -> int:
    return _SPARE + count // _SPARE_PER


def _among(connection: Connection, entry: Entry, count: int, wanted: Wanted) -> bytes:
    """Return the statement for the nearest of candidates and tail."""
    key = ("among", wanted.include, count)
    query = entry.statements.get(key)
    if query is None:
        found = nearest.among(entry.collection, entry.vectors, count)
        query = entry.statements[key] = statement(connection, entry, found, wanted, counts=("found",))
    return query
