"""Which layout a Chroma folder has: told by its `migrations` table, never by an installed chromadb."""

import sqlite3
from dataclasses import dataclass

from pgchroma.errors import SourceError

# The three sequences of schema migrations that Chroma keeps, with the oldest and newest step that this reader knows.
_KNOWN = {"sysdb": (4, 10), "metadb": (3, 6), "embeddings_queue": (1, 2)}

# (sysdb, metadb, embeddings_queue) -> the versions that were measured to write it.
_MEASURED = {
    (4, 3, 1): "0.4.15 to 0.4.24",
    (9, 4, 2): "0.5.23 to 0.6.3",
    (9, 5, 2): "1.0",
    (10, 6, 2): "1.5",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """The steps of the three migration sequences that a folder has reached."""

    sysdb: int
    metadb: int
    embeddings_queue: int

    @property
    def name(self) -> str:
        """The Chroma versions that write this layout, and its numbers."""
        key = (self.sysdb, self.metadb, self.embeddings_queue)
        versions = _MEASURED.get(key)
        numbers = f"sysdb {key[0]}, metadb {key[1]}, embeddings_queue {key[2]}"
        return (
            f"Chroma {versions} ({numbers})" if versions else f"between measured Chroma versions ({numbers})"
        )

    @property
    def measured(self) -> bool:
        """Whether folders of exactly this layout were compared record by record with what Chroma returns."""
        return (self.sysdb, self.metadb, self.embeddings_queue) in _MEASURED


def detect(connection: sqlite3.Connection, path: str) -> Layout:
    """Return the layout of an open chroma.sqlite3.

    Raises:
        SourceError: it is not Chroma's, or of a layout older or newer than this reader knows.
    """
    try:
        rows = connection.execute("SELECT dir, max(version) FROM migrations GROUP BY dir").fetchall()
    except sqlite3.Error as error:
        raise SourceError(
            f"{path} is not a Chroma database: {error}",
            hint="name the folder that the application gives to chromadb.PersistentClient",
        ) from error
    steps = {str(name): int(version) for name, version in rows}
    for name, (oldest, newest) in _KNOWN.items():
        step = steps.get(name)
        if step is None or step < oldest:
            reached = "none" if step is None else str(step)
            raise SourceError(
                f"{path} has a layout older than Chroma 0.4.15 (its {name} migrations end at {reached}, the oldest known is {oldest})",
                hint="open a copy of the folder once with chromadb 0.4.24, which upgrades it, and migrate that copy",
            )
        if step > newest:
            raise SourceError(
                f"{path} has a layout newer than Chroma 1.5.9 (its {name} migrations end at {step}, the newest known is {newest})",
                hint="upgrade pgchroma to a version that knows this layout",
            )
    unknown = sorted(steps.keys() - _KNOWN.keys())
    if unknown:
        raise SourceError(
            f"{path} has a layout newer than Chroma 1.5.9 (unknown migrations: {', '.join(unknown)})",
            hint="upgrade pgchroma to a version that knows this layout",
        )
    return Layout(steps["sysdb"], steps["metadb"], steps["embeddings_queue"])


def columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the column names of a table; empty when there is no such table."""
    return {name for (name,) in connection.execute("SELECT name FROM pragma_table_info(?)", (table,))}
