"""The proof: both sides read again, every record hashed on both, compared one by one and in order."""

import itertools
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar, cast

import numpy as np

from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.digest import CollectionDigest, differing_parts, record_digest
from pgchroma.migrate.model import Json, Limits, Quarantined, Source, SourceCollection
from pgchroma.migrate.policies import Policies, movable
from pgchroma.migrate.second import Item as OtherItem
from pgchroma.migrate.second import SecondProcess
from pgchroma.store.snapshot import DatabaseSnapshot
from pgchroma.types import Collection, Record

# So many differences are described; beyond that they are only counted.
_DESCRIBED = 100
# Chroma keeps cosine vectors divided by their norm; multiplied again, they are the original within this part of the norm.
NORMALISED_TOLERANCE: Final = 1e-6
_AHEAD = 2
_DIGEST_BYTES = 32

Advance = Callable[[int], None]
Item = TypeVar("Item")


@dataclass(slots=True)
class CollectionProof:
    """What the comparison of one collection found.

    Attributes:
        digest_source, digest_target: SHA-256 (hex) over all records' digests in insertion order.
        tolerance: largest difference of a vector, in parts of its norm, that counts as equal; 0 means bit for bit.
        largest_error: the largest that was met.
        differences: described, at most 100; `different` counts them all.
    """

    path: str
    records_source: int = 0
    records_target: int = 0
    digest_source: str = ""
    digest_target: str = ""
    tolerance: float = 0.0
    largest_error: float = 0.0
    different: int = 0
    differences: list[Json] = field(default_factory=list)
    skipped: list[Quarantined] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def equal(self) -> bool:
        """Whether everything that was compared is the same."""
        return not self.different and (self.tolerance > 0 or self.digest_source == self.digest_target)

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
            "vectors": "bit for bit" if not self.tolerance else f"within {self.tolerance:g} of the norm",
            "largest_vector_error": self.largest_error,
            "different": self.different,
            "differences": self.differences,
            "notices": self.notices,
            "seconds": round(self.seconds, 3),
        }


def _contains(whole: Any, part: Any) -> bool:  # noqa: ANN401 - any JSON value
    """Whether every member of `part` stands in `whole` with the same value; null counts as absent."""
    if isinstance(part, dict):
        return isinstance(whole, dict) and all(
            value is None or (key in whole and _contains(whole[key], value)) for key, value in part.items()
        )
    return bool(whole == part and type(whole) is type(part))


def _typed(metadata: dict[str, Any] | None) -> dict[str, Any]:
    return {key: (type(value), value) for key, value in (metadata or {}).items()}


def _embedding_function(collection: SourceCollection) -> object:
    """Return which embedding function a collection names, by its configuration or, since 1.5, by its schema."""
    named = collection.configuration.get("embedding_function")
    if named is None and collection.schema:
        entry = (collection.schema.get("keys") or {}).get("#embedding") or {}
        config = ((entry.get("float_list") or {}).get("vector_index") or {}).get("config") or {}
        named = config.get("embedding_function")
    return named


def compare_description(source: SourceCollection, target: SourceCollection, proof: CollectionProof) -> None:
    """Compare metadata, distance, configuration, schema and dimension of a collection."""
    given, found = _typed(source.metadata), _typed(target.metadata)
    # Chroma before 1.0 is told about its index by metadata and nothing else.
    added = sorted(key for key in found.keys() - given.keys() if key.startswith("hnsw:"))
    if added and not target.schema:
        proof.notices.append(f"the target's metadata say how its index is built: {', '.join(added)}")
        found = {key: value for key, value in found.items() if key not in added}
    if given != found:
        proof.add("collection metadata", f"{source.metadata} in the source, {target.metadata} in the target")
    if source.space != target.space:
        proof.add("distance", f"{source.space} in the source, {target.space} in the target")
    # A folder that was never written to has no dimension to tell.
    if source.dimension != target.dimension and (source.count or target.count):
        proof.add("dimension", f"{source.dimension} in the source, {target.dimension} in the target")
    # The server shows only some of the parameters in its configuration; the rest stands in the schema.
    shown = {
        key: value
        for key, value in source.configuration["hnsw"].items()
        if key in target.configuration["hnsw"]
    }
    if not _contains(target.configuration["hnsw"], shown):
        proof.add("configuration", f"{shown} in the source, {target.configuration['hnsw']} in the target")
    function, other = _embedding_function(source), _embedding_function(target)
    if function is not None and function != other:
        if other is not None or target.schema:
            proof.add("configuration", "the embedding function differs")
        else:
            proof.notices.append("the target's version does not keep which embedding function is used")
    if source.schema and target.schema and not _contains(target.schema, source.schema):
        keys = [
            key
            for key, entry in (source.schema.get("keys") or {}).items()
            if not _contains((target.schema.get("keys") or {}).get(key), entry)
        ]
        proof.add("schema", f"entries that differ: {', '.join(keys) or 'defaults'}")


