"""Writing dumped collections: into tables of their own that become a collection's in one transaction, or into a collection that is there."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID, uuid4

import numpy as np
from numpy.typing import NDArray
from psycopg import sql
from psycopg.rows import class_row

from pgchroma.errors import RefusedError, VerificationError
from pgchroma.store import catalog, configuration, dumps, operations, sketches, sparse, tables
from pgchroma.store import metadata as codec
from pgchroma.store.connection import Connection
from pgchroma.store.dumps import Catalogued, Chunk
from pgchroma.types import Collection

_COLUMNS: Final = sql.SQL("seq, vseq, id, id_full, document, metadata, metadata_exact, uri")


@dataclass(frozen=True, slots=True)
class Load:
    """One row of pgchroma.loads: one collection on its way in."""

    dump_digest: str
    source_id: UUID
    tenant: str
    database: str
    name: str
    policy: str
    table_number: int | None
    chunks_done: int
    unit_length: bool = True

    @property
    def path(self) -> str:
        """`tenant/database/name` of the target."""
        return f"{self.tenant}/{self.database}/{self.name}"

    @property
    def _key(self) -> list[object]:
        return [self.dump_digest, self.source_id, self.tenant, self.database, self.name, self.policy]


_KEY: Final = sql.SQL(
    "dump_digest = %s AND source_id = %s AND tenant = %s AND database = %s AND name = %s AND policy = %s"
)


async def require_server(connection: Connection) -> None:
    """Raise RefusedError where another role makes the tables of collections: the server could not use those that this one would make."""
    # The server's role is granted what the owner of the schema has anyway; one that owns tables of collections is a server's, too.
    cursor = await connection.execute(
        "SELECT current_user, min(pg_get_userbyid(a.grantee)) FROM pg_namespace n, aclexplode(n.nspacl) a "
        "WHERE n.nspname = 'pgchroma_data' AND a.privilege_type = 'CREATE' AND a.grantee <> n.nspowner "
        "HAVING NOT bool_or(pg_get_userbyid(a.grantee) = current_user) AND NOT EXISTS (SELECT FROM pg_class c "
        "WHERE c.relnamespace = to_regnamespace('pgchroma_data') AND pg_get_userbyid(c.relowner) = current_user)"
    )
    found = await cursor.fetchone()
    if found is not None:
        raise RefusedError(
            f"this runs as {found[0]}, and the collections here are {found[1]}'s: the server could not use what would be loaded",
            hint=f"connect as {found[1]}, as the server does; on hosts of the playbooks: pgchroma-as-server backup load",
        )


def as_collection(source: Catalogued, number: int | None) -> Collection:
    """Return a dumped collection the way the rest of the store knows collections."""
    return Collection(
        id=UUID(source.id),
        name=source.name,
        tenant=source.tenant,
        database=source.database,
        metadata=codec.decode(source.metadata, source.metadata_exact),
        configuration=codec.decode(source.configuration, None) or {},
        schema=codec.decode(source.schema, None) or {},
        dimension=source.dimension,
        table_number=number,
    )


async def begin(connection: Connection, load: Load, source: Catalogued) -> Load:
    """Return the load as an earlier attempt left it, or begin it: with tables of its own unless it is a merge."""
    async with connection.cursor(row_factory=class_row(Load)) as cursor:
        await cursor.execute(
            sql.SQL("SELECT {} FROM pgchroma.loads WHERE {} FOR UPDATE").format(
                sql.SQL(", ").join(map(sql.Identifier, Load.__dataclass_fields__)), _KEY
            ),
            load._key,
        )
        found = await cursor.fetchone()
    if found:
        return found
    number = None
    if load.policy != "merge" and source.dimension is not None:
        row = await (await connection.execute("SELECT nextval('pgchroma.table_numbers')")).fetchone()
        assert row is not None  # noqa: S101 - nextval returns a row
        number = int(row[0])
        await catalog.create_tables(connection, number, source.dimension, as_collection(source, number))
    await connection.execute(
        "INSERT INTO pgchroma.loads (dump_digest, source_id, tenant, database, name, policy, table_number) "
        "VALUES (%s, %s, %s, %s, %s, %s, %s)",
        [*load._key, number],
    )
    return replace(load, table_number=number)


async def _advance(connection: Connection, load: Load) -> Load:
    """Note that a chunk more is in; the row's lock keeps a second process from writing the same one."""
    cursor = await connection.execute(
        sql.SQL(
            "UPDATE pgchroma.loads SET chunks_done = chunks_done + 1, updated_at = now() WHERE {} AND chunks_done = %s"
        ).format(_KEY),
        [*load._key, load.chunks_done],
    )
    if cursor.rowcount != 1:
        raise RefusedError(
            f"another process is loading {load.path} from the same dump; this one stops and has written nothing twice",
            hint="wait for the other one",
        )
    return replace(load, chunks_done=load.chunks_done + 1)


