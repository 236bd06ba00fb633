"""Embeddings to and from pgvector's binary format: int16 dimension, int16 zero, then big-endian float32."""

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgchroma.types import Float32Matrix

MAX_DIMENSION = 16_000
# A row with a longer vector does not fit an 8 KiB page and must go to TOAST.
MAX_INLINE_DIMENSION = 1_900

_HEAD = struct.Struct("!2H").pack

# What every COPY BINARY stream begins and ends with.
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_TRAILER = b"\xff\xff"


def _fields(dimension: int) -> list[tuple[Any, ...]]:
    return [("dimension", ">i2"), ("unused", ">i2"), ("embedding", ">f4", (dimension,))]


def _row(dimension: int) -> np.dtype[np.void]:
    return np.dtype(
        [
            ("fields", ">i2"),
            ("len1", ">i4"),
            ("seq", ">i8"),
            ("len2", ">i4"),
            ("record_seq", ">i8"),
            ("len3", ">i4"),
            *_fields(dimension),
        ]
    )


def copy_stream(embeddings: Float32Matrix) -> NDArray[np.uint8]:
    """Return a COPY BINARY stream of (seq bigint, record_seq bigint, embedding vector), its numbers still zero; see `number`.

    Args:
        embeddings: shape (n, dimension).
    """
    count, dimension = embeddings.shape
    row = _row(dimension)
    stream = np.empty(len(COPY_HEADER) + count * row.itemsize + len(COPY_TRAILER), np.uint8)
    stream[: len(COPY_HEADER)] = np.frombuffer(COPY_HEADER, np.uint8)
    stream[-len(COPY_TRAILER) :] = np.frombuffer(COPY_TRAILER, np.uint8)
    rows = stream[len(COPY_HEADER) : -len(COPY_TRAILER)].view(row)
    rows["fields"], rows["len1"], rows["len2"], rows["len3"] = 3, 8, 8, 4 + 4 * dimension
    rows["seq"], rows["record_seq"], rows["unused"] = 0, 0, 0
    rows["dimension"], rows["embedding"] = dimension, embeddings
    return stream


def number(
    stream: NDArray[np.uint8], dimension: int, vector_seqs: NDArray[np.int64], seqs: NDArray[np.int64]
) -> None:
    """Write the numbers into a stream of `copy_stream`, in its rows' order."""
    rows = stream[len(COPY_HEADER) : -len(COPY_TRAILER)].view(_row(dimension))
    rows["seq"], rows["record_seq"] = vector_seqs, seqs


def copy_buffer(vector_seqs: NDArray[np.int64], seqs: NDArray[np.int64], embeddings: Float32Matrix) -> bytes:
    """Return a COPY BINARY stream of (seq bigint, record_seq bigint, embedding vector).

    Args:
        vector_seqs, seqs: shape (n,).
        embeddings: shape (n, dimension).
    """
    stream = copy_stream(embeddings)
    number(stream, embeddings.shape[1], vector_seqs, seqs)
    return stream.tobytes()


def to_binary(embedding: NDArray[Any]) -> bytes:
    """Return what `vector_recv()` takes for an embedding, shape (dimension,)."""
    return _HEAD(len(embedding), 0) + embedding.astype(">f4").tobytes()


def from_binary(values: Sequence[bytes]) -> Float32Matrix:
    """Return shape (n, dimension) from n values of `vector_send()`; (0, 1) from none."""
    dimension = (len(values[0]) - 4) // 4 if values else 1
    return np.frombuffer(b"".join(values), np.dtype(_fields(dimension)))["embedding"].astype(np.float32)
