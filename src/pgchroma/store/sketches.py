"""Sketches: a few bits per dimension of an embedding, kept beside each record.

A filtered query may have thousands of matches all over the table. To fetch all of their vectors costs a page each; their sketches
are read along with the metadata, and only the best by Hamming distance are compared exactly. A sketch holds, for every dimension
of the normalised and rotated vector, whether it exceeds each of a few thresholds: the number of bits in which two differ grows with the
difference of their coordinates.
"""

import functools
import hashlib
import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgchroma.store.connection import Connection
from pgchroma.types import Collection, Float32Matrix

# Shorter vectors are compared as quickly as sketches, and sketches of longer ones would no longer fit beside the record.
SHORTEST, LONGEST = 96, 4_096
# Bits per dimension -> thresholds in units of 1 / sqrt(dimension), the spread of a normalised vector's coordinates.
_THRESHOLDS: dict[int, tuple[float, ...]] = {1: (0.0,), 2: (-0.6, 0.6), 3: (-0.8, 0.0, 0.8)}
# A length that differs from 1 by more than this is no rounding any more.
_UNIT_TOLERANCE = 0.01
_LENGTH = struct.Struct("!i").pack
# So many embeddings are turned together: as many as a core's own cache holds, at usual dimensions.
_AT_ONCE = 256


def levels(dimension: int) -> int:
    """Return how many bits per dimension the sketches of a collection have; 0 for none."""
    if not SHORTEST <= dimension <= LONGEST:
        return 0
    if dimension <= 512:
        return 3
    return 2 if dimension <= 1_024 else 1


def column(dimension: int) -> sql.Composed:
    """Return the column's type."""
    return sql.SQL("bit({})").format(sql.Literal(levels(dimension) * dimension))


@functools.cache
def _hadamard(size: int) -> NDArray[np.float32]:
    """Return Sylvester's orthogonal matrix of this size, a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return np.asarray(matrix / np.sqrt(size), np.float32)


@functools.cache
def _signs(dimension: int, turn: int) -> NDArray[np.float32]:
    """Return ones and minus ones; the same for ever, because sketches are compared with older ones."""
    data = hashlib.shake_256(f"pgchroma sketch {dimension} {turn}".encode()).digest(dimension)
    return np.where(np.frombuffer(data, np.uint8) & 1, np.float32(1), np.float32(-1))


def rotate(embeddings: Float32Matrix) -> Float32Matrix:
    """Return the embeddings turned by a fixed rotation that spreads every coordinate over all of them.

    Embeddings whose first coordinates say the most, as those of a singular value decomposition do, would otherwise have most of
    their sketch's bits spent on the least.
    """
    count, dimension = embeddings.shape
    left, right, signs = _turns(dimension)
    size = len(left) * len(right)
    turned = embeddings.astype(np.float32)
    # Blocks at either end in turn, because there are Hadamard matrices for few sizes only.
    for start, sign in zip((0, dimension - size, 0, dimension - size), signs, strict=True):
        turned *= sign
        block = turned[:, start : start + size].reshape(count, len(left), len(right))
        turned[:, start : start + size] = (left @ (block @ right)).reshape(count, size)
    return turned


def _rotate_one(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what `rotate` does; for one vector, what counts is how often NumPy is called."""
    left, right, signs = _turns(len(vector))
    size = len(left) * len(right)
    turned = vector.copy()
    blocks = (
        turned[:size].reshape(len(left), len(right)),
        turned[len(vector) - size :].reshape(len(left), len(right)),
    )
    for turn, sign in enumerate(signs):
        turned *= sign
        block = blocks[turn % 2]
        np.matmul(left, block @ right, out=block)
    return turned


@functools.cache
def _turns(dimension: int) -> tuple[NDArray[np.float32], NDArray[np.float32], list[NDArray[np.float32]]]:
    """Return the matrices on either side of a block, and the signs of each turn."""
    size = 1 << (dimension.bit_length() - 1)
    left = 1 << ((size.bit_length() - 1) // 2)
    return _hadamard(left), _hadamard(size // left), [_signs(dimension, turn) for turn in range(4)]


def _width(dimension: int, bits: int) -> int:
    """Return how many bytes a sketch has."""
    return -(-dimension * bits // 8)


def encode(embeddings: Float32Matrix, bits: int) -> NDArray[np.uint8]:
    """Return the sketches of `embeddings`, shape (n, dimension), as packed bytes, shape (n, bytes)."""
    count, dimension = embeddings.shape
    packed = np.empty((count, _width(dimension, bits)), np.uint8)
    for start in range(0, count, _AT_ONCE):
        packed[start : start + _AT_ONCE] = _encode(embeddings[start : start + _AT_ONCE], bits)
    return packed


def _encode(embeddings: Float32Matrix, bits: int) -> NDArray[np.uint8]:
    dimension = embeddings.shape[1]
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    unit = (lengths / np.sqrt(dimension)).astype(np.float32)[:, None]
    turned = rotate(embeddings)
    above = np.empty((len(embeddings), bits, dimension), bool)
    for number, threshold in enumerate(_THRESHOLDS[bits]):
        np.greater(turned, threshold * unit, out=above[:, number])
    return np.packbits(above.reshape(len(embeddings), -1), axis=1)


def of_direction(direction: NDArray[np.float32], bits: int) -> NDArray[np.uint8]:
    """Return the sketch of one vector of length 1, as `encode` does, in a third of its time."""
    return np.packbits(_rotate_one(direction) > _thresholds(len(direction), bits))


@functools.cache
def _thresholds(dimension: int, bits: int) -> NDArray[np.float32]:
    return np.array(_THRESHOLDS[bits], np.float32)[:, None] / np.float32(np.sqrt(dimension))


def text(packed: NDArray[np.uint8], dimension: int, bits: int) -> str:
    """Return one sketch as PostgreSQL writes it: zeros and ones."""
    return "".join(map(str, np.unpackbits(packed)[: dimension * bits].tolist()))


def _copy_head(dimension: int, bits: int) -> bytes:
    return _LENGTH(_width(dimension, bits) + 4) + _LENGTH(dimension * bits)


def blank_field(dimension: int, bits: int) -> bytes:
    """Return a field of COPY BINARY with room for a sketch at its end, still zero."""
    return _copy_head(dimension, bits) + bytes(_width(dimension, bits))


def copy_fields(embeddings: Float32Matrix, bits: int) -> Iterator[bytes]:
    """Yield the sketch of each embedding, shape (n, dimension), as a field of COPY BINARY."""
    packed = encode(embeddings, bits)
    width, head, data = packed.shape[1], _copy_head(embeddings.shape[1], bits), packed.tobytes()
    for start in range(0, len(data), width):
        yield head + data[start : start + width]


def all_unit(embeddings: Float32Matrix) -> bool:
    """Whether every embedding has length 1."""
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    return bool((np.abs(lengths - 1) <= _UNIT_TOLERANCE).all())


async def note_lengths(connection: Connection, collection: Collection, embeddings: Float32Matrix) -> None:
    """Record that a collection got embeddings of another length than 1, whose order by distance is not that by angle."""
    if collection.space == "cosine" or not collection.unit_length or not collection.sketch:
        return
    if not all_unit(embeddings):
        await note_other_length(connection, collection)


async def note_other_length(connection: Connection, collection: Collection) -> None:
    """Record that a collection got an embedding of another length than 1, as far as that matters to it."""
    if collection.space != "cosine" and collection.unit_length and collection.sketch:
        await connection.execute(
            "UPDATE pgchroma.collections SET unit_length = false WHERE id = %s AND unit_length",
            [collection.id],
        )
