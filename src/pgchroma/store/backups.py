"""Restore points with the digests of what there was, and the outcomes of restore drills: schema/0003_backups.sql."""

import asyncio
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection
from psycopg.rows import class_row

from pgchroma.errors import ConfigurationError, DatabaseNotReadyError
from pgchroma.store import barrier, digests, migrations
from pgchroma.store.connection import StoreSettings, conninfo
from pgchroma.store.digests import Digests
from pgchroma.store.failures import unprepared, unreachable

# Older points and drills are deleted; who restores to one has its file.
KEPT_POINTS: Final = 200
KEPT_DRILLS: Final = 400
_POLL_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Point:
    """A named restore point and what the database held there.

    Attributes:
        lsn: of the restore point, where recovery with its name as target ends.
        wal_file: the file that must be archived for that.
        system_identifier: of the cluster; a restored one has the same.
        held_seconds: how long writes waited.
        digest_seconds: how long the digests took, during which nobody waited.
        archived: whether the file was archived when we stopped waiting; None where the cluster does not archive.
    """

    name: str
    created_at: datetime
    lsn: str
    wal_file: str
    system_identifier: str
    held_seconds: float
    digest_seconds: float
    archived: bool | None
    digests: Digests


@dataclass(frozen=True, slots=True)
class Drill:
    """One row of pgchroma.restore_drills."""

    started_at: datetime
    duration_seconds: float
    result: str
    backup_label: str | None
    point: str | None
    message: str


@dataclass(frozen=True, slots=True)
class StoredPoint:
    """One row of pgchroma.backup_points, as far as others need it."""

    name: str
    created_at: datetime
    backup_label: str | None
    backup_type: str | None
    records: int | None
    digest: str | None
    completed_at: datetime | None


async def connect(database_url: str, application_name: str) -> AsyncConnection[Any]:
    """Return a connection in autocommit mode without a time limit for statements; DatabaseUnreachableError."""
    settings = StoreSettings(statement_timeout_seconds=0, application_name=application_name)
    try:
        return await AsyncConnection.connect(conninfo(database_url, settings), autocommit=True)
    except psycopg.OperationalError as error:
        raise unreachable(error) from error


async def make_point(
    database_url: str,
    name: str,
    *,
    backup_label: str | None,
    backup_type: str | None,
    patience_seconds: float,
    wait_archived_seconds: float,
) -> Point:
    """Create the restore point `name` and record what the database holds exactly there.

    Writes wait only until the point is made and a snapshot of the same state is taken; the digests are computed in that snapshot.

    Raises:
        DatabaseNotReadyError: the schema is older or newer, or the role may not create restore points.
        RefusedError: writes left no gap for as long as the patience lasted.
    """
    application = "pgchroma backup record-digests"
    async with (
        await connect(database_url, application) as marking,
        await connect(database_url, application) as reading,
    ):
        try:
            await migrations.check(marking)
            # While writes wait, a synchronous standby that is away must not be waited for.
            await marking.execute("SET synchronous_commit = local")
            loop = asyncio.get_running_loop()
            async with barrier.hold(marking, patience_seconds):
                begun = loop.time()
                cursor = await marking.execute(
                    "INSERT INTO pgchroma.backup_points (name, backup_label, backup_type) VALUES (%s, %s, %s) RETURNING created_at",
                    [name, backup_label, backup_type],
                )
                created_at = await _value(cursor)
                await reading.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
                await reading.execute("SELECT 1")
                cursor = await marking.execute("SELECT pg_create_restore_point(%s)::text", [name])
                lsn = str(await _value(cursor))
                held = loop.time() - begun
            begun = loop.time()
            found = await digests.compute(reading)
            await reading.execute("COMMIT")
            seconds = loop.time() - begun
            cursor = await marking.execute(
                "SELECT pg_walfile_name(%s::pg_lsn), (SELECT system_identifier::text FROM pg_control_system())",
                [lsn],
            )
            row = await cursor.fetchone()
            assert row is not None  # noqa: S101 - a SELECT without FROM has one row
            await _complete(marking, name, lsn, row[0], held, seconds, found)
            archived = await _archive(marking, row[0], wait_archived_seconds)
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseNotReadyError(
                f"the role may not do this: {error.diag.message_primary}",
                hint="run it as postgres over the socket, e.g. --database-url "
                "'postgresql:///pgchroma?host=/var/run/postgresql&user=postgres'",
            ) from error
        except psycopg.errors.UniqueViolation as error:
            raise ConfigurationError(
                f"there is a restore point {name} already", hint="give another --point"
            ) from error
        except psycopg.errors.ObjectNotInPrerequisiteState as error:
            raise DatabaseNotReadyError(
                f"PostgreSQL cannot create a restore point: {error.diag.message_primary}",
                hint="run it on the primary, with wal_level = replica",
            ) from error
        except psycopg.errors.UndefinedTable as error:
            raise unprepared(error) from error
        except psycopg.OperationalError as error:
            raise unreachable(error) from error
    return Point(name, created_at, lsn, row[0], row[1], held, seconds, archived, found)


async def _value(cursor: Any) -> Any:  # noqa: ANN401 - whatever the statement returns
    row = await cursor.fetchone()
    return row[0] if row else None


