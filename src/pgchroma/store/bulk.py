"""Loading whole, new records by COPY, for migrations and restores: encoding apart from sending, so that a thread can do it ahead.

The same bytes as in writes.py, made with fewer steps per record: texts are looked into only when their bytes hold what jsonb and
text cannot, and the records' numbers, which PostgreSQL gives out when the rows are sent, are put into the finished buffer.
"""

import re
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, overload

import msgspec
import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import configuration, metadata, sketches, text, vectors
from pgchroma.types import Float32Matrix, Record, RecordPage

# A field of COPY BINARY that has no value.
NULL = b"\xff\xff\xff\xff"
# The columns that are written, in order; the last one only where the collection has sketches.
COLUMNS = ("seq", "vseq", "id", "id_full", "document", "metadata", "metadata_exact", "uri", "sketch")
# fields, and twice the length and place of an eight-byte number that is not known yet
_HEAD = struct.Struct("!hiqiq").pack
_FIRST_NUMBER, _SECOND_NUMBER = 6, 18
_LENGTH = struct.Struct("!i").pack
_encode_json = msgspec.json.encode
# What may stand in JSON that jsonb would not give back as it was. More than is needed may match; then the careful encoder looks.
# U+0000, the words of text.py, null for NaN and infinity, objects:
_CARE_BYTES = (b"\\u0000", b"\xef\xb7", b"null", b":{")
# ... and -0.0 and large floats, with an exponent or many digits before the point:
_CARE_NUMBER = re.compile(rb"-0\.0|\de\+?\d|(?<![.\d])\d{15}")


