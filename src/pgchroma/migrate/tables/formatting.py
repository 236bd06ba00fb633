"""Which values of the snapshot do not fit, and how the others are written as COPY BINARY.

SQLite looks at values, and whole columns of a thousand rows are encoded at once: a look at each value in Python would take
several times as long. Only what SQLite cannot check or convert passes through a Python function.
"""

import json
import re
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from psycopg.abc import Buffer
from psycopg.adapt import PyFormat, Transformer

from pgchroma.migrate.tables.kinds import EXACT_FLOAT, INTEGER_BITS, Kind, MisfitError, convert

# What stands for U+0000 where the operator chose to replace it.
SYMBOL_FOR_NULL: Final = "\u2400"


def register(connection: sqlite3.Connection) -> None:
    """Give a connection to the snapshot the functions that `misfit` and `selected` call."""

    def bad_utf8(data: bytes | None) -> int:
        try:
            (data or b"").decode()
        except UnicodeDecodeError:
            return 1
        return 0

    # SQLite's own replace() takes char(0) for an empty pattern.
    connection.create_function(
        "pgc_without_nul", 2, lambda text, instead: text and text.replace("\x00", instead), deterministic=True
    )
    connection.create_function("pgc_bad_utf8", 1, bad_utf8, deterministic=True)


def register_kind(connection: sqlite3.Connection, kind: Kind) -> None:
    """Give a connection the two functions of one kind: whether a value fits, and what `rows` wants for one that does."""
    transformer = Transformer()

    def bad(value: object) -> int:
        try:
            convert(kind, value)
        except MisfitError:
            return 1
        return 0

    def field(value: object) -> str | Buffer | None:
        if value is None:
            return None
        converted = convert(kind, value)
        if kind.conversion == "scalar":
            return json.dumps(value)
        if isinstance(converted, datetime):
            return converted.replace(tzinfo=None).isoformat()
        if isinstance(converted, str):
            return converted
        return transformer.get_dumper(converted, PyFormat.BINARY).dump(converted)

    connection.create_function(f"pgc_bad_{_slug(kind)}", 1, bad, deterministic=True)
    connection.create_function(f"pgc_field_{_slug(kind)}", 1, field, deterministic=True)


def _slug(kind: Kind) -> str:
    return re.sub(r"\W+", "_", f"{kind.sql}_{kind.conversion}")


def misfit(kind: Kind, column: str, *, garbled: bool, usual_times: bool = False) -> str:
    """Return an SQL condition, true for a value of `column` (a quoted name) that the type cannot hold; NULL always fits.

    Args:
        garbled: whether there may be text that is not UTF-8; to ask costs as much as all else.
        usual_times: whether `usual_time` holds for every value.
    """
    storage = f"typeof({column})"
    broken = f"({storage} = 'text' AND pgc_bad_utf8(CAST({column} AS BLOB)))" if garbled else "0"
    if kind.name in INTEGER_BITS and kind.conversion == "none":
        limit = 1 << INTEGER_BITS[kind.name] - 1
        check = f"{storage} <> 'integer'"
        if kind.name != "bigint":
            check += f" OR {column} < -{limit} OR {column} >= {limit}"
    elif kind.name == "double precision":
        check = f"{storage} NOT IN ('real', 'integer') OR ({storage} = 'integer' AND ({column} > {EXACT_FLOAT} OR {column} < -{EXACT_FLOAT}))"
    elif kind.name in ("text", "varchar") and kind.conversion == "none":
        check = f"{storage} <> 'text' OR {broken}"
        if kind.arguments:
            check += f" OR length({column}) > {kind.arguments[0]}"
    elif kind.name == "bytea":
        check = f"{storage} <> 'blob'"
    elif kind.name in ("json", "jsonb") and kind.conversion == "none":
        # SQLite knows JSON; only escapes can stand for what PostgreSQL refuses.
        check = (
            f"CASE WHEN {storage} <> 'text' OR {broken} OR NOT json_valid({column}) THEN 1 "
            f"WHEN instr({column}, '\\u') THEN pgc_bad_{_slug(kind)}({column}) ELSE 0 END"
        )
    elif _is_timestamp(kind) and usual_times:
        check = "0"
    else:
        # Garbled text must not reach the function: sqlite3 would fail to decode it.
        check = f"CASE WHEN {broken} THEN 1 ELSE pgc_bad_{_slug(kind)}({column}) END"
    return f"({column} IS NOT NULL AND ({check}))"


def _is_timestamp(kind: Kind) -> bool:
    return kind.name == "timestamp" and kind.conversion in ("none", "iso")


