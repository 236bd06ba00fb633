"""Tenants, databases and collections."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

from pgchroma.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from pgchroma.store import bounds, kinds, names, sketches, sparse, tables, text
from pgchroma.store import configuration as configurations
from pgchroma.store import metadata as codec
from pgchroma.store.connection import Connection, Row
from pgchroma.types import Collection

_CREATE_ATTEMPTS = 20

COLUMNS = (
    "c.id, c.name, d.tenant, d.name, c.metadata::text, c.metadata_exact, c.configuration::text, c.schema::text, "
    "c.dimension, c.table_number, c.version, c.sketch, c.unit_length"
)
FROM = "FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id"


@dataclass(frozen=True, slots=True)
class Database:
    """One database of a tenant."""

    id: UUID
    name: str
    tenant: str


def collection_of(row: Row) -> Collection:
    """Return the collection of a row that begins with `COLUMNS`."""
    return Collection(
        id=row[0],
        name=row[1],
        tenant=text.decode(row[2]),
        database=row[3],
        metadata=codec.decode(row[4], row[5]),
        configuration=codec.decode(row[6], None) or {},
        schema=codec.decode(row[7], None) or {},
        dimension=row[8],
        table_number=row[9],
        version=row[10],
        sketch=row[11],
        unit_length=row[12],
    )


async def create_tenant(connection: Connection, name: str) -> None:
    """Create a tenant."""
    names.require_tenant(name, "Validation error: name: ")
    cursor = await connection.execute(
        "INSERT INTO pgchroma.tenants (name) VALUES (%s) ON CONFLICT DO NOTHING", [text.encode(name)]
    )
    if cursor.rowcount == 0:
        raise AlreadyExistsError(f"Tenant [{name}] already exists")


async def get_tenant(connection: Connection, name: str) -> str:
    """Return the tenant's name, or raise NotFoundError."""
    cursor = await connection.execute("SELECT FROM pgchroma.tenants WHERE name = %s", [text.encode(name)])
    if await cursor.fetchone() is None:
        raise NotFoundError(f"Tenant [{name}] not found")
    return name


async def create_database(connection: Connection, tenant: str, name: str) -> Database:
    """Create a database; its tenant need not exist, as in Chroma."""
    names.require(name)
    database = Database(uuid4(), name, tenant)
    cursor = await connection.execute(
        "INSERT INTO pgchroma.databases (id, tenant, name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        [database.id, text.encode(tenant), name],
    )
    if cursor.rowcount == 0:
        raise AlreadyExistsError(f"Database [{name}] already exists")
    return database


async def get_database(connection: Connection, tenant: str, name: str) -> Database:
    """Return a database, or raise NotFoundError."""
    cursor = await connection.execute(
        "SELECT id FROM pgchroma.databases WHERE tenant = %s AND name = %s",
        [text.encode(tenant), text.encode(name)],
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"Database [{name}] not found. Are you sure it exists?")
    return Database(row[0], name, tenant)


async def list_databases(
    connection: Connection, tenant: str, limit: int | None, offset: int
) -> list[Database]:
    """Return a tenant's databases by name."""
    cursor = await connection.execute(
        "SELECT id, name FROM pgchroma.databases WHERE tenant = %s ORDER BY name LIMIT %s OFFSET %s",
        [text.encode(tenant), limit, offset],
    )
    return [Database(row[0], row[1], tenant) for row in await cursor.fetchall()]


async def ensure_database(connection: Connection, tenant: str, name: str) -> None:
    """Create tenant and database where they are missing."""
    await connection.execute(
        "INSERT INTO pgchroma.tenants (name) VALUES (%s) ON CONFLICT DO NOTHING", [text.encode(tenant)]
    )
    await connection.execute(
        "INSERT INTO pgchroma.databases (id, tenant, name) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
        [uuid4(), text.encode(tenant), name],
    )


