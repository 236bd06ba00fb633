"""From all vectors of a segment to the few that may be nearest, by what is held of them in memory.

Three looks, each at fewer vectors and at more of each: the middle bit of every dimension, all bits of the sketch, eight bits of every
dimension. What is left is compared by PostgreSQL, which alone has the vectors.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pgchroma.store import sketches
from pgchroma.types import Float32Matrix

Words: TypeAlias = NDArray[np.uint64]
Seqs: TypeAlias = NDArray[np.int64]
Places: TypeAlias = NDArray[np.intp]

# Where sketches have a middle threshold its bits alone choose this many times as many as the second look is to leave, or this share.
_FIRST_PER_SECOND = 7
_FIRST_SHARE = 1 / 30
# Above so many given vectors the first look is worth its while, which compares all.
_FEW = 4_000
# Rows looked at in one go, so that what lies in between stays in the processor's cache.
_BLOCK = 16_384


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of one segment's vectors.

    Attributes:
        seqs: their numbers, ascending, shape (n,).
        whole: their sketches, shape (n, words).
        first: the words of the bits that say most, shape (words of these, n); all of them where no threshold is in the middle.
        codes: their normalised coordinates in steps of `scales`, shape (n, dimension).
        scales: shape (n,).
        zero: numbers of the vectors without a direction, which no sketch can tell from others.
    """

    seqs: Seqs
    whole: Words
    first: Words
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    zero: Seqs

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(
            array.nbytes for array in (self.seqs, self.whole, self.first, self.codes, self.scales, self.zero)
        )


def hold(
    seqs: Seqs, packed: NDArray[np.uint8], codes: NDArray[np.int8], scales: NDArray[np.float32], bits: int
) -> Held:
    """Return what is held of vectors whose numbers ascend.

    Args:
        packed: their sketches, shape (n, bytes).
        bits: per dimension of the sketches.
    """
    whole = _words(packed)
    first = np.ascontiguousarray(whole[:, _first(codes.shape[1], bits)].T)
    return Held(seqs, whole, first, codes, scales, seqs[scales == 0])