async def _numbers(connection: Connection, count: int) -> NDArray[np.int64]:
    cursor = await connection.execute(
        "SELECT nextval('pgchroma.record_seqs') FROM generate_series(1, %s)", [count]
    )
    return np.array([row[0] for row in await cursor.fetchall()], dtype=np.int64)


async def _copy(
    connection: Connection, chunk: Chunk, records: sql.Identifier, embeddings: sql.Identifier, bits: int
) -> None:
    """Write a chunk into two tables; `bits` per dimension of the sketches that the records table has a column for, or 0."""
    further = None
    if bits:
        further = list(sketches.copy_fields(dumps.embeddings_of(chunk), bits))
    streams = dumps.copy_streams(chunk, await _numbers(connection, chunk.rows), further)
    columns = (
        sql.SQL("{}, sketch").format(_COLUMNS) if bits else _COLUMNS,
        sql.SQL("seq, record_seq, embedding"),
    )
    for table, names, stream in zip((records, embeddings), columns, streams, strict=True):
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(table, names)
        async with connection.cursor() as cursor, cursor.copy(statement) as copy:
            await copy.write(stream)


async def stage(connection: Connection, load: Load, source: Catalogued, chunk: Chunk) -> Load:
    """Write the next chunk into the load's own tables; RefusedError when another process does."""
    load = await _advance(connection, load)
    number, dimension = load.table_number, source.dimension
    assert number is not None  # noqa: S101 - a collection with chunks has a dimension
    assert dimension is not None  # noqa: S101 - likewise
    await _copy(
        connection, chunk, tables.records(number), tables.embeddings(number), sketches.levels(dimension)
    )
    if load.unit_length and not sketches.all_unit(dumps.embeddings_of(chunk)):
        await connection.execute(
            sql.SQL("UPDATE pgchroma.loads SET unit_length = false WHERE {}").format(_KEY), load._key
        )
        load = replace(load, unit_length=False)
    collection = as_collection(source, number)
    if configuration.sparse_key(collection.schema) is not None:
        await _index_sparse(connection, collection, tables.records(number), chunk.rows)
    return load


async def _index_sparse(
    connection: Connection, collection: Collection, staged: sql.Identifier, rows: int
) -> None:
    """Index the sparse vectors of the `rows` newest records of a table."""
    cursor = await connection.execute(
        sql.SQL("SELECT seq, metadata::text, metadata_exact FROM {} ORDER BY seq DESC LIMIT %s").format(
            staged
        ),
        [rows],
    )
    found = {seq: codec.decode(stored, exact) for seq, stored, exact in await cursor.fetchall()}
    await sparse.insert(connection, collection, found)


