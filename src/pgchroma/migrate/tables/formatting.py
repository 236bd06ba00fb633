"""Which values of the snapshot do not fit, and how the others are written in COPY's text format.

SQLite looks at values and turns them into text, and whole columns of a few thousand rows are escaped at once: a look at each
value in Python would take several times as long.
"""

import json
import re
import sqlite3
from collections.abc import Iterable, Sequence
from datetime import date, time
from typing import Any, Final

import orjson

from pgchroma.migrate.tables.kinds import EXACT_FLOAT, INTEGER_BITS, Kind, MisfitError, convert

# What stands for U+0000 where the operator chose to replace it.
SYMBOL_FOR_NULL: Final = "\u2400"


def register(connection: sqlite3.Connection) -> None:
    """Give a connection to the snapshot the functions that `misfit` and `copy_text` call."""

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
    """Give a connection the two functions of one kind: whether a value fits, and its text."""

    def bad(value: object) -> int:
        try:
            convert(kind, value)
        except MisfitError:
            return 1
        return 0

    def text(value: object) -> str:
        converted = convert(kind, value)
        if kind.conversion == "scalar":
            return repr(value) if isinstance(value, int | float) else json.dumps(value)
        return converted.isoformat() if isinstance(converted, date | time) else str(converted)

    connection.create_function(f"pgc_bad_{_slug(kind)}", 1, bad, deterministic=True)
    connection.create_function(f"pgc_text_{_slug(kind)}", 1, text, deterministic=True)


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


# What stands for NULL until a chunk is done: no text that PostgreSQL takes holds it.
_NULL: Final = b"\x00"
_BETWEEN: Final = b"\x00\x02"
_ESCAPES: Final = ((b"\\", b"\\\\"), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t"))


def selected(kind: Kind, column: str, on_nul: str, *, usual_times: bool) -> str:
    """Return an SQL expression for a fitting value of `column` as `lines` wants it."""
    if kind.name == "double precision":
        return column
    if kind.name in INTEGER_BITS:
        text = f"CAST({column} AS TEXT)"
    elif kind.name == "boolean":
        text = f"CASE WHEN {column} = 1 OR lower({column}) = 'true' THEN 't' ELSE 'f' END"
    elif kind.name == "bytea":
        text = rf"'\\x' || hex({column})"
    elif kind.name in ("text", "varchar") and kind.conversion == "none":
        symbol = SYMBOL_FOR_NULL if on_nul == "replace" else ""
        text = column if on_nul == "fail" else f"pgc_without_nul({column}, '{symbol}')"
    elif (kind.name in ("json", "jsonb") and kind.conversion == "none") or (
        _is_timestamp(kind) and usual_times
    ):
        text = column
    else:
        text = f"pgc_text_{_slug(kind)}({column})"
    return f"CASE WHEN {column} IS NULL THEN char(0) ELSE {text} END"


def null_of(kind: Kind) -> str:
    """Return the SQL expression that `lines` takes for NULL."""
    return "NULL" if kind.name == "double precision" else "char(0)"


def _numbers(values: tuple[float | None, ...]) -> Iterable[bytes]:
    """Return the shortest notation of each number that PostgreSQL reads as the same double."""
    # By the JSON library at once, a tenth of the time; it writes infinity, which JSON does not know, as null.
    texts = orjson.dumps(values)[1:-1].split(b",")
    nulls = texts.count(b"null")
    if not nulls:
        return texts
    if nulls == values.count(None):
        return [_NULL if text == b"null" else text for text in texts]
    return [_NULL if value is None else repr(float(value)).encode() for value in values]


def _cells(kind: Kind, values: tuple[Any, ...]) -> Iterable[bytes]:
    if kind.name == "double precision":
        return _numbers(values)
    if kind.name in INTEGER_BITS or kind.name in ("boolean", "bytea"):
        return values
    joined = _BETWEEN.join(values)
    if not any(character in joined for character, _ in _ESCAPES):
        return values
    for character, escape in _ESCAPES:
        joined = joined.replace(character, escape)
    return joined.split(_BETWEEN)


def lines(kinds: Sequence[Kind], columns: Sequence[tuple[Any, ...]]) -> bytes:
    """Return rows in COPY's text format.

    Args:
        columns: for each kind, what `selected` gave in every row, text as bytes.
    """
    cells = [_cells(kind, values) for kind, values in zip(kinds, columns, strict=True)]
    rows = b"\n".join(map(b"\t".join, zip(*cells, strict=True))) + b"\n"
    return rows.replace(_NULL, rb"\N")
