"""PostgreSQL types as seen from SQLite: which values fit, what they stand for, how both sides are hashed.

SQLite types values, not columns, so every target type says which Python value a value of the snapshot stands for
(`convert`, which refuses what does not fit) and how that is hashed (`canonical`). How rows are written is the business of
the module `formatting`, which the proof thereby does not trust.
"""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal, InvalidOperation
from typing import Any, Final, NoReturn
from uuid import UUID

from pgchroma.errors import ConfigurationError

CONVERSIONS: Final = ("none", "iso", "epoch_seconds", "epoch_milliseconds", "scalar", "text", "integer")
_TEMPORAL: Final = ("date", "time", "timestamp", "timestamptz")
# Above this, not every whole number has a float of its own.
EXACT_FLOAT: Final = 2**53
INTEGER_BITS: Final = {"smallint": 16, "integer": 32, "bigint": 64}
# Types of one family can be compared, so that a foreign key may join them.
_FAMILIES: Final = (frozenset(INTEGER_BITS), {"text", "varchar"}, {"date", "timestamp", "timestamptz"})
_WIDER_THAN_INTEGERS: Final = ("numeric", "double precision")
# A whole number spelled in the one way in which it is written back.
_WHOLE: Final = re.compile(r"0|-?[1-9][0-9]*")
# Decimal rounds to 28 digits otherwise, and would hide what differs beyond.
_EXACT: Final = Context(prec=200_000)
# A whole number of so many digits, or fewer, is kept as one, whatever its spelling was.
_WRITTEN_OUT: Final = 400
# What PostgreSQL's numeric holds: so many digits before the point and behind it.
_NUMERIC_DIGITS: Final = (131_072, 16_383)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_WITH_ARGUMENTS: Final = re.compile(r"^(numeric|varchar|char)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)$")
_PLAIN: Final = frozenset(
    {
        *INTEGER_BITS,
        "double precision",
        "numeric",
        "text",
        "varchar",
        "boolean",
        "bytea",
        "json",
        "jsonb",
        "uuid",
        *_TEMPORAL,
    }
)


class MisfitError(ValueError):
    """A value that its target type cannot hold."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A target type.

    Attributes:
        name: PostgreSQL's name of the type without arguments, e.g. `numeric`.
        arguments: precision and scale of numeric, length of varchar.
        conversion: one of CONVERSIONS: how a value of another storage class is to be read.
    """

    name: str
    arguments: tuple[int, ...] = ()
    conversion: str = "none"

    @property
    def sql(self) -> str:
        """The type as it stands in CREATE TABLE."""
        return f"{self.name}({','.join(map(str, self.arguments))})" if self.arguments else self.name


def parse(text: str, conversion: str = "none") -> Kind:
    """Return the kind that a mapping file names, e.g. `numeric(10,2)`.

    Raises:
        ConfigurationError: the type or the conversion is unknown, or they do not go together.
    """
    wanted = " ".join(text.lower().split())
    found = _WITH_ARGUMENTS.match(wanted)
    if conversion not in CONVERSIONS:
        raise ConfigurationError(
            f"the conversion {conversion!r} is unknown", hint=f"use one of {', '.join(CONVERSIONS)}"
        )
    if found:
        arguments = tuple(int(group) for group in found.groups()[1:] if group)
        kind = Kind("varchar" if found[1] == "char" else found[1], arguments, conversion)
    elif wanted in _PLAIN:
        kind = Kind(wanted, (), conversion)
    else:
        raise ConfigurationError(
            f"the type {text!r} is unknown to the migration", hint=f"use one of {', '.join(sorted(_PLAIN))}"
        )
    fits = {
        "iso": kind.name in _TEMPORAL,
        "epoch_seconds": kind.name in _TEMPORAL,
        "epoch_milliseconds": kind.name in _TEMPORAL,
        "scalar": kind.name == "jsonb",
        "text": kind.name in ("text", "varchar"),
        "integer": kind.name in INTEGER_BITS,
    }
    if not fits.get(conversion, True):
        raise ConfigurationError(
            f"the conversion {conversion!r} makes no {kind.sql}",
            hint="iso and epoch_* are for dates and times, scalar is for jsonb, text for text and varchar, integer for whole numbers",
        )
    return kind


def may_refer(child: Kind, parent: Kind) -> bool:
    """Return whether PostgreSQL takes a foreign key from a column of one kind to a column of the other."""
    if child.name == parent.name or any({child.name, parent.name} <= family for family in _FAMILIES):
        return True
    return child.name in INTEGER_BITS and parent.name in _WIDER_THAN_INTEGERS


