"""The same questions asked of both sides: the target's answers against an exact search over the source's records."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pgchroma.migrate.model import Json, Problem, SourceCollection
from pgchroma.migrate.proof import CollectionProof
from pgchroma.types import Float32Matrix, Record, RecordPage

NEIGHBOURS: Final = 10
QUESTIONS: Final = 20
# Records as near as the tenth, up to rounding, are right answers, too; of so many further ones that is known.
_SPARE = 30
_ROUNDING = 1e-5
# Vectors measured at once.
_AT_ONCE: Final = 256

# Below the first an operator is told; below the second the target answers from something else. The collection's own settings of its
# index may be poor: a graph of four neighbours a node was seen to find three in ten.
EXPECTED_RECALL: Final = 0.95
LEAST_RECALL: Final = 0.1

Ask = Callable[[SourceCollection, Float32Matrix, int], Awaitable[list[list[str]] | None]]


@dataclass(slots=True)
class Questions:
    """Question vectors of one collection, and their nearest records found by comparing with every record that goes by.

    The vectors lie half-way between two records of the first page, so that no record answers one trivially.

    Attributes:
        vectors: float32, shape (questions, dimension); empty until the first page came.
    """

    collection: SourceCollection
    vectors: Float32Matrix = field(default_factory=lambda: np.empty((0, 0), np.float32))
    _distances: NDArray[np.floating[Any]] = field(default_factory=lambda: np.empty((0, 0)))
    _ids: list[list[str]] = field(default_factory=list)

    def see(self, records: Sequence[Record]) -> None:
        """Take in the next records."""
        found = [record for record in records if record.embedding is not None]
        if not found:
            return
        matrix = (
            records.matrix
            if isinstance(records, RecordPage)
            else np.stack([record.embedding for record in found if record.embedding is not None])
        )
        if not self.vectors.size:
            count = min(QUESTIONS, len(matrix))
            places = np.linspace(0, len(matrix) - 1, count).astype(int)
            chosen = matrix[places].astype(np.float64)
            self.vectors = ((chosen + np.roll(chosen, 1, axis=0)) / 2.0).astype(np.float32)
            self._distances = np.full((count, 0), np.inf)
            self._ids = [[] for _ in range(count)]
        # Twice the precision: float32 overflows where Chroma accepted values near its end. Some at a time, which stay in the
        # processor's cache.
        distances = np.concatenate(
            [
                self._measured(matrix[start : start + _AT_ONCE].astype(np.float64))
                for start in range(0, len(matrix), _AT_ONCE)
            ],
            axis=1,
        )
        keep = NEIGHBOURS + _SPARE
        known = self._distances.shape[1]
        places = np.arange(len(found))
        if known == keep:
            # Few are nearer than what is known; of those equally near, what came first stays. NaN is farther than anything.
            places = np.flatnonzero(~(distances >= self._distances[:, -1:]).all(axis=0))
            if not len(places):
                return
            distances = distances[:, places]
        merged = np.concatenate([self._distances, distances], axis=1)
        order = np.argsort(merged, axis=1, kind="stable")[:, :keep]
        names = [found[place].id for place in places.tolist()]
        self._ids = [
            [own[place] if place < known else names[place - known] for place in row]
            for own, row in zip(self._ids, order.tolist(), strict=True)
        ]
        self._distances = np.take_along_axis(merged, order, axis=1)

    def _measured(self, matrix: NDArray[np.floating[Any]]) -> NDArray[np.floating[Any]]:
        questions = self.vectors.astype(np.float64)
        dots: NDArray[np.floating[Any]] = questions @ matrix.T
        if self.collection.space == "ip":
            return 1.0 - dots
        squares, own = np.einsum("ij,ij->i", matrix, matrix), np.einsum("ij,ij->i", questions, questions)
        if self.collection.space == "cosine":
            norms = np.sqrt(np.outer(own, squares))
            cosines: NDArray[np.floating[Any]] = np.divide(
                dots, norms, out=np.zeros_like(dots), where=norms > 0
            )
            return 1.0 - cosines
        found: NDArray[np.floating[Any]] = squares[None, :] - 2.0 * dots + own[:, None]
        return found

    async def put_to(self, ask: Ask) -> Json | None:
        """Ask the target and return recall and number of questions; None when there is nothing to ask or nobody to be asked."""
        if not self.vectors.size:
            return None
        answers = await ask(self.collection, self.vectors, NEIGHBOURS)
        if answers is None:
            return None
        hits = wanted = judged = 0
        for answer, ids, distances in zip(answers, self._ids, self._distances, strict=True):
            count = min(NEIGHBOURS, len(ids))
            limit = distances[count - 1] + _ROUNDING * max(1.0, abs(float(distances[count - 1])))
            if len(ids) == NEIGHBOURS + _SPARE and distances[-1] <= limit:
                # So many records are equally near that not all right answers are known.
                continue
            judged += 1
            right = {name for name, distance in zip(ids, distances, strict=True) if distance <= limit}
            hits += len(right.intersection(answer[:count]))
            wanted += count
        if not judged:
            return None
        return {"questions": judged, "neighbours": NEIGHBOURS, "recall": round(hits / wanted, 4)}


def notice(path: str, answers: Json | None) -> Problem | None:
    """Return what the operator is told of answers that are worse than those of a usual index."""
    if answers is None or answers["recall"] >= EXPECTED_RECALL:
        return None
    what = (
        f"the target finds {answers['recall']:.1%} of the nearest records (recall@{NEIGHBOURS}), less than {EXPECTED_RECALL:.0%}; "
        "other settings of its index find more, see docs/INDEXES.md"
    )
    return Problem("notice", "recall-low", path, what)


def judge(proof: CollectionProof, answers: Json | None) -> None:
    """Note it as a difference when answers are so wrong that no index explains it."""
    if answers is not None and answers["recall"] < LEAST_RECALL:
        proof.add(
            "answers",
            f"the target finds {answers['recall']:.1%} of the nearest records (recall@{NEIGHBOURS})",
        )
