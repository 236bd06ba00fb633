"""Whether a restored cluster is sound below the level of records: every page, every B-tree, every vector index's answers.

PostgreSQL's own contrib modules do the work. They are created only in a copy that is thrown away; in a cluster that stays, only
what is installed already is used.
"""

from dataclasses import dataclass
from typing import Any, Final

import psycopg
from psycopg import AsyncConnection, sql

from pgchroma.store import tables, text
from pgchroma.types import Collection

PAGES: Final = "pg_prewarm"
STRUCTURE: Final = "amcheck"
_MOST_FINDINGS = 20

# Comparable with nothing an index knows, so that the rows themselves are compared.
_DISTANCES: Final = {
    "l2": sql.SQL("((embedding <-> %(q)s::vector) + 0)"),
    "cosine": sql.SQL("((embedding <=> %(q)s::vector) + 0)"),
    "ip": sql.SQL("((embedding <#> %(q)s::vector) + 0)"),
}


@dataclass(frozen=True, slots=True)
class Identity:
    """Which cluster this is and what it would do.

    Attributes:
        archives: whether it sends its WAL to an archive.
        points: names of the restore points it knows, newest first, with whether their digests were completed.
    """

    system_identifier: str
    archives: bool
    in_recovery: bool
    data_checksums: bool
    points: tuple[tuple[str, bool], ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """What a look at everything found.

    Attributes:
        objects: how many tables or indexes were looked at.
        findings: what is wrong, at most twenty of it.
    """

    objects: int
    findings: tuple[str, ...]


async def identity(connection: AsyncConnection[Any]) -> Identity:
    """Return which cluster this is; the schema must be in place."""
    cursor = await connection.execute(
        "SELECT (SELECT system_identifier::text FROM pg_control_system()), "
        "current_setting('archive_mode') <> 'off' AND current_setting('archive_command') NOT IN ('', '(disabled)', '/bin/true', 'true'), "
        "pg_is_in_recovery(), current_setting('data_checksums') = 'on'"
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - a SELECT without FROM has one row
    cursor = await connection.execute(
        "SELECT name, completed_at IS NOT NULL FROM pgchroma.backup_points ORDER BY created_at DESC"
    )
    return Identity(
        row[0], row[1], row[2], row[3], tuple((name, done) for name, done in await cursor.fetchall())
    )


async def extension(connection: AsyncConnection[Any], name: str, *, create: bool) -> str | None:
    """Return the schema of an extension, or None where it is not there and may not or cannot be created."""
    if create:
        try:
            await connection.execute(
                sql.SQL("CREATE EXTENSION IF NOT EXISTS {}").format(sql.Identifier(name))
            )
        except (
            psycopg.errors.FeatureNotSupported,
            psycopg.errors.UndefinedFile,
            psycopg.errors.InsufficientPrivilege,
            psycopg.errors.ReadOnlySqlTransaction,
        ):
            return None
    cursor = await connection.execute(
        "SELECT extnamespace::regnamespace::text FROM pg_extension WHERE extname = %s", [name]
    )
    row = await cursor.fetchone()
    return str(row[0]) if row else None


async def _sweep(
    connection: AsyncConnection[Any],
    listing: sql.Composed,
    statement: sql.Composed,
    *,
    rows_are_findings: bool = False,
) -> Sweep:
    """Run `statement` for every object of `listing` (oid, name); the errors it ends with are findings."""
    cursor = await connection.execute(listing)
    objects = await cursor.fetchall()
    findings: list[str] = []
    for oid, name in objects:
        try:
            cursor = await connection.execute(statement, {"oid": oid})
            if rows_are_findings:
                findings += [f"{name}: {row[0]}" for row in await cursor.fetchall()]
        except psycopg.OperationalError:
            raise
        except psycopg.Error as error:
            findings.append(f"{name}: {error.diag.message_primary or error}")
        if len(findings) >= _MOST_FINDINGS:
            break
    return Sweep(len(objects), tuple(findings[:_MOST_FINDINGS]))


async def pages(connection: AsyncConnection[Any], schema: str) -> Sweep:
    """Read every page of every table and index of this database, system catalogs and vector indexes too, with its checksum."""
    listing = sql.SQL(
        "SELECT oid, oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'i', 't', 'm', 'S') AND relpersistence = 'p' ORDER BY pg_class.oid"
    ).format()
    read = sql.SQL("SELECT {}(%(oid)s::regclass, 'buffer')").format(sql.Identifier(schema, "pg_prewarm"))
    return await _sweep(connection, listing, read)


async def heaps(connection: AsyncConnection[Any], schema: str) -> Sweep:
    """Check the rows of pgchroma's tables for what no healthy table can hold."""
    listing = sql.SQL(
        "SELECT oid, oid::regclass::text FROM pg_class WHERE relkind = 'r' AND relnamespace IN ('pgchroma'::regnamespace, {}::regnamespace)"
    ).format(sql.Literal(tables.SCHEMA))
    check = sql.SQL("SELECT msg FROM {}(%(oid)s::regclass) LIMIT 5").format(
        sql.Identifier(schema, "verify_heapam")
    )
    return await _sweep(connection, listing, check, rows_are_findings=True)


async def btrees(connection: AsyncConnection[Any], schema: str) -> Sweep:
    """Check every B-tree of pgchroma and of the system catalogs, and that every row of the table is in it."""
    listing = sql.SQL(
        "SELECT c.oid, c.oid::regclass::text FROM pg_class c JOIN pg_am a ON a.oid = c.relam JOIN pg_index i ON i.indexrelid = c.oid "
        "WHERE c.relkind = 'i' AND a.amname = 'btree' AND i.indisvalid AND c.relpersistence = 'p' AND c.relnamespace IN "
        "('pgchroma'::regnamespace, 'pg_catalog'::regnamespace, {}::regnamespace) ORDER BY c.oid"
    ).format(sql.Literal(tables.SCHEMA))
    check = sql.SQL("SELECT {}(%(oid)s::regclass, true)").format(sql.Identifier(schema, "bt_index_check"))
    return await _sweep(connection, listing, check)


async def sample(connection: AsyncConnection[Any], collection: Collection, count: int) -> list[list[float]]:
    """Return some of a collection's vectors, the same at every call."""
    if collection.table_number is None:
        return []
    cursor = await connection.execute(
        sql.SQL("SELECT embedding::real[] FROM {} ORDER BY hashint8(seq), seq LIMIT %s").format(
            tables.embeddings(collection.table_number)
        ),
        [count],
    )
    return [row[0] for row in await cursor.fetchall()]


async def near_enough(
    connection: AsyncConnection[Any], collection: Collection, query: list[float], answer: list[str]
) -> int:
    """Return how many records of an answer are as near to `query` as the nearest that comparing with every vector finds.

    By distance and not by id, because of records that are equally far.
    """
    if collection.table_number is None or not answer:
        return 0
    statement = sql.SQL(
        "SELECT count(*) FROM {records} r JOIN {vectors} v ON v.seq = r.vseq WHERE r.id = ANY(%(ids)s) AND {distance} <= "
        "(SELECT max(d) FROM (SELECT {distance} AS d FROM {vectors} ORDER BY d LIMIT %(k)s) AS nearest)"
    ).format(
        records=tables.records(collection.table_number),
        vectors=tables.embeddings(collection.table_number),
        distance=_DISTANCES[collection.space],
    )
    keys = [text.id_key(ident)[0] for ident in answer]
    cursor = await connection.execute(statement, {"q": query, "ids": keys, "k": len(answer)})
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
