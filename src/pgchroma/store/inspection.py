"""What a database says about itself, for `pgchroma verify database`; reads only."""

from dataclasses import dataclass

from pgchroma.store import tables
from pgchroma.store.connection import Connection


@dataclass(frozen=True, slots=True)
class Server:
    """Versions and the settings that decide whether acknowledged writes survive a crash.

    Attributes:
        postgresql: `server_version_num`, e.g. 170006.
        pgvector: version of the extension in this database, None without it.
        pgvector_packaged: version that the installed package would bring, None without a package.
        trigrams: whether this database has the extension pg_trgm.
    """

    postgresql: int
    pgvector: str | None
    pgvector_packaged: str | None
    encoding: str
    data_checksums: bool
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    in_recovery: bool
    trigrams: bool


@dataclass(frozen=True, slots=True)
class Catalog:
    """Whether the catalog and the tables it names agree.

    Attributes:
        missing_tables: tables that the catalog names and that do not exist.
        stray_tables: tables in the data schema that no collection owns.
        invalid_indexes: left behind by an index build that failed; none of those that are being built now.
        unfinished_migrations: ids of migrations that stopped half-way.
    """

    collections: int
    missing_tables: tuple[str, ...]
    stray_tables: tuple[str, ...]
    invalid_indexes: tuple[str, ...]
    unfinished_migrations: tuple[str, ...]


async def server(connection: Connection) -> Server:
    """Return versions and settings."""
    cursor = await connection.execute(
        "SELECT current_setting('server_version_num')::int, "
        "(SELECT extversion FROM pg_extension WHERE extname = 'vector'), "
        "(SELECT default_version FROM pg_available_extensions WHERE name = 'vector'), "
        "(SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = current_database()), "
        "current_setting('data_checksums') = 'on', current_setting('fsync') = 'on', "
        "current_setting('full_page_writes') = 'on', current_setting('synchronous_commit'), pg_is_in_recovery(), "
        "EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_trgm')"
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return Server(*row)


async def catalog(connection: Connection) -> Catalog:
    """Compare the catalog with the tables and indexes there are; the schema must be in place."""
    cursor = await connection.execute(
        "WITH named AS (SELECT kind || table_number AS name FROM pgchroma.collections, unnest(ARRAY['r', 'v', 's']) AS kind "
        "WHERE table_number IS NOT NULL AND (kind <> 's' OR jsonb_path_exists(schema, "
        "'$.keys.*.sparse_vector.sparse_vector_index ? (@.enabled == true)'))), "
        # Tables of loads under way, and of collections that a load replaced, belong to no collection yet or any more.
        "owned AS (SELECT name FROM named UNION ALL SELECT kind || table_number FROM (SELECT table_number FROM pgchroma.loads "
        "UNION ALL SELECT table_number FROM pgchroma.replaced_tables) AS passing, unnest(ARRAY['r', 'v', 's']) AS kind), "
        "existing AS (SELECT relname::text AS name FROM pg_class WHERE relnamespace = %(schema)s::regnamespace AND relkind = 'r') "
        "SELECT (SELECT count(*) FROM pgchroma.collections), "
        "ARRAY(SELECT name FROM named EXCEPT SELECT name FROM existing ORDER BY 1), "
        "ARRAY(SELECT name FROM existing EXCEPT SELECT name FROM owned ORDER BY 1), "
        "ARRAY(SELECT indexrelid::regclass::text FROM pg_index JOIN pg_class ON pg_class.oid = indexrelid "
        "WHERE relnamespace = %(schema)s::regnamespace AND NOT indisvalid "
        "AND indexrelid NOT IN (SELECT index_relid FROM pg_stat_progress_create_index) ORDER BY 1), "
        "ARRAY(SELECT DISTINCT run_id::text FROM pgchroma.migration_status WHERE phase NOT IN ('verified', 'different'))",
        {"schema": tables.SCHEMA},
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    return Catalog(row[0], *(tuple(names) for names in row[1:]))
