"""Measures what docs/INDEXES.md tabulates, and writes it there: recall by selectivity, and what each kind of index costs and gives.

Everything runs in an embedded PostgreSQL through the store, without HTTP, on the data of dataset.py. Recall@10 is the share of the ten
nearest, as an exact search in NumPy finds them, that an answer holds. Speed is one connection's median and only comparable within
a run.
"""

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import psycopg
from numpy.typing import NDArray

from bench import dataset
from bench.dataset import Dataset
from bench.systems import POSTGRES_SETTINGS
from pgchroma import output
from pgchroma.server.embedded import temporary_postgres
from pgchroma.store import Store, StoreSettings
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Collection, Filter, Include, RecordBatch
from support.postgres import Databases
from support.store import eventually

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "INDEXES.md"
K = 10
SETTINGS = StoreSettings(pool_size=2, indexer_interval_seconds=0.2)
SHARES = (0.001, 0.01, 0.1, 0.5, 1.0)
# What a collection's metadata can ask for, and the distance it is tried with.
KINDS: tuple[tuple[str, str], ...] = (
    ("hnsw", "none"),
    ("hnsw", "halfvec"),
    ("hnsw", "binary"),
    ("ivfflat", "none"),
    ("ivfflat", "halfvec"),
    ("ivfflat", "binary"),
    ("none", "none"),
)
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Measured:
    """Answers to all queries of the data.

    Attributes:
        recall: 1.0 when every answer held the nearest.
        fewest: results in the shortest answer.
        milliseconds: median time of an answer.
    """

    recall: float
    fewest: int
    milliseconds: float


async def measure(
    store: Store, collection: Collection, data: Dataset, mask: Mask, where: dict[str, Any] | None
) -> Measured:
    """Query with every query of the data, one at a time."""
    rows = np.flatnonzero(mask)
    positions = {record_id: number for number, record_id in enumerate(data.ids)}
    wanted = min(K, len(rows))
    hits, fewest, times = 0, K, []
    for query in data.queries:
        started = time.perf_counter()
        (answer,) = await store.query(
            collection.id, query[None], K, Filter(where=where), Include(distances=True)
        )
        times.append(time.perf_counter() - started)
        values = 1 - data.embeddings[rows] @ query
        # As near as the tenth counts as found: equally near records have no order.
        bound = np.partition(values, wanted - 1)[wanted - 1] + 1e-6
        found = [positions[record_id] for record_id in answer.ids]
        if not mask[found].all():
            raise click.ClickException("an answer holds records that the filter excludes")
        hits += sum(bool(1 - data.embeddings[number] @ query <= bound) for number in found)
        fewest = min(fewest, len(found))
    return Measured(hits / (wanted * len(data.queries)), fewest, float(np.median(times)) * 1000)


def shares(data: Dataset) -> dict[str, Mask]:
    """Return masks by metadata key: for each share of the records a random one, and that nearest to one record."""
    count = len(data)
    order = np.random.default_rng(3).permutation(count)
    corner = np.argsort(-(data.embeddings @ data.embeddings[7]), kind="stable")
    found = {}
    for share in SHARES:
        size = max(round(count * share), 1)
        for name, ranks in (("random", order), ("corner", corner)):
            mask = np.zeros(count, bool)
            mask[ranks[:size]] = True
            found[f"{name}_{share * 100:g}"] = mask
    return found


async def load(
    store: Store, name: str, data: Dataset, metadata: dict[str, Any] | None, marks: dict[str, Mask]
) -> Collection:
    """Make a collection of the data, each record marked with the masks it is in."""
    collection = await store.create_collection(
        DEFAULT_TENANT, DEFAULT_DATABASE, name, metadata=metadata, configuration={"hnsw": {"space": "cosine"}}
    )
    for start in range(0, len(data), 1_000):
        part = data.part(start, start + 1_000)
        metadatas = [
            {**own, **{key: True for key, mask in marks.items() if mask[start + offset]}}
            for offset, own in enumerate(part.metadatas)
        ]
        await store.add(collection.id, RecordBatch(part.ids, part.embeddings, part.documents, metadatas))
    return collection


async def indexed(store: Store, collection: Collection) -> None:
    """Wait until the indexer has done what there is to do for a collection."""

    async def is_indexed() -> bool:
        status = next(entry for entry in await store.status() if entry.id == collection.id)
        vectors = status.index == "none" or (status.segments and not status.tail_rows)
        return bool(vectors and not status.record_tail_rows and "->" not in status.index)

    task = asyncio.create_task(store.run_indexer())
    await eventually(f"the indexes of {collection.name}", is_indexed, seconds=1_800)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@contextmanager