async def merge(connection: Connection, load: Load, target: Collection, chunk: Chunk) -> Load:
    """Write the next chunk into a collection that is there: its records take the place of those with the same ids.

    A record that is there keeps its place in the order; everything else of it is the dump's. What was written is compared with
    the chunk before the transaction ends.
    """
    load = await _advance(connection, load)
    number, dimension = target.table_number, target.dimension
    assert number is not None  # noqa: S101 - the caller prepared it
    records, embeddings = tables.records(number), tables.embeddings(number)
    names = {
        "r": records,
        "v": embeddings,
        "sr": sql.Identifier("pg_temp", "staged_records"),
        "sv": sql.Identifier("pg_temp", "staged_vectors"),
        "dimension": sql.Literal(dimension),
        "sketch": sql.SQL(", sketch" if target.sketch else ""),
        "new_sketch": sql.SQL(", sketch = s.sketch" if target.sketch else ""),
    }
    for statement in (
        "CREATE TEMP TABLE staged_records (LIKE {r}) ON COMMIT DROP",
        "CREATE TEMP TABLE staged_vectors (seq bigint, record_seq bigint, embedding vector({dimension})) ON COMMIT DROP",
    ):
        await connection.execute(sql.SQL(statement).format(**names))
    await _copy(connection, chunk, names["sr"], names["sv"], target.sketch)  # type: ignore[arg-type]
    await connection.execute("ANALYZE staged_records")
    # In the order in which every write locks records.
    cursor = await connection.execute(
        sql.SQL(
            "SELECT r.seq, r.vseq FROM {r} r JOIN {sr} s ON s.id = r.id ORDER BY r.id FOR UPDATE OF r"
        ).format(**names)
    )
    there = await cursor.fetchall()
    await connection.execute(
        sql.SQL("DELETE FROM {v} WHERE seq = ANY(%s)").format(**names), [[row[1] for row in there]]
    )
    for statement in (
        "UPDATE {sv} n SET record_seq = r.seq FROM {sr} s JOIN {r} r ON r.id = s.id WHERE n.seq = s.seq",
        "UPDATE {r} r SET vseq = s.seq, document = s.document, metadata = s.metadata, metadata_exact = s.metadata_exact, uri = s.uri{new_sketch} "
        "FROM {sr} s WHERE s.id = r.id",
        "INSERT INTO {r} (seq, vseq, id, id_full, document, metadata, metadata_exact, uri{sketch}) "
        "SELECT seq, vseq, id, id_full, document, metadata, metadata_exact, uri{sketch} FROM {sr} s "
        "WHERE NOT EXISTS (SELECT FROM {r} r WHERE r.id = s.id) ORDER BY id",
        "INSERT INTO {v} (seq, record_seq, embedding) SELECT seq, record_seq, embedding FROM {sv}",
    ):
        await connection.execute(sql.SQL(statement).format(**names))
    if configuration.sparse_key(target.schema) is not None:
        await sparse.delete(connection, target, [row[0] for row in there])
        cursor = await connection.execute(
            sql.SQL(
                "SELECT r.seq, r.metadata::text, r.metadata_exact FROM {r} r JOIN {sr} s ON s.id = r.id"
            ).format(**names)
        )
        found = {seq: codec.decode(stored, exact) for seq, stored, exact in await cursor.fetchall()}
        await sparse.insert(connection, target, found)
    await operations.note(connection, target.id, chunk.rows)
    cursor = await connection.execute(
        sql.SQL(
            "SELECT count(*) FROM {sr} s JOIN {sv} n ON n.seq = s.vseq JOIN {r} r ON r.id = s.id JOIN {v} v ON v.seq = r.vseq "
            "WHERE v.record_seq = r.seq AND vector_send(v.embedding) = vector_send(n.embedding) AND "
            "(r.id_full, r.document, r.metadata::text, r.metadata_exact, r.uri) IS NOT DISTINCT FROM "
            "(s.id_full, s.document, s.metadata::text, s.metadata_exact, s.uri)"
        ).format(**names)
    )
    row = await cursor.fetchone()
    if not row or row[0] != chunk.rows:
        raise VerificationError(
            f"{load.path}: {row[0] if row else 0} of {chunk.rows} merged records are as in the dump",
            hint="this chunk was taken back; please report it",
        )
    # Last, as in every write.
    await sketches.note_lengths(connection, target, dumps.embeddings_of(chunk))
    return load


async def learn_keys(connection: Connection, target: Collection, source: Catalogued) -> None:
    """Record the metadata keys that the dumped collection's schema knows in the target's, so that filters find them."""
    keys = as_collection(source, None).schema.get("keys", {})
    seen = {
        (key, kind)
        for key, kinds in keys.items()
        if not key.startswith("#") and isinstance(kinds, dict)
        for kind in kinds
    }
    await catalog.add_discovered_keys(connection, target, seen)


@dataclass(frozen=True, slots=True)
class Published:
    """What became of one load: the collection's id, and the number of the tables it replaced."""

    path: str
    collection_id: UUID
    replaced: int | None