async def create_collection(
    connection: Connection,
    tenant: str,
    database: str,
    name: str,
    *,
    metadata: Mapping[str, Any] | None,
    configuration: Mapping[str, Any] | None,
    schema: Mapping[str, Any] | None,
    schema_is_settled: bool,
    get_or_create: bool,
    collection_id: UUID | None,
) -> Collection:
    """Create a collection; with `get_or_create` an existing one is returned unchanged.

    A schema that another server settled already stands, whatever `hnsw:` metadata it was once made from.
    """
    names.require(name, "Validation error: name: ")
    if metadata is not None and not metadata:
        raise InvalidArgumentError("Validation error: metadata: Metadata cannot be empty")
    kinds.check(metadata)
    if schema_is_settled:
        settled, full_schema = configurations.build(None, schema, None)
    else:
        settled, full_schema = configurations.build(configuration, schema, metadata)
    try:
        parent = await get_database(connection, tenant, database)
    except NotFoundError as error:
        raise InvalidArgumentError(f"Database [{database}] does not exist") from error
    stored, exact = codec.encode(metadata) if metadata else (None, None)
    for _ in range(_CREATE_ATTEMPTS):
        cursor = await connection.execute(
            "INSERT INTO pgchroma.collections (id, database_id, name, metadata, metadata_exact, configuration, schema) "
            "VALUES (%s, %s, %s, %s::jsonb, %s, %s::jsonb, %s::jsonb) ON CONFLICT DO NOTHING",
            [
                collection_id or uuid4(),
                parent.id,
                name,
                stored.decode() if stored else None,
                exact,
                codec.encode_document(settled),
                codec.encode_document(full_schema),
            ],
        )
        if cursor.rowcount == 0 and not get_or_create:
            raise AlreadyExistsError(f"Collection [{name}] already exists")
        # Between the two statements somebody may delete the one that was in the way; then it is ours to create.
        with suppress(NotFoundError):
            return await get_collection(connection, tenant, database, name)
    raise NotFoundError(f"Collection [{name}] does not exist")


async def _fetch(
    connection: Connection, condition: sql.SQL, parameters: Sequence[object]
) -> Collection | None:
    query = sql.SQL("SELECT {} {} WHERE {}").format(sql.SQL(COLUMNS), sql.SQL(FROM), condition)
    cursor = await connection.execute(query, parameters)
    row = await cursor.fetchone()
    return collection_of(row) if row else None


async def get_collection(connection: Connection, tenant: str, database: str, name: str) -> Collection:
    """Return a collection by name, or raise NotFoundError."""
    found = await _fetch(
        connection,
        sql.SQL("d.tenant = %s AND d.name = %s AND c.name = %s"),
        [text.encode(tenant), text.encode(database), text.encode(name)],
    )
    if found is None:
        raise NotFoundError(f"Collection [{name}] does not exist")
    return found


async def get_collection_by_id(
    connection: Connection, collection_id: UUID, tenant: str | None = None, database: str | None = None
) -> Collection:
    """Return a collection by id, in the given tenant and database if given, or raise NotFoundError."""
    found = await _fetch(connection, sql.SQL("c.id = %s"), [collection_id])
    return require(found, collection_id, tenant, database)


def require(
    found: Collection | None, collection_id: UUID, tenant: str | None = None, database: str | None = None
) -> Collection:
    """Return what was found under an id, or raise NotFoundError; one outside the bounds of this task's work does not exist for it."""
    if (
        found is None
        or (tenant is not None and found.tenant != tenant)
        or (database is not None and found.database != database)
        or not bounds.contain(found.tenant, found.database)
    ):
        # Upstream ends the sentence with a full stop where it looks for a collection by id alone.
        end = "." if tenant is None else ""
        raise NotFoundError(f"Collection [{collection_id}] does not exist{end}")
    return found


async def list_collections(
    connection: Connection, tenant: str | None, database: str | None, limit: int | None, offset: int
) -> list[Collection]:
    """Return collections in the order of their creation; tenant and database None means all."""
    query = sql.SQL(
        "SELECT {} {} WHERE (%(tenant)s::text IS NULL OR d.tenant = %(tenant)s) "
        "AND (%(database)s::text IS NULL OR d.name = %(database)s) ORDER BY c.created_at, c.id LIMIT %(limit)s OFFSET %(offset)s"
    ).format(sql.SQL(COLUMNS), sql.SQL(FROM))
    cursor = await connection.execute(
        query,
        {
            "tenant": None if tenant is None else text.encode(tenant),
            "database": None if database is None else text.encode(database),
            "limit": limit,
            "offset": offset,
        },
    )
    return [collection_of(row) for row in await cursor.fetchall()]