def vector_error(one: Record, other: Record) -> float:
    """Return the largest difference of two vectors in parts of the first one's norm; infinity where they cannot be compared."""
    if one.embedding is None or other.embedding is None or len(one.embedding) != len(other.embedding):
        return float("inf")
    norm = float(np.linalg.norm(one.embedding.astype(np.float64)))
    error = float(np.abs(one.embedding.astype(np.float64) - other.embedding).max(initial=0.0))
    return error / norm if norm else error


Arrived = tuple[Record, bytes]


class _Matcher:
    """Pairs the records of two streams by id, holding back only those whose partner has not come yet."""

    def __init__(self, proof: CollectionProof) -> None:
        self._proof = proof
        self._source: dict[str, tuple[int, Record, bytes]] = {}
        self._target: dict[str, tuple[int, Record, bytes]] = {}
        self._moved: list[str] = []

    def feed(self, place: int, source: Arrived | None, target: Arrived | None) -> None:
        """Take in the records at one place of both streams; None where a stream has ended."""
        if source and target and source[0].id == target[0].id:
            if source[1] != target[1]:
                self._compare(source, target)
            return
        if source:
            self._pair(place, source, self._source, self._target)
        if target:
            self._pair(place, target, self._target, self._source)

    def _pair(
        self,
        place: int,
        arrived: Arrived,
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

    def _compare(self, source: Arrived, target: Arrived) -> None:
        if source[1] == target[1]:
            return
        other = target[0]
        if self._proof.tolerance:
            error = vector_error(source[0], other)
            if error <= self._proof.tolerance:
                self._proof.largest_error = max(self._proof.largest_error, error)
                other = replace(other, embedding=source[0].embedding)
                if record_digest(source[0]) == record_digest(other):
                    return
        parts = differing_parts(source[0], other)
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


def ahead(items: Iterator[Item], count: int = _AHEAD) -> Generator[Item]:
    """Return the items of an iterator that a thread of its own runs from now on, so many ahead; close it to stop the thread."""
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(count)
    stopped = threading.Event()

    def put(item: tuple[bool, Any]) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((True, item)):
                    return
            put((False, None))
        except BaseException as error:  # noqa: BLE001 - raised again where the items are wanted
            put((False, error))

    thread = threading.Thread(target=work, name="reading ahead", daemon=True)

    def taken() -> Generator[Item]:
        try:
            # The thread starts with this generator, so that closing it always ends the thread.
            yield cast(Item, None)
            while True:
                more, item = waiting.get()
                if more:
                    yield item
                elif item is None:
                    return
                else:
                    raise item
        finally:
            stopped.set()
            # The thread must be out of the source before anyone closes it.
            thread.join()

    thread.start()
    reading = taken()
    next(reading)
    return reading


def _hashed(pages: Iterator[list[Record]], total: CollectionDigest) -> Iterator[list[tuple[Record, bytes]]]:
    for page in pages:
        digests = [record_digest(record) for record in page]
        total.add(digests)
        yield list(zip(page, digests, strict=True))


def tolerance_of(collection: SourceCollection, target: Source) -> float:
    """Return how exact vectors can be in a target: Chroma normalises those of cosine collections."""
    chroma = target.description["kind"] in ("chroma-folder", "chroma-server")
    return NORMALISED_TOLERANCE if chroma and collection.space == "cosine" else 0.0


def prove(
    source: Source,
    collection: SourceCollection,
    target: Source,
    policies: Policies | None = None,
    limits: Limits | None = None,
    advance: Advance | None = None,
    see: Callable[[Sequence[Record]], None] | None = None,
    second: SecondProcess | None = None,
) -> CollectionProof:
    """Compare one collection, record by record.

    Records that the policies put aside are listed as skipped and must not be in the target.

    Args:
        advance: called with the number of source records that were compared since the last call.
        see: called with the records of each page that were moved.
        second: a process that reads the target, where that is a database.
    """
    started = time.monotonic()
    proof = CollectionProof(collection.path)
    found = next((item for item in target.collections() if item.path == collection.path), None)
    if found is None:
        proof.add("collection", "not in the target")
        proof.records_source = collection.count
        return proof
    compare_description(collection, found, proof)
    proof.tolerance = tolerance_of(collection, target)

    def moved(*, first: bool) -> Iterator[list[Record]]:
        proof.skipped.clear()
        for kept, aside, _ in movable(source, collection, policies or Policies(), limits or Limits()):
            proof.skipped += aside
            if first and advance:
                advance(len(kept) + len(aside))
            if first and see:
                see(kept)
            yield kept

    sums = None
    if second is not None and isinstance(target, DatabaseSource):
        sums = _added_up(moved(first=True), target, found, second)
    # What differs, if anything, only whole records tell, and these stay in the process that reads them: then both sides once more.
    if sums is None or sums[0].hexdigest() != sums[1].hexdigest():
        sums = _compared(moved(first=sums is None), target.records(found), proof)
    left, right = sums
    proof.records_source, proof.records_target = left.count, right.count
    proof.digest_source, proof.digest_target = left.hexdigest(), right.hexdigest()
    proof.seconds = time.monotonic() - started
    return proof


def _added_up(
    pages: Iterator[list[Record]], target: DatabaseSource, collection: SourceCollection, second: SecondProcess
) -> tuple[CollectionDigest, CollectionDigest]:
    """Return the digests of both sides, that of the target added up by another process meanwhile."""
    left, right = CollectionDigest(), CollectionDigest()
    elsewhere = second.run(_digests, target.elsewhere(), target.stored[collection.id])
    for page, item in itertools.zip_longest(pages, elsewhere):
        left.add(map(record_digest, page or ()))
        if item is not None:
            right.add(digest.tobytes() for digest in item[1][0].reshape(-1, _DIGEST_BYTES))
    return left, right


def _digests(opening: Callable[[], DatabaseSnapshot], collection: Collection) -> Iterator[OtherItem]:
    """Run in the second process: yield the digests of a page of records."""
    with opening() as snapshot:
        for page in snapshot.records(collection):
            yield None, [np.frombuffer(b"".join(map(record_digest, page)), np.uint8)]


def _compared(
    sources: Iterator[list[Record]], targets: Iterator[list[Record]], proof: CollectionProof
) -> tuple[CollectionDigest, CollectionDigest]:
    """Note every difference, record by record, and return the digests of both sides."""
    left, right = CollectionDigest(), CollectionDigest()
    matcher = _Matcher(proof)
    with (
        closing(ahead(_hashed(sources, left))) as one,
        closing(ahead(_hashed(targets, right))) as other,
    ):
        _match(matcher, one, other)
    matcher.finish()
    return left, right


def _match(matcher: _Matcher, sources: Iterator[list[Arrived]], targets: Iterator[list[Arrived]]) -> None:
    flat, other = itertools.chain.from_iterable(sources), itertools.chain.from_iterable(targets)
    for place, (one, two) in enumerate(itertools.zip_longest(flat, other)):
        matcher.feed(place, one, two)
