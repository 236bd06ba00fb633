"""Deleting collections, one or with all else in their database.

Locks are taken in the order in which everybody takes them: the records, the rest of a collection's tables, its row in the catalog.
"""

from collections.abc import Mapping, Sequence
from typing import LiteralString
from uuid import UUID

import psycopg
from psycopg import sql

from pgchroma.errors import NotFoundError
from pgchroma.store import catalog, tables, text
from pgchroma.store.connection import Connection
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT

_DEFAULT_DATABASE_ID = UUID(int=0)
# A dropped table takes about ten entries of PostgreSQL's lock table, which has room for some 6,400 unless told otherwise.
_DROPPED_AT_ONCE = 100


async def delete_collection(connection: Connection, tenant: str, database: str, name: str) -> None:
    """Delete a collection and its tables."""
    collection = await catalog.get_collection(connection, tenant, database, name)
    if not await _drop_collections(connection, "id = %(id)s", {"id": collection.id}):
        raise NotFoundError(f"Collection [{name}] does not exist")


async def delete_database(connection: Connection, tenant: str, name: str) -> None:
    """Delete a database with all of its collections."""
    try:
        database = await catalog.get_database(connection, tenant, name)
    except NotFoundError as error:
        raise NotFoundError(f"Database [{name}] not found") from error
    # From here on no collection can be added to it.
    await connection.execute("SELECT FROM pgchroma.databases WHERE id = %s FOR UPDATE", [database.id])
    await _drop_collections(connection, "database_id = %(id)s", {"id": database.id})
    await connection.execute("DELETE FROM pgchroma.databases WHERE id = %s", [database.id])


async def drop_some_collections(connection: Connection, tenant: str | None, database: str | None) -> bool:
    """Delete a portion of the collections of a database, or of all for None, and return whether there were any.

    A transaction each, because PostgreSQL cannot drop thousands of tables in one.
    """
    condition = (
        "id IN (SELECT c.id FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
        "WHERE (%(tenant)s::text IS NULL OR d.tenant = %(tenant)s) AND (%(database)s::text IS NULL OR d.name = %(database)s) "
        "ORDER BY c.id LIMIT %(limit)s)"
    )
    parameters = {
        "tenant": None if tenant is None else text.encode(tenant),
        "database": None if database is None else text.encode(database),
        "limit": _DROPPED_AT_ONCE,
    }
    return await _drop_collections(connection, condition, parameters) > 0


async def reset(connection: Connection) -> None:
    """Delete everything and make the default tenant and database anew."""
    # From here on no collection can be added to any.
    await connection.execute("SELECT FROM pgchroma.databases FOR UPDATE")
    await _drop_collections(connection, "true", {})
    await connection.execute("DELETE FROM pgchroma.databases")
    await connection.execute("DELETE FROM pgchroma.tenants")
    await connection.execute("INSERT INTO pgchroma.tenants (name) VALUES (%s)", [DEFAULT_TENANT])
    await connection.execute(
        "INSERT INTO pgchroma.databases (id, tenant, name) VALUES (%s, %s, %s)",
        [_DEFAULT_DATABASE_ID, DEFAULT_TENANT, DEFAULT_DATABASE],
    )


async def _drop_collections(
    connection: Connection, condition: LiteralString, parameters: Mapping[str, object]
) -> int:
    """Delete collections with their tables and return how many they were."""
    cursor = await connection.execute(
        sql.SQL("SELECT id, table_number FROM pgchroma.collections WHERE {}").format(sql.SQL(condition)),
        parameters,
    )
    found = await cursor.fetchall()
    known = [number for _, number in found if number is not None]
    # First the tables, then the collection's row: the order in which writers take them.
    await _lock_tables(connection, known)
    # RETURNING waits for writers and so knows of tables that they created until now.
    cursor = await connection.execute(
        "DELETE FROM pgchroma.collections WHERE id = ANY(%s) RETURNING table_number",
        [[row[0] for row in found]],
    )
    numbers = [row[0] for row in await cursor.fetchall()]
    if not set(numbers) <= {None, *known}:
        raise psycopg.errors.SerializationFailure(
            "a collection that is to be deleted got its tables meanwhile"
        )
    for number in numbers:
        if number is not None:
            await connection.execute(tables.drop(number))
    return len(numbers)


async def _lock_tables(connection: Connection, numbers: Sequence[int]) -> None:
    """Lock the tables of collections against everybody else."""
    # The records first, and alone: who holds another table of a collection and waits for this one would wait for ever.
    for prefixes in (("r",), ("v", "s")):
        if not numbers:
            return
        # It may take minutes to come to its end, and would be waited for.
        await connection.execute(tables.cancel_builds(numbers))
        names = await (await connection.execute(tables.existing(numbers, prefixes))).fetchall()
        if names:
            await connection.execute(tables.lock([name for (name,) in names]))
