"""From all vectors of a segment to the few that may be nearest, by what is held of them in memory.

Three looks, each at fewer vectors and at more of each: the middle bit of every dimension, all bits of the sketch, eight bits of every
dimension. What is left is compared by PostgreSQL, which alone has the vectors.
"""

import functools
import math
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
_BLOCK = 32_768
# How many of the vectors themselves are looked for, and how many of the nearest to each, to see how well the looks find them.
_SAMPLE, _SAMPLED_NEAREST = 24, 10
# Vectors compared with all of the sample in one go.
_SAMPLED_AT_A_TIME = 8_192
# Lengths whose squares float32 holds well.
_SHORTEST_SQUARE, _LONGEST_SQUARE = 1e-12, 1e12
# Words whose counts of bits, 64 at most each, are added up in one byte.
_WORDS_OF_A_BYTE = 3
# Distances by eight bits a coordinate are wrong by 0.29 steps, as normally as sums of hundreds of roundings are; two of them differ
# in the wrong direction by more than this, which is seven deviations, never.
_STEPS_OF_DOUBT = 3


@dataclass(frozen=True, slots=True)
class Held:
    """What is held of one segment's vectors.

    Attributes:
        seqs: their numbers, ascending, shape (n,).
        first: of their sketches the words of the bits that say most, shape (words of these, n); all of them where no threshold is in
            the middle.
        rest: the other words, shape (n, words).
        codes: their normalised coordinates in steps of `scales`, shape (n, dimension).
        scales: shape (n,).
        zero: numbers of the vectors without a direction, which no sketch can tell from others.
    """

    seqs: Seqs
    first: Words
    rest: Words
    codes: NDArray[np.int8]
    scales: NDArray[np.float32]
    zero: Seqs

    @property
    def size(self) -> int:
        """Bytes of memory."""
        return sum(
            array.nbytes for array in (self.seqs, self.first, self.rest, self.codes, self.scales, self.zero)
        )


def hold(
    seqs: Seqs, packed: NDArray[np.uint8], codes: NDArray[np.int8], scales: NDArray[np.float32], bits: int
) -> Held:
    """Return what is held of vectors whose numbers ascend.

    Args:
        packed: their sketches, shape (n, bytes).
        bits: per dimension of the sketches.
    """
    first, rest = _words(packed, codes.shape[1], bits)
    return Held(seqs, np.ascontiguousarray(first.T), rest, codes, scales, seqs[scales == 0])


