"""From all vectors to the few that may be nearest: what is left holds them, and little else where that is allowed."""

import numpy as np
import pytest

from pgchroma.store import shortlist, sketches
from pgchroma.store.shortlist import Held, Widths
from pgchroma.types import Float32Matrix

COUNT = 10


def points(count: int, dimension: int, seed: int = 0) -> Float32Matrix:
    order = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((30, dimension))
    found = centres[order.integers(0, 30, count)] + 0.7 * order.standard_normal((count, dimension))
    return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)


def hold(embeddings: Float32Matrix, start: int = 1) -> Held:
    bits = sketches.levels(embeddings.shape[1])
    seqs = np.arange(start, start + len(embeddings))
    return shortlist.hold(seqs, sketches.encode(embeddings, bits), *shortlist.encode(embeddings), bits)


def nearest(embeddings: Float32Matrix, query: Float32Matrix, count: int = COUNT) -> set[int]:
    return set((np.argsort(-(embeddings @ query), kind="stable")[:count] + 1).tolist())


@pytest.mark.parametrize("dimension", [96, 100, 384, 600, 1_100])
@pytest.mark.parametrize("length", [1.0, 3e15, 3e-15])
def test_the_sure_ones_are_among_what_is_left(dimension: int, length: float) -> None:
    embeddings = points(3_000, dimension)
    parts = [hold(embeddings[:2_000]), hold(embeddings[2_000:], start=2_001)]
    bits = sketches.levels(dimension)
    for query in points(20, dimension, seed=7):
        scaled = query * np.float32(length)
        wide = set(shortlist.of_all(parts, scaled, bits, Widths(300, 60)).tolist())
        close = set(shortlist.of_all(parts, scaled, bits, Widths(300, 60, COUNT + 1)).tolist())
        assert len(wide) >= 60
        assert COUNT < len(close) < 60
        assert nearest(embeddings, query) & wide == nearest(embeddings, query) & close
        assert len(nearest(embeddings, query) & close) >= COUNT - 1


def test_many_that_are_equally_near_are_no_more_than_allowed() -> None:
    embeddings = np.repeat(points(1, 384), 500, axis=0)
    found = shortlist.of_all([hold(embeddings)], embeddings[0], 3, Widths(150, 40, COUNT))
    assert COUNT <= len(found) <= 80


@pytest.mark.parametrize("given", [30, 1_000, 4_500])
@pytest.mark.parametrize("dimension", [384, 600])
def test_of_given_vectors_the_nearest_are_left(given: int, dimension: int) -> None:
    embeddings = points(5_000, dimension)
    parts = [hold(embeddings[:3_000]), hold(embeddings[3_000:], start=3_001)]
    seqs = np.random.default_rng(1).permutation(5_000)[:given] + 1
    query = points(1, dimension, seed=7)[0]
    some = np.append(seqs, 9_000)
    found = shortlist.of_these(parts, some, query, sketches.levels(dimension), Widths(300, 40, COUNT))
    mine = np.sort(seqs)
    wanted = {int(mine[place - 1]) for place in nearest(embeddings[mine - 1], query)}
    assert len(wanted & set(found.tolist())) >= COUNT - 1
    # What is not held is left to PostgreSQL.
    assert 9_000 in found
    assert set(found.tolist()) <= set(some.tolist())


def test_vectors_without_a_direction_are_left_only_where_they_may_be_near() -> None:
    embeddings = points(1_000, 384)
    embeddings[[5, 17]] = 0
    part = hold(embeddings)
    near, far = points(1, 384)[0], -embeddings.mean(axis=0)
    zeros = {6, 18}
    assert not zeros & set(shortlist.of_all([part], near, 3, Widths(150, 40, COUNT)).tolist())
    assert zeros <= set(shortlist.of_all([part], near, 3, Widths(150, 40)).tolist())
    # Where all others are in about the opposite direction.
    opposite = np.abs(embeddings)
    found = shortlist.of_all([hold(opposite)], -opposite.mean(axis=0), 3, Widths(150, 40, COUNT))
    assert zeros <= set(found.tolist())
    assert len(set(found.tolist())) == len(found)
    assert len(shortlist.of_all([part], far, 3, Widths(150, 40, COUNT))) >= COUNT


@pytest.mark.parametrize("words", [1, 3, 6, 7, 24])
def test_bits_are_counted_in_every_column(words: int) -> None:
    order = np.random.default_rng(3)
    columns = order.integers(0, 2**63, (words, 40_000), np.uint64)
    columns[:, 0] = 0
    query = np.full(words, 2**64 - 1, np.uint64)
    exact = np.bitwise_count(columns ^ query[:, None]).sum(axis=0)
    assert (shortlist._distances_by_column(columns, query) == exact).all()


@pytest.mark.parametrize("dimension", [96, 384, 600, 1_100])
def test_a_direction_has_the_sketch_that_is_stored(dimension: int) -> None:
    bits = sketches.levels(dimension)
    for embedding in points(20, dimension):
        stored = sketches.encode(embedding[None], bits)[0]
        # A coordinate that lies on a threshold may be rounded to the other side of it.
        assert np.bitwise_count(stored ^ sketches.of_direction(embedding, bits)).sum() <= 1
