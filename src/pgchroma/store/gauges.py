"""Figures about the database for monitoring: cheap to ask for, so estimates where an exact figure would mean reading the tables.

Whoever has further figures adds a function to SOURCES; `/metrics` shows what they return.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from pgchroma.store import backups
from pgchroma.store.connection import Connection
from pgchroma.store.indexer import LEADER_LOCK

# A series for each of thousands of collections would burden Prometheus; the longest tails are those worth a look.
_COLLECTIONS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Gauge:
    """One figure, or one for each set of labels.

    Attributes:
        name: in Prometheus's terms, with the unit at its end where it has one.
        samples: (labels, value); every sample has the same labels.
    """

    name: str
    help: str
    samples: Sequence[tuple[Mapping[str, str], float]] = ()


def single(name: str, text: str, value: float) -> Gauge:
    """Return a gauge without labels."""
    return Gauge(name, text, [({}, value)])


async def indexes(connection: Connection) -> list[Gauge]:
    """Return how many rows no vector index covers, how long the indexer is behind, and when an index was last built.

    Tails are as the indexer last counted them; by PostgreSQL's statistics where it has not looked yet.
    """
    cursor = await connection.execute(
        "SELECT d.tenant, d.name, c.name, s.n_live_tup, coalesce(i.rows, 0), coalesce(i.segments, 0), "
        "extract(epoch FROM i.built_at)::float8, t.rows, extract(epoch FROM clock_timestamp() - t.due_since)::float8 "
        "FROM pgchroma.collections c JOIN pgchroma.databases d ON d.id = c.database_id "
        "LEFT JOIN pg_stat_user_tables s ON s.schemaname = 'pgchroma_data' AND s.relname = 'v' || c.table_number "
        "LEFT JOIN (SELECT collection_id, sum(row_count) AS rows, count(*) AS segments, max(built_at) AS built_at "
        "FROM pgchroma.index_segments GROUP BY collection_id) i ON i.collection_id = c.id "
        "LEFT JOIN pgchroma.tails t ON t.collection_id = c.id"
    )
    rows = await cursor.fetchall()
    tails = sorted(
        ((max(0, int((row[3] or 0) - row[4])) if row[7] is None else int(row[7]), row) for row in rows),
        key=lambda found: -found[0],
    )
    shown = [
        ({"tenant": row[0], "database": row[1], "collection": row[2]}, float(tail))
        for tail, row in tails[:_COLLECTIONS_SHOWN]
        if tail
    ]
    cursor = await connection.execute(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND granted AND classid = 0 AND objid = %s AND objsubid = 1 "
        "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        [LEADER_LOCK],
    )
    leader = await cursor.fetchone()
    return [
        single("pgchroma_collections", "Collections.", len(rows)),
        single("pgchroma_records", "Records, by PostgreSQL's statistics.", sum(row[3] or 0 for row in rows)),
        single(
            "pgchroma_tail_rows",
            "Rows that no vector index covers and every query compares one by one, of all collections together, "
            "as the indexer last counted them.",
            sum(tail for tail, _ in tails),
        ),
        single(
            "pgchroma_tail_rows_max",
            "The same of the collection with the most.",
            tails[0][0] if tails else 0,
        ),
        Gauge(
            "pgchroma_collection_tail_rows",
            f"The same by collection, the {_COLLECTIONS_SHOWN} longest.",
            shown,
        ),
        single(
            "pgchroma_indexer_lag_seconds",
            "For how long the collection that waits longest has had enough rows for an index that does not cover them.",
            max((row[8] or 0.0 for row in rows), default=0.0),
        ),
        single("pgchroma_index_segments", "Vector indexes.", sum(row[5] for row in rows)),
        single(
            "pgchroma_index_last_built_timestamp_seconds",
            "When a vector index was last finished, 0 for never.",
            max((row[6] or 0.0 for row in rows), default=0.0),
        ),
        single(
            "pgchroma_indexer_leaders",
            "Processes that build vector indexes for this database; 1 when all is well.",
            leader[0] if leader else 0,
        ),
    ]


async def tokens(connection: Connection) -> list[Gauge]:
    """Return how many tokens there are and when the next one expires."""
    cursor = await connection.execute(
        "SELECT count(*), coalesce(extract(epoch FROM min(expires_at))::float8, 0) FROM pgchroma.tokens "
        "WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())"
    )
    row = await cursor.fetchone()
    count, soonest = row or (0, 0.0)
    return [
        single("pgchroma_tokens", "Tokens that are neither revoked nor expired.", count),
        single(
            "pgchroma_token_next_expiry_timestamp_seconds",
            "When the next token expires, 0 when none does.",
            soonest,
        ),
    ]


async def safety(connection: Connection) -> list[Gauge]:
    """Return what the database itself knows of archiving, recorded restore points and restore drills; what it does not is left out."""
    seen = await backups.archiver(connection)
    found = [
        single("pgchroma_database_wal_archiving", "1 if archive_mode is on.", float(seen.archiving)),
        single("pgchroma_database_wal_archive_failing", "1 if the last attempt failed.", float(seen.failing)),
    ]
    if seen.last_archived_seconds is not None:
        text = "How long ago a WAL file was last archived."
        found.append(
            single("pgchroma_database_wal_last_archived_age_seconds", text, seen.last_archived_seconds)
        )
    for point in await backups.newest_points(connection, completed=True):
        text = "When the digests of all collections were last recorded at a restore point."
        found.append(
            single("pgchroma_database_backup_digests_timestamp_seconds", text, point.created_at.timestamp())
        )
    for drill in await backups.newest_drills(connection):
        found += [
            single(
                "pgchroma_database_restore_drill_timestamp_seconds",
                "When the last restore drill began.",
                drill.started_at.timestamp(),
            ),
            single(
                "pgchroma_database_restore_drill_duration_seconds",
                "From its beginning to an answering, checked copy.",
                drill.duration_seconds,
            ),
            single(
                "pgchroma_database_restore_drill_success",
                "1 if the last restore drill held.",
                float(drill.result == "ok"),
            ),
        ]
    return found


SOURCES: list[Callable[[Connection], Awaitable[list[Gauge]]]] = [indexes, tokens, safety]


async def read(connection: Connection) -> list[Gauge]:
    """Return all figures."""
    return [gauge for source in SOURCES for gauge in await source(connection)]
