"""Copies the rows of one table as COPY BINARY: one thread, or process, reads and encodes while the other sends."""

import json
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import psycopg
from psycopg import sql

from pgchroma.errors import SourceError
from pgchroma.migrate.second import Item, SecondProcess
from pgchroma.migrate.tables import formatting, status
from pgchroma.migrate.tables.catalog import Table, fetched, quoted
from pgchroma.migrate.tables.ddl import table_name
from pgchroma.migrate.tables.inspect_rows import Finding, key_columns, prepare, unfit
from pgchroma.migrate.tables.mapping import ColumnPlan, Mapping, TablePlan
from pgchroma.migrate.tables.source import Database, reopened
from pgchroma.store.vectors import COPY_HEADER, COPY_TRAILER

Connection = psycopg.Connection[tuple[Any, ...]]

# One transaction: whichever comes first. Bounds what an interruption costs and what is held in memory.
BATCH_ROWS: Final = 20_000
BATCH_BYTES: Final = 8 << 20
# The first transaction, each of the next twice as many: PostgreSQL is not to wait for a whole batch to be read.
_FIRST_ROWS: Final = 2_500
# Few enough for the processor's cache.
_FETCH_ROWS: Final = 500


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of COPY BINARY and the key of the last of them."""

    chunks: Sequence[bytes | memoryview]
    rows: int
    position: str


def _keys(table: Table) -> list[str]:
    """Return what to select for `encode_key`; a rowid is a number, any other key may be of any storage class."""
    names = key_columns(table)
    return names if table.rowid else [part for name in names for part in (name, f"typeof({name})")]


def encode_key(table: Table, cells: tuple[Any, ...]) -> str:
    """Return a row's key, given the cells of `_keys`, as JSON; text and blobs as hexadecimal bytes, apart from each other."""

    def part(value: object, storage: bytes) -> object:
        if isinstance(value, bytes):
            return {storage.decode(): value.hex()}
        return {"real": repr(value)} if isinstance(value, float) else value

    return json.dumps(
        list(cells) if table.rowid else [part(*pair) for pair in zip(cells[::2], cells[1::2], strict=True)]
    )


def decode_key(key: list[Any]) -> tuple[Any, ...]:
    """Return the key that `encode_key` was given, text decoded."""

    def value(part: object) -> object:
        match part:
            case {"text": data}:
                return bytes.fromhex(data).decode()
            case {"blob": data}:
                return bytes.fromhex(data)
            case {"real": number}:
                return float(number)
        return part

    return tuple(map(value, key))


def held_back(table: Table, plan: TablePlan, findings: tuple[Finding, ...]) -> str:
    """Return an SQL condition, true for the rows that go to quarantine; empty when there are none."""
    columns = {
        finding.column
        for finding in findings
        if finding.table == plan.source and finding.policy == "quarantine"
    }
    return " OR ".join(unfit(table, plan, column) for column in plan.moved if column.source in columns)


def value_or_null(
    table: Table,
    plan: TablePlan,
    column: ColumnPlan,
    findings: tuple[Finding, ...],
    expression: str,
) -> str:
    """Return `expression`, or NULL where the column's value does not fit and the mapping says so."""
    stripped = any(
        finding.table == plan.source and finding.column == column.source and finding.policy == "null"
        for finding in findings
    )
    return (
        f"CASE WHEN {unfit(table, plan, column)} THEN NULL ELSE {expression} END" if stripped else expression
    )


def _statement(table: Table, plan: TablePlan, findings: tuple[Finding, ...], resumed: bool) -> str:
    keys = key_columns(table)
    parts = (
        value_or_null(
            table,
            plan,
            column,
            findings,
            formatting.selected(
                column.kind,
                quoted(column.source),
                column.on_nul,
                usual_times=column.source in table.usual_times,
            ),
        )
        for column in plan.moved
    )
    conditions = []
    if resumed:
        conditions.append(
            f"({', '.join(keys)}) > ({', '.join('?' for _ in keys)})" if len(keys) > 1 else f"{keys[0]} > ?"
        )
    if held := held_back(table, plan, findings):
        conditions.append(f"NOT coalesce(({held}), 0)")
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {', '.join(_keys(table))}, {', '.join(parts)} FROM {quoted(table.name)}{where} ORDER BY {', '.join(keys)}"  # noqa: S608 - quoted identifiers


