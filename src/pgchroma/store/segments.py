"""The indexes of a collection that are built in the background, as the catalog knows them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from uuid import UUID

from pgchroma.store.connection import Connection


@dataclass(frozen=True, slots=True)
class Segment:
    """One vector index: it covers vectors with low < seq <= high.

    Attributes:
        rows: how many it covered when it was built.
        options: what it was built with, see kinds.py.
        lists: of an IVFFlat index.
    """

    low: int
    high: int
    index_name: str
    rows: int = 0
    kind: str = "hnsw"
    quantisation: str = "none"
    options: str = ""
    lists: int | None = None


@dataclass(frozen=True, slots=True)
class RecordSegment:
    """The indexes over metadata and documents of the records with low < seq <= high.

    Attributes:
        method: how the index over documents finds substrings, `pg_trgm` or `function`; None without one.
    """

    low: int
    high: int
    metadata_index: str
    document_index: str | None = None
    method: str | None = None
    rows: int = 0


class _Range(Protocol):
    @property
    def low(self) -> int: ...

    @property
    def high(self) -> int: ...

    @property
    def rows(self) -> int: ...


AnySegment = TypeVar("AnySegment", bound=_Range)

# Both as JSON arrays, to be had in one statement with other things; `c` is the collection.
VECTORS = (
    "(SELECT json_agg(json_build_array(low_seq, high_seq, index_name, row_count, kind, quantisation, options, lists) "
    "ORDER BY high_seq) FROM pgchroma.index_segments WHERE collection_id = c.id)"
)
RECORDS = (
    "(SELECT json_agg(json_build_array(low_seq, high_seq, metadata_index, document_index, document_method, row_count) "
    "ORDER BY high_seq) FROM pgchroma.record_segments WHERE collection_id = c.id)"
)


def of_vectors(rows: Iterable[Sequence[Any]] | None) -> list[Segment]:
    """Return the segments that `VECTORS` selected."""
    return without_gap(Segment(*row) for row in rows or ())


def of_records(rows: Iterable[Sequence[Any]] | None) -> list[RecordSegment]:
    """Return the segments that `RECORDS` selected."""
    return without_gap(RecordSegment(*row) for row in rows or ())


def without_gap(segments: Iterable[AnySegment]) -> list[AnySegment]:
    """Return the segments, oldest first, up to the first gap between them.

    What lies behind a gap counts as tail: a query must never leave out what an index was lost over.
    """
    found: list[AnySegment] = []
    for segment in segments:
        if segment.low != watermark(found):
            break
        found.append(segment)
    return found


async def load(connection: Connection, collection_id: UUID) -> list[Segment]:
    """Return a collection's vector indexes, oldest vectors first, without a gap between them."""
    return (await load_both(connection, collection_id))[0]


async def load_both(connection: Connection, collection_id: UUID) -> tuple[list[Segment], list[RecordSegment]]:
    """Return a collection's indexes over vectors and over records, without a gap between them."""
    cursor = await connection.execute(
        f"SELECT {VECTORS}, {RECORDS} FROM pgchroma.collections c WHERE c.id = %s",  # noqa: S608 - both are constants
        [collection_id],
    )
    row = await cursor.fetchone()
    return (of_vectors(row[0]), of_records(row[1])) if row else ([], [])


def watermark(found: Sequence[_Range]) -> int:
    """Return the highest number that an index covers; 0 without one."""
    return found[-1].high if found else 0


def absorb(found: Sequence[_Range], rows: int) -> int:
    """Return where a new segment of `rows` should begin: it takes along the newest ones, those no more than twice as large."""
    low = watermark(found)
    for segment in reversed(found):
        if segment.rows > 2 * rows:
            break
        low = segment.low
        rows += segment.rows
    return low
