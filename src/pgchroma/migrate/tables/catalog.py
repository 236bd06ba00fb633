"""The tables of an application's SQLite database as SQLite describes them, and how their rows are fetched."""

import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pgchroma.errors import SourceError
from pgchroma.migrate.tables import formatting

_FETCH_ROWS: Final = 500
# What is held of one fetch, unless a single row is larger.
FETCH_BYTES: Final = 2 << 20
# To fetch so many rows at once costs as little for each as to fetch thousands.
_ENOUGH_ROWS: Final = 10


def quoted(name: str) -> str:
    """Return an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True, slots=True)
class Column:
    """One column as SQLite describes it; `declared` is the type's text, upper case, possibly empty."""

    name: str
    declared: str
    not_null: bool
    default: str | None
    key_position: int
    generated: bool


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A reference; `to` is empty where SQLite means the parent's primary key."""

    columns: tuple[str, ...]
    parent: str
    to: tuple[str, ...]
    on_update: str
    on_delete: str


@dataclass(frozen=True, slots=True)
class Index:
    """An index on plain columns; what PostgreSQL cannot take over as it is has a `reason` instead."""

    name: str
    columns: tuple[str, ...]
    unique: bool
    reason: str = ""
    descending: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Table:
    """One table of the source.

    Attributes:
        key: the columns by which its rows are read in order: the primary key of a table without rowid, else empty.
        rowid: the name by which SQLite's rowid can be asked for; None for a table without.
        identity: the column that is SQLite's rowid (INTEGER PRIMARY KEY), if there is one.
        garbled: whether some text in it is not UTF-8.
        usual_times: the columns with times all of which are written as SQLite's own functions write them.
        largest: how many bytes its largest row has.
    """

    name: str
    columns: tuple[Column, ...]
    rowid: str | None
    identity: str | None
    rows: int
    foreign_keys: tuple[ForeignKey, ...]
    indexes: tuple[Index, ...]
    checks: bool
    next_identity: int | None
    garbled: bool
    usual_times: frozenset[str]
    largest: int

    @property
    def primary_key(self) -> tuple[str, ...]:
        """The names of the primary key's columns, in its order; empty when there is none."""
        keys = [column for column in self.columns if column.key_position]
        return tuple(column.name for column in sorted(keys, key=lambda column: column.key_position))


def describe(connection: sqlite3.Connection) -> tuple[tuple[Table, ...], tuple[str, ...]]:
    """Return the tables, and one line for everything else, which is not moved."""
    tables: list[Table] = []
    not_moved: list[str] = []
    types = {
        row[1]: (row[2], bool(row[4])) for row in connection.execute("PRAGMA table_list") if row[0] == "main"
    }
    for kind, name, statement in connection.execute(
        "SELECT type, name, coalesce(sql, '') FROM sqlite_schema WHERE type IN ('table', 'view', 'trigger') ORDER BY name"
    ):
        if name.startswith("sqlite_"):
            continue
        if kind != "table":
            not_moved.append(f"{kind} {name}: its SQL is SQLite's; write it anew for PostgreSQL")
        elif types.get(name, ("table", False))[0] != "table":
            not_moved.append(f"{types[name][0]} table {name}: belongs to an SQLite extension")
        else:
            tables.append(_table(connection, name, statement, without_rowid=types[name][1]))
    return tuple(tables), tuple(not_moved)


def _table(connection: sqlite3.Connection, name: str, statement: str, *, without_rowid: bool) -> Table:
    columns = tuple(
        Column(row[1], row[2].upper(), bool(row[3]), row[4], row[5], row[6] in (2, 3))
        for row in connection.execute(f"PRAGMA table_xinfo({quoted(name)})")
        if row[6] != 1
    )
    keys = [column for column in columns if column.key_position]
    names = {column.name.lower() for column in columns}
    free = next((alias for alias in ("rowid", "_rowid_", "oid") if alias not in names), None)
    identity = (
        keys[0].name if len(keys) == 1 and keys[0].declared == "INTEGER" and not without_rowid else None
    )
    rowid = None if without_rowid else identity or free
    if rowid is None and not keys:
        raise SourceError(
            f"the table {name} hides its rowid behind columns named rowid, _rowid_ and oid and has no primary key",
            hint="rename one of these columns in the source",
        )
    rows = connection.execute(f"SELECT count(*) FROM {quoted(name)}").fetchone()[0]  # noqa: S608 - a quoted identifier
    indexes, checks = _indexes(connection, name), "CHECK" in statement.upper()
    largest = _largest(connection, name)
    following = _next_identity(connection, name, identity) if identity else None
    return Table(
        name,
        columns,
        rowid,
        identity,
        rows,
        _foreign_keys(connection, name),
        indexes,
        checks,
        following,
        _is_garbled(connection, name, columns, largest),
        _usual_times(connection, name, columns),
        largest,
    )