async def publish(
    connection: Connection, items: Sequence[tuple[Load, Catalogued]], places: Sequence[tuple[str, str]]
) -> list[Published]:
    """Make loads' tables the collections' own, all in the caller's transaction, which must hold the write barrier alone.

    An existing collection of a `replace` keeps its id, so that clients which know it go on. `places` are the databases, by
    tenant and name, that must be there, with collections or without.

    Raises:
        RefusedError: a collection of a target's name came to be meanwhile, and the policy is not to replace it.
    """
    for tenant, database in places:
        await catalog.ensure_database(connection, tenant, database)
    done = []
    for load, source in items:
        cursor = await connection.execute(
            "SELECT c.id, c.table_number FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
            "WHERE d.tenant = %s AND d.name = %s AND c.name = %s FOR UPDATE OF c",
            [load.tenant, load.database, load.name],
        )
        existing = await cursor.fetchone()
        if existing and load.policy == "fail":
            raise RefusedError(
                f"collection {load.path} was created meanwhile",
                hint="name another by --as, or say --if-exists replace or merge",
            )
        values = [
            source.metadata,
            source.metadata_exact,
            source.configuration,
            source.schema,
            source.dimension,
            load.table_number,
            sketches.levels(source.dimension) if source.dimension is not None else 0,
            load.unit_length,
        ]
        old = None
        if existing:
            ident, old = existing
            for segments in ("index_segments", "record_segments"):
                await connection.execute(
                    sql.SQL("DELETE FROM {} WHERE collection_id = %s").format(
                        sql.Identifier("pgchroma", segments)
                    ),
                    [ident],
                )
            await connection.execute(
                "UPDATE pgchroma.collections SET metadata = %s::jsonb, metadata_exact = %s, configuration = %s::jsonb, "
                "schema = %s::jsonb, dimension = %s, table_number = %s, sketch = %s, unit_length = %s WHERE id = %s",
                [*values, ident],
            )
            if old is not None:
                await connection.execute("INSERT INTO pgchroma.replaced_tables VALUES (%s)", [old])
        else:
            cursor = await connection.execute("SELECT 1 FROM pgchroma.collections WHERE id = %s", [source.id])
            ident = uuid4() if await cursor.fetchone() else UUID(source.id)
            await connection.execute(
                "INSERT INTO pgchroma.collections (id, database_id, name, metadata, metadata_exact, configuration, schema, dimension, "
                "table_number, sketch, unit_length) SELECT %s, id, %s, %s::jsonb, %s, %s::jsonb, %s::jsonb, %s, %s, %s, %s FROM pgchroma.databases "
                "WHERE tenant = %s AND name = %s",
                [ident, load.name, *values, load.tenant, load.database],
            )
        await forget(connection, load)
        done.append(Published(load.path, ident, old))
    return done


async def forget(connection: Connection, load: Load) -> None:
    """Delete a load's row."""
    await connection.execute(sql.SQL("DELETE FROM pgchroma.loads WHERE {}").format(_KEY), load._key)


async def discard(connection: Connection, load: Load) -> None:
    """Drop a load's tables and delete its row."""
    if load.table_number is not None:
        await connection.execute(tables.drop(load.table_number))
    await forget(connection, load)


async def unfinished(connection: Connection) -> list[Load]:
    """Return the loads that began and did not end, oldest first."""
    async with connection.cursor(row_factory=class_row(Load)) as cursor:
        await cursor.execute(
            sql.SQL("SELECT {} FROM pgchroma.loads ORDER BY started_at").format(
                sql.SQL(", ").join(map(sql.Identifier, Load.__dataclass_fields__))
            )
        )
        return await cursor.fetchall()


async def drop_one_replaced(connection: Connection) -> bool:
    """Drop the tables of one collection that a load replaced; return whether there were any."""
    cursor = await connection.execute(
        "DELETE FROM pgchroma.replaced_tables WHERE table_number = (SELECT table_number FROM pgchroma.replaced_tables "
        "ORDER BY 1 LIMIT 1 FOR UPDATE SKIP LOCKED) RETURNING table_number"
    )
    row = await cursor.fetchone()
    if row is None:
        return False
    await connection.execute(tables.cancel_builds(row))
    await connection.execute(tables.drop(row[0]))
    return True


async def add_tokens(connection: Connection, tokens: Sequence[dict[str, Any]], tenant: str) -> int:
    """Insert dumped tokens for a tenant where their ids and names are free; return how many that were."""
    added = 0
    for token in tokens:
        cursor = await connection.execute(
            "INSERT INTO pgchroma.tokens (id, name, digest, tenant, databases, scope, created_at, expires_at, revoked_at) "
            "SELECT id, name, digest, %(tenant)s, databases, scope, created_at, expires_at, revoked_at "
            "FROM jsonb_populate_record(NULL::pgchroma.tokens, %(token)s::jsonb) ON CONFLICT DO NOTHING",
            {"tenant": tenant, "token": codec.encode_document(token)},
        )
        added += cursor.rowcount
    return added
