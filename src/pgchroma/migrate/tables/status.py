"""How far a run is, kept in the target database itself, so that a batch and its checkpoint are one transaction."""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pgchroma.errors import RefusedError
from pgchroma.migrate.tables.mapping import Mapping
from pgchroma.migrate.tables.source import Database

Connection = psycopg.Connection[tuple[Any, ...]]

# In a schema of its own: the target is the application's database, which need not have pgchroma's schema at all.
SCHEMA = "pgchroma_migration"

_CREATE = """
CREATE SCHEMA IF NOT EXISTS pgchroma_migration;
CREATE TABLE IF NOT EXISTS pgchroma_migration.table_run (
    run_id uuid PRIMARY KEY,
    started_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    result text CHECK (result IN ('equal', 'different')),
    source text NOT NULL,
    source_fingerprint text NOT NULL,
    mapping jsonb NOT NULL,
    pgchroma_version text NOT NULL
);
CREATE TABLE IF NOT EXISTS pgchroma_migration.table_status (
    run_id uuid NOT NULL REFERENCES pgchroma_migration.table_run ON DELETE CASCADE,
    source_table text NOT NULL,
    target_table text NOT NULL,
    phase text NOT NULL DEFAULT 'planned' CHECK (phase IN ('planned', 'copying', 'copied', 'verified', 'different')),
    existed boolean NOT NULL,
    started_at timestamptz,
    updated_at timestamptz NOT NULL DEFAULT now(),
    completed_at timestamptz,
    source_rows bigint NOT NULL,
    rows_read bigint NOT NULL DEFAULT 0,
    rows_written bigint NOT NULL DEFAULT 0,
    quarantined bigint NOT NULL DEFAULT 0,
    errors bigint NOT NULL DEFAULT 0,
    last_position jsonb,
    PRIMARY KEY (run_id, source_table)
);
COMMENT ON COLUMN pgchroma_migration.table_status.existed IS 'whether the table was there before the run';
COMMENT ON COLUMN pgchroma_migration.table_status.last_position IS 'rowid or primary key of the last row that was committed';
CREATE TABLE IF NOT EXISTS pgchroma_migration.quarantine (
    run_id uuid NOT NULL REFERENCES pgchroma_migration.table_run ON DELETE CASCADE,
    source_table text NOT NULL,
    source_key jsonb NOT NULL,
    reason text NOT NULL,
    source_row jsonb NOT NULL,
    PRIMARY KEY (run_id, source_table, source_key)
);
COMMENT ON COLUMN pgchroma_migration.quarantine.source_row IS
    'the whole row: {column: [storage class, value]}, text and blobs as hexadecimal bytes, so that nothing is lost';
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run."""

    run_id: UUID
    started_at: datetime
    completed_at: datetime | None
    result: str | None
    source: str
    source_fingerprint: str
    mapping: Any
    pgchroma_version: str


@dataclass(frozen=True, slots=True)
class TableStatus:
    """One table of one run."""

    run_id: UUID
    source_table: str
    target_table: str
    phase: str
    existed: bool
    started_at: datetime | None
    updated_at: datetime
    completed_at: datetime | None
    source_rows: int
    rows_read: int
    rows_written: int
    quarantined: int
    errors: int
    last_position: Any


def create(connection: Connection) -> None:
    """Create the schema that remembers runs, where it is missing."""
    connection.execute(_CREATE)


def begin(
    connection: Connection,
    run_id: UUID,
    database: Database,
    mapping: Mapping,
    existed: dict[str, bool],
    version: str,
) -> None:
    """Note a new run, every table in phase `planned`."""
    connection.execute(
        "INSERT INTO pgchroma_migration.table_run (run_id, source, source_fingerprint, mapping, pgchroma_version) "
        "VALUES (%s, %s, %s, %s::jsonb, %s)",
        [run_id, str(database.path.resolve()), database.fingerprint, json.dumps(mapping.as_data()), version],
    )
    rows = {table.name: table.rows for table in database.tables}
    with connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO pgchroma_migration.table_status (run_id, source_table, target_table, existed, source_rows) "
            "VALUES (%s, %s, %s, %s, %s)",
            [
                (
                    run_id,
                    table.source,
                    f"{mapping.schema}.{table.target}",
                    existed[table.source],
                    rows[table.source],
                )
                for table in mapping.moved
            ],
        )


