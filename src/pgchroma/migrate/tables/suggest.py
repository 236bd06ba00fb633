"""Suggests a mapping from what the tables declare and what they really hold."""

import hashlib
import re
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from pgchroma.migrate.tables import formatting
from pgchroma.migrate.tables.catalog import Column, Table, quoted
from pgchroma.migrate.tables.inspect_rows import Misfit, listed
from pgchroma.migrate.tables.kinds import INTEGER_BITS, Kind, may_refer
from pgchroma.migrate.tables.mapping import (
    LONGEST_NAME_BYTES,
    ColumnPlan,
    IndexPlan,
    KeyPlan,
    Mapping,
    TablePlan,
)
from pgchroma.migrate.tables.source import Database

# A time after 1973 in milliseconds, or after the year 5000 in seconds.
_MILLISECONDS_FROM: Final = 100_000_000_000
_NUMBER: Final = re.compile(r"^[+-]?\d+(\.\d+)?([eE][+-]?\d+)?$")
_STRING: Final = re.compile(r"^'(?:[^']|'')*'$|^\"[^\"']*\"$", re.DOTALL)
_BLOB: Final = re.compile(r"^[xX]'((?:[0-9a-fA-F]{2})*)'$")
_NOW: Final = re.compile(r"^\(*\s*(current_timestamp|datetime\s*\(\s*'now'\s*\))\s*\)*$", re.IGNORECASE)
_TODAY: Final = re.compile(r"^\(*\s*(current_date|date\s*\(\s*'now'\s*\))\s*\)*$", re.IGNORECASE)


_KNOWN: Final = re.compile("BOOL|JSON|UUID|DECIMAL|NUMERIC|INT|CHAR|CLOB|TEXT|BLOB|REAL|FLOA|DOUB")
_TIME: Final = re.compile("TIME|DATE")
_TELLING: Final = re.compile(f"{_KNOWN.pattern}|TIMESTAMP|DATETIME|^DATE$|^TIME$")


