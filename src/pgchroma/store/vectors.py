"""Embeddings to and from pgvector's binary format: int16 dimension, int16 zero, then big-endian float32."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pgchroma.types import Float32Matrix

MAX_DIMENSION = 16_000
# A row with a longer vector does not fit an 8 KiB page and must go to TOAST.
MAX_INLINE_DIMENSION = 1_900

# What every COPY BINARY stream begins and ends with.
COPY_HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
COPY_TRAILER = b"\xff\xff"


def copy_buffer(vector_seqs: NDArray[np.int64], seqs: NDArray[np.int64], embeddings: Float32Matrix) -> bytes:
    """Return a COPY BINARY stream of (seq bigint, record_seq bigint, embedding vector).

    Args:
        vector_seqs, seqs: shape (n,).
        embeddings: shape (n, dimension).
    """
    count, dimension = embeddings.shape
    rows = np.zeros(
        count,
        dtype=np.dtype(
            [
                ("fields", ">i2"),
                ("len1", ">i4"),
                ("seq", ">i8"),
                ("len2", ">i4"),
                ("record_seq", ">i8"),
                ("len3", ">i4"),
                ("dimension", ">i2"),
                ("unused", ">i2"),
                ("embedding", ">f4", (dimension,)),
            ]
        ),
    )
    rows["fields"], rows["len1"], rows["len2"], rows["len3"] = 3, 8, 8, 4 + 4 * dimension
    rows["seq"], rows["record_seq"] = vector_seqs, seqs
    rows["dimension"], rows["embedding"] = dimension, embeddings
    return COPY_HEADER + rows.tobytes() + COPY_TRAILER


def from_binary(values: Sequence[bytes]) -> Float32Matrix:
    """Return shape (n, dimension) from n values of `vector_send()`; (0, 1) from none."""
    data = b"".join(value[4:] for value in values)
    dimension = (len(values[0]) - 4) // 4 if values else 1
    return np.frombuffer(data, dtype=">f4").astype(np.float32).reshape(len(values), dimension)
