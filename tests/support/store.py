"""Working with a store in tests: short ways to write and read, and what must be true of its tables whatever happened."""

import asyncio
import itertools
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar
from uuid import UUID

import numpy as np
import psycopg
from psycopg import sql

from pgchroma.store import Store
from pgchroma.types import (
    DEFAULT_DATABASE,
    DEFAULT_TENANT,
    Collection,
    Filter,
    Float32Matrix,
    Include,
    RecordBatch,
)

EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, uris=True)
ONLY_IDS = Include()

Result = TypeVar("Result")

_numbers = itertools.count(1)


async def eventually(
    what: str, condition: Callable[[], Awaitable[Result | None]], *, seconds: float = 30.0
) -> Result:
    """Return the first true value of `condition`; fail, saying what was waited for, when none came in time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    never = asyncio.Event()
    while True:
        result = await condition()
        if result:
            return result
        if loop.time() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        try:
            await asyncio.wait_for(never.wait(), 0.02)
        except TimeoutError:
            continue


async def make(store: Store, name: str | None = None, **hnsw: object) -> Collection:
    """Create a collection in the default database; keywords are settings of its index, e.g. `space`."""
    return await store.create_collection(
        DEFAULT_TENANT,
        DEFAULT_DATABASE,
        name or f"records-{next(_numbers)}",
        configuration={"hnsw": hnsw} if hnsw else None,
    )


def matrix(*rows: Sequence[float]) -> Float32Matrix:
    """Return float32 embeddings, one row each."""
    return np.array(rows, dtype=np.float32)


def batch(ids: Sequence[str], **columns: Any) -> RecordBatch:
    """Return records of two dimensions with the given columns; the embeddings do not matter."""
    return RecordBatch(ids, np.ones((len(ids), 2), np.float32), **columns)


async def ids(store: Store, collection: Collection, **selection: Any) -> list[str]:
    """Return the ids a filter selects, in insertion order."""
    return (await store.get(collection.id, Filter(**selection), ONLY_IDS)).ids


async def contents(store: Store, collection: Collection) -> dict[str, tuple[Any, ...]]:
    """Return {id: (embedding, document, metadata, uri)} in insertion order."""
    rows = await store.get(collection.id, Filter(), EVERYTHING)
    columns = (rows.embeddings, rows.documents, rows.metadatas, rows.uris)
    found: dict[str, tuple[Any, ...]] = {}
    for record_id, embedding, document, metadata, uri in zip(rows.ids, *columns, strict=True):  # type: ignore[arg-type]
        found[record_id] = (
            embedding.tolist(),
            document,
            None if metadata is None else json.loads(metadata),
            uri,
        )
    return found


async def nearest(
    store: Store, collection: Collection, embedding: Sequence[float], count: int, **selection: Any
) -> tuple[list[str], list[float]]:
    """Return ids and distances of the nearest records."""
    (rows,) = await store.query(
        collection.id, matrix(embedding), count, Filter(**selection), Include(distances=True)
    )
    assert rows.distances is not None
    return rows.ids, rows.distances.tolist()


def require_whole(database_url: str) -> None:
    """Fail unless every record has its vector and every vector its record, every id stands once, and no table is left over."""
    with psycopg.connect(database_url) as connection:
        known = set()
        for (number,) in connection.execute(
            "SELECT table_number FROM pgchroma.collections WHERE table_number IS NOT NULL"
        ):
            known |= {f"r{number}", f"v{number}"}
            names = {
                "r": sql.Identifier("pgchroma_data", f"r{number}"),
                "v": sql.Identifier("pgchroma_data", f"v{number}"),
            }
            orphans = connection.execute(
                sql.SQL(
                    "SELECT count(*) FROM {r} AS r FULL JOIN {v} AS v ON r.vseq = v.seq AND r.seq = v.record_seq "
                    "WHERE r.seq IS NULL OR v.seq IS NULL"
                ).format(**names)
            ).fetchone()
            doubles = connection.execute(
                sql.SQL("SELECT count(*) - count(DISTINCT coalesce(id_full, id)) FROM {r}").format(**names)
            ).fetchone()
            assert (orphans, doubles) == ((0,), (0,)), number
        tables = connection.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = 'pgchroma_data'::regnamespace AND relkind = 'r'"
        ).fetchall()
        assert {name for (name,) in tables} == known


def execute(database_url: str, statement: str, values: Mapping[str, object] | None = None) -> list[Any]:
    """Run one statement as the URL's user and return its rows, if it has any."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        cursor = connection.execute(statement.encode(), values)
        return cursor.fetchall() if cursor.description is not None else []


async def dimension(store: Store, collection_id: UUID) -> int | None:
    """Return the collection's dimension as it is now."""
    return (await store.get_collection_by_id(collection_id)).dimension
