"""The vector indexes of a collection, as the catalog knows them."""

from dataclasses import dataclass
from uuid import UUID

from pgchroma.store.connection import Connection


@dataclass(frozen=True, slots=True)
class Segment:
    """One vector index: it covers vectors with low < seq <= high."""

    low: int
    high: int
    index_name: str
    rows: int = 0


async def load(connection: Connection, collection_id: UUID) -> list[Segment]:
    """Return a collection's vector indexes, oldest vectors first, without a gap between them.

    What lies behind a gap counts as tail: a query must never leave out vectors because an index over them was lost.
    """
    cursor = await connection.execute(
        "SELECT low_seq, high_seq, index_name, row_count FROM pgchroma.index_segments WHERE collection_id = %s ORDER BY high_seq",
        [collection_id],
    )
    found: list[Segment] = []
    for row in await cursor.fetchall():
        segment = Segment(*row)
        if segment.low != watermark(found):
            break
        found.append(segment)
    return found


def watermark(found: list[Segment]) -> int:
    """Return the highest vector number that an index covers; 0 without one."""
    return found[-1].high if found else 0
