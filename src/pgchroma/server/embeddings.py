"""Embeddings out of a request body: lists of numbers, or strings of base64 with float32 in little-endian order."""

import binascii
import contextlib
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from msgspec import Raw

from pgchroma.server.http import HttpError, bad_request, unprocessable
from pgchroma.server.payloads import Decoder
from pgchroma.types import Float32Matrix

_Numbers: TypeAlias = list[list[float] | None]
_Strings: TypeAlias = list[str | None]
_Bytes: TypeAlias = list[bytes | None]

_numbers: Decoder[_Numbers] = Decoder(_Numbers)
_strings: Decoder[_Strings] = Decoder(_Strings)
# Takes base64 for what it stands for, twice as quickly as over strings, but says less of what is wrong with it.
_bytes: Decoder[_Bytes] = Decoder(_Bytes)
_BYTES_PER_FLOAT = 4
# How upstream's messages write what is no number.
_RUST_NAMES = {"nan": "NaN", "inf": "inf", "-inf": "-inf"}


def is_absent(raw: Raw) -> bool:
    """Whether a body has no embeddings, or null for them."""
    return memoryview(raw)[:5].tobytes() in (b"", b"null")


def decode(
    raw: Raw, *, allow_null: bool = False, allow_empty: bool = False, member: str = "embeddings"
) -> tuple[Float32Matrix | None, list[int] | None, int]:
    """Return (matrix, rows, count) of a body's embeddings.

    Args:
        allow_null: whether an entry may be null.
        allow_empty: whether embeddings may have no dimension at all.

    Returns:
        matrix: float32 of shape (n, dimension), or None when there is no embedding at all.
        rows: the positions that the n embeddings stand at, or None when they are all of them.
        count: how many entries there are, null ones included.

    Raises:
        HttpError: 422 for another shape or, without `allow_null`, a null; 400 for no numbers, different dimensions, text that is not
            base64, NaN or infinity.
    """
    lists, strings = _entries(raw, member)
    entries: _Numbers | _Strings | _Bytes = strings if lists is None else lists
    rows = None
    if None in entries:
        if not allow_null:
            raise unprocessable(
                f"{member}: data did not match any variant of untagged enum EmbeddingsPayload"
            )
        rows = [position for position, entry in enumerate(entries) if entry is not None]
        if not rows:
            return None, None, len(entries)
    if not entries:
        return None, None, 0
    if lists is None:
        matrix = _from_base64([entry for entry in strings if entry is not None])
    else:
        matrix = _from_lists([entry for entry in lists if entry is not None] if rows else lists)
    if matrix.shape[1] == 0 and not allow_empty:
        raise bad_request(f"Validation error: {member}: Each embedding must have at least 1 dimension")
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        position = rows[row] if rows else int(row)
        if lists is None:
            raise bad_request(
                f"Non-finite float value at embedding index {position}: {_RUST_NAMES[str(matrix[row, column])]}"
            )
        raise bad_request(
            f"Validation error: {member}: Embeddings must not contain NaN or Infinity values "
            f"(as float32, at index {position})"
        )
    return matrix, rows, len(entries)


def _entries(raw: Raw, member: str) -> tuple[_Numbers | None, _Strings | _Bytes]:
    """Return (lists, strings), the one of the two that the body holds; lists is None when it holds strings."""
    # A quote among the first characters means strings, save after leading nulls; then the second try finds it out.
    strings_first = b'"' in memoryview(raw)[:16].tobytes()
    for strings in (strings_first, not strings_first):
        try:
            if strings:
                with contextlib.suppress(HttpError):
                    return None, _bytes.decode(raw)
                return None, _strings.decode(raw)
            return _numbers.decode(raw), []
        except HttpError as error:
            if error.status != 422:
                raise
    raise unprocessable(f"{member}: data did not match any variant of untagged enum EmbeddingsPayload")


def _inconsistent() -> HttpError:
    return bad_request("Inconsistent dimensions in provided embeddings")


def _from_lists(entries: _Numbers) -> Float32Matrix:
    try:
        # A number beyond float32 becomes infinity, which the caller refuses.
        with np.errstate(over="ignore"):
            matrix = np.array(entries, dtype=np.float32)
    except ValueError:
        raise _inconsistent() from None
    return matrix


def _from_base64(entries: Sequence[str | bytes]) -> Float32Matrix:
    """Return the matrix of base64 or, where that is decoded already, of bytes."""
    try:
        parts = [
            entry if isinstance(entry, bytes) else binascii.a2b_base64(entry, strict_mode=True)
            for entry in entries
        ]
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"Invalid base64 string: {error}") from None
    length = len(parts[0])
    if any(len(part) != length for part in parts):
        raise _inconsistent()
    if length % _BYTES_PER_FLOAT:
        raise bad_request(
            f"Invalid byte length: {length} bytes cannot be converted to f32 values (must be divisible by {_BYTES_PER_FLOAT})"
        )
    data = np.frombuffer(b"".join(parts), dtype="<f4")
    return data.astype(np.float32, copy=False).reshape(len(parts), length // _BYTES_PER_FLOAT)
