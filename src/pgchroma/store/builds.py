"""Building, replacing and dropping the indexes that segments stand for; every function takes a connection in autocommit mode.

An index is built first, under a name never used before, then recorded in the catalog, and only then are those dropped that it
replaces. Wherever that is interrupted, queries go on using what the catalog knows, and `remove_leftovers` finds the rest.
"""

import logging
import secrets
import time
from collections.abc import Sequence
from typing import LiteralString
from uuid import UUID

from psycopg import sql

from pgchroma.store import kinds, tables
from pgchroma.store.connection import Connection
from pgchroma.store.kinds import Kind
from pgchroma.store.segments import RecordSegment, Segment
from pgchroma.types import Collection

logger = logging.getLogger("pgchroma.indexer")


def _name(prefix: str, low: int, high: int) -> str:
    return f"{prefix}_{low}_{high}_{secrets.token_hex(3)}"


async def build_segment(connection: Connection, collection: Collection, kind: Kind, segment: Segment) -> None:
    """Build the index of one segment and record it in the place of all that begin no earlier."""
    number = collection.table_number
    if number is None:
        return
    name = _name(f"v{number}_{kind.kind}", segment.low, segment.high)
    table = tables.embeddings(number)
    rows = await _count(connection, table, segment.low, segment.high)
    logger.info(
        "building %s index %s (%s) over %d rows of %s",
        kind.kind,
        name,
        kind.quantisation,
        rows,
        collection.path,
    )
    started = time.monotonic()
    await connection.execute(kinds.create(name, table, collection, kind, segment.low, segment.high, rows))
    seconds = time.monotonic() - started
    await _analyze(connection, number)
    async with connection.transaction():
        replaced = await _forget(connection, "index_segments", "index_name", collection.id, segment.low)
        await connection.execute(
            "INSERT INTO pgchroma.index_segments "
            "(collection_id, low_seq, high_seq, index_name, row_count, build_seconds, kind, quantisation, options, lists) "
            # Not when a load has given it other tables meanwhile.
            "SELECT id, %s, %s, %s, %s, %s, %s, %s, %s, %s FROM pgchroma.collections WHERE id = %s AND table_number = %s",
            [
                segment.low,
                segment.high,
                name,
                rows,
                seconds,
                kind.kind,
                kind.quantisation,
                kind.options,
                kinds.lists(rows) if kind.kind == "ivfflat" else None,
                collection.id,
                number,
            ],
        )
    await _drop_all(connection, replaced)
    logger.info(
        "index %s built in %.1f s; %s is indexed up to %d", name, seconds, collection.path, segment.high
    )


async def drop_segments(connection: Connection, collection: Collection) -> None:
    """Drop every vector index of a collection that is to have none any more."""
    replaced = await _forget(connection, "index_segments", "index_name", collection.id, 0)
    logger.info("dropping the vector indexes of %s, as it asks for none", collection.path)
    await _drop_all(connection, replaced)


async def build_records(connection: Connection, collection: Collection, segment: RecordSegment) -> None:
    """Build the index over metadata of one segment and record it in the place of all that begin no earlier."""
    number = collection.table_number
    if number is None:
        return
    table = tables.records(number)
    metadata_index = _name(f"r{number}_metadata", segment.low, segment.high)
    rows = await _count(connection, table, segment.low, segment.high)
    logger.info("building index %s over %d rows of %s", metadata_index, rows, collection.path)
    started = time.monotonic()
    # Changes of old records are few; kept apart for later, as GIN does by default, they would slow every query.
    await _create_gin(
        connection,
        metadata_index,
        table,
        sql.SQL("metadata jsonb_path_ops"),
        segment,
        sql.SQL("WITH (fastupdate = off)"),
    )
    seconds = time.monotonic() - started
    await _analyze(connection, number)
    async with connection.transaction():
        replaced = await _forget(
            connection, "record_segments", "metadata_index, document_index", collection.id, segment.low
        )
        await connection.execute(
            "INSERT INTO pgchroma.record_segments "
            "(collection_id, low_seq, high_seq, metadata_index, row_count, build_seconds) "
            "SELECT id, %s, %s, %s, %s, %s FROM pgchroma.collections WHERE id = %s AND table_number = %s",
            [
                segment.low,
                segment.high,
                metadata_index,
                rows,
                seconds,
                collection.id,
                number,
            ],
        )
    await _drop_all(connection, replaced)


