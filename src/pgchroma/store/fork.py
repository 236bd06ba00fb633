"""Forks: a copy of a collection under a name and id of its own, made inside the database."""

from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from pgchroma.errors import AlreadyExistsError
from pgchroma.store import catalog, configuration, names, operations, sparse, tables
from pgchroma.store.connection import Connection
from pgchroma.types import Collection


async def fork(
    connection: Connection, collection_id: UUID, new_name: str, tenant: str | None, database: str | None
) -> Collection:
    """Copy a collection into a new one of the same database, as it is at one moment, and return that.

    Writers go on meanwhile; the copy has all of a batch or nothing of it. Vector indexes are left to the indexer.

    Raises:
        NotFoundError: there is no such collection.
        AlreadyExistsError: the name is taken.
        InvalidArgumentError: the name is none.
    """
    source = await catalog.get_collection_by_id(connection, collection_id, tenant, database)
    names.require(new_name, "Validation error: new_name: ")
    new_id = uuid4()
    try:
        cursor = await connection.execute(
            "INSERT INTO pgchroma.collections (id, database_id, name, metadata, metadata_exact, configuration, schema, lineage) "
            "SELECT %s, database_id, %s, metadata, metadata_exact, configuration, schema, coalesce(lineage, id) "
            "FROM pgchroma.collections WHERE id = %s",
            [new_id, new_name, collection_id],
        )
    except psycopg.errors.UniqueViolation as error:
        raise AlreadyExistsError(f"Collection [{new_name}] already exists") from error
    if not cursor.rowcount:
        # Deleted since it was looked up.
        catalog.require(None, collection_id, tenant, database)
    if source.table_number is not None and source.dimension is not None:
        await _copy_tables(connection, source, new_id)
    return await catalog.get_collection_by_id(connection, new_id)


async def _copy_tables(connection: Connection, source: Collection, new_id: UUID) -> None:
    old, dimension = source.table_number, source.dimension
    assert old is not None  # noqa: S101 - the caller checked it
    assert dimension is not None  # noqa: S101 - likewise
    cursor = await connection.execute(
        "UPDATE pgchroma.collections SET dimension = %s, table_number = nextval('pgchroma.table_numbers'), sketch = %s "
        "WHERE id = %s RETURNING table_number",
        [dimension, source.sketch, new_id],
    )
    row = await cursor.fetchone()
    assert row is not None  # noqa: S101 - it was inserted a moment ago
    new = int(row[0])
    await catalog.create_tables(connection, new, dimension, source)
    pairs = [(tables.embeddings(old), tables.embeddings(new))]
    if configuration.sparse_key(source.schema) is not None:
        pairs.append((sparse.table(old), sparse.table(new)))
    # All in one statement, and so in one snapshot.
    statement = sql.SQL("WITH copied AS ({} RETURNING 1), {} SELECT count(*) FROM copied").format(
        await _copy(connection, tables.records(old), tables.records(new)),
        sql.SQL(", ").join(
            [
                sql.SQL("part{} AS ({})").format(sql.SQL(str(place)), await _copy(connection, *pair))
                for place, pair in enumerate(pairs)
            ]
        ),
    )
    # It may take longer than a request of another kind may.
    await connection.execute("SET LOCAL statement_timeout = 0")
    cursor = await connection.execute(statement)
    row = await cursor.fetchone()
    await operations.note(connection, new_id, row[0] if row else 0)
    # Later than the rows on purpose: a key that is in them must be in the schema, the other way round does no harm.
    await connection.execute(
        "UPDATE pgchroma.collections AS made SET schema = source.schema, unit_length = source.unit_length FROM pgchroma.collections AS source "
        "WHERE made.id = %s AND source.id = %s",
        [new_id, source.id],
    )


async def _copy(connection: Connection, old: sql.Identifier, new: sql.Identifier) -> sql.Composed:
    """Return the statement that copies all rows of a table into a new one."""
    # By name: a table that has been altered has its columns in another order than a new one.
    cursor = await connection.execute(
        "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped "
        "AND attgenerated = '' ORDER BY attnum",
        [old.as_string(connection)],
    )
    columns = sql.SQL(", ").join(sql.Identifier(name) for (name,) in await cursor.fetchall())
    # In order, so that the copy's pages hold neighbours whatever the source has been through.
    return sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} ORDER BY 1").format(new, columns, columns, old)


async def count(connection: Connection, collection_id: UUID) -> int:
    """Return how many forks there are of a collection's lineage: of the first collection, directly or by way of others."""
    collection = await catalog.get_collection_by_id(connection, collection_id)
    cursor = await connection.execute(
        "SELECT count(*) FROM pgchroma.collections WHERE lineage = "
        "(SELECT coalesce(lineage, id) FROM pgchroma.collections WHERE id = %s)",
        [collection.id],
    )
    row = await cursor.fetchone()
    return int(row[0]) if row else 0
