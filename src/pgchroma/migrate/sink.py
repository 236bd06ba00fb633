"""The sink `pgchroma database`: records and checkpoints go in by COPY, through the store's own code, in one transaction."""

from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

import psycopg
from psycopg.conninfo import conninfo_to_dict

import pgchroma
from pgchroma.errors import NotFoundError, RefusedError
from pgchroma.migrate.model import Checkpoint, Json, Source, SourceCollection
from pgchroma.store import Store, migration_status
from pgchroma.store.migration_status import StatusRow
from pgchroma.types import Collection, Record


def describe(database_url: str) -> Json:
    """Return host, port, database and user of a database URL; never its password."""
    parts = conninfo_to_dict(database_url)
    return {
        "kind": "pgchroma-database",
        **{key: parts[key] for key in ("host", "port", "dbname", "user") if parts.get(key)},
    }


class StoreSink:
    """A pgchroma database as the target of one run; see model.Sink."""

    def __init__(self, store: Store, database_url: str) -> None:
        self._store = store
        self.description = describe(database_url)

    async def find(self, collection: SourceCollection) -> tuple[Collection, int] | None:
        """Return the target collection of the same tenant, database and name with its number of records, or None."""
        target = await self._store.find_collection(collection.tenant, collection.database, collection.name)
        return (target, await self._store.count(target.id)) if target else None

    async def begin(self, run_id: UUID, source: Source, *, skip_unreadable: bool) -> None:
        """Note a new run with all its collections."""
        planned = [
            migration_status.PlannedCollection(
                item.id, item.tenant, item.database, item.name, item.count, item.state
            )
            for item in source.collections()
        ]
        async with self._store.transaction() as connection:
            await migration_status.begin(
                connection,
                run_id,
                planned,
                source=source.description["path"],
                fingerprint=source.fingerprint,
                skip_unreadable=skip_unreadable,
                pgchroma_version=pgchroma.__version__,
            )

    async def status(self, run_id: UUID | None = None) -> list[StatusRow]:
        """Return the checkpoints of one run, or of all, newest first."""
        async with self._store.transaction() as connection:
            return await migration_status.rows(connection, run_id)

    async def checkpoint(self, run_id: UUID, collection: SourceCollection) -> Checkpoint:
        """Return how far the copy of a collection is."""
        for row in await self.status(run_id):
            if row.source_collection_id == collection.id:
                return Checkpoint(
                    run_id, collection.id, row.phase, row.records, row.skipped, row.last_position
                )
        raise RefusedError(
            f"migration {run_id} knows no collection {collection.path}",
            hint="start a new one with `pgchroma migrate run`",
        )

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> Collection:
        """Create the target collection, or return the one that an earlier attempt of this run created."""
        await self._store.ensure_database(collection.tenant, collection.database)
        target = await self._store.find_collection(collection.tenant, collection.database, collection.name)
        if target is None:
            target = await self._store.create_collection(
                collection.tenant,
                collection.database,
                collection.name,
                metadata=collection.metadata,
                configuration=collection.configuration,
                schema=collection.schema,
                schema_is_settled=bool(collection.schema),
                collection_id=collection.id if await self._is_free(collection.id) else None,
            )
        async with self._store.transaction() as connection:
            if collection.dimension is not None:
                target = await self._store.prepare_copy(connection, target, collection.dimension)
            await migration_status.set_target(connection, run_id, collection.id, target.id)
        return target

    async def _is_free(self, collection_id: UUID) -> bool:
        try:
            await self._store.get_collection_by_id(collection_id)
        except NotFoundError:
            return True
        return False

    async def write(
        self,
        target: Collection,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        skipped: int,
        position: int,
    ) -> Checkpoint:
        """Append records and move the checkpoint, in one transaction.

        Raises:
            RefusedError: another process works on the same run, or the target got records from elsewhere meanwhile.
        """
        try:
            async with self._store.transaction() as connection:
                # The checkpoint first: its row lock keeps a second process of the same run from writing the same batch.
                await migration_status.advance(
                    connection,
                    checkpoint.run_id,
                    checkpoint.source_collection,
                    expected_position=checkpoint.last_position,
                    position=position,
                    records=len(records),
                    skipped=skipped,
                )
                if records:
                    await self._store.copy_records(connection, target, records)
        except psycopg.errors.UniqueViolation as error:
            raise RefusedError(
                f"collection {target.path} already holds a record of this batch that this migration did not write: "
                f"{error.diag.message_detail or error}",
                hint="keep applications from writing to the target until the migration is verified; "
                "delete the collection and run again",
            ) from error
        return Checkpoint(
            checkpoint.run_id,
            checkpoint.source_collection,
            checkpoint.phase,
            checkpoint.records + len(records),
            checkpoint.skipped + skipped,
            position,
        )

    async def set_phase(
        self, run_id: UUID, collection: SourceCollection, phase: str, errors: int | None = None
    ) -> None:
        """Note a collection's phase and, after the proof, how many differences it found."""
        async with self._store.transaction() as connection:
            await migration_status.set_phase(connection, run_id, collection.id, phase, errors=errors)

    async def records(self, target: Collection) -> AsyncGenerator[list[Record]]:
        """Yield pages of the target's records in insertion order."""
        async for page in self._store.iter_records(target):
            yield page
