"""Proves that the rows of both sides are equal: every row is read back and hashed, without using the code that wrote it.

Digests are sums of row hashes modulo 2**128, so that neither order nor memory matters. They are kept in buckets by the hash
of the row's key; where two buckets differ, a second pass over these alone names the rows.
"""

import hashlib
import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final
from zlib import crc32

import psycopg
from psycopg import sql
from psycopg.types.json import set_json_loads

from pgchroma.migrate.tables import formatting, kinds
from pgchroma.migrate.tables.catalog import FETCH_BYTES, Table, fetched, quoted
from pgchroma.migrate.tables.ddl import table_name
from pgchroma.migrate.tables.inspect_rows import Finding
from pgchroma.migrate.tables.load import held_back, value_or_null
from pgchroma.migrate.tables.mapping import Mapping, TablePlan

Connection = psycopg.Connection[tuple[Any, ...]]
Row = Sequence[Any]

_BUCKETS: Final = 4096
_MODULUS: Final = 1 << 128
_FETCH: Final = 5_000
_LOOKUP: Final = 1_000
_UNBOUNDED: Final = ("text", "varchar", "bytea", "json", "jsonb")
# So many rows at most are looked at by name where buckets differ.
_NAMED: Final = 100_000
# So many differing rows are named.
LISTED: Final = 100


@dataclass(frozen=True, slots=True)
class TableProof:
    """What the comparison of one table found."""

    table: str
    target: str
    source_rows: int
    target_rows: int
    quarantined: int
    source_digest: str
    target_digest: str
    missing: tuple[str, ...]
    different: tuple[str, ...]
    extra: tuple[str, ...]
    kept: int

    @property
    def equal(self) -> bool:
        """Whether every row of the source that was to be moved is in the target as it is in the source."""
        return self.source_digest == self.target_digest and not (self.missing or self.different or self.extra)

    @property
    def errors(self) -> int:
        """How many rows differ, at least."""
        found = len(self.missing) + len(self.different) + len(self.extra)
        return found or int(not self.equal)

    def as_json(self) -> dict[str, Any]:
        """Return the proof for a receipt."""
        return {**asdict(self), "equal": self.equal}


class _Digest:
    """Sums of row hashes by bucket."""

    def __init__(self) -> None:
        self.sums = [0] * _BUCKETS
        self.rows = 0

    def add(self, bucket: int, row: bytes) -> None:
        self.sums[bucket] = (self.sums[bucket] + int.from_bytes(row, "big")) % _MODULUS
        self.rows += 1

    def hexadecimal(self) -> str:
        digest = hashlib.sha256()
        for value in self.sums:
            digest.update(value.to_bytes(16, "big"))
        return digest.hexdigest()


class _Hasher:
    """Hashes rows of one table: the key's columns choose the bucket, all columns make the hash."""

    def __init__(self, plan: TablePlan) -> None:
        self._canonical = [kinds.canonical(column.kind) for column in plan.moved]
        names = [column.source for column in plan.moved]
        # Without a key, the row as a whole is its own.
        self.key = [names.index(name) for name in plan.primary_key] or list(range(len(names)))

    def row(self, values: Row) -> tuple[int, bytes]:
        cells = [
            b"n" if value is None else canonical(value)
            for canonical, value in zip(self._canonical, values, strict=True)
        ]
        # With their lengths, so that no two different rows are the same bytes.
        lengths = struct.pack(f">{len(cells)}Q", *map(len, cells))
        digest = hashlib.blake2b(lengths + b"".join(cells), digest_size=16).digest()
        return crc32(b"\x00".join([cells[n] for n in self.key])) % _BUCKETS, digest

    def name(self, values: Row) -> str:
        """Return a row's key for a person."""
        text = ", ".join(str(values[n]) for n in self.key)
        return text if len(text) <= 200 else text[:200] + "…"


# -- reading both sides -------------------------------------------------------------------------------------------------------