# -- the snapshot's values as Python values -----------------------------------------------------------------------------------


def _refuse_constant(name: str) -> NoReturn:
    raise MisfitError(f"{name} is no JSON number")


def _exact_number(text: str) -> int | str:
    """Return a number so that equal numbers are equal, however they are spelled: PostgreSQL writes 1e400 out, with all its zeros.

    What is no whole number becomes a string that no JSON string PostgreSQL can hold is equal to.
    """
    number = Decimal(text).normalize(_EXACT)
    exponent = number.as_tuple().exponent
    if isinstance(exponent, int) and exponent >= 0 and number.adjusted() < _WRITTEN_OUT:
        return int(number)
    return f"\x00{number}"


# Made once: json.loads would make one for each value.
_DECODER: Final = json.JSONDecoder(parse_float=_exact_number, parse_constant=_refuse_constant)
# The quick one leaves whole numbers without an exponent to Python.
_LONG_NUMBER: Final = re.compile(rf"[0-9]{{{_WRITTEN_OUT + 1}}}")
_CAREFUL_DECODER: Final = json.JSONDecoder(
    parse_float=_exact_number, parse_int=_exact_number, parse_constant=_refuse_constant
)
_ENCODER: Final = json.JSONEncoder(sort_keys=True)


def parse_json(text: str | bytes) -> object:
    """Return a JSON document with exact numbers; MisfitError when it is none, or PostgreSQL would refuse it."""
    try:
        decoded = text if isinstance(text, str) else text.decode()
        decoder = _CAREFUL_DECODER if _LONG_NUMBER.search(decoded) else _DECODER
        value = decoder.decode(decoded)
    except (ValueError, RecursionError) as error:
        raise MisfitError(str(error)) from error
    if "\\u" in decoded:
        _refuse_unstorable(value)
    return value


def _refuse_unstorable(value: object) -> None:
    """Raise MisfitError for U+0000 and lone surrogates, which JSON can escape and jsonb cannot hold."""
    if isinstance(value, str):
        if "\x00" in value[1:] or value == "\x00" or any("\ud800" <= char <= "\udfff" for char in value):
            raise MisfitError("a string holds U+0000 or half a surrogate pair")
    elif isinstance(value, list):
        for item in value:
            _refuse_unstorable(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_unstorable(key)
            _refuse_unstorable(item)


def _integer(kind: Kind, value: object) -> int:
    bits = INTEGER_BITS[kind.name]
    if isinstance(value, str) and kind.conversion == "integer" and _WHOLE.fullmatch(value):
        value = int(value) if len(value) <= bits else value
    if isinstance(value, int) and -(1 << bits - 1) <= value < 1 << bits - 1:
        return value
    raise MisfitError(f"no {kind.name}")


def _real(kind: Kind, value: object) -> float:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) <= EXACT_FLOAT):
        return float(value)
    raise MisfitError("no floating-point number without loss")


def _numeric(kind: Kind, value: object) -> Decimal:
    try:
        number = Decimal(
            repr(value)
            if isinstance(value, float)
            else value
            if isinstance(value, int)
            else str(value).strip()
        )
    except InvalidOperation as error:
        raise MisfitError("no number") from error
    if isinstance(value, bytes) or not number.is_finite():
        raise MisfitError("no finite number")
    before, behind = number.adjusted() + 1, -int(number.as_tuple().exponent)
    if before > _NUMERIC_DIGITS[0] or behind > _NUMERIC_DIGITS[1]:
        raise MisfitError("more digits than numeric has")
    if kind.arguments:
        precision, scale = kind.arguments[0], kind.arguments[1] if len(kind.arguments) > 1 else 0
        shifted = number.scaleb(scale, _EXACT)
        if shifted != shifted.to_integral_value(context=_EXACT) or abs(shifted) >= Decimal(10) ** precision:
            raise MisfitError(f"more digits than {kind.sql} keeps")
    return number


def _text(kind: Kind, value: object) -> str:
    if isinstance(value, int | float) and kind.conversion == "text":
        value = repr(value)
    if not isinstance(value, str):
        raise MisfitError("no text")
    if kind.arguments and len(value) > kind.arguments[0]:
        raise MisfitError(f"longer than {kind.arguments[0]} characters")
    return value


def _boolean(kind: Kind, value: object) -> bool:
    if value in (0, 1) and not isinstance(value, float):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise MisfitError("neither 0 nor 1, true nor false")