async def count_collections(connection: Connection, tenant: str, database: str) -> int:
    """Return how many collections a database has; 0 for a missing one."""
    cursor = await connection.execute(
        "SELECT count(*) FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
        "WHERE d.tenant = %s AND d.name = %s",
        [text.encode(tenant), text.encode(database)],
    )
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def modify_collection(
    connection: Connection,
    collection_id: UUID,
    new_name: str | None,
    new_metadata: Mapping[str, Any] | None,
    new_configuration: Mapping[str, Any] | None,
) -> None:
    """Change what is given; metadata is replaced, not merged, and null values in it are left out."""
    if new_name is not None:
        names.require(new_name, "Validation error: new_name: ")
    if new_metadata is not None and not new_metadata:
        raise InvalidArgumentError("Validation error: new_metadata: Metadata cannot be empty")
    await get_collection_by_id(connection, collection_id)
    kinds.check(new_metadata)
    cursor = await connection.execute(
        "SELECT schema::text FROM pgchroma.collections WHERE id = %s FOR UPDATE", [collection_id]
    )
    row = await cursor.fetchone()
    if row is None:
        raise NotFoundError(f"Collection [{collection_id}] does not exist.")
    if new_configuration:
        settled, schema = configurations.update(codec.decode(row[0], None) or {}, new_configuration)
        await connection.execute(
            "UPDATE pgchroma.collections SET configuration = %s::jsonb, schema = %s::jsonb WHERE id = %s",
            [codec.encode_document(settled), codec.encode_document(schema), collection_id],
        )
    if new_metadata is not None:
        kept = {key: value for key, value in new_metadata.items() if value is not None}
        stored, exact = codec.encode(kept) if kept else (None, None)
        await connection.execute(
            "UPDATE pgchroma.collections SET metadata = %s::jsonb, metadata_exact = %s WHERE id = %s",
            [stored.decode() if stored else None, exact, collection_id],
        )
    if new_name is not None:
        try:
            await connection.execute(
                "UPDATE pgchroma.collections SET name = %s WHERE id = %s", [new_name, collection_id]
            )
        except psycopg.errors.UniqueViolation as error:
            raise AlreadyExistsError(f"Collection [{new_name}] already exists") from error


async def fix_dimension(connection: Connection, collection: Collection, dimension: int) -> Collection:
    """Give a collection that has none its dimension and its tables; whoever comes second gets the first one's."""
    async with connection.transaction():
        cursor = await connection.execute(
            "UPDATE pgchroma.collections SET dimension = %s, table_number = nextval('pgchroma.table_numbers'), sketch = %s "
            "WHERE id = %s AND dimension IS NULL RETURNING table_number",
            [dimension, sketches.levels(dimension), collection.id],
        )
        row = await cursor.fetchone()
        if row is None:
            # Whoever waited for the first has the collection's row locked all the same, which in other writes is the last thing to be.
            raise psycopg.Rollback
    if row:
        await create_tables(connection, row[0], dimension, collection)
    return await get_collection_by_id(connection, collection.id)


async def create_tables(connection: Connection, number: int, dimension: int, like: Collection) -> None:
    """Create the tables of a collection, or of a copy of it, under a number that none has used."""
    indexed = configurations.sparse_key(like.schema) is not None
    for statement in tables.create(number, dimension, like.space) + sparse.create(number) * indexed:
        await connection.execute(statement)


async def add_discovered_keys(
    connection: Connection, collection: Collection, seen: set[tuple[str, str]]
) -> None:
    """Record metadata keys met for the first time in the collection's schema."""
    if configurations.discover(collection.schema, seen) is None:
        return
    cursor = await connection.execute(
        "SELECT schema::text FROM pgchroma.collections WHERE id = %s FOR UPDATE", [collection.id]
    )
    row = await cursor.fetchone()
    grown = configurations.discover(codec.decode(row[0], None) or {}, seen) if row else None
    if grown is not None:
        await connection.execute(
            "UPDATE pgchroma.collections SET schema = %s::jsonb WHERE id = %s",
            [codec.encode_document(grown), collection.id],
        )
