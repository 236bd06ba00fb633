"""SQL over the snapshot: which values do not fit, and how the others are written in COPY's text format.

Rows are formatted by SQLite itself, not by Python, which would take several times as long.
"""

import json
import re
import sqlite3
from datetime import date, time
from typing import Final

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
    connection.create_function("pgc_float", 1, lambda value: repr(float(value)), deterministic=True)


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


def misfit(kind: Kind, column: str, *, garbled: bool) -> str:
    """Return an SQL condition, true for a value of `column` (a quoted name) that the type cannot hold; NULL always fits.

    Args:
        garbled: whether there may be text that is not UTF-8; to ask costs as much as all else.
    """
    storage = f"typeof({column})"
    broken = f"({storage} = 'text' AND pgc_bad_utf8(CAST({column} AS BLOB)))" if garbled else "0"
    if kind.name in INTEGER_BITS:
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
    elif _is_plain_timestamp(kind):
        check = (
            f"CASE WHEN {broken} THEN 1 WHEN {_well_formed(column)} THEN 0 "
            f"ELSE pgc_bad_{_slug(kind)}({column}) END"
        )
    else:
        # Garbled text must not reach the function: sqlite3 would fail to decode it.
        check = f"CASE WHEN {broken} THEN 1 ELSE pgc_bad_{_slug(kind)}({column}) END"
    return f"({column} IS NOT NULL AND ({check}))"


def _is_plain_timestamp(kind: Kind) -> bool:
    return kind.name == "timestamp" and kind.conversion in ("none", "iso")


def _well_formed(column: str) -> str:
    """Return an SQL condition, true for a timestamp in the usual form that both sides read alike.

    It saves a call to Python for each value. strftime moves a 30th of February into March, which gives it away.
    """
    digits = "[0-9]"
    day, clock = f"{digits * 4}-{digits * 2}-{digits * 2}", f"{digits * 2}:{digits * 2}:{digits * 2}"
    return (
        f"(typeof({column}) = 'text' AND length({column}) BETWEEN 19 AND 26 AND {column} GLOB '{day}[ T]{clock}*' "
        f"AND substr({column}, 1, 4) > '0000' AND substr({column}, 12, 2) < '24' "
        f"AND strftime('%Y-%m-%d', substr({column}, 1, 19), '+0 days') = substr({column}, 1, 10) "
        f"AND (length({column}) = 19 OR {column} GLOB '{day}[ T]{clock}.{digits}*' AND rtrim(substr({column}, 21), '0123456789') = ''))"
    )


def copy_text(kind: Kind, column: str, on_nul: str) -> str:
    r"""Return an SQL expression for a fitting value of `column` in COPY's text format, NULL as `\N`."""
    if kind.name in INTEGER_BITS:
        return rf"coalesce({column}, '\N')"
    if kind.name == "double precision":
        return rf"CASE WHEN {column} IS NULL THEN '\N' ELSE pgc_float({column}) END"
    if kind.name == "boolean":
        return rf"CASE WHEN {column} IS NULL THEN '\N' WHEN {column} = 1 OR lower({column}) = 'true' THEN 't' ELSE 'f' END"
    if kind.name == "bytea":
        return rf"CASE WHEN {column} IS NULL THEN '\N' ELSE '\\x' || hex({column}) END"
    if _is_plain_timestamp(kind):
        return (
            rf"CASE WHEN {column} IS NULL THEN '\N' WHEN {_well_formed(column)} THEN {column} "
            rf"ELSE pgc_text_{_slug(kind)}({column}) END"
        )
    plain = kind.name in ("text", "varchar", "json", "jsonb") and kind.conversion == "none"
    text = column if plain else f"pgc_text_{_slug(kind)}({column})"
    if plain and kind.name in ("text", "varchar") and on_nul != "fail":
        text = f"pgc_without_nul({text}, '{SYMBOL_FOR_NULL if on_nul == 'replace' else ''}')"
    escaped = rf"replace({text}, '\', '\\')"
    for code, letter in ((10, "n"), (13, "r"), (9, "t")):
        escaped = rf"replace({escaped}, char({code}), '\{letter}')"
    return rf"CASE WHEN {column} IS NULL THEN '\N' ELSE {escaped} END"
