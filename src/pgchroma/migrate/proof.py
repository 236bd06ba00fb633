"""The proof: both sides read again, every record hashed on both, compared one by one and in order."""

import asyncio
import itertools
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pgchroma.migrate.digest import CollectionDigest, differing_parts, record_digest
from pgchroma.migrate.model import (
    Json,
    Sink,
    Skipped,
    Source,
    SourceCollection,
    unreadable_reason,
)
from pgchroma.types import Collection, Record

# So many differences are described; beyond that they are only counted.
_DESCRIBED = 100

Advance = Callable[[int], None]


@dataclass(slots=True)
class CollectionProof:
    """What the comparison of one collection found.

    Attributes:
        digest_source, digest_target: SHA-256 (hex) over all records' digests in insertion order.
        differences: described, at most 100; `different` counts them all.
    """

    path: str
    records_source: int = 0
    records_target: int = 0
    digest_source: str = ""
    digest_target: str = ""
    different: int = 0
    differences: list[Json] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether everything that was compared is the same."""
        return not self.different and self.digest_source == self.digest_target

    def add(self, what: str, detail: str, record_id: str | None = None) -> None:
        """Note a difference."""
        self.different += 1
        if len(self.differences) < _DESCRIBED:
            self.differences.append({"what": what, "id": record_id, "detail": detail})

    def as_json(self) -> Json:
        """Return the findings for the receipt."""
        return {
            "equal": self.equal,
            "records_source": self.records_source,
            "records_target": self.records_target,
            "digest_source": self.digest_source,
            "digest_target": self.digest_target,
            "different": self.different,
            "differences": self.differences,
            "seconds": round(self.seconds, 3),
        }


def _contains(whole: Any, part: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether every member of `part` stands in `whole` with the same value; null counts as absent."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            value is None or (key in whole and _contains(whole[key], value)) for key, value in part.items()
        )
    return bool(whole == part and type(whole) is type(part))


def compare_description(source: SourceCollection, target: Collection, proof: CollectionProof) -> None:
    """Compare metadata, distance, configuration, schema and dimension of a collection."""
    typed_source = {key: (type(value), value) for key, value in (source.metadata or {}).items()}
    typed_target = {key: (type(value), value) for key, value in (target.metadata or {}).items()}
    if typed_source != typed_target:
        proof.add("collection metadata", f"{source.metadata} in the source, {target.metadata} in the target")
    if source.space != target.space:
        proof.add("distance", f"{source.space} in the source, {target.space} in the target")
    if source.dimension != target.dimension:
        proof.add("dimension", f"{source.dimension} in the source, {target.dimension} in the target")
    # The server shows only some of the parameters in its configuration; the rest stands in the schema.
    shown = {
        key: value
        for key, value in source.configuration["hnsw"].items()
        if key in target.configuration["hnsw"]
    }
    if not _contains(target.configuration["hnsw"], shown):
        proof.add("configuration", f"{shown} in the source, {target.configuration['hnsw']} in the target")
    if not _contains(
        target.configuration, {"embedding_function": source.configuration.get("embedding_function")}
    ):
        proof.add("configuration", "the embedding function differs")
    if source.schema and not _contains(target.schema, source.schema):
        keys = [
            key
            for key, entry in (source.schema.get("keys") or {}).items()
            if not _contains((target.schema.get("keys") or {}).get(key), entry)
        ]
        proof.add("schema", f"entries that differ: {', '.join(keys) or 'defaults'}")


class _Matcher:
    """Pairs the records of two streams by id, holding back only those whose partner has not come yet."""

    def __init__(self, proof: CollectionProof) -> None:
        self._proof = proof
        self._source: dict[str, tuple[int, Record, bytes]] = {}
        self._target: dict[str, tuple[int, Record, bytes]] = {}
        self._moved: list[str] = []

    def feed(
        self, place: int, source: tuple[Record, bytes] | None, target: tuple[Record, bytes] | None
    ) -> None:
        """Take in the records at one place of both streams; None where a stream has ended."""
        if source and target and source[0].id == target[0].id:
            self._compare(source, target)
            return
        if source:
            self._pair(place, source, self._source, self._target)
        if target:
            self._pair(place, target, self._target, self._source)

    def _pair(
        self,
        place: int,
        arrived: tuple[Record, bytes],
        own: dict[str, tuple[int, Record, bytes]],
        others: dict[str, tuple[int, Record, bytes]],
    ) -> None:
        partner = others.pop(arrived[0].id, None)
        if partner is None:
            own[arrived[0].id] = (place, *arrived)
            return
        if partner[0] != place:
            self._moved.append(arrived[0].id)
        pair = (arrived, partner[1:])
        self._compare(*(pair if own is self._source else pair[::-1]))

    def _compare(self, source: tuple[Record, bytes], target: tuple[Record, bytes]) -> None:
        if source[1] != target[1]:
            parts = differing_parts(source[0], target[0])
            self._proof.add("record", "; ".join(parts) or "digest", source[0].id)

    def finish(self) -> None:
        """Note what found no partner, and what stands elsewhere."""
        for name in self._source:
            self._proof.add("missing", "in the source, not in the target", name)
        for name in self._target:
            self._proof.add("extra", "in the target, not in the source", name)
        # Records after a missing or extra one stand elsewhere only because of it.
        if not self._source and not self._target:
            for name in self._moved:
                self._proof.add("order", "at another place in the insertion order", name)


def _digests(records: list[Record]) -> list[bytes]:
    return [record_digest(record) for record in records]


async def _digested(
    pages: AsyncGenerator[list[Record]], total: CollectionDigest
) -> AsyncGenerator[tuple[Record, bytes]]:
    async with aclosing(pages):
        async for page in pages:
            digests = await asyncio.to_thread(_digests, page)
            total.add(digests)
            for pair in zip(page, digests, strict=True):
                yield pair


async def in_thread(pages: Iterator[list[Record]]) -> AsyncGenerator[list[Record]]:
    """Turn a source's pages into an asynchronous iterator that reads one page ahead in a thread."""
    ahead = asyncio.create_task(asyncio.to_thread(next, pages, None))
    try:
        while (page := await ahead) is not None:
            ahead = asyncio.create_task(asyncio.to_thread(next, pages, None))
            yield page
    finally:
        # The thread must be out of the source before anyone closes it.
        await asyncio.gather(ahead, return_exceptions=True)