def encode(embeddings: Float32Matrix) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return the directions of embeddings, shape (n, dimension), in steps as `Held` has them, and the steps; 0 for a zero vector."""
    lengths = np.sqrt(np.einsum("ij,ij->i", embeddings, embeddings, dtype=np.float64))
    largest = np.abs(embeddings).max(axis=1, initial=0).astype(np.float64)
    divisors = np.where(largest > 0, largest, 1)
    scales = np.where(largest > 0, largest / (127 * np.where(lengths > 0, lengths, 1)), 0).astype(np.float32)
    return np.rint(embeddings / divisors.astype(np.float32)[:, None] * np.float32(127)).astype(
        np.int8
    ), scales


def _words(packed: NDArray[np.uint8], dimension: int, bits: int) -> tuple[Words, Words]:
    """Return sketches as words of 64 bits: those of the first look, and the rest, both of shape (n, words of these).

    What is missing of the last word is zero.
    """
    count, size = packed.shape
    padded = np.zeros((count, -(-size // 8) * 8), np.uint8)
    padded[:, :size] = packed
    words = padded.view(np.uint64)
    first = _first(dimension, bits)
    start, stop, _ = first.indices(words.shape[1])
    return words[:, first], np.concatenate([words[:, :start], words[:, stop:]], axis=1)


def _first(dimension: int, bits: int) -> slice:
    """Return which words hold the bits of the middle threshold, which halves the coordinates; all where there is none."""
    if bits != 3:
        return slice(None)
    return slice(dimension // 64, -(-2 * dimension // 64))


def first_words(dimension: int, bits: int) -> int:
    """Return how many words of each vector the first look compares."""
    return len(range(-(-dimension * bits // 64))[_first(dimension, bits)])


@dataclass(frozen=True, slots=True)
class Widths:
    """How many vectors are left.

    Attributes:
        second: by the second look.
        left: by the third, at most.
        sure: how many of the nearest must be among them; of the rest those are left out then that cannot be one of these. 0 where
            it is not known how many are needed.
    """

    second: int
    left: int
    sure: int = 0


def of_all(parts: Sequence[Held], embedding: Float32Matrix, bits: int, widths: Widths) -> Seqs:
    """Return the numbers of the vectors that may be nearest to an embedding, and of as many without a direction; in no order."""
    direction = _direction(embedding)
    query = _sketch(direction, bits)
    distances = _first_distances(parts, query[0])
    wanted = (
        widths.second
        if bits != 3
        else max(_FIRST_PER_SECOND * widths.second, int(len(distances) * _FIRST_SHARE))
    )
    places = _nearest(distances, wanted)
    found, is_zero_far = _narrowed(parts, places, distances.take(places), query[1], direction, widths)
    zero = [] if is_zero_far else [part.zero[: widths.left] for part in parts if len(part.zero)]
    return np.unique(np.concatenate([found, *zero])) if zero else found


def of_these(parts: Sequence[Held], seqs: Seqs, embedding: Float32Matrix, bits: int, widths: Widths) -> Seqs:
    """Return what `of_all` does, of the vectors with these numbers, in any order, and in addition those that are not held."""
    if (seqs[1:] < seqs[:-1]).any():
        seqs = np.sort(seqs)
    places, others = _places(parts, seqs)
    if len(places) > widths.left:
        direction = _direction(embedding)
        query = _sketch(direction, bits)
        many = bits == 3 and len(places) > max(_FEW, _FIRST_PER_SECOND * widths.second)
        if len(places) > _FEW:
            first = _first_distances(parts, query[0]).take(places)
        else:
            first = _distances_by_column(_rows([part.first for part in parts], places, axis=1), query[0])
        if many:
            nearest = _nearest(first, max(_FIRST_PER_SECOND * widths.second, int(len(places) * _FIRST_SHARE)))
            places, first = places.take(nearest), first.take(nearest)
        found, is_zero_far = _narrowed(parts, places, first, query[1], direction, widths)
    else:
        found, is_zero_far = _rows([part.seqs for part in parts], places), False
    if not is_zero_far:
        zero = [_in_both(part.zero, seqs)[: widths.left] for part in parts if len(part.zero)]
        found = np.unique(np.concatenate([found, *zero])) if zero else found
    return np.concatenate([found, others]) if len(others) else found


def recall(part: Held, bits: int, widths: Widths) -> float:
    """Return which part of the nearest to some of the vectors themselves the looks find, by eight bits of every dimension.

    Embeddings lie along few directions, in which their sketches tell them apart. Vectors that scatter in hundreds of them around the
    same point are all about as far from each other, and the bits of a sketch do not say which are a little nearer.
    """
    places = (part.scales > 0).nonzero()[0]
    if len(places) <= _SAMPLED_NEAREST:
        return 1.0
    sample = places[np.linspace(0, len(places) - 1, min(_SAMPLE, len(places))).astype(np.intp)]
    directions = part.codes[sample].astype(np.float32) * part.scales[sample, None]
    near = np.empty((len(part.seqs), len(sample)), np.float32)
    for start in range(0, len(near), _SAMPLED_AT_A_TIME):
        rows = slice(start, start + _SAMPLED_AT_A_TIME)
        near[rows] = (part.codes[rows].astype(np.float32) @ directions.T) * part.scales[rows, None]
    near[sample, np.arange(len(sample))] = -np.inf
    hits = 0
    for number, direction in enumerate(directions):
        bound = np.partition(near[:, number], -_SAMPLED_NEAREST)[-_SAMPLED_NEAREST]
        found = np.searchsorted(part.seqs, of_all([part], direction, bits, widths))
        hits += min(int((near[found, number] >= bound).sum()), _SAMPLED_NEAREST)
    return hits / (_SAMPLED_NEAREST * len(sample))


def _in_both(few: Seqs, many: Seqs) -> Seqs:
    """Return those of `few` that are in `many`, which ascends."""
    places = np.searchsorted(many, few)
    inside = places < len(many)
    inside[inside] = many[places[inside]] == few[inside]
    return few[inside]


def _first_distances(parts: Sequence[Held], query: Words) -> NDArray[np.uint16]:
    distances = [_distances_by_column(part.first, query) for part in parts]
    return distances[0] if len(distances) == 1 else np.concatenate(distances)


def _sketch(direction: NDArray[np.float32], bits: int) -> tuple[Words, Words]:
    first, rest = _words(sketches.of_direction(direction, bits)[None], len(direction), bits)
    return first[0], rest[0]


def _direction(embedding: Float32Matrix) -> NDArray[np.float32]:
    square = float(embedding @ embedding)
    if _SHORTEST_SQUARE < square < _LONGEST_SQUARE:
        return np.asarray(embedding / np.float32(math.sqrt(square)))
    wide = embedding.astype(np.float64)
    return np.asarray(wide / np.sqrt(wide @ wide), np.float32)


def _narrowed(
    parts: Sequence[Held],
    places: Places,
    first: NDArray[np.uint16],
    query: Words,
    direction: NDArray[np.float32],
    widths: Widths,
) -> tuple[Seqs, bool]:
    """Return the numbers of what the second and the third look leave, and whether they are nearer than any vector without a direction.

    Args:
        first: by the first look, the distances of what is at `places`.
        query: what the first look did not compare.
    """
    if len(places) > widths.second:
        distances: NDArray[Any] = first
        if len(query):
            distances = first + _distances_by_row(_rows([part.rest for part in parts], places), query)
        places = places.take(_nearest(distances, widths.second))
    is_zero_far = False
    if len(places) > (widths.sure or widths.left):
        scales = _rows([part.scales for part in parts], places)
        codes = _rows([part.codes for part in parts], places)
        # What is in the opposite direction has 1, what has none 0.
        far = -(codes.astype(np.float32) @ direction) * scales
        doubt = _STEPS_OF_DOUBT * float(scales.max())
        close, is_zero_far = _close(far, doubt, widths)
        places = places.take(close)
    return _rows([part.seqs for part in parts], places), is_zero_far


def _close(far: NDArray[np.float32], doubt: float, widths: Widths) -> tuple[Places, bool]:
    """Return the places of the distances that may be among the smallest, and whether 0 is not."""
    if not widths.sure:
        return _nearest(far, widths.left), False
    ordered = far.copy()
    ordered.partition(widths.sure - 1)
    bound = float(ordered[widths.sure - 1]) + doubt
    close = (far <= bound).nonzero()[0]
    return (close if len(close) <= widths.left else _nearest(far, widths.left)), bound < 0


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


def _rows(arrays: Sequence[NDArray[Any]], places: Places, axis: int = 0) -> NDArray[Any]:
    """Return the rows at ascending places of the arrays put one after the other; columns with axis 1."""
    if len(arrays) == 1:
        return arrays[0].take(places, axis=axis)
    starts = np.cumsum([0, *(array.shape[axis] for array in arrays)])
    edges = np.searchsorted(places, starts)
    return np.concatenate(
        [
            array.take(places[low:high] - start, axis=axis)
            for array, start, low, high in zip(arrays, starts, edges, edges[1:], strict=False)
        ],
        axis=axis,
    )


def _distances_by_column(columns: Words, query: Words) -> NDArray[np.uint16]:
    """Return in how many bits the query differs from each column, shape (words, n)."""
    rows = columns.shape[1]
    distances = np.zeros(rows, np.uint16)
    # Word by word into the same memory: a new array for each step costs as much as the step.
    room = min(rows, _BLOCK)
    different = np.empty(room, np.uint64)
    count, total = np.empty(room, np.uint8), np.empty(room, np.uint8)
    for start in range(0, rows, _BLOCK):
        sums = distances[start : start + _BLOCK]
        if len(sums) < room:
            different, count, total = different[: len(sums)], count[: len(sums)], total[: len(sums)]
        for word, bits in enumerate(query):
            np.bitwise_xor(columns[word, start : start + _BLOCK], bits, out=different)
            if word % _WORDS_OF_A_BYTE == 0:
                np.bitwise_count(different, out=total)
            else:
                np.bitwise_count(different, out=count)
                np.add(total, count, out=total)
            if word % _WORDS_OF_A_BYTE == _WORDS_OF_A_BYTE - 1 or word == len(query) - 1:
                np.add(sums, total, out=sums)
    return distances


def _distances_by_row(rows: Words, query: Words) -> NDArray[np.float32]:
    """Return in how many bits the query differs from each row, shape (n, words)."""
    # The quickest way to add up short rows.
    counts = np.bitwise_count(rows ^ query).astype(np.float32)
    return np.asarray(counts @ _ones(len(query)))


@functools.cache
def _ones(count: int) -> NDArray[np.float32]:
    return np.ones(count, np.float32)


def _nearest(distances: NDArray[Any], wanted: int) -> Places:
    """Return the places of the `wanted` smallest, ascending; a few more where several are equal to the last of them."""
    if len(distances) <= wanted:
        return np.arange(len(distances))
    # NumPy has a partition by vector instructions for 16 bits on the newest processors only, for 32 bits on all: 20 µs against 160.
    wide = distances.astype(np.int32 if distances.dtype == np.uint16 else distances.dtype)
    wide.partition(wanted - 1)
    bound = distances.dtype.type(wide[wanted - 1])
    places: Places = (distances <= bound).nonzero()[0]
    if len(places) > 2 * wanted:
        # Embeddings that are all alike.
        nearer = np.flatnonzero(distances < bound)
        equal = np.flatnonzero(distances == bound)[: wanted - len(nearer)]
        places = np.sort(np.concatenate([nearer, equal]))
    return places
