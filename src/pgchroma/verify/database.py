"""Checks of a database: reachable, of the right versions and settings, and its catalog true."""

from pathlib import Path

from pgchroma.errors import DatabaseNotReadyError, DatabaseUnreachableError
from pgchroma.store import Store, StoreSettings, inspection, migrations
from pgchroma.verify.checks import Check, check

# From this version on pgvector has no known way to damage an HNSW index.
SAFE_PGVECTOR = (0, 8, 4)
_TIMEOUT_SECONDS = 5.0


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3])


async def check_database(database_url: str, password_file: Path | None = None) -> list[Check]:
    """Return the outcome of every check; later ones are left out when an earlier one makes them pointless."""
    settings = StoreSettings(
        pool_size=1,
        pool_timeout_seconds=_TIMEOUT_SECONDS,
        password_file=password_file,
        application_name="pgchroma verify",
    )
    try:
        # A connection of its own says at once, and once, why there is none; the pool would try for a while.
        await migrations.schema_versions(database_url, settings)
    except DatabaseUnreachableError as error:
        return [check("database-reachable", "critical", False, error.message, error.hint)]
    async with await Store.open(database_url, settings) as store:
        async with store.transaction() as connection:
            seen = await inspection.server(connection)
        checks = [check("database-reachable", "critical", True, "PostgreSQL answers"), *_server(seen)]
        try:
            await store.check_ready(_TIMEOUT_SECONDS)
        except DatabaseNotReadyError as error:
            return [*checks, check("database-ready", "critical", False, error.message, error.hint)]
        detail = f"schema version {migrations.required_version()}"
        checks.append(check("database-ready", "critical", True, detail))
        async with store.transaction() as connection:
            return [*checks, *_catalog(await inspection.catalog(connection))]


def _server(seen: inspection.Server) -> list[Check]:
    major = seen.postgresql // 10000
    minimum = migrations.MINIMUM_POSTGRESQL // 10000
    checks = [
        check(
            "postgresql-version",
            "critical",
            seen.postgresql >= migrations.MINIMUM_POSTGRESQL,
            f"PostgreSQL {major}.{seen.postgresql % 10000}",
            f"use PostgreSQL {minimum} or newer",
        ),
        check(
            "database-encoding",
            "critical",
            seen.encoding == "UTF8",
            f"encoding {seen.encoding}",
            "create the database anew with ENCODING 'UTF8'",
        ),
        check(
            "crash-safety",
            "critical",
            seen.fsync and seen.full_page_writes,
            f"fsync {_switch(seen.fsync)}, full_page_writes {_switch(seen.full_page_writes)}",
            "set both to on; without them a crash loses or corrupts data",
        ),
        check(
            "commit-durability",
            "warning",
            seen.synchronous_commit != "off",
            f"synchronous_commit {seen.synchronous_commit}",
            "set it to on; a crash loses the last acknowledged writes otherwise",
        ),
        check(
            "data-checksums",
            "warning",
            seen.data_checksums,
            f"data checksums {_switch(seen.data_checksums)}",
            "enable them with pg_checksums while PostgreSQL is stopped",
        ),
    ]
    detail = "the extension pg_trgm indexes documents"
    if not seen.trigrams:
        # Nothing is wrong without it, only slower to build.
        detail = (
            "a function indexes documents; CREATE EXTENSION pg_trgm, as superuser, has them indexed faster"
        )
    checks.append(check("document-index", "warning", True, detail))
    if seen.pgvector is None:
        # check_ready() reports this one, with its remedy.
        return checks
    wanted = ".".join(map(str, SAFE_PGVECTOR))
    checks.append(
        check(
            "pgvector-version",
            "warning",
            _numbers(seen.pgvector) >= SAFE_PGVECTOR,
            f"pgvector {seen.pgvector}",
            f"install {wanted} or newer (PGDG has it), then ALTER EXTENSION vector UPDATE; until then keep "
            "PGCHROMA_PARALLEL_INDEX_BUILDS=false",
        )
    )
    if seen.pgvector_packaged:
        checks.append(
            check(
                "pgvector-updated",
                "warning",
                _numbers(seen.pgvector) >= _numbers(seen.pgvector_packaged),
                f"package {seen.pgvector_packaged}, extension in this database {seen.pgvector}",
                "as superuser: ALTER EXTENSION vector UPDATE",
            )
        )
    return checks


def _catalog(seen: inspection.Catalog) -> list[Check]:
    return [
        check(
            "catalog-tables",
            "critical",
            not seen.missing_tables,
            f"{seen.collections:,} collections"
            + (
                f", tables missing: {', '.join(seen.missing_tables)}"
                if seen.missing_tables
                else ", all tables there"
            ),
            "tables were dropped behind pgchroma's back; restore from a backup",
        ),
        check(
            "stray-tables",
            "warning",
            not seen.stray_tables,
            ", ".join(seen.stray_tables) or "none",
            "no collection owns these tables; look at them, then drop them",
        ),
        check(
            "invalid-indexes",
            "warning",
            not seen.invalid_indexes,
            ", ".join(seen.invalid_indexes) or "none",
            "an index build failed and the indexer will replace them; see the server's log if they stay",
        ),
        check(
            "migrations-finished",
            "warning",
            not seen.unfinished_migrations,
            f"unfinished: {', '.join(seen.unfinished_migrations)}"
            if seen.unfinished_migrations
            else "none unfinished",
            "continue with `pgchroma migrate resume`",
        ),
    ]


def _switch(on: bool) -> str:
    return "on" if on else "off"