def _largest(connection: sqlite3.Connection, table: str) -> int:
    """Return the bytes of a table's largest row as SQLite's own statistics tell, without a look at the values."""
    try:
        row = connection.execute("SELECT max(mx_payload) FROM dbstat WHERE name = ?", [table]).fetchone()
    except sqlite3.OperationalError:
        # Built without them: any row may be as large as the file.
        row = connection.execute(
            "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
        ).fetchone()
    return row[0] or 0


def fetched(cursor: sqlite3.Cursor, largest: int, rows: int) -> Iterator[list[Any]]:
    """Yield a cursor's rows, so many at once, or fewer so that they come to about FETCH_BYTES.

    Args:
        largest: the bytes of the largest row there may be.
    """
    safe = FETCH_BYTES // max(largest, 1)
    if safe >= _ENOUGH_ROWS:
        while found := cursor.fetchmany(min(rows, safe)):
            yield found
        return
    # The large ones may be few, so each is looked at.
    group: list[Any] = []
    size = 0
    for row in cursor:
        group.append(row)
        size += sum(len(value) for value in row if isinstance(value, bytes | str))
        if size >= FETCH_BYTES or len(group) == rows:
            yield group
            group, size = [], 0
    if group:
        yield group


def _is_garbled(
    connection: sqlite3.Connection, table: str, columns: tuple[Column, ...], largest: int
) -> bool:
    names = ", ".join(
        f"CASE typeof({quoted(column.name)}) WHEN 'text' THEN {quoted(column.name)} END" for column in columns
    )
    connection.text_factory = bytes
    try:
        cursor = connection.execute(f"SELECT {names} FROM {quoted(table)}")  # noqa: S608 - quoted identifiers
        for rows in fetched(cursor, largest, _FETCH_ROWS):
            # Many values at once: to decode one by one would take as long as to copy them.
            b"\n".join([value for row in rows for value in row if value is not None]).decode()
    except UnicodeDecodeError:
        return True
    finally:
        connection.text_factory = str
    return False


def _usual_times(connection: sqlite3.Connection, table: str, columns: tuple[Column, ...]) -> frozenset[str]:
    names = [item.name for item in columns if "TIMESTAMP" in item.declared or "DATETIME" in item.declared]
    if not names:
        return frozenset()
    checks = ", ".join(f"min({formatting.usual_time(quoted(name))})" for name in names)
    row = connection.execute(f"SELECT {checks} FROM {quoted(table)}").fetchone()  # noqa: S608 - quoted identifiers
    return frozenset(name for name, usual in zip(names, row, strict=True) if usual)


def _next_identity(connection: sqlite3.Connection, table: str, column: str) -> int:
    # AUTOINCREMENT never hands out a number again, so the largest one ever counts, not the largest there is.
    highest = connection.execute(
        f"SELECT coalesce(max({quoted(column)}), 0) FROM {quoted(table)}"  # noqa: S608 - quoted identifiers
    ).fetchone()[0]
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone():
        row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", [table]).fetchone()
        highest = max(highest, row[0] if row and isinstance(row[0], int) else 0)
    return int(max(highest, 0)) + 1


def _foreign_keys(connection: sqlite3.Connection, table: str) -> tuple[ForeignKey, ...]:
    found: dict[int, list[Sequence[Any]]] = {}
    for row in connection.execute(f"PRAGMA foreign_key_list({quoted(table)})"):
        found.setdefault(row[0], []).append(row)
    keys = []
    for rows in found.values():
        rows.sort(key=lambda row: row[1])
        to = tuple(row[4] for row in rows if row[4] is not None)
        keys.append(ForeignKey(tuple(row[3] for row in rows), rows[0][2], to, rows[0][5], rows[0][6]))
    return tuple(reversed(keys))


def _indexes(connection: sqlite3.Connection, table: str) -> tuple[Index, ...]:
    indexes = []
    for _, name, unique, origin, partial in connection.execute(f"PRAGMA index_list({quoted(table)})"):
        if origin == "pk":
            continue
        parts = [row for row in connection.execute(f"PRAGMA index_xinfo({quoted(name)})") if row[5]]
        columns = tuple(row[2] or "" for row in parts)
        reason = ""
        if partial:
            reason = "it is partial, and its condition is SQLite's"
        elif "" in columns:
            reason = "it is on an expression"
        elif unique and any(row[4] != "BINARY" for row in parts):
            reason = f"it is unique by the collation {', '.join(row[4] for row in parts)}; in PostgreSQL use lower()"
        descending = tuple(row[2] for row in parts if row[3] and row[2])
        indexes.append(Index(name, columns, bool(unique), reason, descending))
    return tuple(reversed(indexes))