def source_rows(
    connection: sqlite3.Connection, table: Table, plan: TablePlan, findings: tuple[Finding, ...]
) -> Iterator[list[Any]]:
    """Yield the snapshot's rows that were to be moved, as the Python values psycopg should read back."""
    columns = ", ".join(
        value_or_null(table, plan, column, findings, quoted(column.source)) for column in plan.moved
    )
    held = held_back(table, plan, findings)
    where = f" WHERE NOT coalesce(({held}), 0)" if held else ""
    converters = [_converter(column.kind, column.on_nul) for column in plan.moved]
    cursor = connection.execute(f"SELECT {columns} FROM {quoted(table.name)}{where}")  # noqa: S608 - quoted identifiers
    for rows in fetched(cursor, table.largest, _FETCH):
        for row in rows:
            yield [
                None if value is None else convert(value)
                for convert, value in zip(converters, row, strict=True)
            ]


def _converter(kind: kinds.Kind, on_nul: str) -> Callable[[Any], Any]:
    convert = partial(kinds.converter(kind), kind)
    if kind.name not in ("text", "varchar") or on_nul == "fail":
        return convert
    symbol = formatting.SYMBOL_FOR_NULL if on_nul == "replace" else ""
    return lambda value: str(convert(value)).replace("\x00", symbol)


def _select(mapping: Mapping, plan: TablePlan) -> sql.Composed:
    # As text, json is what the source said; parsed, it would only be equal to it.
    columns = sql.SQL(", ").join(
        sql.SQL("target.{}::text" if column.kind.name == "json" else "target.{}").format(
            sql.Identifier(column.target)
        )
        for column in plan.moved
    )
    return sql.SQL("SELECT {} FROM {} target").format(columns, table_name(mapping, plan))


def _largest(connection: Connection, mapping: Mapping, plan: TablePlan) -> int:
    """Return at least the bytes of the target's largest row: applications may have written larger ones than there were."""
    # Text and bytea know their length uncompressed without being read.
    lengths = [
        sql.SQL("coalesce(octet_length({}{}), 0)").format(
            sql.Identifier(column.target), sql.SQL("::text" if column.kind.name in ("json", "jsonb") else "")
        )
        for column in plan.moved
        if column.kind.name in _UNBOUNDED
    ]
    if not lengths:
        return 0
    row = connection.execute(
        sql.SQL("SELECT max({}) FROM {}").format(sql.SQL(" + ").join(lengths), table_name(mapping, plan))
    ).fetchone()
    return int(row[0] or 0) if row else 0


def _target_rows(connection: Connection, mapping: Mapping, plan: TablePlan, largest: int) -> Iterator[Row]:
    with connection.transaction(), connection.cursor("pgchroma_proof", binary=True) as cursor:
        cursor.itersize = _at_once(largest, _FETCH)
        cursor.execute(_select(mapping, plan))
        yield from cursor