async def _complete(
    connection: AsyncConnection[Any],
    name: str,
    lsn: str,
    wal_file: str,
    held: float,
    seconds: float,
    found: Digests,
) -> None:
    async with connection.transaction():
        async with connection.cursor() as cursor:
            await cursor.executemany(
                "INSERT INTO pgchroma.backup_digests (point, collection_id, tenant, database, name, records, digest) "
                "VALUES (%s, %s, %s, %s, %s, %s, %s)",
                [
                    (name, item.id, item.tenant, item.database, item.name, item.records, item.digest)
                    for item in found.collections
                ],
            )
        await connection.execute(
            "UPDATE pgchroma.backup_points SET lsn = %s::pg_lsn, wal_file = %s, max_seq = %s, collections = %s, records = %s, "
            "digest = %s, held_seconds = %s, digest_seconds = %s, completed_at = clock_timestamp() WHERE name = %s",
            [
                lsn,
                wal_file,
                found.max_seq,
                len(found.collections),
                found.records,
                found.digest,
                held,
                seconds,
                name,
            ],
        )
        await connection.execute(
            "DELETE FROM pgchroma.backup_points WHERE name IN (SELECT name FROM pgchroma.backup_points "
            "ORDER BY created_at DESC OFFSET %s)",
            [KEPT_POINTS],
        )


async def _archive(connection: AsyncConnection[Any], wal_file: str, seconds: float) -> bool | None:
    """Finish the WAL file and wait until it is archived; None where the cluster does not archive."""
    cursor = await connection.execute("SELECT current_setting('archive_mode')")
    if await _value(cursor) == "off":
        return None
    await connection.execute("SELECT pg_switch_wal()")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        # The status of the file itself: pg_stat_archiver names only the last one, which may be a .history file.
        cursor = await connection.execute(
            "SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name = %s || '.ready'", [wal_file]
        )
        if not await _value(cursor):
            return True
        if loop.time() >= deadline:
            return False
        await asyncio.sleep(_POLL_SECONDS)


async def newest_points(
    connection: AsyncConnection[Any], limit: int = 1, *, completed: bool = False
) -> list[StoredPoint]:
    """Return the newest points, newest first; with `completed` only those whose digests were all recorded."""
    async with connection.cursor(row_factory=class_row(StoredPoint)) as cursor:
        await cursor.execute(
            "SELECT name, created_at, backup_label, backup_type, records, digest, completed_at FROM pgchroma.backup_points "
            "WHERE completed_at IS NOT NULL OR NOT %s ORDER BY created_at DESC LIMIT %s",
            [completed, limit],
        )
        return await cursor.fetchall()


async def add_drill(connection: AsyncConnection[Any], drill: Drill) -> None:
    """Note the outcome of a restore drill; one that began at the same time is replaced."""
    await connection.execute(
        "INSERT INTO pgchroma.restore_drills (started_at, duration_seconds, result, backup_label, point, message) "
        "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT (started_at) DO UPDATE SET duration_seconds = excluded.duration_seconds, "
        "result = excluded.result, backup_label = excluded.backup_label, point = excluded.point, message = excluded.message",
        [
            drill.started_at,
            drill.duration_seconds,
            drill.result,
            drill.backup_label,
            drill.point,
            drill.message,
        ],
    )
    await connection.execute(
        "DELETE FROM pgchroma.restore_drills WHERE started_at IN (SELECT started_at FROM pgchroma.restore_drills "
        "ORDER BY started_at DESC OFFSET %s)",
        [KEPT_DRILLS],
    )


async def newest_drills(connection: AsyncConnection[Any], limit: int = 1) -> list[Drill]:
    """Return the newest drills, newest first."""
    async with connection.cursor(row_factory=class_row(Drill)) as cursor:
        await cursor.execute(
            "SELECT started_at, duration_seconds, result, backup_label, point, message FROM pgchroma.restore_drills "
            "ORDER BY started_at DESC LIMIT %s",
            [limit],
        )
        return await cursor.fetchall()


@dataclass(frozen=True, slots=True)
class Archiver:
    """How far the archiving of WAL is.

    Attributes:
        archiving: whether archive_mode is on.
        ready_files: finished WAL files that are not archived yet; None where the role may not look (it needs pg_monitor).
        oldest_ready_seconds: how long the oldest of them has been waiting; 0 without any.
        last_archived_seconds: how long ago the last file was archived; None if none ever was.
        failing: whether the last attempt failed.
        checksum_failures: pages with a wrong checksum that PostgreSQL has come across.
    """

    archiving: bool
    ready_files: int | None
    oldest_ready_seconds: float
    archived_count: int
    failed_count: int
    last_archived_seconds: float | None
    failing: bool
    checksum_failures: int


async def archiver(connection: AsyncConnection[Any]) -> Archiver:
    """Return how far the archiving of WAL is."""
    cursor = await connection.execute(
        "SELECT current_setting('archive_mode') <> 'off', archived_count, failed_count, "
        "extract(epoch FROM clock_timestamp() - last_archived_time)::float8, "
        "coalesce(last_failed_time > last_archived_time, last_failed_time IS NOT NULL), "
        "(SELECT coalesce(sum(checksum_failures), 0)::bigint FROM pg_stat_database), "
        "has_function_privilege('pg_ls_archive_statusdir()', 'EXECUTE') FROM pg_stat_archiver"
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - the view has one row
    ready: int | None = None
    oldest = 0.0
    if row[6]:
        cursor = await connection.execute(
            "SELECT count(*), coalesce(extract(epoch FROM clock_timestamp() - min(modification)), 0)::float8 "
            "FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"
        )
        ready, oldest = await cursor.fetchone() or (0, 0.0)
    return Archiver(row[0], ready, oldest, row[1], row[2], row[3], row[4], row[5])
