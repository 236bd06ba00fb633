"""The pages of a collection on their way to a sink: read, sorted by the policies and encoded ahead of the sending."""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeAlias

from pgchroma.migrate.chroma.folder import ChromaFolder
from pgchroma.migrate.model import Encode, Limits, Quarantined, Source, SourceCollection
from pgchroma.migrate.policies import Policies, Readable, movable
from pgchroma.migrate.remote.client import LARGEST_BODY_BYTES, record_bytes
from pgchroma.migrate.second import Item, SecondProcess
from pgchroma.migrate.selection import Selected
from pgchroma.store.bulk import Encoding, Prepared
from pgchroma.types import Record

# Records as `Sink.write` takes them, records put aside, position of the last of them.
Page: TypeAlias = tuple[Sequence[Record], list[Quarantined], int]
_Open: TypeAlias = Callable[[], AbstractContextManager[Readable]]


def encoded(
    source: Source,
    collection: SourceCollection,
    policies: Policies,
    limits: Limits,
    after: int,
    encode: Encode,
    second: SecondProcess | None,
) -> Iterator[Page]:
    """Yield what `movable` yields, encoded; where the source can be read from a second process, that one does it all."""
    origin = source.original if isinstance(source, Selected) else source
    if second is not None and isinstance(origin, ChromaFolder) and isinstance(encode, Encoding):
        return _from_elsewhere(second, origin.elsewhere(), collection, policies, limits, after, encode)
    pages = movable(source, collection, policies, limits, after)
    return (
        (encode(records), aside, position)
        for records, aside, position in (gathered(pages, limits.batch) if limits.batch else pages)
    )


def gathered(
    pages: Iterable[tuple[list[Record], list[Quarantined], int]], most: int
) -> Iterator[tuple[list[Record], list[Quarantined], int]]:
    """Yield the records of pages in batches filled up to `most` records or a request's body.

    A page of which something was put aside stays whole, so that this is noted with the records around it.
    """
    records: list[Record] = []
    aside: list[Quarantined] = []
    position = size = 0
    for more, others, place in pages:
        pieces = [(more, others, place)] if others else [([record], [], record.seq) for record in more]
        for some, put_aside, last in pieces:
            needed = sum(map(record_bytes, some))
            full = len(records) + len(some) > most or size + needed > LARGEST_BODY_BYTES
            if full and (records or aside):
                yield records, aside, position
                records, aside, size = [], [], 0
            records += some
            aside += put_aside
            size, position = size + needed, last
    if records or aside:
        yield records, aside, position


def _from_elsewhere(second: SecondProcess, *arguments: object) -> Generator[Page]:
    for (told, aside, position), buffers in second.run(_pages, *arguments):
        yield Prepared.of_half(told, buffers), aside, position


def _pages(
    opening: _Open,
    collection: SourceCollection,
    policies: Policies,
    limits: Limits,
    after: int,
    encode: Encoding,
) -> Iterator[Item]:
    """Run in the second process: read, sort and encode the texts; the first process has time for the vectors."""
    with opening() as source:
        for records, aside, position in movable(source, collection, policies, limits, after):
            told, buffers = encode.half(records).parts()
            yield (told, aside, position), buffers
