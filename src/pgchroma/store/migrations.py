"""Numbered, forward-only schema migrations, run by the owner under an advisory lock."""

import hashlib
import re
from dataclasses import dataclass, field
from importlib import resources

import psycopg
from psycopg import AsyncConnection, sql

from pgchroma.errors import DatabaseNotReadyError
from pgchroma.store.connection import Row, StoreSettings, conninfo
from pgchroma.store.failures import unreachable

# Any number that nothing else in the database uses; it spells "pgch".
UPGRADE_LOCK = 0x70676368
MINIMUM_POSTGRESQL = 160000
MINIMUM_PGVECTOR = (0, 8, 0)

_FILE_NAME = re.compile(r"(\d{4})_(\w+)\.sql")


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of schema/."""

    version: int
    name: str
    text: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the file, recorded when it is applied."""
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(slots=True)
class UpgradeReport:
    """What `upgrade` did."""

    version: int
    applied: list[str] = field(default_factory=list)
    granted: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether anything in the database is different now."""
        return bool(self.applied or self.granted)


def migrations() -> list[Migration]:
    """Return the package's migrations, oldest first."""
    found = []
    for entry in resources.files("pgchroma.store").joinpath("schema").iterdir():
        match = _FILE_NAME.fullmatch(entry.name)
        if match:
            found.append(Migration(int(match[1]), match[2], entry.read_text()))
    return sorted(found, key=lambda migration: migration.version)


def required_version() -> int:
    """Return the schema version this package works with."""
    return migrations()[-1].version


async def installed_version(connection: AsyncConnection[Row]) -> int:
    """Return the schema version of the database; 0 for one that was never prepared."""
    cursor = await connection.execute("SELECT to_regclass('pgchroma.schema_migrations') IS NOT NULL")
    row = await cursor.fetchone()
    if not row or not row[0]:
        return 0
    cursor = await connection.execute("SELECT coalesce(max(version), 0) FROM pgchroma.schema_migrations")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def schema_versions(database_url: str, settings: StoreSettings | None = None) -> tuple[int, int]:
    """Return (installed, required); installed is 0 for a database that was never prepared.

    Raises:
        DatabaseUnreachableError: no connection.
    """
    try:
        connection = await AsyncConnection.connect(conninfo(database_url, settings or StoreSettings()))
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    async with connection:
        return await installed_version(connection), required_version()


async def check(connection: AsyncConnection[Row]) -> None:
    """Raise DatabaseNotReadyError, naming the remedy, unless the database is as this package needs it."""
    cursor = await connection.execute(
        "SELECT current_setting('server_version_num')::int, (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
    )
    row = await cursor.fetchone()
    number, extension = row or (0, None)
    if number < MINIMUM_POSTGRESQL:
        raise DatabaseNotReadyError(
            f"PostgreSQL {number // 10000} is too old",
            hint=f"use PostgreSQL {MINIMUM_POSTGRESQL // 10000} or newer",
        )
    if extension is None:
        raise DatabaseNotReadyError(
            "the extension vector (pgvector) is missing in this database",
            hint="as superuser: CREATE EXTENSION vector",
        )
    if tuple(int(part) for part in extension.split(".")[:3]) < MINIMUM_PGVECTOR:
        wanted = ".".join(map(str, MINIMUM_PGVECTOR))
        raise DatabaseNotReadyError(
            f"pgvector {extension} is too old",
            hint=f"install {wanted} or newer, then ALTER EXTENSION vector UPDATE",
        )
    installed, required = await installed_version(connection), required_version()
    if installed < required:
        raise DatabaseNotReadyError(
            f"the schema is at version {installed}, this pgchroma needs {required}",
            hint="run `pgchroma db upgrade` as the owner",
        )
    if installed > required:
        raise DatabaseNotReadyError(
            f"the schema is at version {installed}, newer than the {required} this pgchroma knows",
            hint="install the pgchroma release that upgraded it, or a newer one",
        )


async def upgrade(
    database_url: str,
    settings: StoreSettings | None = None,
    *,
    app_role: str | None = None,
    monitor_role: str | None = None,
) -> UpgradeReport:
    """Bring the schema to this package's version and grant the roles what they need; all of it or nothing.

    Raises:
        DatabaseUnreachableError: no connection.
        DatabaseNotReadyError: the extension is missing, a role is missing, or an applied migration's file was changed.
    """
    settings = settings or StoreSettings(statement_timeout_seconds=0)
    try:
        connection = await AsyncConnection.connect(conninfo(database_url, settings))
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    async with connection:
        report = UpgradeReport(version=required_version())
        await connection.execute("SELECT pg_advisory_xact_lock(%s)", [UPGRADE_LOCK])
        await _prepare(connection)
        await _apply(connection, report)
        await check(connection)
        for role, privileges in ((app_role, _APP_PRIVILEGES), (monitor_role, _MONITOR_PRIVILEGES)):
            if role:
                await _grant(connection, role, privileges, report)
    return report


