"""Loading whole, new records by COPY, for migrations and restores: encoding apart from sending, so that a thread can do it ahead.

The same bytes as in writes.py, made with fewer steps per record: texts are looked into only when their bytes hold what jsonb and
text cannot, and the records' numbers, which PostgreSQL gives out when the rows are sent, are put into the finished buffer.
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import configuration, metadata, sketches, text, vectors
from pgchroma.types import Float32Matrix, Record

_NULL = b"\xff\xff\xff\xff"
# The columns that are written, in order; the last one only where the collection has sketches.
COLUMNS = ("seq", "vseq", "id", "id_full", "document", "metadata", "metadata_exact", "uri", "sketch")
# fields, and twice the length and place of an eight-byte number that is not known yet
_HEAD = struct.Struct("!hiqiq").pack
_FIRST_NUMBER, _SECOND_NUMBER = 6, 18
_LENGTH = struct.Struct("!i").pack
_encode_json = msgspec.json.encode
# What may stand in JSON that jsonb would not give back as it was: U+0000, the words of text.py, null for NaN and infinity, -0.0,
# large floats (with an exponent), and objects. More than is needed may match; then the careful encoder looks.
_CARE = re.compile(rb"\\u0000|\xef\xb7|null|-0\.0|\de\+?\d|\d{15}|:\{")


class Prepared(Sequence[Record]):
    """A batch of records, encoded up to their numbers.

    Attributes:
        kinds: (metadata key, value type) pairs that occur.
        bits: of the sketches beside the records, per dimension; 0 for none.
    """

    def __init__(self, records: Sequence[Record], bits: int | None = None) -> None:
        self._records = records
        self.kinds = _kinds(records)
        self.matrix: Float32Matrix = _matrix(records)
        self.bits = sketches.levels(self.matrix.shape[1]) if bits is None else bits
        self._buffer, self._places = _encode(records, self.matrix, self.bits)

    def __len__(self) -> int:
        return len(self._records)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._records[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def numbered(self, seqs: NDArray[np.int64]) -> bytearray:
        """Return the COPY BINARY stream of the records table, with these numbers, in the records' order."""
        numbers = seqs.astype(">i8").view(np.uint8).reshape(-1, 8)
        view = np.frombuffer(self._buffer, np.uint8)
        for offset in (_FIRST_NUMBER, _SECOND_NUMBER):
            view[(self._places + offset)[:, None] + np.arange(8)] = numbers
        return self._buffer

    def sparse(self, key: str) -> dict[int, Mapping[str, Any]]:
        """Return the sparse vectors under a metadata key, by the records' places."""
        found: dict[int, Mapping[str, Any]] = {}
        for place, record in enumerate(self._records):
            value = (record.metadata or {}).get(key)
            if isinstance(value, dict):
                found[place] = value
        return found


def _kinds(records: Sequence[Record]) -> set[tuple[str, str]]:
    # By Python's type first, which costs next to nothing; only lists are looked into one by one.
    seen: set[tuple[str, type]] = set()
    kinds: set[tuple[str, str]] = set()
    for record in records:
        if record.metadata:
            seen.update(zip(record.metadata, map(type, record.metadata.values()), strict=True))
    lists = {key for key, kind in seen if kind is list}
    for key, kind in seen:
        if kind is not list and kind is not type(None):
            kinds.add((key, configuration.value_type(kind())))
    if lists:
        for record in records:
            for key in lists.intersection(record.metadata or ()):
                value = (record.metadata or {})[key]
                if isinstance(value, list):
                    kinds.add((key, configuration.value_type(value)))
    return kinds


def _matrix(records: Sequence[Record]) -> Float32Matrix:
    embeddings = [record.embedding for record in records if record.embedding is not None]
    if len(embeddings) != len(records):
        raise InvalidArgumentError("every record needs an embedding")
    return np.stack(embeddings) if embeddings else np.empty((0, 1), np.float32)


def _text(value: str) -> bytes:
    data = value.encode()
    if b"\x00" in data or b"\xef\xb7" in data:
        data = text.encode(value).encode()
    return _LENGTH(len(data)) + data


def _encode(
    records: Sequence[Record], matrix: Float32Matrix, bits: int
) -> tuple[bytearray, NDArray[np.int64]]:
    packed = sketches.encode(matrix, bits) if bits and len(records) else None
    head = _HEAD(len(COLUMNS) if bits else len(COLUMNS) - 1, 8, 0, 8, 0)
    parts = [vectors.COPY_HEADER]
    append = parts.append
    lengths = []
    for place, record in enumerate(records):
        key, full = text.id_key(record.id)
        fields = (
            head,
            _text_as_is(key),
            _NULL if full is None else _text_as_is(full),
            _NULL if record.document is None else _text(record.document),
            _metadata(record.metadata) if record.metadata else _NULL + _NULL,
            _NULL if record.uri is None else _text(record.uri),
            b"" if packed is None else sketches.copy_field(packed[place], matrix.shape[1], bits),
        )
        row = b"".join(fields)
        lengths.append(len(row))
        append(row)
    append(vectors.COPY_TRAILER)
    starts = np.cumsum([len(vectors.COPY_HEADER), *lengths[:-1]], dtype=np.int64)
    return bytearray(b"".join(parts)), starts[: len(lengths)]


def _text_as_is(value: str) -> bytes:
    data = value.encode()
    return _LENGTH(len(data)) + data


def _metadata(value: Mapping[str, Any]) -> bytes:
    """Return the two fields, jsonb and exact text."""
    try:
        stored = _encode_json(value)
    except (OverflowError, msgspec.MsgspecError):
        stored = b"null"
    if _CARE.search(stored) is None:
        return _LENGTH(len(stored) + 1) + b"\x01" + stored + _NULL
    cleaned = metadata.merge(None, value)
    if not cleaned:
        return _NULL + _NULL
    stored, exact = metadata.encode(cleaned)
    return _LENGTH(len(stored) + 1) + b"\x01" + stored + (_NULL if exact is None else _text_as_is(exact))
