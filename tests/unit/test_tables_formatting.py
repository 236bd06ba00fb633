"""Columns of an application's tables as COPY BINARY has them."""

import contextlib
import itertools
import math
import sqlite3
import struct
from collections.abc import Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.json import Jsonb

from pgchroma.migrate.tables import formatting
from pgchroma.migrate.tables.kinds import MisfitError, convert, parse, parse_json


def encoded(columns: Sequence[tuple[str, str, Sequence[Any]]], *, usual_times: bool = False) -> bytes:
    """Send columns, each (type, conversion, values), through SQLite and return what is written of them."""
    kinds = [parse(name, conversion) for name, conversion, _ in columns]
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        formatting.register(connection)
        for kind in kinds:
            formatting.register_kind(connection, kind)
        names = [f"c{n}" for n in range(len(kinds))]
        connection.execute(f"CREATE TABLE t ({', '.join(names)})")
        connection.executemany(
            f"INSERT INTO t VALUES ({', '.join('?' * len(kinds))})",  # noqa: S608 - names of our own
            zip(*(values for _, _, values in columns), strict=True),
        )
        connection.text_factory = bytes
        expressions = [
            formatting.selected(kind, name, "fail", usual_times=usual_times)
            for kind, name in zip(kinds, names, strict=True)
        ]
        found = connection.execute(f"SELECT {', '.join(expressions)} FROM t ORDER BY rowid").fetchall()  # noqa: S608 - names of our own
    return formatting.rows(kinds, list(zip(*found, strict=True)))


def fields(data: bytes, width: int) -> list[list[bytes | None]]:
    """Return what stands in rows of COPY BINARY."""
    found: list[list[bytes | None]] = []
    place = 0
    while place < len(data):
        (count,) = struct.unpack_from("!h", data, place)
        assert count == width
        place += 2
        row: list[bytes | None] = []
        for _ in range(count):
            (size,) = struct.unpack_from("!i", data, place)
            place += 4
            row.append(None if size < 0 else data[place : place + size])
            place += max(size, 0)
        found.append(row)
    return found


def by_driver(value: Any) -> bytes | None:
    """Return the driver's own binary form of a value."""
    if value is None:
        return None
    dumped = Transformer().get_dumper(value, PyFormat.BINARY).dump(value)
    assert dumped is not None
    return bytes(dumped)


MOMENT = datetime.fromisoformat("2025-03-01T10:15:30.120")
LAST = datetime.fromisoformat("9999-12-31T23:59:59.999999")
# (type, conversion, values of the snapshot, what stands for each; nothing where that is the value itself)
CASES: list[tuple[str, str, list[Any], list[Any]]] = [
    ("smallint", "none", [-(2**15), 0, 2**15 - 1], [struct.pack("!h", n) for n in (-(2**15), 0, 2**15 - 1)]),
    ("integer", "none", [-(2**31), 2**31 - 1], [struct.pack("!i", n) for n in (-(2**31), 2**31 - 1)]),
    ("bigint", "none", [-(2**63), -1, 2**63 - 1], [struct.pack("!q", n) for n in (-(2**63), -1, 2**63 - 1)]),
    ("bigint", "integer", [str(-(2**63)), "0", 7], [struct.pack("!q", n) for n in (-(2**63), 0, 7)]),
    ("boolean", "none", [1, 0, "true", "FALSE"], [b"\x01", b"\x00", b"\x01", b"\x00"]),
    ("bytea", "none", [b"", bytes(range(256))], [b"", bytes(range(256))]),
    ("text", "none", ["", "\\.\t\n\r\\N", "ü\U0010ffff", "x" * 100_000], []),
    ("varchar(5)", "none", ["東京", "abcde"], []),
    ("text", "text", [1, 2.5, "two", 1e16], [b"1", b"2.5", b"two", b"1e+16"]),
    ("json", "none", ['{"b": 1,  "a": 2}'], [b'{"b": 1,  "a": 2}']),
    ("jsonb", "none", ['{"b": "\u00fc"}', "[]"], ['\x01{"b": "ü"}'.encode(), b"\x01[]"]),
    ("jsonb", "scalar", [1, 2.5, "two", 2**62], [by_driver(Jsonb(value)) for value in (1, 2.5, "two", 2**62)]),
    (
        "numeric(12,2)", "none", [1, 2.5, "-0012.30", "1e3"],
        [by_driver(Decimal(text)) for text in ("1", "2.5", "-12.30", "1e3")],
    ),
    ("numeric", "none", ["1e-16383", "9e131071"], [by_driver(Decimal("1e-16383")), by_driver(Decimal("9e131071"))]),
    ("uuid", "none", [UUID(int=7).bytes, UUID(int=8).hex], [UUID(int=7).bytes, UUID(int=8).bytes]),
    (
        "date", "none", ["0001-01-01", "9999-12-31 00:00:00"],
        [by_driver(date.min), by_driver(date.max)],
    ),
    ("time", "none", ["00:00", "23:59:59.999999"], [by_driver(time()), by_driver(time.max)]),
    (
        "timestamp", "none", ["2025-03-01", "20250301T101530.12", "9999-12-31 23:59:59.999999"],
        [by_driver(datetime.fromisoformat("2025-03-01")), by_driver(MOMENT), by_driver(LAST)],
    ),
    (
        "timestamp", "epoch_milliseconds", [0, 1_740_824_130_120],
        [by_driver(datetime.fromisoformat("1970-01-01")), by_driver(MOMENT)],
    ),
    (
        "timestamptz", "none", ["2025-03-01 10:15:30.12", "2025-03-01T12:15:30.120+02:00"],
        [by_driver(MOMENT.replace(tzinfo=UTC))] * 2,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "conversion", "values", "expected"), CASES, ids=[f"{case[0]} {case[1]}" for case in CASES]
)
def test_every_type_is_written_as_postgresql_reads_it(
    name: str, conversion: str, values: list[Any], expected: list[bytes]
) -> None:
    expected = expected or [value.encode() for value in values]
    assert fields(encoded([(name, conversion, values)]), 1) == [[value] for value in expected]
    # The same with NULL before, between and behind them, and with nothing else.
    spread = [None, *itertools.chain.from_iterable((value, None) for value in values)]
    wanted: list[bytes | None] = [
        None,
        *itertools.chain.from_iterable((value, None) for value in expected),
    ]
    assert fields(encoded([(name, conversion, spread)]), 1) == [[value] for value in wanted]
    assert fields(encoded([(name, conversion, [None] * 3)]), 1) == [[None]] * 3


