"""The facade that server, migrator and verifier use."""

import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self
from uuid import UUID

import numpy as np
import psycopg

from pgchroma.errors import NotFoundError
from pgchroma.ranking import Search
from pgchroma.store import (
    barrier,
    catalog,
    deletions,
    failures,
    fork,
    migrations,
    operations,
    reads,
    search,
    statuses,
    writes,
)
from pgchroma.store import connection as connections
from pgchroma.store.connection import Connection, StoreSettings
from pgchroma.store.held import SketchMemory
from pgchroma.store.indexer import Indexer
from pgchroma.store.operations import IndexingStatus
from pgchroma.store.search import SearchRows
from pgchroma.store.statuses import CollectionStatus
from pgchroma.store.together import Together
from pgchroma.store.tokens import Tokens
from pgchroma.store.watch import Watch
from pgchroma.types import Collection, Filter, Float32Matrix, Include, Record, RecordBatch, Rows


class Store:
    """All that can be done with the database; every method opens its own transaction.

    Every method raises DatabaseUnreachableError when PostgreSQL does not answer in time.
    """

    def __init__(self, database_url: str, settings: StoreSettings | None = None) -> None:
        self.settings = settings or StoreSettings()
        self._database = connections.Database(database_url, self.settings)
        self._sketches = SketchMemory(self._database.connection, self.settings.sketch_memory_mb << 20)
        self._database.sketches = self._sketches
        self._together = Together()

    @classmethod
    async def open(cls, database_url: str, settings: StoreSettings | None = None) -> Self:
        """Return a store that connects in the background; an absent database is no error yet."""
        store = cls(database_url, settings)
        await store._database.open()
        return store

    async def close(self) -> None:
        """Close every connection."""
        await self._sketches.close()
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def check_ready(self, timeout_seconds: float = 2.0, watch: Watch | None = None) -> None:
        """Raise DatabaseUnreachableError or DatabaseNotReadyError unless requests can be served.

        Asks over the connection of `watch`, where one is given, so that a pool in full use does not count as a database away.
        """
        try:
            if watch is not None:
                await watch.ask(migrations.check, timeout_seconds)
                return
            async with self._database.connection(timeout_seconds) as connection:
                await migrations.check(connection)
        except psycopg.errors.InsufficientPrivilege as error:
            raise failures.unprepared(error) from error
        except psycopg.OperationalError as error:
            raise failures.unreachable(error) from error

    def watch(self, *, with_tokens: bool) -> Watch:
        """Return a watch over PostgreSQL that requests go by from now on; the caller runs it."""
        watch = Watch(self._database.conninfo, with_tokens=with_tokens)
        self._database.watch = watch
        return watch

    @property
    def tokens(self) -> Tokens:
        """The tokens of the server's clients."""
        return Tokens(self._database)

    async def run_indexer(self) -> None:
        """Keep vector indexes up with the data until cancelled; one process at a time does the work."""
        await Indexer(self._database.conninfo, self.settings).run()

    def pool_stats(self) -> dict[str, int]:
        """Return psycopg_pool's counters."""
        return self._database.stats()

    @property
    def sketch_bytes(self) -> int:
        """Memory that holds sketches of vectors, in bytes."""
        return self._sketches.size

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Lend a connection in a transaction that commits at the end; for the migrator's batches and checkpoints."""
        try:
            async with self._database.connection() as connection:
                async with connection.transaction():
                    await connection.execute(barrier.SHARE)
                    yield connection
                    connection.warnings.clear()
                connections.require_replicated(connection.warnings)
        except psycopg.OperationalError as error:
            raise failures.unreachable(error) from error

    # Tenants and databases

    async def create_tenant(self, name: str) -> None:
        """Create a tenant; AlreadyExistsError, InvalidArgumentError."""
        await self._database.write(lambda c: catalog.create_tenant(c, name))

    async def get_tenant(self, name: str) -> str:
        """Return the tenant's name; NotFoundError."""
        return await self._database.read(lambda c: catalog.get_tenant(c, name))

    async def create_database(self, tenant: str, name: str) -> catalog.Database:
        """Create a database; AlreadyExistsError, InvalidArgumentError."""
        return await self._database.write(lambda c: catalog.create_database(c, tenant, name))

    async def get_database(self, tenant: str, name: str) -> catalog.Database:
        """Return a database; NotFoundError."""
        return await self._database.read(lambda c: catalog.get_database(c, tenant, name))

    async def list_databases(
        self, tenant: str, limit: int | None = None, offset: int = 0
    ) -> list[catalog.Database]:
        """Return a tenant's databases by name."""
        return await self._database.read(lambda c: catalog.list_databases(c, tenant, limit, offset))

    async def delete_database(self, tenant: str, name: str) -> None:
        """Delete a database and all in it; NotFoundError."""
        while await self._database.write(lambda c: deletions.drop_some_collections(c, tenant, name)):
            pass
        await self._database.write(lambda c: deletions.delete_database(c, tenant, name))

    async def ensure_database(self, tenant: str, name: str) -> None:
        """Create tenant and database where they are missing."""
        await self._database.write(lambda c: catalog.ensure_database(c, tenant, name))

    # Collections

    async def create_collection(
        self,
        tenant: str,
        database: str,
        name: str,
        *,
        metadata: Mapping[str, Any] | None = None,
        configuration: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        schema_is_settled: bool = False,
        get_or_create: bool = False,
        collection_id: UUID | None = None,
    ) -> Collection:
        """Create a collection; AlreadyExistsError, InvalidArgumentError.

        With `schema_is_settled`, as for a collection that is moved, configuration and `hnsw:` metadata are not read.
        """
        return await self._database.write(
            lambda c: catalog.create_collection(
                c,
                tenant,
                database,
                name,
                metadata=metadata,
                configuration=configuration,
                schema=schema,
                schema_is_settled=schema_is_settled,
                get_or_create=get_or_create,
                collection_id=collection_id,
            )
        )

    async def get_collection(self, tenant: str, database: str, name: str) -> Collection:
        """Return a collection by name; NotFoundError."""
        return await self._database.read(lambda c: catalog.get_collection(c, tenant, database, name))

    async def find_collection(self, tenant: str, database: str, name: str) -> Collection | None:
        """Return a collection by name, or None."""
        try:
            return await self.get_collection(tenant, database, name)
        except NotFoundError:
            return None

    async def get_collection_by_id(
        self, collection_id: UUID, tenant: str | None = None, database: str | None = None
    ) -> Collection:
        """Return a collection by id, in the given tenant and database if given; NotFoundError."""
        return await self._database.read(
            lambda c: catalog.get_collection_by_id(c, collection_id, tenant, database)
        )

    async def list_collections(
        self,
        tenant: str | None = None,
        database: str | None = None,
        limit: int | None = None,
        offset: int = 0,
    ) -> list[Collection]:
        """Return collections, oldest first; None for tenant or database means all of them."""
        return await self._database.read(
            lambda c: catalog.list_collections(c, tenant, database, limit, offset)
        )

    async def count_collections(self, tenant: str, database: str) -> int:
        """Return how many collections a database has."""
        return await self._database.read(lambda c: catalog.count_collections(c, tenant, database))

    async def modify_collection(
        self,
        collection_id: UUID,
        *,
        new_name: str | None = None,
        new_metadata: Mapping[str, Any] | None = None,
        new_configuration: Mapping[str, Any] | None = None,
    ) -> None:
        """Change what is given; NotFoundError, AlreadyExistsError, InvalidArgumentError."""
        await self._database.write(
            lambda c: catalog.modify_collection(c, collection_id, new_name, new_metadata, new_configuration)
        )

    async def delete_collection(self, tenant: str, database: str, name: str) -> None:
        """Delete a collection; NotFoundError."""
        await self._database.write(lambda c: deletions.delete_collection(c, tenant, database, name))

    async def fork(
        self, collection_id: UUID, new_name: str, tenant: str | None = None, database: str | None = None
    ) -> Collection:
        """Copy a collection as it is now into a new one; NotFoundError, AlreadyExistsError, InvalidArgumentError."""
        return await self._database.write(lambda c: fork.fork(c, collection_id, new_name, tenant, database))

    async def fork_count(self, collection_id: UUID) -> int:
        """Return how many forks there are of a collection's lineage; NotFoundError."""
        return await self._database.read(lambda c: fork.count(c, collection_id))

    async def indexing_status(self, collection_id: UUID) -> IndexingStatus:
        """Return how far the indexer is with a collection; NotFoundError."""
        return await self._database.read(lambda c: operations.status(c, collection_id))

    async def reset(self) -> None:
        """Delete everything."""
        while await self._database.write(lambda c: deletions.drop_some_collections(c, None, None)):
            pass
        await self._database.write(deletions.reset)

    # Records

    async def add(self, collection_id: UUID, batch: RecordBatch) -> None:
        """Insert records; existing ids are left as they are."""
        await self._database.write(lambda c: writes.add(c, collection_id, batch))

    async def upsert(self, collection_id: UUID, batch: RecordBatch) -> None:
        """Insert records or merge into existing ones."""
        await self._database.write(lambda c: writes.upsert(c, collection_id, batch))

    async def update(self, collection_id: UUID, batch: RecordBatch) -> None:
        """Merge into existing records; unknown ids are ignored."""
        await self._database.write(lambda c: writes.update(c, collection_id, batch))

    async def delete(self, collection_id: UUID, selection: Filter) -> int:
        """Delete records and return how many they were."""
        return await self._database.write(lambda c: writes.delete(c, collection_id, selection))

    async def count(self, collection_id: UUID) -> int:
        """Return how many records a collection has."""
        return await self._database.read(lambda c: reads.count(c, collection_id))

    async def get(self, collection_id: UUID, selection: Filter, include: Include) -> Rows:
        """Return the selected records in insertion order."""
        return await self._database.read(lambda c: reads.get(c, collection_id, selection, include))

    async def moment(self) -> str:
        """Return PostgreSQL's snapshot: where two are equal, nothing was committed between them, and reads find the same."""
        return await self._database.read(reads.moment)

    async def query(
        self,
        collection_id: UUID,
        embeddings: Float32Matrix,
        n_results: int,
        selection: Filter,
        include: Include,
    ) -> list[Rows]:
        """Return the nearest records to each of `embeddings`, shape (q, dimension)."""

        async def run(matrix: Float32Matrix) -> list[Rows]:
            return await self._database.read(
                lambda c: reads.query(c, collection_id, matrix, n_results, selection, include)
            )

        # PostgreSQL, where it has to look for candidates itself, does so for many at a time on as many connections.
        if len(embeddings) != 1 or selection != Filter() or not self._sketches.serves(collection_id):
            return await run(embeddings)
        kind = (collection_id, embeddings.shape[1], n_results, include)
        answer = await self._together.query(
            kind, embeddings[0], lambda several: run(embeddings if len(several) == 1 else np.stack(several))
        )
        return [answer]

    async def search(self, collection_id: UUID, searches: Sequence[Search]) -> list[SearchRows]:
        """Return the result of each search, best first."""
        return await self._database.read(lambda c: search.search(c, collection_id, searches))

    # Bulk loading and reading, for migrator and verifier

    async def prepare_copy(
        self, connection: Connection, collection: Collection, dimension: int
    ) -> Collection:
        """Fix the collection's dimension and create its tables, where that has not happened; InvalidDimensionError."""
        if collection.dimension is None:
            collection = await catalog.fix_dimension(connection, collection, dimension)
        writes.require_dimension(collection, dimension)
        return collection

    async def copy_records(
        self, connection: Connection, collection: Collection, records: Sequence[Record]
    ) -> int:
        """Insert whole records in the given order within the caller's transaction; their ids must be new.

        Raises:
            psycopg.errors.UniqueViolation: an id exists already.
        """
        return await writes.copy_records(connection, collection, records)

    async def iter_records(
        self, collection: Collection, after_seq: int = 0, page: int = 2_000
    ) -> AsyncIterator[list[Record]]:
        """Yield whole records in insertion order, `page` at a time; NotFoundError."""
        try:
            async with self._database.connection() as connection:
                async for records in reads.iter_records(connection, collection, after_seq, page):
                    yield records
        except psycopg.OperationalError as error:
            raise failures.unreachable(error) from error

    async def status(self) -> list[CollectionStatus]:
        """Return every collection with its rows, tail and indexes."""
        return await self._database.read(statuses.read)