@dataclass(frozen=True, slots=True)
class Deviation:
    """Values because of which a column is given another type than it would have without them; all of them fit that one."""

    table: str
    column: str
    declared: str
    expected: str
    suggested: str
    count: int
    values: tuple[Misfit, ...]

    @property
    def note(self) -> str:
        """What it comes to, in a sentence."""
        what = f"declared {self.declared}" if self.declared else "declared without a type"
        are = "value is" if self.count == 1 else "values are"
        return f"{self.table}.{self.column} is {what}; {self.count:,} {are} no {self.expected}, so {self.suggested} is suggested"

    def as_json(self) -> dict[str, Any]:
        """Return it for a plan."""
        return {**asdict(self), "note": self.note}


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A mapping and what a person should know before accepting it."""

    mapping: Mapping
    notes: tuple[str, ...]
    deviations: tuple[Deviation, ...] = ()


@dataclass(frozen=True, slots=True)
class _Profile:
    """How many values of each storage class a column holds, and its largest number."""

    integers: int
    reals: int
    texts: int
    blobs: int
    largest: float


def suggest(database: Database, schema: str) -> Suggestion:
    """Return a mapping that moves everything PostgreSQL can take over without loss."""
    notes: list[str] = list(database.not_moved)
    deviations: list[Deviation] = []
    tables = {table.name: _table(database, table, notes, deviations) for table in database.tables}
    # A column that takes over a type may be referred to itself.
    taken: set[tuple[str, str]] = set()
    while any(_take_over(database, table, tables, taken, notes) for table in database.tables):
        pass
    moved = tuple(_without_impossible_keys(table, tables, notes) for table in tables.values())
    return Suggestion(Mapping(schema, moved), tuple(notes), tuple(deviations))


def _mismatched(table: TablePlan, tables: dict[str, TablePlan]) -> Iterator[tuple[KeyPlan, ColumnPlan, Kind]]:
    """Yield (foreign key, column of it, the kind of the column it refers to) where PostgreSQL would not compare the two."""
    for key in table.foreign_keys:
        for name, to in zip(key.columns, key.to, strict=True):
            column, parent = table.column(name), tables[key.references].column(to).kind
            if not may_refer(column.kind, parent):
                yield key, column, parent


def _take_over(
    database: Database,
    table: Table,
    tables: dict[str, TablePlan],
    taken: set[tuple[str, str]],
    notes: list[str],
) -> bool:
    """Give a column the type of the one it refers to, if all its values allow, once; return whether one was found."""
    plan = tables[table.name]
    for key, column, parent in _mismatched(plan, tables):
        origin = next(item for item in table.columns if item.name == column.source)
        kind = parent
        if parent.name in INTEGER_BITS:
            kind = replace(parent, conversion="integer")
        elif parent.name in ("text", "varchar"):
            kind = replace(parent, conversion="text")
        known = column.identity or (plan.source, column.source) in taken
        if known or not _fitting(database, table, [(origin, kind)])[0]:
            continue
        taken.add((plan.source, column.source))
        notes.append(
            f"{plan.source}.{column.source} is declared {origin.declared or 'without a type'} and refers to {key.references}; "
            f"{kind.sql} is suggested, as there, with convert: {kind.conversion}"
        )
        default, _ = _default(origin.default, kind)
        changed = replace(column, kind=kind, default=default)
        columns = tuple(changed if item is column else item for item in plan.columns)
        tables[table.name] = replace(plan, columns=columns)
        return True
    return False


def _without_impossible_keys(table: TablePlan, tables: dict[str, TablePlan], notes: list[str]) -> TablePlan:
    impossible = []
    for key, column, parent in _mismatched(table, tables):
        impossible.append(key)
        notes.append(
            f"{table.source}: a foreign key to {key.references} is not moved: {column.source} is {column.kind.sql}, what it refers to is "
            f"{parent.sql}, and not every value of {column.source} is one; it needs the same type on both sides"
        )
    return replace(table, foreign_keys=tuple(key for key in table.foreign_keys if key not in impossible))


def _table(database: Database, table: Table, notes: list[str], deviations: list[Deviation]) -> TablePlan:
    columns = tuple(_columns(database, table, notes, deviations))
    if table.checks:
        notes.append(f"{table.name}: CHECK constraints are SQLite's SQL and are not moved; add them anew")
    for column in table.columns:
        if column.generated:
            notes.append(
                f"{table.name}.{column.name} is a generated column: its values are moved, not its expression"
            )
    return TablePlan(
        table.name,
        _short(table.name),
        columns,
        table.primary_key,
        tuple(_foreign_keys(database, table, notes)),
        tuple(_indexes(table, notes)),
    )


def _short(name: str) -> str:
    """Return a name that PostgreSQL takes whole; a long one ends in a digest, so that two do not become one."""
    if len(name.encode()) <= LONGEST_NAME_BYTES:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return name.encode()[: LONGEST_NAME_BYTES - 9].decode(errors="ignore") + "_" + digest


def _foreign_keys(database: Database, table: Table, notes: list[str]) -> Iterator[KeyPlan]:
    for key in table.foreign_keys:
        # SQLite compares table names without regard to case.
        parent = next((other for other in database.tables if other.name.lower() == key.parent.lower()), None)
        if parent is None:
            notes.append(
                f"{table.name}: a foreign key refers to the table {key.parent}, which does not exist"
            )
            continue
        # So it does those of columns.
        names = {column.name.lower(): column.name for column in parent.columns}
        to = tuple(names.get(name.lower(), name) for name in key.to) or parent.primary_key
        uniques = {frozenset(parent.primary_key)} | {
            frozenset(index.columns) for index in parent.indexes if index.unique and not index.reason
        }
        if len(to) != len(key.columns) or frozenset(to) not in uniques:
            notes.append(
                f"{table.name}: a foreign key to {parent.name}({', '.join(to)}), which is not unique, is not moved"
            )
            continue
        yield KeyPlan(key.columns, parent.name, to, key.on_update, key.on_delete)


def _indexes(table: Table, notes: list[str]) -> Iterator[IndexPlan]:
    for index in table.indexes:
        if index.reason:
            notes.append(f"{table.name}: the index {index.name} is not moved: {index.reason}")
            continue
        automatic = index.name.startswith("sqlite_autoindex_")
        name = f"{table.name}_{'_'.join(index.columns)}_key" if automatic else index.name
        yield IndexPlan(_short(name), index.columns, index.unique, index.descending)


def _profiles(connection: sqlite3.Connection, table: Table) -> list[_Profile]:
    """Look in one pass at all columns whose type alone does not tell what they hold."""
    wanted = []
    for column in table.columns:
        if _KNOWN.search(column.declared) and not _TIME.search(column.declared):
            wanted += ["0"] * 5
            continue
        name = quoted(column.name)
        wanted += [
            f"coalesce(sum(typeof({name}) = '{storage}'), 0)"
            for storage in ("integer", "real", "text", "blob")
        ]
        wanted.append(
            f"coalesce(max(CASE WHEN typeof({name}) IN ('integer', 'real') THEN abs({name} * 1.0) END), 0)"
        )
    row = connection.execute(f"SELECT {', '.join(wanted)}, count(*) FROM {quoted(table.name)}").fetchone()  # noqa: S608 - quoted identifiers
    return [_Profile(*row[n : n + 5]) for n in range(0, len(wanted), 5)]


def _columns(
    database: Database, table: Table, notes: list[str], deviations: list[Deviation]
) -> Iterator[ColumnPlan]:
    profiles = _profiles(database.connection, table)
    candidates = [list(_candidates(*pair)) for pair in zip(table.columns, profiles, strict=True)]
    first = _fitting(
        database, table, [(column, kinds[0]) for column, kinds in zip(table.columns, candidates, strict=True)]
    )
    for column, profile, kinds, fits in zip(table.columns, profiles, candidates, first, strict=True):
        others = (kind for kind in kinds[1:] if _fitting(database, table, [(column, kind)])[0])
        kind = kinds[0] if fits else next(others, kinds[0])
        best = _commonest(profile) if kind.conversion == "scalar" else kinds[0]
        if kind != best:
            deviations.append(_deviation(database, table, column, best, kind))
        elif not _TELLING.search(column.declared):
            notes.append(
                f"{table.name}.{column.name} is declared {column.declared or 'without a type'}; {kind.sql} is what its values are"
            )
        yield _column(table, column, kind, notes)


def _deviation(database: Database, table: Table, column: Column, best: Kind, kind: Kind) -> Deviation:
    formatting.register_kind(database.connection, best)
    condition = _misfit(table, column, best)
    count = database.connection.execute(
        f"SELECT count(*) FROM {quoted(table.name)} WHERE {condition}"  # noqa: S608 - quoted identifiers
    ).fetchone()[0]
    values = tuple(listed(database.connection, table, column.name, condition))
    return Deviation(table.name, column.name, column.declared, best.sql, kind.sql, count, values)


def _column(table: Table, column: Column, kind: Kind, notes: list[str]) -> ColumnPlan:
    default, known = _default(column.default, kind)
    if not known:
        notes.append(
            f"{table.name}.{column.name}: its default {column.default} is SQLite's SQL and is not moved"
        )
    identity = column.name == table.identity
    not_null = column.not_null or column.key_position > 0
    return ColumnPlan(column.name, _short(column.name), kind, not_null, default, identity)


def _misfit(table: Table, column: Column, kind: Kind) -> str:
    usual = column.name in table.usual_times
    return formatting.misfit(kind, quoted(column.name), garbled=table.garbled, usual_times=usual)


def _fitting(database: Database, table: Table, wanted: list[tuple[Column, Kind]]) -> list[bool]:
    """Return of each column whether all its values are of a kind; one pass for all."""
    for _, kind in wanted:
        formatting.register_kind(database.connection, kind)
    conditions = ", ".join(f"coalesce(max({_misfit(table, column, kind)}), 0)" for column, kind in wanted)
    row = database.connection.execute(f"SELECT {conditions} FROM {quoted(table.name)}").fetchone()  # noqa: S608 - quoted identifiers
    for (column, kind), bad in zip(wanted, row, strict=True):
        if not bad:
            database.fitting.add((table.name, column.name, kind))
    return [not bad for bad in row]


def _candidates(column: Column, profile: _Profile) -> Iterator[Kind]:
    """Yield the types a column could have, best first."""
    declared = column.declared
    arguments = tuple(int(digits) for digits in re.findall(r"\d+", declared.partition("(")[2]))
    numbers = profile.integers + profile.reals
    if "BOOL" in declared:
        yield from (Kind("boolean"), Kind("bigint"))
    elif "JSON" in declared:
        yield from (Kind("jsonb"), Kind("text"))
    elif "TIMESTAMP" in declared or "DATETIME" in declared or declared in ("DATE", "TIME"):
        name = {"DATE": "date", "TIME": "time"}.get(declared, "timestamp")
        if numbers and not profile.texts:
            unit = "epoch_milliseconds" if profile.largest >= _MILLISECONDS_FROM else "epoch_seconds"
            yield from (Kind(name, (), unit), Kind("double precision" if profile.reals else "bigint"))
        else:
            yield from (Kind(name), Kind("timestamp"), Kind("timestamptz"), Kind("text"))
    elif "UUID" in declared:
        yield from (Kind("uuid"), Kind("text"))
    elif "DECIMAL" in declared or "NUMERIC" in declared:
        yield from (Kind("numeric", arguments[:2]), Kind("numeric"))
    elif "INT" in declared:
        yield Kind("bigint")
    elif "CHAR" in declared or "CLOB" in declared or "TEXT" in declared:
        if arguments and "CHAR" in declared:
            yield Kind("varchar", arguments[:1])
        yield Kind("text")
    elif "BLOB" in declared:
        yield Kind("bytea")
    elif any(word in declared for word in ("REAL", "FLOA", "DOUB")):
        yield Kind("double precision")
    else:
        yield from _untyped(profile)


def _untyped(profile: _Profile) -> Iterator[Kind]:
    if not (profile.reals or profile.texts or profile.blobs) and profile.integers:
        yield Kind("bigint")
    elif profile.reals and not (profile.texts or profile.blobs or profile.integers):
        yield Kind("double precision")
    elif profile.blobs and not (profile.integers or profile.reals or profile.texts):
        yield Kind("bytea")
    elif profile.integers or profile.reals:
        # Values of several types side by side: jsonb keeps each with its type.
        yield Kind("jsonb", (), "scalar")
    else:
        yield Kind("text")


def _commonest(profile: _Profile) -> Kind:
    """Return the type that most values of a column of several storage classes would have by themselves."""
    counts = {
        "bigint": profile.integers,
        "double precision": profile.reals,
        "text": profile.texts,
        "bytea": profile.blobs,
    }
    return Kind(max(counts, key=lambda name: counts[name]))


def _default(text: str | None, kind: Kind) -> tuple[str | None, bool]:
    """Return (PostgreSQL's default, whether SQLite's was understood)."""
    if text is None or text.strip().upper() == "NULL":
        return None, True
    value = text.strip()
    if kind.name == "boolean":
        word = value.strip("'\"").lower()
        known = {"0": "false", "1": "true", "false": "false", "true": "true"}.get(word)
        return known, known is not None
    if _NOW.match(value) or _TODAY.match(value):
        utc = "(now() AT TIME ZONE 'utc')"
        pattern = "YYYY-MM-DD HH24:MI:SS" if _NOW.match(value) else "YYYY-MM-DD"
        known = {
            "timestamp": utc,
            "timestamptz": "now()",
            "date": f"{utc}::date",
            "text": f"to_char({utc}, '{pattern}')",
            "varchar": f"to_char({utc}, '{pattern}')",
        }.get(kind.name)
        return known, known is not None
    numeric = kind.name in ("smallint", "integer", "bigint", "double precision", "numeric")
    if _NUMBER.match(value) and numeric:
        return value, True
    if _STRING.match(value) and kind.name in ("text", "varchar", "jsonb", "json"):
        literal = value if value.startswith("'") else f"'{value[1:-1]}'"
        return f"{literal}::{kind.sql}", True
    if (blob := _BLOB.match(value)) and kind.name == "bytea":
        return f"'\\x{blob[1]}'::bytea", True
    return None, False
