"""Thousands of small collections: what the indexer, the list and a single read cost stays bounded."""

import asyncio
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pgchroma.store import Store, StoreSettings, indexer
from pgchroma.store.connection import Connection
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Filter, Include, RecordBatch
from support.postgres import Databases
from support.store import eventually, execute, make

pytestmark = pytest.mark.anyio
COLLECTIONS, WITH_RECORDS = 2_000, 100
SETTINGS = StoreSettings(pool_size=4, index_minimum_rows=50)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    with databases.fresh() as url:
        yield url


class Counting(Connection):
    """A connection that counts its statements."""

    statements = 0

    async def execute(self, *arguments: Any, **keywords: Any) -> Any:
        self.statements += 1
        return await super().execute(*arguments, **keywords)


async def test_two_thousand_small_collections_are_looked_at_with_one_statement(database_url: str) -> None:
    async with await Store.open(database_url, SETTINGS) as store:
        limit = asyncio.Semaphore(4)

        async def create(number: int) -> None:
            async with limit:
                collection = await make(store, f"small-{number}")
                if number < WITH_RECORDS:
                    await store.add(collection.id, RecordBatch(["a", "b"], np.eye(2, dtype=np.float32)))

        await asyncio.gather(*(create(number) for number in range(COLLECTIONS)))
        async with await Counting.connect(database_url, autocommit=True) as connection:
            mine = indexer.Indexer(database_url, SETTINGS)

            async def settled() -> bool:
                connection.statements = 0
                await mine.look(connection)
                return connection.statements == 1

            # One look at each collection that has records, another to see that it has stopped growing, then only the one statement.
            await eventually("a look that finds nothing to do", settled)
            chosen = await store.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "small-7")
            await store.add(
                chosen.id, RecordBatch([f"more-{n}" for n in range(60)], np.ones((60, 2), np.float32))
            )

            async def indexed() -> bool:
                await mine.look(connection)
                return bool(execute(database_url, "SELECT 1 FROM pgchroma.index_segments"))

            await eventually("the one that has grown to be indexed", indexed)
            assert execute(database_url, "SELECT count(*) FROM pgchroma.index_segments") == [(1,)]
            await eventually("a look that finds nothing to do", settled)
        found = await store.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE)
        assert len(found) == COLLECTIONS
        page = await store.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE, limit=5, offset=1_000)
        assert [entry.id for entry in page] == [entry.id for entry in found[1_000:1_005]]
        # More than a connection remembers, each read twice.
        for _ in range(2):
            for entry in found[:300]:
                rows = await store.get(entry.id, Filter(ids=["a"]), Include())
                assert rows.ids == (["a"] if int(entry.name.removeprefix("small-")) < WITH_RECORDS else [])
