"""The table pgchroma.migration_status: how far each run of the migrator is, collection by collection."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from psycopg import sql
from psycopg.rows import class_row

from pgchroma.errors import RefusedError
from pgchroma.store.connection import Connection


@dataclass(frozen=True, slots=True)
class StatusRow:
    """One row: one collection of one run; the columns are explained in schema/000*_migration_*.sql."""

    run_id: UUID
    source_collection_id: UUID
    tenant: str
    database: str
    name: str
    target_collection_id: UUID | None
    phase: str
    started_at: datetime
    updated_at: datetime
    completed_at: datetime | None
    source_records: int
    records: int
    skipped: int
    errors: int
    last_position: int
    source: str
    source_fingerprint: str
    source_state: dict[str, Any]
    policies: dict[str, str]
    pgchroma_version: str

    @property
    def path(self) -> str:
        """`tenant/database/name`."""
        return f"{self.tenant}/{self.database}/{self.name}"


@dataclass(frozen=True, slots=True)
class PlannedCollection:
    """What is known of a collection when a run begins."""

    source_collection_id: UUID
    tenant: str
    database: str
    name: str
    source_records: int
    source_state: dict[str, Any]


async def begin(
    connection: Connection,
    run_id: UUID,
    collections: Sequence[PlannedCollection],
    *,
    source: str,
    fingerprint: str,
    policies: dict[str, str],
    pgchroma_version: str,
) -> None:
    """Note a new run, every collection in phase `planned`."""
    async with connection.cursor() as cursor:
        await cursor.executemany(
            "INSERT INTO pgchroma.migration_status (run_id, source_collection_id, tenant, database, name, source_records, "
            "source_state, source, source_fingerprint, policies, pgchroma_version) "
            "VALUES (%s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s::jsonb, %s)",
            [
                (
                    run_id,
                    item.source_collection_id,
                    item.tenant,
                    item.database,
                    item.name,
                    item.source_records,
                    json.dumps(item.source_state),
                    source,
                    fingerprint,
                    json.dumps(policies),
                    pgchroma_version,
                )
                for item in collections
            ],
        )


async def rows(connection: Connection, run_id: UUID | None = None) -> list[StatusRow]:
    """Return the rows of one run, or of all runs, newest run first."""
    condition = sql.SQL("WHERE run_id = %(run)s") if run_id else sql.SQL("")
    names = sql.SQL(", ").join(map(sql.Identifier, StatusRow.__dataclass_fields__))
    async with connection.cursor(row_factory=class_row(StatusRow)) as cursor:
        await cursor.execute(
            sql.SQL(
                "SELECT {} FROM pgchroma.migration_status {} ORDER BY started_at DESC, run_id, tenant, database, name"
            ).format(names, condition),
            {"run": run_id},
        )
        return await cursor.fetchall()


async def set_target(connection: Connection, run_id: UUID, source_collection: UUID, target: UUID) -> None:
    """Note which collection a run writes to, and that it copies now."""
    await connection.execute(
        "UPDATE pgchroma.migration_status SET target_collection_id = %s, phase = 'copying', updated_at = now() "
        "WHERE run_id = %s AND source_collection_id = %s",
        [target, run_id, source_collection],
    )


async def advance(
    connection: Connection,
    run_id: UUID,
    source_collection: UUID,
    *,
    expected_position: int,
    position: int,
    records: int,
    skipped: int,
) -> None:
    """Move a checkpoint from `expected_position` to `position`, in the transaction that writes the batch.

    Raises:
        RefusedError: the checkpoint is elsewhere, because another process works on the same run.
    """
    cursor = await connection.execute(
        "UPDATE pgchroma.migration_status SET last_position = %s, records = records + %s, skipped = skipped + %s, "
        "updated_at = now() WHERE run_id = %s AND source_collection_id = %s AND last_position = %s AND phase = 'copying'",
        [position, records, skipped, run_id, source_collection, expected_position],
    )
    if cursor.rowcount != 1:
        raise RefusedError(
            f"another process is working on migration {run_id}; this one stops and has written nothing twice",
            hint="wait for the other one, see `pgchroma migrate status`",
        )


async def set_phase(
    connection: Connection, run_id: UUID, source_collection: UUID, phase: str, *, errors: int | None = None
) -> None:
    """Note a phase; `errors`, the differences found by the proof, completes the row."""
    await connection.execute(
        "UPDATE pgchroma.migration_status SET phase = %s, updated_at = now(), errors = coalesce(%s, errors), "
        "completed_at = CASE WHEN %s::bigint IS NULL THEN completed_at ELSE now() END "
        "WHERE run_id = %s AND source_collection_id = %s",
        [phase, errors, errors, run_id, source_collection],
    )
