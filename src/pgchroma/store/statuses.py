"""How the collections and their indexes are, for `pgchroma status`."""

from dataclasses import dataclass
from uuid import UUID

from psycopg import sql

from pgchroma.store import catalog, kinds, segments, tables
from pgchroma.store.connection import Connection
from pgchroma.store.segments import RecordSegment, Segment
from pgchroma.types import Collection


@dataclass(frozen=True, slots=True)
class CollectionStatus:
    """What `pgchroma status` shows of a collection.

    Attributes:
        rows: records.
        tail_rows: vectors that no index covers yet and that every query compares with one by one.
        segments: vector indexes.
        watermark: highest vector number that an index covers; 0 without one.
        size_bytes: tables and indexes on disk.
        index: kind of the vector indexes, and after a slash their quantisation; `none` where there is to be none. With an arrow
            to the one that is asked for, where that is another.
        record_tail_rows: records whose metadata no index covers yet.
        documents: how the index over documents finds substrings; None while there is none.
        building: phase and share of a build that is going on, as PostgreSQL reports it; None without one.
    """

    id: UUID
    path: str
    space: str
    dimension: int | None
    rows: int
    tail_rows: int
    segments: int
    watermark: int
    size_bytes: int
    index: str
    record_tail_rows: int
    documents: str | None
    building: str | None


async def read(connection: Connection) -> list[CollectionStatus]:
    """Return every collection with its rows, tail and indexes."""
    cursor = await connection.execute(
        "SELECT relid::regclass::text, phase, CASE WHEN blocks_total > 0 THEN 100 * blocks_done / blocks_total END "
        "FROM pg_stat_progress_create_index WHERE datname = current_database()"
    )
    builds = {table.rpartition(".")[2]: (phase, share) for table, phase, share in await cursor.fetchall()}
    return [
        await _of(connection, collection, builds)
        for collection in await catalog.list_collections(connection, None, None, None, 0)
    ]


async def _of(
    connection: Connection, collection: Collection, builds: dict[str, tuple[str, int | None]]
) -> CollectionStatus:
    number = collection.table_number
    vectors, records = await segments.load_both(connection, collection.id)
    rows = tail = record_tail = size = 0
    building = None
    if number is not None:
        cursor = await connection.execute(
            sql.SQL(
                "SELECT (SELECT count(*) FROM {records}), (SELECT count(*) FROM {embeddings} WHERE seq > {low}), "
                "(SELECT count(*) FROM {records} WHERE seq > {record_low}), "
                "pg_total_relation_size({r}) + pg_total_relation_size({v}) + coalesce(pg_total_relation_size(to_regclass({s})), 0)"
            ).format(
                records=tables.records(number),
                embeddings=tables.embeddings(number),
                low=sql.Literal(segments.watermark(vectors)),
                record_low=sql.Literal(segments.watermark(records)),
                r=sql.Literal(f"{tables.SCHEMA}.r{number}"),
                v=sql.Literal(f"{tables.SCHEMA}.v{number}"),
                s=sql.Literal(f"{tables.SCHEMA}.s{number}"),
            )
        )
        row = await cursor.fetchone()
        rows, tail, record_tail, size = row or (0, 0, 0, 0)
        for table in (f"v{number}", f"r{number}"):
            if table in builds:
                phase, share = builds[table]
                building = phase if share is None else f"{phase}, {share} %"
    return CollectionStatus(
        id=collection.id,
        path=collection.path,
        space=collection.space,
        dimension=collection.dimension,
        rows=rows,
        tail_rows=tail,
        segments=len(vectors),
        watermark=segments.watermark(vectors),
        size_bytes=size,
        index=_index(collection, vectors),
        record_tail_rows=record_tail,
        documents=_method(records),
        building=building,
    )


def _index(collection: Collection, vectors: list[Segment]) -> str:
    kind = kinds.wanted(collection)
    wanted = f"{kind.kind}/{kind.quantisation}" if kind else "none"
    there = {f"{part.kind}/{part.quantisation}" for part in vectors}
    return wanted if not there - {wanted} else f"{', '.join(sorted(there))} -> {wanted}"


def _method(records: list[RecordSegment]) -> str | None:
    methods = {part.method for part in records if part.method}
    return ", ".join(sorted(methods)) or None