def usual_time(column: str) -> str:
    """Return an SQL condition, true for NULL and for a timestamp in the form that SQLite's functions write.

    Python and PostgreSQL read that form alike, so a column of nothing else needs no call for each value. strftime moves a 30th
    of February into March, which gives it away.
    """
    digits = "[0-9]"
    pattern = f"{digits * 4}-{digits * 2}-{digits * 2}[ T]{digits * 2}:{digits * 2}:{digits * 2}"
    return (
        f"({column} IS NULL OR (typeof({column}) = 'text' AND length({column}) BETWEEN 19 AND 26 AND {column} GLOB '{pattern}*' "
        f"AND substr({column}, 1, 4) > '0000' AND substr({column}, 12, 2) < '24' "
        f"AND coalesce(strftime('%Y-%m-%d', substr({column}, 1, 19), '+0 days') = substr({column}, 1, 10), 0) "
        f"AND (length({column}) = 19 OR (length({column}) > 20 AND substr({column}, 20, 1) = '.' "
        f"AND rtrim(substr({column}, 21), '0123456789') = ''))))"
    )


def selected(kind: Kind, column: str, on_nul: str, *, usual_times: bool) -> str:
    """Return an SQL expression for a fitting value of `column` as `rows` wants it; NULL stays NULL."""
    if kind.name in INTEGER_BITS:
        return column if kind.conversion == "none" else f"CAST({column} AS INTEGER)"
    if kind.name == "boolean":
        return f"{column} = 1 OR lower({column}) = 'true'"
    plain = kind.name in ("double precision", "text", "varchar", "bytea", "json", "jsonb")
    plain = (plain and kind.conversion == "none") or (_is_timestamp(kind) and usual_times)
    value = column if plain else f"pgc_field_{_slug(kind)}({column})"
    if kind.name in ("text", "varchar") and on_nul != "fail":
        symbol = SYMBOL_FOR_NULL if on_nul == "replace" else ""
        return f"pgc_without_nul({value}, '{symbol}')"
    # The version of jsonb's binary form.
    return f"char(1) || {value}" if kind.name == "jsonb" else value


# Types whose values all have one size: the number that PostgreSQL takes, and what stands for NULL in a column of them.
_FIXED: Final[dict[str, tuple[str, object]]] = {
    "smallint": (">i2", 0),
    "integer": (">i4", 0),
    "bigint": (">i8", 0),
    "boolean": (">i1", 0),
    "double precision": (">f8", 0),
    "timestamp": (">i8", b""),
    "timestamptz": (">i8", b""),
}
# PostgreSQL counts microseconds from here.
_EPOCH: Final = np.datetime64("2000-01-01", "us")
_LONGEST_TIME: Final = "S26"


def _numbers(kind: Kind, values: Sequence[Any]) -> NDArray[Any]:
    number, _ = _FIXED[kind.name]
    if kind.name in ("timestamp", "timestamptz"):
        return (np.array(values, _LONGEST_TIME).astype("datetime64[us]") - _EPOCH).astype(number)
    return np.array(values, number)


def _pieces(arrays: Sequence[NDArray[Any]]) -> list[bytes]:
    """Return for every row the bytes of its numbers, one after the other."""
    numbers = np.empty(len(arrays[0]), [(f"f{n}", array.dtype) for n, array in enumerate(arrays)])
    for n, array in enumerate(arrays):
        numbers[f"f{n}"] = array
    pieces: list[bytes] = numbers.view(f"V{numbers.itemsize}").tolist()
    return pieces


def _filled(values: Sequence[Any], places: Sequence[int], value: object) -> Sequence[Any]:
    """Return values with another one at these places."""
    if not places:
        return values
    filled = list(values)
    for place in places:
        filled[place] = value
    return filled


def rows(kinds: Sequence[Kind], columns: Sequence[Sequence[Any]]) -> bytes:
    """Return rows of COPY BINARY, without its header and trailer.

    Args:
        columns: for each kind, what `selected` gave in every row, text as bytes; at least one row.
    """
    count = len(columns[0])
    # The numbers up to the next value whose size differs from row to row, its size included, are one piece of each row.
    numbers = [np.full(count, len(kinds), ">i2")]
    parts: list[Sequence[bytes]] = []
    for kind, values in zip(kinds, columns, strict=True):
        nulls = [n for n, value in enumerate(values) if value is None] if None in values else []
        data = _filled(values, nulls, _FIXED[kind.name][1] if kind.name in _FIXED else b"")
        if kind.name in _FIXED:
            fixed = _numbers(kind, data)
            sizes = np.full(count, fixed.itemsize, ">i4")
            if not nulls:
                numbers += (sizes, fixed)
                continue
            data = _filled(_pieces([fixed]), nulls, b"")
        else:
            sizes = np.fromiter(map(len, data), ">i4", count)
        if nulls:
            sizes[nulls] = -1
        parts += (_pieces([*numbers, sizes]), data)
        numbers = []
    if numbers:
        parts.append(_pieces(numbers))
    together = [b""] * (count * len(parts))
    for n, part in enumerate(parts):
        together[n :: len(parts)] = part
    return b"".join(together)