async def build_documents(
    connection: Connection, collection: Collection, segment: RecordSegment, method: str
) -> None:
    """Build the index over documents of one segment, in the place of the one it may have."""
    number = collection.table_number
    if number is None:
        return
    name = _name(f"r{number}_document", segment.low, segment.high)
    logger.info("building index %s (%s) over %d rows of %s", name, method, segment.rows, collection.path)
    if method == "pg_trgm":
        expression = sql.SQL("document {}").format(
            sql.Identifier(await _schema_of(connection, method) or "public", "gin_trgm_ops")
        )
    else:
        expression = sql.SQL("pgchroma.runs(document)").format()
    started = time.monotonic()
    await _create_gin(connection, name, tables.records(number), expression, segment, sql.SQL(""))
    seconds = time.monotonic() - started
    if method == "function":
        # ANALYZE would call the function for 30,000 documents, again and again, to learn what nobody asks.
        await connection.execute(
            sql.SQL("ALTER INDEX {} ALTER COLUMN 1 SET STATISTICS 0").format(
                sql.Identifier(tables.SCHEMA, name)
            )
        )
    await _analyze(connection, number)
    await connection.execute(
        "UPDATE pgchroma.record_segments SET document_index = %s, document_method = %s, build_seconds = build_seconds + %s "
        "WHERE collection_id = %s AND metadata_index = %s",
        [name, method, seconds, collection.id, segment.metadata_index],
    )
    if segment.document_index is not None:
        await _drop_all(connection, [segment.document_index])


async def document_method(connection: Connection) -> str:
    """Return how this database can index substrings of documents: by pg_trgm where it has the extension."""
    return "pg_trgm" if await _schema_of(connection, "pg_trgm") else "function"


async def _schema_of(connection: Connection, extension: str) -> str | None:
    cursor = await connection.execute(
        "SELECT nspname FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace WHERE extname = %s",
        [extension],
    )
    row = await cursor.fetchone()
    return row[0] if row else None


async def _create_gin(
    connection: Connection,
    name: str,
    table: sql.Identifier,
    expression: sql.Composable,
    segment: RecordSegment,
    options: sql.SQL,
) -> None:
    await connection.execute(
        sql.SQL("CREATE INDEX CONCURRENTLY {} ON {} USING gin ({}) {} WHERE seq > {} AND seq <= {}").format(
            sql.Identifier(name),
            table,
            expression,
            options,
            sql.Literal(segment.low),
            sql.Literal(segment.high),
        )
    )


async def _count(connection: Connection, table: sql.Identifier, low: int, high: int) -> int:
    query = sql.SQL("SELECT count(*) FROM {} WHERE seq > %s AND seq <= %s").format(table)
    row = await (await connection.execute(query, [low, high])).fetchone()
    return int(row[0]) if row else 0


async def _analyze(connection: Connection, number: int) -> None:
    # Without fresh statistics the planner reads the whole table to find a tail that is empty by now.
    for table in (tables.embeddings(number), tables.records(number)):
        await connection.execute(sql.SQL("ANALYZE {}").format(table))


async def _forget(
    connection: Connection, table: LiteralString, names: LiteralString, collection_id: UUID, low: int
) -> list[str]:
    """Take segments out of the catalog and return the names of their indexes."""
    query = sql.SQL("DELETE FROM pgchroma.{} WHERE collection_id = %s AND low_seq >= %s RETURNING {}").format(
        sql.SQL(table), sql.SQL(names)
    )
    cursor = await connection.execute(query, [collection_id, low])
    return [name for row in await cursor.fetchall() for name in row if name is not None]


async def remove_leftovers(connection: Connection) -> None:
    """Drop indexes that no segment knows, and those that are broken: what a crashed build or a crashed clean-up left behind."""
    cursor = await connection.execute(
        "SELECT c.relname FROM pg_class c JOIN pg_index i ON i.indexrelid = c.oid JOIN pg_class t ON t.oid = i.indrelid "
        "JOIN pg_am a ON a.oid = c.relam WHERE c.relnamespace = to_regnamespace('pgchroma_data') "
        "AND t.relname ~ '^[rv][0-9]+$' AND a.amname IN ('hnsw', 'ivfflat', 'gin') AND (NOT i.indisvalid "
        "OR NOT EXISTS (SELECT FROM pgchroma.index_segments s WHERE s.index_name = c.relname) "
        "AND NOT EXISTS (SELECT FROM pgchroma.record_segments s WHERE c.relname IN (s.metadata_index, s.document_index)))"
    )
    for (name,) in await cursor.fetchall():
        logger.info("dropping index %s, which no segment uses or which is broken", name)
        await connection.execute("DELETE FROM pgchroma.index_segments WHERE index_name = %s", [name])
        await connection.execute(
            "DELETE FROM pgchroma.record_segments WHERE %s IN (metadata_index, document_index)", [name]
        )
        await _drop_all(connection, [name])


async def _drop_all(connection: Connection, names: Sequence[str]) -> None:
    for name in names:
        await connection.execute(
            sql.SQL("DROP INDEX CONCURRENTLY IF EXISTS {}").format(sql.Identifier(tables.SCHEMA, name))
        )
