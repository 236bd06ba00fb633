"""Sketches: the rotation before them, what they cost, and that they choose well among embeddings of any shape."""

import hashlib

import numpy as np
import pytest

from pgchroma.store import sketches
from pgchroma.types import Float32Matrix


def normal(count: int, dimension: int, seed: int = 0) -> Float32Matrix:
    return np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)


@pytest.mark.parametrize("dimension", [96, 100, 128, 384, 768, 1_000, 1_536, 4_096])
def test_the_rotation_keeps_lengths_and_angles_and_its_argument(dimension: int) -> None:
    embeddings = normal(5, dimension)
    before = embeddings.copy()
    turned = sketches.rotate(embeddings)
    assert np.array_equal(embeddings, before)
    np.testing.assert_allclose(turned @ turned.T, embeddings @ embeddings.T, rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize(("dimension", "position"), [(100, 0), (100, 99), (384, 200), (1_536, 1_535)])
def test_the_rotation_spreads_one_coordinate_over_all(dimension: int, position: int) -> None:
    single = np.zeros((1, dimension), np.float32)
    single[0, position] = 1
    turned = np.abs(sketches.rotate(single)[0])
    assert turned.max() < 8 / np.sqrt(dimension)
    assert (turned > 0.02 / np.sqrt(dimension)).mean() > 0.8


def test_sketches_stay_what_they_were() -> None:
    embeddings = normal(3, 384)
    digest = hashlib.sha256(sketches.encode(embeddings, 1).tobytes()).hexdigest()
    assert digest[:16] == "777271564621874b"


def test_a_zero_embedding_has_a_sketch() -> None:
    assert sketches.encode(np.zeros((1, 128), np.float32), 3).shape == (1, 48)


@pytest.mark.parametrize("dimension", [128, 384, 700, 1_200])
def test_the_best_by_sketch_hold_the_nearest_even_where_few_coordinates_say_most(dimension: int) -> None:
    spread = 1 / np.arange(1, dimension + 1, dtype=np.float32)
    embeddings, queries = normal(4_000, dimension) * spread, normal(20, dimension, seed=1) * spread
    bits = sketches.levels(dimension)
    own, theirs = (
        np.unpackbits(sketches.encode(np.asarray(matrix, np.float32), bits), axis=1).astype(np.float32) * 2
        - 1
        for matrix in (embeddings, queries)
    )
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    hits = 0
    for query, sketch in zip(queries, theirs, strict=True):
        best = np.argsort(-(unit @ query))[:10]
        chosen = np.argsort(-(own @ sketch), kind="stable")[: {3: 250, 2: 350, 1: 600}[bits]]
        hits += len(set(best.tolist()) & set(chosen.tolist()))
    assert hits >= 198