def _bytes(kind: Kind, value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    raise MisfitError("no blob")


def _json(kind: Kind, value: object) -> object:
    if kind.conversion == "scalar":
        if isinstance(value, bytes) or (isinstance(value, float) and value - value != 0):
            raise MisfitError("no JSON scalar")
        _refuse_unstorable(value)
        return _exact_number(repr(value)) if isinstance(value, float) else value
    if not isinstance(value, str):
        raise MisfitError("no JSON text")
    parsed = parse_json(value)
    # The type json keeps the text as it is, so the text is what must be equal.
    return value if kind.name == "json" else parsed


def _uuid(kind: Kind, value: object) -> UUID:
    try:
        return UUID(bytes=value) if isinstance(value, bytes) else UUID(str(value))
    except (ValueError, AttributeError, TypeError) as error:
        raise MisfitError("no UUID") from error


def _moment(kind: Kind, value: object) -> datetime:
    if kind.conversion.startswith("epoch_") and isinstance(value, int | float):
        unit = 1 if kind.conversion == "epoch_seconds" else 1000
        # In whole microseconds, since a float of seconds would round.
        microseconds = Decimal(repr(value)) * 1_000_000 / unit
        if microseconds != microseconds.to_integral_value():
            raise MisfitError("finer than a microsecond")
        return _EPOCH + timedelta(microseconds=int(microseconds))
    if isinstance(value, str) and kind.conversion in ("none", "iso"):
        return datetime.fromisoformat(value.strip())
    raise MisfitError("no time that the conversion can read")


def _temporal(kind: Kind, value: object) -> object:
    try:
        if kind.name == "time" and isinstance(value, str) and kind.conversion in ("none", "iso"):
            clock = time.fromisoformat(value.strip())
            if clock.tzinfo is not None:
                raise MisfitError("a time with an offset, for a column without")
            return clock
        moment = _moment(kind, value)
        if kind.name == "timestamptz":
            # SQLite's own functions write UTC without saying so.
            return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise error if isinstance(error, MisfitError) else MisfitError(str(error)) from error
    if kind.name == "date":
        if moment.time() != time():
            raise MisfitError("a date with a time of day")
        return moment.date()
    if kind.name == "time":
        return moment.time()
    if kind.conversion.startswith("epoch_"):
        return moment.replace(tzinfo=None)
    if moment.tzinfo is not None:
        raise MisfitError("a time with an offset, for a column without")
    return moment


_CONVERTERS: Final[dict[str, Callable[[Kind, object], object]]] = {
    **dict.fromkeys(INTEGER_BITS, _integer),
    **dict.fromkeys(_TEMPORAL, _temporal),
    "double precision": _real,
    "numeric": _numeric,
    "text": _text,
    "varchar": _text,
    "boolean": _boolean,
    "bytea": _bytes,
    "json": _json,
    "jsonb": _json,
    "uuid": _uuid,
}


def convert(kind: Kind, value: object) -> object:
    """Return the Python value that psycopg is to read back for a value of the snapshot; MisfitError when there is none."""
    return None if value is None else _CONVERTERS[kind.name](kind, value)


# -- hashing ------------------------------------------------------------------------------------------------------------------


def _canonical_text(value: object) -> bytes:
    return b"s" + str(value).encode("utf-8", "surrogatepass")


def _canonical_json(value: object) -> bytes:
    return b"j" + _ENCODER.encode(value).encode()


def _canonical_float(value: float) -> bytes:
    return b"f" + struct.pack(">d", value)


def _canonical_bytes(value: bytes) -> bytes:
    return b"b" + value


def _canonical_decimal(value: Decimal) -> bytes:
    return b"d" + str(value.normalize(_EXACT)).encode()


def _canonical_time(value: date | time) -> bytes:
    return b"t" + value.isoformat().encode()


_CANONICAL: Final[dict[str, Callable[[Any], bytes]]] = {
    "double precision": _canonical_float,
    "bytea": _canonical_bytes,
    "numeric": _canonical_decimal,
    "jsonb": _canonical_json,
    **dict.fromkeys(_TEMPORAL, _canonical_time),
}


def canonical(kind: Kind) -> Callable[[Any], bytes]:
    """Return the function from a value other than None to bytes that are equal for equal values only, floats bit by bit."""
    return _CANONICAL.get(kind.name, _canonical_text)


def converter(kind: Kind) -> Callable[[Kind, object], object]:
    """Return the function behind `convert`, for values other than None."""
    return _CONVERTERS[kind.name]
