"""What the indexer writes down of each collection's tail, so that every worker can tell it to monitoring."""

from uuid import UUID

from pgchroma.store.connection import Connection


async def note(connection: Connection, collection_id: UUID, rows: int, watermark: int, *, due: bool) -> None:
    """Write down a tail as it was counted just now.

    Args:
        due: whether it should have an index. Since when is kept until it no longer should, or until the watermark moves, because
            what is above it then is newer.
    """
    await connection.execute(
        "INSERT INTO pgchroma.tails AS known (collection_id, rows, watermark, due_since) "
        "SELECT id, %(rows)s, %(watermark)s, CASE WHEN %(due)s THEN clock_timestamp() END FROM pgchroma.collections WHERE id = %(id)s "
        "ON CONFLICT (collection_id) DO UPDATE SET rows = excluded.rows, watermark = excluded.watermark, due_since = CASE "
        "WHEN known.watermark = excluded.watermark AND excluded.due_since IS NOT NULL THEN coalesce(known.due_since, excluded.due_since) "
        "ELSE excluded.due_since END "
        "WHERE (known.rows, known.watermark, known.due_since IS NULL) "
        "IS DISTINCT FROM (excluded.rows, excluded.watermark, excluded.due_since IS NULL)",
        {"id": collection_id, "rows": rows, "watermark": watermark, "due": due},
    )