def _at_once(largest: int, rows: int) -> int:
    return max(1, min(rows, FETCH_BYTES // max(largest, 1)))


def _lookup(
    connection: Connection, mapping: Mapping, plan: TablePlan, rows: list[list[Any]], key: list[int]
) -> Iterator[Row]:
    """Yield the target's rows that have the keys of these source rows."""
    columns = [plan.moved[n] for n in key]
    arrays = sql.SQL(", ").join(sql.SQL(f"${n}::{column.kind.sql}[]") for n, column in enumerate(columns, 1))
    names = [sql.Identifier(f"k{n}") for n in range(len(columns))]
    statement = _select(mapping, plan) + sql.SQL(" JOIN unnest({}) AS wanted({}) ON {}").format(
        arrays,
        sql.SQL(", ").join(names),
        sql.SQL(" AND ").join(
            sql.SQL("target.{} = wanted.{}").format(sql.Identifier(column.target), name)
            for column, name in zip(columns, names, strict=True)
        ),
    )
    # A cursor to which a percent sign in a name means nothing.
    with psycopg.RawCursor(connection) as cursor:
        yield from cursor.execute(statement, [[row[n] for row in rows] for n in key], binary=True)


def connect_settings(connection: Connection) -> None:
    """Make a connection read values the way `kinds.convert` makes them."""
    connection.execute("SET TIME ZONE 'UTC'")
    set_json_loads(lambda data: kinds.parse_json(data if isinstance(data, str) else bytes(data)), connection)


# -- comparing ----------------------------------------------------------------------------------------------------------------


def prove(
    connection: Connection,
    source: sqlite3.Connection,
    table: Table,
    mapping: Mapping,
    plan: TablePlan,
    findings: tuple[Finding, ...],
    *,
    existed: bool,
    advance: Callable[[int], None],
) -> TableProof:
    """Compare every row of one table.

    A table that was there before may hold other rows; of it only the rows with the source's keys are compared, and under
    `on_conflict: skip` a row that differs is the one that was there first.
    """
    hasher = _Hasher(plan)
    if existed and plan.on_conflict != "fail":
        return _prove_merged(connection, source, table, mapping, plan, findings, hasher, advance)
    mine, theirs = _Digest(), _Digest()
    for count, row in enumerate(source_rows(source, table, plan, findings), 1):
        mine.add(*hasher.row(row))
        if count % _FETCH == 0:
            advance(_FETCH)
    advance(mine.rows % _FETCH)
    largest = _largest(connection, mapping, plan)
    for values in _target_rows(connection, mapping, plan, largest):
        theirs.add(*hasher.row(values))
    different_buckets = [n for n in range(_BUCKETS) if mine.sums[n] != theirs.sums[n]]
    # Where all of a large table differs, some of it is enough to be named.
    enough = max(1, _NAMED * _BUCKETS // max(mine.rows, theirs.rows, 1))
    buckets = set(different_buckets[:enough])
    missing, different, extra = _name(
        hasher,
        buckets,
        lambda: source_rows(source, table, plan, findings),
        lambda: _target_rows(connection, mapping, plan, largest),
    )
    return TableProof(
        table.name, f"{mapping.schema}.{plan.target}", mine.rows, theirs.rows, table.rows - mine.rows,
        mine.hexadecimal(), theirs.hexadecimal(), missing, different, extra, 0,
    )  # fmt: skip


def _name(
    hasher: _Hasher, buckets: set[int], mine: Callable[[], Iterator[Row]], theirs: Callable[[], Iterator[Row]]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Name the rows of the buckets that differ: (missing in the target, different, only in the target)."""
    if not buckets:
        return (), (), ()

    def collect(rows: Iterator[Row]) -> dict[str, list[bytes]]:
        found: dict[str, list[bytes]] = {}
        for values in rows:
            bucket, digest = hasher.row(values)
            if bucket in buckets:
                found.setdefault(hasher.name(values), []).append(digest)
        return found

    ours, other = collect(mine()), collect(theirs())
    missing = [name for name, hashes in ours.items() if len(hashes) > len(other.get(name, []))]
    extra = [name for name, hashes in other.items() if len(hashes) > len(ours.get(name, []))]
    different = [
        name
        for name, hashes in ours.items()
        if len(hashes) == len(other.get(name, [])) and sorted(hashes) != sorted(other[name])
    ]
    return tuple(missing[:LISTED]), tuple(different[:LISTED]), tuple(extra[:LISTED])


def _prove_merged(
    connection: Connection,
    source: sqlite3.Connection,
    table: Table,
    mapping: Mapping,
    plan: TablePlan,
    findings: tuple[Finding, ...],
    hasher: _Hasher,
    advance: Callable[[int], None],
) -> TableProof:
    mine, theirs = _Digest(), _Digest()
    missing: list[str] = []
    different: list[str] = []
    kept = 0
    group: list[list[Any]] = []

    def compare() -> None:
        nonlocal kept
        found = {hasher.name(row): row for row in _lookup(connection, mapping, plan, group, hasher.key)}
        for row in group:
            bucket, digest = hasher.row(row)
            mine.add(bucket, digest)
            other = found.get(hasher.name(row))
            if other is None:
                missing.append(hasher.name(row))
                continue
            digest_there = hasher.row(other)[1]
            if digest_there != digest and plan.on_conflict == "skip":
                # The row that was there first stays; that it is there is what the mapping asked for.
                kept += 1
                theirs.add(bucket, digest)
                continue
            theirs.add(bucket, digest_there)
            if digest_there != digest:
                different.append(hasher.name(row))
        advance(len(group))
        group.clear()

    at_once = _at_once(max(table.largest, _largest(connection, mapping, plan)), _LOOKUP)
    for row in source_rows(source, table, plan, findings):
        group.append(row)
        if len(group) == at_once:
            compare()
    if group:
        compare()
    return TableProof(
        table.name, f"{mapping.schema}.{plan.target}", mine.rows, theirs.rows, table.rows - mine.rows,
        mine.hexadecimal(), theirs.hexadecimal(), tuple(missing[:LISTED]), tuple(different[:LISTED]), (), kept,
    )  # fmt: skip