def database() -> Iterator[str]:
    """Lend an empty database in a cluster of its own, set as the benchmark's."""
    with temporary_postgres(settings=POSTGRES_SETTINGS) as postgres, Databases(postgres).fresh() as url:
        yield url


async def recall_table(url: str, rows: int, queries: int) -> list[tuple[object, ...]]:
    """Return recall, results and time of filtered queries by selectivity."""
    data = dataset.load().grown(rows)
    data = replace(data, queries=data.queries[:queries])
    marks = shares(data)
    lines: list[tuple[object, ...]] = []
    async with await Store.open(url, SETTINGS) as store:
        collection = await load(store, f"recall-{rows}", data, None, marks)
        await indexed(store, collection)
        everything = np.ones(len(data), bool)
        found = await measure(store, collection, data, everything, None)
        lines.append(
            (
                f"{rows:,}",
                "no filter",
                f"{rows:,}",
                f"{found.recall:.3f}",
                found.fewest,
                f"{found.milliseconds:.1f}",
            )
        )
        for key, mask in marks.items():
            found = await measure(store, collection, data, mask, {key: True})
            kind, _, share = key.partition("_")
            lines.append(
                (
                    f"{rows:,}",
                    f"{share} %, {'spread at random' if kind == 'random' else 'one corner of the space'}",
                    f"{int(mask.sum()):,}",
                    f"{found.recall:.3f}",
                    found.fewest,
                    f"{found.milliseconds:.1f}",
                )
            )
    return lines


async def kinds_table(url: str, rows: int) -> list[tuple[object, ...]]:
    """Return what each kind of index costs to build and keep, and how well and fast it answers."""
    data = dataset.load().grown(rows)
    lines: list[tuple[object, ...]] = []
    # The indexes themselves, not the sketches that would answer in their place.
    async with await Store.open(url, replace(SETTINGS, sketch_memory_mb=0)) as store:
        for kind, quantisation in KINDS:
            metadata = {"pgchroma:index": kind, "pgchroma:quantisation": quantisation}
            collection = await load(store, f"kind-{kind}-{quantisation}", data, metadata, {})
            await indexed(store, collection)
            with psycopg.connect(url) as connection:
                row = connection.execute(
                    "SELECT sum(build_seconds), sum(pg_relation_size(('pgchroma_data.' || index_name)::regclass)) "
                    "FROM pgchroma.index_segments WHERE collection_id = %s",
                    [collection.id],
                ).fetchone()
            seconds, size = row or (None, None)
            found = await measure(store, collection, data, np.ones(len(data), bool), None)
            lines.append(
                (
                    kind,
                    quantisation,
                    "-" if seconds is None else f"{seconds:.1f}",
                    "-" if size is None else f"{int(size) / 2**20:.0f}",
                    f"{found.recall:.3f}",
                    f"{found.milliseconds:.1f}",
                )
            )
            await store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, collection.name)
    return lines


def write(name: str, columns: tuple[str, ...], lines: list[tuple[object, ...]]) -> None:
    """Put a table in the place that the document has for it."""
    table = [" | ".join(columns), " | ".join("---" for _ in columns)] + [
        " | ".join(map(str, line)) for line in lines
    ]
    text = "\n".join(f"| {line} |" for line in table)
    pattern = re.compile(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- end -->)", re.DOTALL)
    old = DOCUMENT.read_text()
    if not pattern.search(old):
        raise click.ClickException(f"{DOCUMENT} has no place for the table {name!r}")
    DOCUMENT.write_text(pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", old))
    output.emit(
        {"table": [dict(zip(columns, line, strict=True)) for line in lines]},
        "text",
        lambda console: console.print(text),
    )


@click.group()
def main() -> None:
    """Measure indexes and write the tables of docs/INDEXES.md."""


@main.command()
@click.option(
    "--rows", multiple=True, type=click.IntRange(1_000), default=(20_000, 60_000), show_default=True
)
@click.option(
    "--queries", type=click.IntRange(1, dataset.QUERIES), default=dataset.QUERIES, show_default=True
)
def recall(rows: tuple[int, ...], queries: int) -> None:
    """Measure recall of filtered queries by selectivity."""
    lines: list[tuple[object, ...]] = []
    for count in rows:
        with database() as url:
            lines += asyncio.run(recall_table(url, count, queries))
    write("recall", ("records", "filter", "matches", "recall@10", "fewest results", "p50 ms"), lines)


@main.command()
@click.option("--rows", type=click.IntRange(1_000), default=20_000, show_default=True)
def kinds(rows: int) -> None:
    """Measure every kind of index."""
    with database() as url:
        lines = asyncio.run(kinds_table(url, rows))
    write("kinds", ("index", "quantisation", "build s", "index MiB", "recall@10", "p50 ms"), lines)


if __name__ == "__main__":
    main()