@pytest.mark.parametrize("others", [[], [None]], ids=["numbers", "with nulls"])
def test_floats_are_written_bit_for_bit(others: list[float | None]) -> None:
    values: list[float | None] = [
        0.0, -0.0, 5e-324, 1.7976931348623157e308, 0.1, 1e16, -1.5e-7, math.inf, -math.inf, 2**53, -7, 3,
        *others,
    ]  # fmt: skip
    written = fields(encoded([("double precision", "none", values)]), 1)
    assert written == [[None if value is None else struct.pack("!d", value)] for value in values]


def test_times_in_the_usual_form_are_read_as_python_reads_them() -> None:
    values = [
        "0001-01-01 00:00:00",
        "0001-01-01T00:00:00.000001",
        "1969-12-31T23:59:59.9",
        "1999-12-31 23:59:59.999999",
        "2000-01-01 00:00:00",
        "2024-02-29T12:00:00.123",
        None,
        "9999-12-31T23:59:59.999999",
    ]
    written = fields(encoded([("timestamp", "none", values)], usual_times=True), 1)
    assert written == [[value and by_driver(datetime.fromisoformat(value))] for value in values]


def test_columns_of_all_types_stand_in_one_row() -> None:
    length = 6
    columns = [
        (name, conversion, list(itertools.islice(itertools.cycle([*values, None]), length)))
        for name, conversion, values, _ in CASES
    ]
    alone = [fields(encoded([column]), 1) for column in columns]
    together = fields(encoded(columns), len(columns))
    assert together == [[column[row][0] for column in alone] for row in range(length)]


@pytest.mark.parametrize(("on_nul", "expected"), [("replace", "a\u2400b"), ("strip", "ab")])
@pytest.mark.parametrize("conversion", ["none", "text"])
def test_u0000_is_replaced_as_the_operator_chose(on_nul: str, expected: str, conversion: str) -> None:
    kind = parse("text", conversion)
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        formatting.register(connection)
        formatting.register_kind(connection, kind)
        expression = formatting.selected(kind, "v", on_nul, usual_times=False)
        found = connection.execute(
            f"SELECT {expression} FROM (SELECT ? AS v UNION ALL SELECT NULL)",  # noqa: S608 - an expression of our own
            ["a\x00b"],
        ).fetchall()
    assert found == [(expected,), (None,)]


@pytest.mark.parametrize(
    ("type_", "text"),
    [
        ("numeric", "1e131072"),
        ("numeric", "1e-16384"),
        ("numeric", "-1e300000"),
        ("timestamptz", "0001-01-01T00:00:00+02:00"),
        ("timestamptz", "9999-12-31T23:59:59-02:00"),
    ],
)
def test_what_is_beyond_the_type_does_not_fit(type_: str, text: str) -> None:
    with pytest.raises(MisfitError):
        convert(parse(type_), text)


@pytest.mark.parametrize("zeros", [0, 1, 22, 398, 399, 400, 401, 4_299, 4_300, 5_000])
def test_whole_json_numbers_are_equal_however_they_are_spelled(zeros: int) -> None:
    # PostgreSQL writes each of them as the second.
    spelled = [f"[12e{zeros}]", f"[12{'0' * zeros}]", f"[1.2e{zeros + 1}]", f"[12{'0' * zeros}.0]"]
    assert len({repr(parse_json(text)) for text in spelled}) == 1
    assert parse_json(f"[12e{zeros}]") != parse_json(f"[12{'0' * zeros}1]")
    assert parse_json(f"[12{'0' * zeros}2]") != parse_json(f"[12{'0' * zeros}1]")