def encode(embeddings: Float32Matrix) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the directions of embeddings, shape (n, dimension), in steps as `Held` has them, and the steps; 0 for a zero vector."""
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    largest = np.abs(embeddings).max(axis=1, initial=0).astype(np.float64)
    divisors = np.where(largest > 0, largest, 1)
    scales = np.where(largest > 0, largest / (127 * np.where(lengths > 0, lengths, 1)), 0).astype(np.float32)
    return np.rint(embeddings / divisors.astype(np.float32)[:, None] * np.float32(127)).astype(
        np.int8
    ), scales


def _words(packed: NDArray[np.uint8]) -> Words:
    """Return sketches as words of 64 bits, shape (n, words); what is missing of the last one is zero."""
    count, size = packed.shape
    padded = np.zeros((count, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = packed
    return padded.view(np.uint64)


def _first(dimension: int, bits: int) -> slice:
    """Return which words hold the bits of the middle threshold, which halves the coordinates; all where there is none."""
    if bits != 3:
        return slice(None)
    return slice(dimension // 64, -(-2 * dimension // 64))


def first_words(dimension: int, bits: int) -> int:
    """Return how many words of each vector the first look compares."""
    return len(range(-(-dimension * bits // 64))[_first(dimension, bits)])


def of_all(parts: Sequence[Held], embedding: Float32Matrix, bits: int, second: int, left: int) -> Seqs:
    """Return the numbers of about `left` of the vectors nearest to an embedding, and of as many without a direction; in no order.

    Args:
        second: how many the second look is to leave.
    """
    query = _words(sketches.encode(embedding[None], bits))[0]
    distances = _first_distances(parts, query, embedding, bits)
    wanted = second if bits != 3 else max(_FIRST_PER_SECOND * second, int(len(distances) * _FIRST_SHARE))
    places = _nearest(distances, wanted)
    found = _narrowed(parts, places, query, embedding, second, left)
    return np.concatenate([found, *(part.zero[:left] for part in parts)])


def of_these(
    parts: Sequence[Held], seqs: Seqs, embedding: Float32Matrix, bits: int, second: int, left: int
) -> Seqs:
    """Return what `of_all` does, of the vectors with these numbers, in any order, and in addition those that are not held."""
    if (seqs[1:] < seqs[:-1]).any():
        seqs = np.sort(seqs)
    places, others = _places(parts, seqs)
    if len(places) > left:
        query = _words(sketches.encode(embedding[None], bits))[0]
        if bits == 3 and len(places) > max(_FEW, _FIRST_PER_SECOND * second):
            distances = _first_distances(parts, query, embedding, bits)[places]
            places = places[
                _nearest(distances, max(_FIRST_PER_SECOND * second, int(len(places) * _FIRST_SHARE)))
            ]
        found = _narrowed(parts, places, query, embedding, second, left)
    else:
        found = _rows([part.seqs for part in parts], places)
    zero = [_in_both(part.zero, seqs)[:left] for part in parts if len(part.zero)]
    return np.concatenate([found, others, *zero])


def _in_both(few: Seqs, many: Seqs) -> Seqs:
    """Return those of `few` that are in `many`, which ascends."""
    places = np.searchsorted(many, few)
    inside = places < len(many)
    inside[inside] = many[places[inside]] == few[inside]
    return few[inside]


def _first_distances(
    parts: Sequence[Held], query: Words, embedding: Float32Matrix, bits: int
) -> NDArray[np.uint16]:
    chosen = query[_first(len(embedding), bits)]
    distances = [_distances_by_column(part.first, chosen) for part in parts]
    return distances[0] if len(distances) == 1 else np.concatenate(distances)


def _direction(embedding: Float32Matrix) -> NDArray[np.float32]:
    wide = embedding.astype(np.float64)
    return np.asarray(wide / np.linalg.norm(wide), np.float32)


def _narrowed(
    parts: Sequence[Held],
    places: Places,
    query: Words,
    embedding: Float32Matrix,
    second: int,
    left: int,
) -> Seqs:
    if len(places) > second:
        whole = _rows([part.whole for part in parts], places)
        places = places[_nearest(_distances_by_row(whole, query), second)]
    if len(places) > left:
        codes = _rows([part.codes for part in parts], places).astype(np.float32)
        near = codes @ _direction(embedding) * _rows([part.scales for part in parts], places)
        places = places[_nearest(-near, left)]
    return _rows([part.seqs for part in parts], places)


def _places(parts: Sequence[Held], seqs: Seqs) -> tuple[Places, Seqs]:
    """Return the places of ascending numbers in the parts put one after the other, and the numbers that are in none."""
    found, start, is_held = [], 0, np.zeros(len(seqs), bool)
    for part in parts:
        if len(part.seqs):
            places = seqs - part.seqs[0]
            if part.seqs[-1] - part.seqs[0] + 1 != len(part.seqs):
                places = np.searchsorted(part.seqs, seqs)
            inside = (places >= 0) & (places < len(part.seqs))
            inside[inside] = part.seqs[places[inside]] == seqs[inside]
            found.append(places[inside] + start)
            is_held |= inside
            start += len(part.seqs)
    return np.concatenate(found) if found else np.empty(0, np.intp), seqs[~is_held]


def _rows(arrays: Sequence[NDArray[Any]], places: Places) -> NDArray[Any]:
    """Return the rows at ascending places of the arrays put one after the other."""
    if len(arrays) == 1:
        return arrays[0].take(places, axis=0)
    starts = np.cumsum([0, *map(len, arrays)])
    edges = np.searchsorted(places, starts)
    return np.concatenate(
        [
            array.take(places[low:high] - start, axis=0)
            for array, start, low, high in zip(arrays, starts, edges, edges[1:], strict=False)
        ]
    )


def _distances_by_column(columns: Words, query: Words) -> NDArray[np.uint16]:
    """Return in how many bits the query differs from each column, shape (words, n)."""
    rows = columns.shape[1]
    distances = np.empty(rows, np.uint16)
    column = query[:, None]
    for start in range(0, rows, _BLOCK):
        counts = np.bitwise_count(columns[:, start : start + _BLOCK] ^ column)
        np.add.reduce(counts, axis=0, dtype=np.uint16, out=distances[start : start + _BLOCK])
    return distances


def _distances_by_row(rows: Words, query: Words) -> NDArray[np.float32]:
    """Return in how many bits the query differs from each row, shape (n, words)."""
    # The quickest way to add up short rows.
    counts = np.bitwise_count(rows ^ query).astype(np.float32)
    return np.asarray(counts @ np.ones(len(query), np.float32))


def _nearest(distances: NDArray[Any], wanted: int) -> Places:
    """Return the places of the `wanted` smallest, ascending; a few more where several are equal to the last of them."""
    if len(distances) <= wanted:
        return np.arange(len(distances))
    bound = np.partition(distances, wanted - 1)[wanted - 1]
    places = np.flatnonzero(distances <= bound)
    if len(places) > 2 * wanted:
        # Embeddings that are all alike.
        nearer = np.flatnonzero(distances < bound)
        equal = np.flatnonzero(distances == bound)[: wanted - len(nearer)]
        places = np.sort(np.concatenate([nearer, equal]))
    return places
