"""Metadata to jsonb and back without losing a type or a bit.

jsonb keeps numbers as decimals: it forgets that 1e16 was a float, has no negative zero and refuses NaN and infinity. Floats are
therefore always written with a decimal point, and what jsonb cannot hold at all is kept beside it as text (`exact`), in which
JSON's own spelling of -0.0 and the names NaN, Infinity and -Infinity stand as Python's json module writes them.

Sparse vectors are objects, which no filter looks into: they are left out of the jsonb, so that its index stays free of them,
and kept in `exact` alone.
"""

import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import msgspec

from pgchroma.store import text

_encode_json = msgspec.json.encode
_decode_json = msgspec.json.decode

# From here on the shortest notation of a float has no decimal point any more.
_POINTLESS = 1e15


def _plain_float(value: float) -> msgspec.Raw:
    """Return a float of at least 1e15 as digits with a decimal point, which jsonb keeps and a reader takes for a float."""
    digits = f"{Decimal(repr(value)):f}"
    return msgspec.Raw((digits if "." in digits else digits + ".0").encode())


def _number_needs_care(value: object) -> bool:
    """Whether a value holds a number that JSON alone would not bring through jsonb; sparse vectors are kept elsewhere."""
    kind = type(value)
    if kind is str or kind is int or kind is bool:
        return False
    if isinstance(value, float):
        return not (-_POINTLESS < value < _POINTLESS) or (value == 0.0 and math.copysign(1.0, value) < 0)
    if isinstance(value, list):
        return any(map(_number_needs_care, value))
    return isinstance(value, dict)


def _is_inexact(value: object) -> bool:
    """Whether jsonb cannot hold the value."""
    if isinstance(value, float):
        return not math.isfinite(value) or (value == 0.0 and math.copysign(1.0, value) < 0)
    if isinstance(value, list):
        return any(_is_inexact(item) for item in value)
    return isinstance(value, dict)


def _careful(value: object) -> object:
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return _plain_float(value) if abs(value) >= _POINTLESS else value
    if isinstance(value, str):
        return text.encode(value)
    if isinstance(value, list):
        return [_careful(item) for item in value]
    return value


def encode(metadata: Mapping[str, Any]) -> tuple[bytes, str | None]:
    """Return (jsonb text as UTF-8, exact text or None) of a metadata object.

    The second value is set only where jsonb alone would lose something.
    """
    # Strings and keys are looked at all at once, as the JSON that most metadata is stored as.
    if not any(map(_number_needs_care, metadata.values())):
        encoded_as_it_is = _encode_json(metadata)
        if not text.may_need_encoding(encoded_as_it_is):
            return encoded_as_it_is, None
    encoded = {
        text.encode(key): _careful(value) for key, value in metadata.items() if not isinstance(value, dict)
    }
    exact = _exact(metadata) if any(map(_is_inexact, metadata.values())) else None
    return _encode_json(encoded), exact


def _exact(metadata: Mapping[str, Any]) -> str:
    """Return the object as JSON in ASCII, in which nothing needs encoding."""
    if not any(isinstance(value, dict) for value in metadata.values()):
        return json.dumps(dict(metadata), ensure_ascii=True, allow_nan=True)
    # Sparse vectors hold hundreds of finite numbers; the quick encoder has no names for others and leaves non-ASCII as it is.
    quick = _encode_json(metadata)
    if quick.isascii() and not any(_has_non_finite(value) for value in metadata.values()):
        return quick.decode("ascii")
    return json.dumps(dict(metadata), ensure_ascii=True, allow_nan=True)


def _has_non_finite(value: object) -> bool:
    if isinstance(value, list):
        return any(_has_non_finite(item) for item in value)
    return isinstance(value, float) and not math.isfinite(value)


def decode(stored: bytes | str | None, exact: str | None) -> dict[str, Any] | None:
    """Return the metadata object that `encode` was given, or None."""
    if exact is not None:
        result: dict[str, Any] = json.loads(exact)
        return result
    if stored is None:
        return None
    value: dict[str, Any] = _decode_json(stored)
    data = stored.encode() if isinstance(stored, str) else stored
    return _decode_words(value) if text.has_special(data) else value


def decode_all(stored: Sequence[str | None], exact: Sequence[str | None]) -> Sequence[dict[str, Any] | None]:
    """Return what `decode` returns of each; looked at and parsed all at once where none needs care."""
    if not any(exact):
        together = f"[{','.join([value or 'null' for value in stored])}]"
        if not text.has_special(together.encode()):
            found: list[dict[str, Any] | None] = _decode_json(together)
            return found
    return [decode(one, other) for one, other in zip(stored, exact, strict=True)]


def _decode_words(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return text.decode(value)
    if isinstance(value, list):
        return [_decode_words(item) for item in value]
    if isinstance(value, dict):
        return {text.decode(key): _decode_words(item) for key, item in value.items()}
    return value


def _encode_words(value: Any) -> Any:  # noqa: ANN401 - any JSON value
    if isinstance(value, str):
        return text.encode(value)
    if isinstance(value, list):
        return [_encode_words(item) for item in value]
    if isinstance(value, dict):
        return {text.encode(key): _encode_words(item) for key, item in value.items()}
    return value


def encode_document(value: dict[str, Any]) -> str:
    """Return the jsonb text of a nested object, such as a schema, in which only strings need care; `decode` reads it."""
    return _encode_json(_encode_words(value)).decode()


def to_json(stored: bytes | None, exact: str | None) -> bytes | None:
    """Return the metadata as standard JSON text for an answer; non-finite floats, which JSON lacks, become null."""
    if exact is None and (stored is None or not text.has_special(stored)):
        return stored
    if exact is not None and "NaN" not in exact and "Infinity" not in exact:
        return exact.encode()
    return _encode_json(decode(stored, exact))


def all_to_json(stored: Sequence[str | None], exact: Sequence[str | None]) -> list[bytes | None]:
    """Return what `to_json` does for each of many, as PostgreSQL's text."""
    encoded = [None if value is None else value.encode() for value in stored]
    if exact.count(None) == len(exact) and text.are_plain(stored):
        return encoded
    return [to_json(value, more) for value, more in zip(encoded, exact, strict=True)]


def merge(old: Mapping[str, Any] | None, patch: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return `old` with `patch` laid over it; a value of None deletes the key; None when no key is left."""
    merged = dict(old or {})
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = value
    return merged or None
