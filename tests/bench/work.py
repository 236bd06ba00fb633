"""What is measured: loading, queries of several kinds, reading everything, and readers beside a writer."""

import http.client
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from chromadb.api.models.Collection import Collection
from numpy.typing import NDArray

from bench import wrk
from bench.dataset import Dataset
from bench.systems import System, body

BATCH = 1_000
PAGE = 5_000
K = 10
INCLUDE = ["documents", "metadatas", "distances"]
Condition = Callable[[dict[str, Any], str], bool]


@dataclass(frozen=True, slots=True)
class Request:
    """A kind of request, its bodies taken in turn.

    Attributes:
        matching: which records its answers may hold, by position; None for all.
    """

    operation: str
    bodies: list[bytes]
    matching: NDArray[np.intp] | None = None


def ingest(collection: Collection, data: Dataset) -> float:
    """Add everything through Chroma's own client, in batches, and return rows a second."""
    started = time.perf_counter()
    for start in range(0, len(data), BATCH):
        part = data.part(start, start + BATCH)
        collection.add(
            ids=part.ids,
            embeddings=part.embeddings,
            documents=part.documents,
            metadatas=part.metadatas,  # type: ignore[arg-type]
        )
    return len(data) / (time.perf_counter() - started)


def export(collection: Collection, rows: int) -> float:
    """Read everything through Chroma's own client, in pages, and return rows a second."""
    seen = 0
    started = time.perf_counter()
    while True:
        page = collection.get(limit=PAGE, offset=seen, include=["embeddings", "documents", "metadatas"])
        seen += len(page["ids"])
        if len(page["ids"]) < PAGE:
            break
    if seen != rows:
        raise wrk.WrkError(f"{seen} rows came out of {collection.name}, {rows} are in it")
    return seen / (time.perf_counter() - started)


def _queries(data: Dataset, **members: object) -> list[bytes]:
    return [
        body({"query_embeddings": [query], "n_results": K, "include": INCLUDE, **members})
        for query in data.queries
    ]


def plain(data: Dataset) -> Request:
    """Return the query without a filter."""
    return Request("query", _queries(data))


def _matching(data: Dataset, condition: Condition) -> NDArray[np.intp]:
    pairs = zip(data.metadatas, data.documents, strict=True)
    return np.flatnonzero([condition(metadata, document) for metadata, document in pairs])


def sections(data: Dataset) -> list[str]:
    """Return three sections: the most frequent, one with about a tenth of that, and one with a few dozen records."""
    counts = Counter(metadata["section"] for metadata in data.metadatas).most_common()
    largest = counts[0][1]
    return [
        min(counts, key=lambda pair: (abs(pair[1] - wanted), pair[0]))[0]
        for wanted in (largest, largest / 10, len(data) / 600)
    ]


def filtered(data: Dataset, section: str) -> Request:
    """Return the query filtered by one section."""
    return Request(
        "query",
        _queries(data, where={"section": section}),
        _matching(data, lambda metadata, _: metadata["section"] == section),
    )


def both(data: Dataset) -> tuple[Request, Request]:
    """Return a query and a get by two conditions on metadata, of which about 2 % and 1,000 records are left."""
    section = sections(data)[0]
    size = int(np.median([metadata["size"] for metadata in data.metadatas]))
    where = {"$and": [{"section": section}, {"size": {"$gt": size}}]}
    found = _matching(data, lambda metadata, _: metadata["section"] == section and metadata["size"] > size)
    return (
        Request("query", _queries(data, where=where), found),
        Request("get", [body({"where": where, "limit": 100, "include": INCLUDE[:2]})], found),
    )


def contains(data: Dataset) -> tuple[Request, Request]:
    """Return a query and a get by a word in about 2 % of the documents."""
    frequency = Counter(
        word
        for document in data.documents
        for word in set(document.split())
        if len(word) > 5 and word.isalpha()
    )
    wanted = len(data) / 50
    word = min(frequency, key=lambda word: (abs(frequency[word] - wanted), word))
    where = {"$contains": word}
    found = _matching(data, lambda _, document: word in document)
    return (
        Request("query", _queries(data, where_document=where), found),
        Request("get", [body({"where_document": where, "limit": 100, "include": INCLUDE[:2]})], found),
    )


def by_id(data: Dataset) -> Request:
    """Return the get of one record, another each time."""
    chosen = np.random.default_rng(1).choice(len(data), 200, replace=False)
    return Request("get", [body({"ids": [data.ids[row]], "include": INCLUDE[:2]}) for row in chosen])


def load(
    system: System, collection: Collection, request: Request, *, connections: int, seconds: float
) -> wrk.Load:
    """Return what wrk sees of a request."""
    path = system.path(collection, request.operation)
    return wrk.run(system.port, path, request.bodies, connections=connections, seconds=seconds)


def beside_a_writer(system: System, collection: Collection, data: Dataset) -> tuple[wrk.Load, float]:
    """Query over eight connections while one client adds all of `data`; return what the readers saw, and rows a second."""
    speed = 0.0

    def write() -> None:
        nonlocal speed
        speed = ingest(collection, data)

    path = system.path(collection, "query")
    readers = wrk.run(system.port, path, plain(data).bodies, connections=8, seconds=900, until=write)
    return readers, speed


def recall(system: System, collection: Collection, data: Dataset, request: Request) -> float:
    """Return the share of the ten nearest records, as an exact search finds them, that the answers hold.

    As near as the tenth counts as found: equally near records have no order.
    """
    rows = np.arange(len(data)) if request.matching is None else request.matching
    if not len(rows):
        raise wrk.WrkError("no record matches the filter that is to be measured")
    positions = {record_id: position for position, record_id in enumerate(data.ids)}
    allowed = set(rows.tolist())
    distances = 1 - data.queries @ data.embeddings.T
    wanted = min(K, len(rows))
    hits = 0
    for number, found in enumerate(_answers(system, collection, request)):
        bound = np.partition(distances[number][rows], wanted - 1)[wanted - 1] + 1e-6
        mine = {positions[record_id] for record_id in found}
        if not mine <= allowed:
            raise wrk.WrkError(f"{system.name} answers with records that the filter excludes")
        hits += sum(bool(distances[number][position] <= bound) for position in mine)
    return hits / (wanted * len(data.queries))


def _answers(system: System, collection: Collection, request: Request) -> Sequence[list[str]]:
    connection = http.client.HTTPConnection("127.0.0.1", system.port, timeout=120)
    found = []
    for content in request.bodies:
        headers = {"Content-Type": "application/json"}
        connection.request("POST", system.path(collection, request.operation), content, headers)
        answer = orjson.loads(connection.getresponse().read())
        found.append(answer["ids"][0])
    connection.close()
    return found