def runs(connection: Connection, run_id: UUID | None = None) -> list[Run]:
    """Return one run or all, newest first; none where no run ever was."""
    row = connection.execute("SELECT to_regclass('pgchroma_migration.table_run') IS NOT NULL").fetchone()
    if not row or not row[0]:
        return []
    names = sql.SQL(", ").join(map(sql.Identifier, Run.__dataclass_fields__))
    condition = sql.SQL("WHERE run_id = %(run)s" if run_id else "")
    with connection.cursor(row_factory=class_row(Run)) as cursor:
        return cursor.execute(
            sql.SQL("SELECT {} FROM pgchroma_migration.table_run {} ORDER BY started_at DESC").format(
                names, condition
            ),
            {"run": run_id},
        ).fetchall()


def tables(connection: Connection, run_id: UUID) -> dict[str, TableStatus]:
    """Return the tables of a run by their source name."""
    names = sql.SQL(", ").join(map(sql.Identifier, TableStatus.__dataclass_fields__))
    with connection.cursor(row_factory=class_row(TableStatus)) as cursor:
        found = cursor.execute(
            sql.SQL(
                "SELECT {} FROM pgchroma_migration.table_status WHERE run_id = %s ORDER BY source_table"
            ).format(names),
            [run_id],
        ).fetchall()
    return {row.source_table: row for row in found}


def lock(connection: Connection, run_id: UUID) -> None:
    """Hold a run for as long as the connection lives; RefusedError when another process works on it."""
    row = connection.execute(
        "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [f"pgchroma tables {run_id}"]
    ).fetchone()
    if not row or not row[0]:
        raise RefusedError(
            f"another process is working on run {run_id}", hint="wait for it, see `pgchroma tables status`"
        )


def advance(
    connection: Connection, run_id: UUID, table: str, position: str, *, read: int, written: int
) -> None:
    """Move a table's checkpoint, in the transaction that writes the batch."""
    connection.execute(
        "UPDATE pgchroma_migration.table_status SET phase = 'copying', started_at = coalesce(started_at, now()), updated_at = now(), "
        "last_position = %s::jsonb, rows_read = rows_read + %s, rows_written = rows_written + %s "
        "WHERE run_id = %s AND source_table = %s",
        [position, read, written, run_id, table],
    )


def set_phase(connection: Connection, run_id: UUID, table: str, phase: str, **values: int) -> None:
    """Note a phase and, by name, counts that go with it."""
    assignments = sql.SQL("").join(
        sql.SQL(", {} = {}").format(sql.Identifier(name), sql.Literal(value))
        for name, value in values.items()
    )
    connection.execute(
        sql.SQL(
            "UPDATE pgchroma_migration.table_status SET phase = {}, updated_at = now(), "
            "started_at = coalesce(started_at, now()), "
            "completed_at = CASE WHEN {} THEN now() ELSE completed_at END {} WHERE run_id = {} AND source_table = {}"
        ).format(phase, phase in ("verified", "different"), assignments, run_id, table)
    )


def complete(connection: Connection, run_id: UUID, result: str) -> None:
    """Note how a run ended."""
    connection.execute(
        "UPDATE pgchroma_migration.table_run SET completed_at = now(), result = %s WHERE run_id = %s",
        [result, run_id],
    )


def quarantine(connection: Connection, run_id: UUID, table: str, key: str, reason: str, row: str) -> None:
    """Keep a row that does not fit; once, however often a run is resumed."""
    connection.execute(
        "INSERT INTO pgchroma_migration.quarantine (run_id, source_table, source_key, reason, source_row) "
        "VALUES (%s, %s, %s::jsonb, %s, %s::jsonb) ON CONFLICT DO NOTHING",
        [run_id, table, key, reason, row],
    )
