"""The sink `pgchroma database`: records and checkpoints go in by COPY, through the store's own code, in one transaction."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from uuid import UUID

import psycopg

import pgchroma
from pgchroma.errors import NotFoundError, RefusedError
from pgchroma.migrate.database import DatabaseSource, describe, described, open_database
from pgchroma.migrate.model import (
    FINISHED,
    Checkpoint,
    Encode,
    Json,
    Limits,
    Noted,
    Quarantined,
    RunNote,
    Source,
    SourceCollection,
)
from pgchroma.store import Store, migration_status, quarantine
from pgchroma.store.bulk import Encoding
from pgchroma.store.migration_status import StatusRow
from pgchroma.types import Collection, Filter, Float32Matrix, Include, Record


def _latest_unfinished(rows: list[StatusRow]) -> list[StatusRow]:
    """Return the rows of the newest run that is not through; RefusedError when there is none."""
    for row in rows:
        if row.phase not in FINISHED:
            return [other for other in rows if other.run_id == row.run_id]
    raise RefusedError(
        "there is no interrupted migration in this database",
        hint="start one with `pgchroma migrate run`; see `pgchroma migrate status`",
    )


class StoreSink:
    """A pgchroma database as the target of one run; see model.Sink."""

    limits = Limits()
    asks_early = False
    transactional = True

    def __init__(self, store: Store, database_url: str) -> None:
        self.store = store
        self._url = database_url
        self.description: Json = {**describe(database_url), "layout": "pgchroma"}
        self._targets: dict[UUID, Collection] = {}

    async def find(self, collection: SourceCollection) -> tuple[SourceCollection, int] | None:
        """Return the target collection of the same tenant, database and name with its number of records, or None."""
        target = await self.store.find_collection(collection.tenant, collection.database, collection.name)
        if target is None:
            return None
        count = await self.store.count(target.id)
        return described(target, count), count

    async def begin(self, note: RunNote, collections: Sequence[SourceCollection]) -> None:
        """Note a new run with all its collections."""
        planned = [
            migration_status.PlannedCollection(
                item.id, item.tenant, item.database, item.name, item.count, item.state
            )
            for item in collections
        ]
        async with self.store.transaction() as connection:
            await migration_status.begin(
                connection,
                note.run_id,
                planned,
                source=note.source,
                fingerprint=note.fingerprint,
                policies=note.policies,
                pgchroma_version=pgchroma.__version__,
            )

    async def status(self, run_id: UUID | None = None) -> list[StatusRow]:
        """Return the checkpoints of one run, or of all, newest first."""
        async with self.store.transaction() as connection:
            return await migration_status.rows(connection, run_id)

    async def noted(self, run_id: UUID | None) -> Noted:
        """Return what migration_status holds of a run."""
        rows = await self.status(run_id)
        if run_id is None:
            rows = _latest_unfinished(rows)
        elif not rows:
            raise RefusedError(
                f"this database knows no migration {run_id}", hint="see `pgchroma migrate status`"
            )
        first = rows[0]
        return Noted(
            RunNote(first.run_id, first.source, first.source_fingerprint, first.policies),
            {row.path: row.source_state for row in rows},
            {row.source_collection_id: row.name for row in rows},
        )

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

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> None:
        """Create the target collection, or take up the one that an earlier attempt of this run created."""
        await self.store.ensure_database(collection.tenant, collection.database)
        target = await self.store.find_collection(collection.tenant, collection.database, collection.name)
        if target is None:
            target = await self.store.create_collection(
                collection.tenant,
                collection.database,
                collection.name,
                metadata=collection.metadata,
                configuration=collection.configuration,
                schema=collection.schema,
                schema_is_settled=bool(collection.schema),
                collection_id=collection.id if await self._is_free(collection.id) else None,
            )
        async with self.store.transaction() as connection:
            if collection.dimension is not None:
                target = await self.store.prepare_copy(connection, target, collection.dimension)
            await migration_status.set_target(connection, run_id, collection.id, target.id)
        self._targets[collection.id] = target

    async def _is_free(self, collection_id: UUID) -> bool:
        try:
            await self.store.get_collection_by_id(collection_id)
        except NotFoundError:
            return True
        return False

    async def encoder(self, collection: SourceCollection) -> Encode:
        """Return what encodes records for COPY into the table that is there, or else will be made."""
        target = await self.store.find_collection(collection.tenant, collection.database, collection.name)
        bits = target.sketch if target is not None and target.table_number is not None else None
        return Encoding(bits, lengths=collection.space != "cosine")

    async def write(
        self,
        collection: SourceCollection,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        quarantined: Sequence[Quarantined],
        position: int,
    ) -> Checkpoint:
        """Append records, put others aside and move the checkpoint, in one transaction.

        Raises:
            RefusedError: another process works on the same run, or the target got records from elsewhere meanwhile.
        """
        target = self._targets[collection.id]
        try:
            async with self.store.transaction() as connection:
                # Nobody waits for the disk here: a crash of the server takes the batch and its checkpoint, or neither. The commit
                # that notes the phase `copied` waits, for itself and for all before it.
                await connection.execute("SET LOCAL synchronous_commit = off")
                # The checkpoint first: its row lock keeps a second process of the same run from writing the same batch.
                await migration_status.advance(
                    connection,
                    checkpoint.run_id,
                    checkpoint.source_collection,
                    expected_position=checkpoint.last_position,
                    position=position,
                    records=len(records),
                    skipped=len(quarantined),
                )
                if records:
                    await self.store.copy_records(connection, target, records)
                if quarantined:
                    entries = [
                        quarantine.Entry(
                            checkpoint.run_id, item.collection, item.code, item.reason, item.record
                        )
                        for item in quarantined
                    ]
                    await quarantine.add(connection, checkpoint.source_collection, entries)
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
            checkpoint.skipped + len(quarantined),
            position,
        )

    async def set_phase(
        self, run_id: UUID, collection: SourceCollection, phase: str, errors: int | None = None
    ) -> None:
        """Note a collection's phase and, after the proof, how many differences it found."""
        async with self.store.transaction() as connection:
            await migration_status.set_phase(connection, run_id, collection.id, phase, errors=errors)

    async def query(
        self, collection: SourceCollection, vectors: Float32Matrix, count: int
    ) -> list[list[str]] | None:
        """Ask the way the server asks: through the indexes there are."""
        target = await self.store.find_collection(collection.tenant, collection.database, collection.name)
        if target is None:
            return None
        rows = await self.store.query(target.id, vectors, count, Filter(), Include())
        return [item.ids for item in rows]

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[Source]:
        """Read what the database holds at this moment."""
        with contextlib.ExitStack() as stack:
            source: DatabaseSource = await asyncio.to_thread(
                stack.enter_context, open_database(self._url, self.store.settings)
            )
            yield source

    async def publish(self) -> Json:
        """Do nothing: what is committed is in its place."""
        return {}

    async def finish(self) -> None:
        """Do nothing: migration_status tells of the run for ever."""

    async def close(self) -> None:
        """Close the connections."""
        await self.store.close()