async def _prepare(connection: AsyncConnection[Row]) -> None:
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_namespace WHERE nspname IN ('pgchroma', 'pgchroma_data')"
    )
    row = await cursor.fetchone()
    if row and row[0] == 2:
        return
    for statement in (
        "CREATE SCHEMA IF NOT EXISTS pgchroma",
        "CREATE SCHEMA IF NOT EXISTS pgchroma_data",
        "CREATE TABLE IF NOT EXISTS pgchroma.schema_migrations (version integer PRIMARY KEY, name text NOT NULL, "
        "checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
    ):
        await connection.execute(statement)


async def _apply(connection: AsyncConnection[Row], report: UpgradeReport) -> None:
    cursor = await connection.execute("SELECT version, checksum FROM pgchroma.schema_migrations")
    applied = {int(version): str(checksum) for version, checksum in await cursor.fetchall()}
    for migration in migrations():
        if migration.version in applied:
            if applied[migration.version] != migration.checksum:
                raise DatabaseNotReadyError(
                    f"schema migration {migration.version:04} was changed after this database applied it",
                    hint="install the unmodified release; applied migrations are never edited",
                )
            continue
        await connection.execute(migration.text.encode())
        await connection.execute(
            "INSERT INTO pgchroma.schema_migrations (version, name, checksum) VALUES (%s, %s, %s)",
            [migration.version, migration.name, migration.checksum],
        )
        report.applied.append(f"{migration.version:04}_{migration.name}")


# (privilege, statement that grants it, query that tells whether it is missing); {role} and %(role)s are filled in.
_APP_PRIVILEGES = (
    (
        "read and write the catalog",
        "GRANT USAGE ON SCHEMA pgchroma TO {role}; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA pgchroma TO {role}; "
        "REVOKE INSERT, UPDATE, DELETE ON pgchroma.schema_migrations, pgchroma.tokens, pgchroma.token_version FROM {role}",
        "SELECT bool_and(has_table_privilege(%(role)s, oid, privilege)) FROM pg_class, "
        "unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege "
        "WHERE relnamespace = 'pgchroma'::regnamespace AND relkind = 'r' "
        "AND (privilege = 'SELECT' OR relname NOT IN ('schema_migrations', 'tokens', 'token_version'))",
    ),
    # Whoever takes the server over can make no token with it.
    (
        "note when tokens are used",
        "GRANT UPDATE (last_used_at) ON pgchroma.tokens TO {role}",
        "SELECT has_column_privilege(%(role)s, 'pgchroma.tokens', 'last_used_at', 'UPDATE')",
    ),
    (
        "use the sequences",
        "GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA pgchroma TO {role}",
        "SELECT bool_and(has_sequence_privilege(%(role)s, oid, privilege)) FROM pg_class, unnest(ARRAY['USAGE', 'SELECT']) AS privilege "
        "WHERE relnamespace = 'pgchroma'::regnamespace AND relkind = 'S'",
    ),
    (
        "create collections' tables",
        "GRANT USAGE, CREATE ON SCHEMA pgchroma_data TO {role}",
        "SELECT has_schema_privilege(%(role)s, 'pgchroma_data', 'CREATE')",
    ),
)
_MONITOR_PRIVILEGES = (
    (
        "read the catalog",
        "GRANT USAGE ON SCHEMA pgchroma, pgchroma_data TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA pgchroma TO {role}; "
        "REVOKE SELECT ON pgchroma.tokens FROM {role}",
        "SELECT has_schema_privilege(%(role)s, 'pgchroma_data', 'USAGE') AND bool_and(has_table_privilege(%(role)s, oid, 'SELECT')) "
        "FROM pg_class WHERE relnamespace = 'pgchroma'::regnamespace AND relkind = 'r' AND relname <> 'tokens'",
    ),
)


async def _grant(
    connection: AsyncConnection[Row],
    role: str,
    privileges: tuple[tuple[str, str, str], ...],
    report: UpgradeReport,
) -> None:
    cursor = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
    if await cursor.fetchone() is None:
        raise DatabaseNotReadyError(
            f"the role {role} does not exist", hint=f"as superuser: CREATE ROLE {role} LOGIN"
        )
    for name, statement, question in privileges:
        cursor = await connection.execute(question.encode(), {"role": role})
        row = await cursor.fetchone()
        if row and row[0]:
            continue
        for part in statement.split("; "):
            await connection.execute(sql.SQL(part).format(role=sql.Identifier(role)))
        report.granted.append(f"{role}: {name}")
