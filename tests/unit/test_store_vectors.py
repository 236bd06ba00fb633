"""Embeddings in pgvector's binary format."""

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pgchroma.store import vectors
from pgchroma.types import Float32Matrix

MATRICES = arrays.arrays(
    np.float32, arrays.array_shapes(min_dims=2, max_dims=2), elements=st.floats(width=32, allow_nan=False)
)


def parsed(buffer: bytes) -> list[tuple[int, int, bytes]]:
    """Read a COPY BINARY stream field by field, as PostgreSQL's documentation describes it."""
    assert buffer.startswith(b"PGCOPY\n\xff\r\n\x00" + bytes(8))
    position, rows = 19, []
    while (fields := struct.unpack_from("!h", buffer, position)[0]) != -1:
        assert fields == 3
        position += 2
        row = []
        for _ in range(fields):
            (length,) = struct.unpack_from("!i", buffer, position)
            row.append(buffer[position + 4 : position + 4 + length])
            position += 4 + length
        rows.append((int.from_bytes(row[0]), int.from_bytes(row[1]), row[2]))
    assert position + 2 == len(buffer)
    return rows


@given(MATRICES)
def test_a_copy_stream_holds_every_row_to_the_last_bit(matrix: Float32Matrix) -> None:
    count = len(matrix)
    vector_seqs = np.arange(count, dtype=np.int64) + 2**40
    seqs = np.arange(count, dtype=np.int64) + 7
    rows = parsed(vectors.copy_buffer(vector_seqs, seqs, matrix))
    assert [row[0] for row in rows] == vector_seqs.tolist()
    assert [row[1] for row in rows] == seqs.tolist()
    assert all(row[2][:4] == struct.pack("!hh", matrix.shape[1], 0) for row in rows)
    back = vectors.from_binary([row[2] for row in rows])
    assert back.dtype == np.float32
    assert back.tobytes() == matrix.tobytes()


def test_no_rows_are_a_matrix_of_the_right_width() -> None:
    assert vectors.from_binary([]).shape == (0, 1)