async def prove(
    source: Source,
    collection: SourceCollection,
    sink: Sink,
    target: Collection | None,
    advance: Advance | None = None,
) -> CollectionProof:
    """Compare one collection, record by record.

    Records that cannot be moved are listed as skipped and must not be in the target.

    Args:
        advance: called with the number of source records that were compared since the last call.
    """
    started = time.monotonic()
    proof = CollectionProof(collection.path)
    if target is None:
        proof.add("collection", "not in the target")
        proof.records_source = collection.count
        return proof
    compare_description(collection, target, proof)

    left, right = CollectionDigest(), CollectionDigest()
    matcher = _Matcher(proof)
    async with (
        aclosing(_digested(_movable(source, collection, proof, advance), left)) as sources,
        aclosing(_digested(sink.records(target), right)) as targets,
    ):
        for place in itertools.count():
            one, other = await anext(sources, None), await anext(targets, None)
            if one is None and other is None:
                break
            matcher.feed(place, one, other)
    matcher.finish()
    proof.records_source, proof.records_target = left.count, right.count
    proof.digest_source, proof.digest_target = left.hexdigest(), right.hexdigest()
    proof.seconds = time.monotonic() - started
    return proof


async def _movable(
    source: Source, collection: SourceCollection, proof: CollectionProof, advance: Advance | None
) -> AsyncGenerator[list[Record]]:
    async with aclosing(in_thread(source.records(collection))) as pages:
        async for page in pages:
            kept = []
            for record in page:
                reason = unreadable_reason(record, collection.dimension)
                if reason:
                    proof.skipped.append(Skipped(collection.path, record.id, reason))
                else:
                    kept.append(record)
            if advance:
                advance(len(page))
            yield kept


async def target_digest(sink: Sink, target: Collection, advance: Advance | None = None) -> tuple[str, int]:
    """Return (digest, number of records) of a target collection alone, to compare with a receipt."""
    total = CollectionDigest()
    async for page in sink.records(target):
        total.add(record_digest(record) for record in page)
        if advance:
            advance(len(page))
    return total.hexdigest(), total.count
