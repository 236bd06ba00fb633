"""Finds every value that does not fit its target before anything is written."""

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from pgchroma.errors import ConfigurationError, RefusedError
from pgchroma.migrate.tables import formatting
from pgchroma.migrate.tables.catalog import Table, quoted
from pgchroma.migrate.tables.kinds import may_refer
from pgchroma.migrate.tables.mapping import ColumnPlan, Mapping, TablePlan
from pgchroma.migrate.tables.source import Database

# So many values are listed one by one for each column; the count is always exact.
LISTED: Final = 1_000
_SHOWN_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class Misfit:
    """One value that its target cannot hold; `key` is the row's rowid or primary key."""

    key: list[Any]
    storage: str
    value: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What does not fit in one column, and what the mapping says is to become of it."""

    table: str
    column: str
    type: str
    policy: str
    count: int
    values: tuple[Misfit, ...]

    def as_json(self) -> dict[str, Any]:
        """Return the finding for a receipt."""
        return asdict(self)


def key_columns(table: Table) -> list[str]:
    """Return the quoted names by which a table is read in order and its rows are named."""
    return [quoted(table.rowid)] if table.rowid else [quoted(name) for name in table.primary_key]


def unfit(table: Table, plan: TablePlan, column: ColumnPlan, *, fitting: bool = False) -> str:
    """Return an SQL condition, true for a value that cannot go to the target as it is.

    Args:
        fitting: whether every value is known to be of the column's kind, so that this need not be asked again.
    """
    name = quoted(column.source)
    condition = (
        "0"
        if fitting
        else formatting.misfit(
            column.kind, name, garbled=table.garbled, usual_times=column.source in table.usual_times
        )
    )
    if column.not_null or column.source in plan.primary_key:
        condition += f" OR {name} IS NULL"
    if column.kind.name in ("text", "varchar") and column.on_nul == "fail":
        condition += f" OR instr({name}, char(0)) > 0"
    return f"({condition})"


def prepare(connection: sqlite3.Connection, *tables: TablePlan) -> None:
    """Give a connection to the snapshot every function that the tables' columns need."""
    for table in tables:
        for column in table.moved:
            formatting.register_kind(connection, column.kind)


def require_complete(database: Database, mapping: Mapping) -> None:
    """Raise ConfigurationError when the mapping and the source speak of different tables or columns."""
    have = {table.name: table for table in database.tables}
    for plan in mapping.tables:
        if plan.source not in have:
            raise ConfigurationError(
                f"the mapping names the table {plan.source}, which {database.path} does not have",
                hint="take it out, or make the mapping anew",
            )
        columns = {column.name for column in have[plan.source].columns}
        planned = {column.source for column in plan.columns}
        if plan.skip:
            continue
        for names, what in (
            (planned - columns, "is not in the source"),
            (columns - planned, "is not in the mapping"),
        ):
            for name in sorted(names):
                raise ConfigurationError(
                    f"the column {plan.source}.{name} {what}",
                    hint="a column that is to stay behind needs skip: true, so that none is forgotten",
                )
        if not plan.moved:
            raise ConfigurationError(
                f"every column of {plan.source} is skipped", hint="give the table skip: true"
            )
        _require_references(plan, mapping)
    for name in have.keys() - {plan.source for plan in mapping.tables}:
        raise ConfigurationError(
            f"the table {name} is not in the mapping",
            hint="a table that is to stay behind needs skip: true, so that none is forgotten",
        )


def _require_references(plan: TablePlan, mapping: Mapping) -> None:
    for name in (*plan.primary_key, *(name for index in plan.indexes for name in index.columns)):
        plan.target_of(name)
    for key in plan.foreign_keys:
        parent = mapping.table(key.references)
        if parent is None:
            raise ConfigurationError(
                f"tables.{plan.source}: a foreign key refers to {key.references}, which is not moved",
                hint="take the foreign key out as well, or move that table",
            )
        for name, to in zip(key.columns, key.to, strict=True):
            child, other = plan.column(name), parent.column(to)
            if not may_refer(child.kind, other.kind):
                raise ConfigurationError(
                    f"tables.{plan.source}: a foreign key refers from {name}, which is {child.kind.sql}, to {parent.source}.{to}, "
                    f"which is {other.kind.sql}; PostgreSQL does not compare them",
                    hint="give both the same type (type: bigint with convert: integer reads numbers that are kept as text), or take "
                    "the foreign key out",
                )


def inspect(database: Database, mapping: Mapping) -> tuple[Finding, ...]:
    """Return every column with values that do not fit; looks at every value of the snapshot.

    Raises:
        ConfigurationError: the mapping does not match the source.
    """
    require_complete(database, mapping)
    prepare(database.connection, *mapping.moved)
    return tuple(_findings(database, mapping))


def _findings(database: Database, mapping: Mapping) -> Iterator[Finding]:
    have = {table.name: table for table in database.tables}
    for plan in mapping.moved:
        table = have[plan.source]
        conditions = (
            unfit(table, plan, column, fitting=(plan.source, column.source, column.kind) in database.fitting)
            for column in plan.moved
        )
        counts = ", ".join(f"coalesce(sum({condition}), 0)" for condition in conditions)
        row = database.connection.execute(f"SELECT {counts} FROM {quoted(plan.source)}").fetchone()  # noqa: S608 - quoted identifiers
        for column, count in zip(plan.moved, row, strict=True):
            if count:
                condition = unfit(table, plan, column)
                values = tuple(listed(database.connection, table, column.source, condition))
                yield Finding(plan.source, column.source, column.kind.sql, column.on_misfit, count, values)
            else:
                database.fitting.add((plan.source, column.source, column.kind))


def listed(connection: sqlite3.Connection, table: Table, column: str, condition: str) -> Iterator[Misfit]:
    """Yield the first values of a column for which a condition holds."""
    keys, name = key_columns(table), quoted(column)
    statement = (
        f"SELECT {', '.join(keys)}, typeof({name}), CAST({name} AS BLOB) FROM {quoted(table.name)} "  # noqa: S608 - quoted identifiers
        f"WHERE {condition} ORDER BY {', '.join(keys)} LIMIT {LISTED}"
    )
    for *key, storage, value in connection.execute(statement):
        if value is None:
            shown = "NULL"
        elif storage == "blob":
            shown = f"x'{value[: _SHOWN_CHARACTERS // 2].hex()}'"
        else:
            shown = repr(value.decode(errors="backslashreplace"))
            shown = shown[1:-1] if storage in ("integer", "real") else shown
        yield Misfit(
            [item.hex() if isinstance(item, bytes) else item for item in key],
            storage,
            shown if len(shown) <= _SHOWN_CHARACTERS else shown[:_SHOWN_CHARACTERS] + "…",
        )


def require_fitting(findings: tuple[Finding, ...]) -> None:
    """Raise RefusedError, naming columns and values, when a value does not fit and the mapping says fail."""
    stuck = [finding for finding in findings if finding.policy == "fail"]
    if not stuck:
        return
    lines = [
        f"{item.table}.{item.column} ({item.type}): {item.count} values do not fit, e.g. "
        + ", ".join(f"{value.value} in row {'/'.join(map(str, value.key))}" for value in item.values[:3])
        for item in stuck
    ]
    raise RefusedError(
        "; ".join(lines),
        hint="in the mapping give these columns another type (type: jsonb with convert: scalar keeps every value, type: text "
        "with convert: text keeps its text), on_misfit: quarantine or null, or on_nul: replace or strip; nothing was written",
    )