def batches(
    connection: sqlite3.Connection,
    table: Table,
    plan: TablePlan,
    findings: tuple[Finding, ...],
    position: list[Any] | None,
) -> Iterator[Batch]:
    """Yield the rows behind `position` in the order of their key."""
    width, kinds = len(_keys(table)), [column.kind for column in plan.moved]
    cursor = connection.cursor()
    cursor.execute(
        _statement(table, plan, findings, position is not None),
        decode_key(position) if position is not None else (),
    )
    chunks: list[bytes] = []
    rows = size = 0
    most = min(_FIRST_ROWS, BATCH_ROWS)
    last: tuple[Any, ...] = ()
    for group in fetched(cursor, table.largest, _FETCH_ROWS):
        columns = list(zip(*group, strict=True))[width:]
        chunks.append(formatting.rows(kinds, columns))
        rows, size, last = rows + len(group), size + len(chunks[-1]), group[-1][:width]
        if rows >= most or size >= BATCH_BYTES:
            yield Batch(chunks, rows, encode_key(table, last))
            chunks, rows, size, most = [], 0, 0, min(2 * most, BATCH_ROWS)
    if rows:
        yield Batch(chunks, rows, encode_key(table, last))


def _in_background(produce: Callable[[], Iterator[Batch]]) -> Iterator[Batch]:
    """Run a generator in a thread that is at most one batch ahead; SQLite releases the interpreter's lock while it works."""
    ahead: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=1)
    stop = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stop.is_set():
            try:
                ahead.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for batch in produce():
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # noqa: BLE001 - raised again in the other thread
            put(error)

    thread = threading.Thread(target=work, name="pgchroma-tables-reader", daemon=True)
    thread.start()
    try:
        while (item := ahead.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join()


def _from_elsewhere(
    second: SecondProcess,
    copy: Path,
    table: Table,
    plan: TablePlan,
    findings: tuple[Finding, ...],
    position: list[Any] | None,
) -> Iterator[Batch]:
    for (rows, last), chunks in second.run(_batches, copy, table, plan, findings, position):
        yield Batch([chunk.data for chunk in chunks], rows, last)


def _batches(
    copy: Path, table: Table, plan: TablePlan, findings: tuple[Finding, ...], position: list[Any] | None
) -> Iterator[Item]:
    """Run in the second process: read and encode."""
    with reopened(copy) as connection:
        prepare(connection, plan)
        connection.text_factory = bytes
        for batch in batches(connection, table, plan, findings, position):
            yield (batch.rows, batch.position), [np.frombuffer(chunk, np.uint8) for chunk in batch.chunks]


class Loader:
    """Writes batches to one table, each with its checkpoint in one transaction."""

    def __init__(self, connection: Connection, mapping: Mapping, plan: TablePlan, *, direct: bool) -> None:
        self._connection, self._plan = connection, plan
        self._target = table_name(mapping, plan)
        self._direct = direct
        self._columns = sql.SQL(", ").join(sql.Identifier(column.target) for column in plan.moved)

    def write(self, run_id: UUID, batch: Batch) -> int:
        """Commit a batch; return how many rows were inserted or changed."""
        with self._connection.transaction():
            # A crash of the server takes the batch and its checkpoint, or neither; the commit of the phase `copied` waits for all.
            self._connection.execute("SET LOCAL synchronous_commit = off")
            if self._direct:
                self._copy(self._target, batch)
                written = batch.rows
            else:
                written = self._merge(batch)
            status.advance(
                self._connection, run_id, self._plan.source, batch.position, read=batch.rows, written=written
            )
        return written

    def _copy(self, target: sql.Identifier, batch: Batch) -> None:
        with (
            self._connection.cursor() as cursor,
            cursor.copy(
                sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(target, self._columns)
            ) as copy,
        ):
            for chunk in (COPY_HEADER, *batch.chunks, COPY_TRAILER):
                copy.write(chunk)

    def _merge(self, batch: Batch) -> int:
        stage = sql.Identifier("pg_temp", "pgchroma_stage")
        self._connection.execute(
            sql.SQL(
                "CREATE TEMPORARY TABLE pgchroma_stage ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA"
            ).format(self._columns, self._target)
        )
        self._copy(stage, batch)
        keys = [self._plan.target_of(name) for name in self._plan.primary_key]
        rest = [column.target for column in self._plan.moved if column.target not in keys]
        action: sql.Composable = sql.SQL("DO NOTHING")
        if self._plan.on_conflict == "update" and rest:
            action = sql.SQL("DO UPDATE SET {}").format(
                sql.SQL(", ").join(
                    sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in rest
                )
            )
        cursor = self._connection.execute(
            sql.SQL(
                "INSERT INTO {target} ({columns}) OVERRIDING SYSTEM VALUE SELECT {columns} FROM {stage} ON CONFLICT ({keys}) {action}"
            ).format(
                target=self._target,
                columns=self._columns,
                stage=stage,
                keys=sql.SQL(", ").join(map(sql.Identifier, keys)),
                action=action,
            )
        )
        return cursor.rowcount


def load(
    connection: Connection,
    database: Database,
    table: Table,
    mapping: Mapping,
    plan: TablePlan,
    findings: tuple[Finding, ...],
    state: status.TableStatus,
    advance: Callable[[int], None],
    second: SecondProcess | None = None,
) -> None:
    """Copy what is behind the checkpoint, then the rows for quarantine.

    Args:
        second: a process that reads and encodes while this one sends.

    Raises:
        SourceError: SQLite could not read a row.
    """
    loader = Loader(connection, mapping, plan, direct=plan.on_conflict == "fail")
    source = database.connection
    source.text_factory = bytes
    try:
        for batch in _in_background(
            lambda: (
                _from_elsewhere(second, database.copy, table, plan, findings, state.last_position)
                if second
                else batches(source, table, plan, findings, state.last_position)
            )
        ):
            loader.write(state.run_id, batch)
            advance(batch.rows)
        with connection.transaction():
            count = _quarantine(connection, source, table, plan, findings, state.run_id)
            status.set_phase(connection, state.run_id, plan.source, "copied", quarantined=count)
    except sqlite3.Error as error:
        raise SourceError(
            f"cannot read the table {table.name}: {error}",
            hint="check the file with `sqlite3 FILE 'PRAGMA integrity_check'`",
        ) from error
    finally:
        source.text_factory = str


def _as_json(value: object) -> object:
    """Return a cell as JSON can hold it: bytes as hexadecimal, floats by their exact spelling."""
    if isinstance(value, bytes):
        return value.hex()
    return repr(value) if isinstance(value, float) else value


def _quarantine(
    connection: Connection,
    source: sqlite3.Connection,
    table: Table,
    plan: TablePlan,
    findings: tuple[Finding, ...],
    run_id: UUID,
) -> int:
    held = held_back(table, plan, findings)
    if not held:
        return 0
    names = [
        finding.column
        for finding in findings
        if finding.table == plan.source and finding.policy == "quarantine"
    ]
    keys = _keys(table)
    columns = [column.name for column in table.columns]
    values = ", ".join(f"typeof({quoted(name)}), {quoted(name)}" for name in columns)
    count = 0
    for row in source.execute(f"SELECT {', '.join(keys)}, {values} FROM {quoted(table.name)} WHERE {held}"):  # noqa: S608 - quoted identifiers
        key, cells = row[: len(keys)], row[len(keys) :]
        content = {
            name: [cells[2 * n].decode(), _as_json(cells[2 * n + 1])] for n, name in enumerate(columns)
        }
        reason = f"a value of {', '.join(names)} does not fit"
        status.quarantine(
            connection, run_id, plan.source, encode_key(table, key), reason, json.dumps(content)
        )
        count += 1
    return count
