"""Chroma's distances, computed by numpy."""

import numpy as np
from numpy.typing import NDArray

from pgchroma.types import Float32Matrix


def distances(space: str, embeddings: Float32Matrix, query: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the distance of every row of `embeddings`, shape (n, d), from `query`, shape (d,)."""
    rows, point = embeddings.astype(np.float64), query.astype(np.float64)
    if space == "l2":
        return np.asarray(((rows - point) ** 2).sum(axis=1))
    if space == "cosine":
        return np.asarray(1 - rows @ point / (np.linalg.norm(rows, axis=1) * np.linalg.norm(point)))
    return np.asarray(1 - rows @ point)
