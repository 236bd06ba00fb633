"""What every search of a collection's records has in common: the statement around what was found, and how to search its indexes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from psycopg import sql

from pgchroma.store import kinds, tables
from pgchroma.store.connection import Connection
from pgchroma.store.entries import GUARD, Entry
from pgchroma.types import Float32Matrix, Include

# Of the candidates chosen by sketches in memory this share must still be there.
LEAST_FOUND = 0.9


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a query returns of each record.

    Attributes:
        columns: over `record`, and over `vector` where there is a join.
        join: adds the record's vector.
    """

    columns: sql.Composed
    join: sql.Composed | None
    include: Include


def statement(
    connection: Connection,
    entry: Entry,
    found: sql.Composed,
    wanted: Wanted,
    *,
    counts: Sequence[LiteralString] = (),
) -> bytes:
    """Return the statement for the columns wanted of what `found` selects, nearest first.

    Args:
        found: a statement for `record_seq`, `distance` and what `counts` names.
        counts: further columns of `found`, which come last.
    """
    number = entry.collection.table_number
    assert number is not None  # noqa: S101 - callers checked it
    return (
        sql.SQL(
            "SELECT {columns}{distance}{counts} FROM {records} AS record JOIN ({found}) AS near ON record.seq = near.record_seq {join} "
            "WHERE {guard} ORDER BY near.distance, record.seq"
        )
        .format(
            columns=wanted.columns,
            distance=sql.SQL(", near.distance" if wanted.include.distances else ""),
            counts=sql.SQL("").join(sql.SQL(f", near.{name}") for name in counts),
            found=found,
            records=tables.records(number),
            join=wanted.join or sql.SQL(""),
            guard=sql.SQL(GUARD),
        )
        .as_bytes(connection)
    )


async def set_to(connection: Connection, name: str, value: int) -> None:
    """Have a connection's setting be so, asking PostgreSQL only when it was another."""
    if connection.settings.get(name) != value:
        await connection.execute("SELECT set_config(%s, %s, false)", [name, str(value)])
        connection.settings[name] = value


async def prepare_indexes(connection: Connection, entry: Entry, ef_search: int) -> None:
    """Set how thoroughly the indexes of a collection are to be searched."""
    found = {segment.kind for segment in entry.vectors}
    if "hnsw" in found:
        await set_to(connection, "hnsw.ef_search", min(max(ef_search, 1), kinds.MAX_EF_SEARCH))
    if "ivfflat" in found:
        wanted = max(
            kinds.probes(segment.lists or 1, segment.rows, ef_search)
            for segment in entry.vectors
            if segment.kind == "ivfflat"
        )
        await set_to(connection, "ivfflat.probes", wanted)


def configured(entry: Entry) -> int:
    """Return the `ef_search` that a collection's configuration names."""
    return max(int(entry.collection.configuration["hnsw"]["ef_search"]), 1)


def ef_search_of(entry: Entry, count: int) -> int:
    """Return the `ef_search` by which a collection's indexes find `count` nearest records."""
    return max([configured(entry), *(kinds.candidates(part.quantisation, count) for part in entry.vectors)])


def is_anywhere(entry: Entry, embedding: Float32Matrix) -> bool:
    """Whether every record is about equally far: a zero vector has no direction, so neither indexes nor sketches may be asked."""
    # Where lengths differ, as in what has no sketches, it still has nearest records in l2.
    return not embedding.any() and (entry.collection.space != "l2" or bool(entry.sketch))