class Prepared(Sequence[Record]):
    """A batch of records, encoded up to their numbers.

    Attributes:
        kinds: (metadata key, value type) pairs that occur.
        dimension: of the embeddings.
        bits: of the sketches beside the records, per dimension; 0 for none.
        unit_length: whether every embedding has length 1; True where nobody asked.
    """

    def __init__(self, records: Sequence[Record], bits: int | None = None, *, lengths: bool = True) -> None:
        """Encode.

        Args:
            bits: what the target's table has a column for; None for what a new table would have.
            lengths: whether it matters to the target's distance if all embeddings have length 1.
        """
        half = Half.of(records, bits, lengths=lengths)
        self._records: Sequence[Record] | None = records
        self._take(half, half.matrix)

    @classmethod
    def of_half(cls, told: "Half", buffers: Sequence[NDArray[np.uint8]]) -> "Prepared":
        """Return the batch of which another process made one half: it can be written, though not looked into.

        Args:
            told, buffers: what that half's `parts` were.
        """
        self = cls.__new__(cls)
        self._records = None
        told.stream, places, matrix = buffers[0], buffers[1], buffers[2]
        told.places = places.view(np.int64)
        self._take(told, matrix.view(np.float32).reshape(told.count, told.dimension))
        return self

    def _take(self, half: "Half", matrix: Float32Matrix) -> None:
        self._half = half
        self.kinds, self.dimension, self.bits = half.kinds, half.dimension, half.bits
        self.unit_length = half.unit_length
        if self.bits and half.count:
            packed = sketches.encode(matrix, self.bits)
            half.stream[(half.places[1:] - packed.shape[1])[:, None] + np.arange(packed.shape[1])] = packed
        self._vectors = vectors.copy_stream(matrix)

    @property
    def nbytes(self) -> int:
        """Bytes that are sent."""
        return len(self._half.stream) + len(self._vectors)

    def _whole(self) -> Sequence[Record]:
        if self._records is None:
            raise TypeError("these records were encoded by another process, which alone has them")
        return self._records

    def __len__(self) -> int:
        return self._half.count

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | Sequence[Record]:
        return self._whole()[index]

    def __iter__(self) -> Iterator[Record]:
        return iter(self._whole())

    def numbered(self, seqs: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return the COPY BINARY streams of the records table and of the vectors table, with these numbers, in the records' order."""
        numbers = seqs.astype(">i8").view(np.uint8).reshape(-1, 8)
        for offset in (_FIRST_NUMBER, _SECOND_NUMBER):
            self._half.stream[(self._half.places[:-1] + offset)[:, None] + np.arange(8)] = numbers
        vectors.number(self._vectors, self.dimension, seqs, seqs)
        return self._half.stream, self._vectors

    def sparse(self, key: str) -> dict[int, Mapping[str, Any]]:
        """Return the sparse vectors under a metadata key, by the records' places."""
        return {place: values[key] for place, values in self._half.objects.items() if key in values}


@dataclass(slots=True)
class Half:
    """A batch of records with its texts encoded, which one process does while another does the other half: its vectors.

    Attributes:
        objects: the metadata values that are objects, by the records' places.
        stream: COPY BINARY of the records table, numbers and sketches still zero.
        places: where each row begins in it, and where the last one ends.
        matrix: the embeddings.
    """

    count: int
    kinds: set[tuple[str, str]]
    dimension: int
    bits: int
    unit_length: bool
    objects: dict[int, dict[str, Mapping[str, Any]]]
    stream: NDArray[np.uint8]
    places: NDArray[np.int64]
    matrix: Float32Matrix

    @classmethod
    def of(cls, records: Sequence[Record], bits: int | None = None, *, lengths: bool = True) -> "Half":
        """Encode the texts; arguments as of `Prepared`."""
        matrix = _matrix(records)
        found, dimension = kinds([record.metadata for record in records]), int(matrix.shape[1])
        bits = sketches.levels(dimension) if bits is None else bits
        objects = _objects(records) if any(kind == "sparse_vector" for _, kind in found) else {}
        stream, places = _encode(records, dimension, bits, found)
        unit = not lengths or sketches.all_unit(matrix)
        return cls(len(records), found, dimension, bits, unit, objects, stream, places, matrix)

    def parts(self) -> tuple["Half", tuple[NDArray[Any], ...]]:
        """Return this without its large buffers, and these."""
        buffers = (self.stream, self.places, self.matrix)
        return replace(self, stream=_NOTHING, places=_NO_PLACES, matrix=_NO_MATRIX), buffers


_NOTHING, _NO_PLACES, _NO_MATRIX = np.empty(0, np.uint8), np.empty(0, np.int64), np.empty((0, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How to encode records for one table; arguments as of `Prepared`."""

    bits: int | None
    lengths: bool

    def __call__(self, records: Sequence[Record]) -> Prepared:
        """Encode a batch."""
        return Prepared(records, self.bits, lengths=self.lengths)

    def half(self, records: Sequence[Record]) -> Half:
        """Encode a batch's texts."""
        return Half.of(records, self.bits, lengths=self.lengths)


def _objects(records: Sequence[Record]) -> dict[int, dict[str, Mapping[str, Any]]]:
    """Return the metadata values that are objects, by the records' places."""
    found: dict[int, dict[str, Mapping[str, Any]]] = {}
    for place, record in enumerate(records):
        objects: dict[str, Mapping[str, Any]] = {
            key: value for key, value in (record.metadata or {}).items() if isinstance(value, dict)
        }
        if objects:
            found[place] = objects
    return found


def types(metadatas: Sequence[Mapping[str, Any] | None]) -> set[tuple[str, type]]:
    """Return the (metadata key, Python's type of a value) pairs that occur, of which there are few; costs next to nothing."""
    seen: set[tuple[str, type]] = set()
    for entry in metadatas:
        if entry:
            seen.update(zip(entry, map(type, entry.values()), strict=True))
    return seen


def kinds(metadatas: Sequence[Mapping[str, Any] | None]) -> set[tuple[str, str]]:
    """Return the (metadata key, value type) pairs that occur; None is no value."""
    # By Python's type first; only lists are looked into one by one.
    seen = types(metadatas)
    found: set[tuple[str, str]] = set()
    lists = {key for key, kind in seen if kind is list}
    for key, kind in seen:
        if kind is not list and kind is not type(None):
            found.add((key, configuration.value_type(kind())))
    if lists:
        for entry in metadatas:
            for key in lists.intersection(entry or ()):
                value = (entry or {})[key]
                if isinstance(value, list):
                    found.add((key, configuration.value_type(value)))
    return found


def _matrix(records: Sequence[Record]) -> Float32Matrix:
    if isinstance(records, RecordPage):
        return records.matrix
    embeddings = [record.embedding for record in records if record.embedding is not None]
    if len(embeddings) != len(records):
        raise InvalidArgumentError("every record needs an embedding")
    return np.stack(embeddings) if embeddings else np.empty((0, 1), np.float32)


def _encode(
    records: Sequence[Record], dimension: int, bits: int, kinds: set[tuple[str, str]]
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    head = _HEAD(len(COLUMNS) if bits else len(COLUMNS) - 1, 8, 0, 8, 0)
    sketch = sketches.blank_field(dimension, bits) if bits else b""
    parts = [vectors.COPY_HEADER]
    append = parts.append
    lengths = []
    stored_already = records.stored if isinstance(records, RecordPage) else None
    metadatas = metadata_fields([record.metadata for record in records], kinds, stored_already)
    for record, ident, stored in zip(records, _ids(records), metadatas, strict=True):
        document = record.document
        if document is None:
            length, data = NULL, b""
        else:
            data = document.encode()
            if b"\x00" in data or b"\xef\xb7" in data:
                data = text.encode(document).encode()
            length = _LENGTH(len(data))
        uri = NULL if record.uri is None else field(text.encode_utf8(record.uri))
        row = b"".join((head, ident, length, data, stored, uri, sketch))
        lengths.append(len(row))
        append(row)
    append(vectors.COPY_TRAILER)
    places = np.cumsum([len(vectors.COPY_HEADER), *lengths], dtype=np.int64)
    # Into an array of its own, which can be written to: the numbers are still to come.
    return np.frombuffer(bytearray().join(parts), np.uint8), places


def field(data: bytes) -> bytes:
    """Return a field of COPY BINARY."""
    return _LENGTH(len(data)) + data


def _ids(records: Sequence[Record]) -> Iterator[bytes]:
    """Yield each record's two fields, key and whole id."""
    ids = [record.id for record in records]
    together = "".join(ids)
    if (
        together.isascii()
        and "\0" not in together
        and max(map(len, ids), default=0) <= text.LONGEST_KEY_BYTES
    ):
        for record_id in ids:
            yield _LENGTH(len(record_id)) + record_id.encode() + NULL
        return
    for record_id in ids:
        key, full = text.id_key(record_id)
        yield field(key.encode()) + (NULL if full is None else field(full.encode()))


def metadata_fields(
    metadatas: Sequence[Mapping[str, Any] | None],
    kinds: set[tuple[str, str]],
    stored_already: Sequence[bytes] | None = None,
) -> Iterator[bytes]:
    """Yield two fields of COPY BINARY for each metadata object: jsonb and exact text. Values of None are left out.

    Args:
        kinds: the (metadata key, value type) pairs that occur, or more.
        stored_already: the objects as JSON text, empty for none, where the source had them so.
    """
    encoded = stored_already or [_json(value) if value else b"" for value in metadatas]
    together = b"\n".join(encoded)
    # One look at all of them; only floats, which may hide in lists, are written in ways that matter.
    has_floats = b":[" in together or any(kind not in ("string", "int", "bool") for _, kind in kinds)
    special = [found for found in _CARE_BYTES if found in together]
    number = _CARE_NUMBER.search if has_floats and _CARE_NUMBER.search(together) else None
    harmless = not special and number is None
    for value, stored in zip(metadatas, encoded, strict=True):
        if not stored:
            yield NULL + NULL
        elif harmless or (not any(found in stored for found in special) and not (number and number(stored))):
            yield _LENGTH(len(stored) + 1) + b"\x01" + stored + NULL
        else:
            yield _careful_metadata(value or {})


def _json(value: Mapping[str, Any]) -> bytes:
    try:
        return _encode_json(value)
    except (OverflowError, msgspec.MsgspecError):
        return b"null"


def _careful_metadata(value: Mapping[str, Any]) -> bytes:
    cleaned = metadata.merge(None, value)
    if not cleaned:
        return NULL + NULL
    stored, exact = metadata.encode(cleaned)
    return _LENGTH(len(stored) + 1) + b"\x01" + stored + (NULL if exact is None else field(exact.encode()))
