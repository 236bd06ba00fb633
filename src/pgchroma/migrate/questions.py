"""The same questions asked of both sides: the target's answers against an exact search over the source's records."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pgchroma.migrate.model import Json, SourceCollection
from pgchroma.types import Float32Matrix, Record

NEIGHBOURS: Final = 10
QUESTIONS: Final = 20
# Records as near as the tenth, up to rounding, are right answers, too; of so many further ones that is known.
_SPARE = 30
_ROUNDING = 1e-5

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
        rows = [record.embedding for record in records if record.embedding is not None]
        if not rows:
            return
        # Twice the precision: float32 overflows where Chroma accepted values near its end.
        matrix = np.stack(rows).astype(np.float64)
        if not self.vectors.size:
            count = min(QUESTIONS, len(matrix))
            places = np.linspace(0, len(matrix) - 1, count).astype(int)
            between = (matrix[places] + matrix[np.roll(places, 1)]) / 2.0
            self.vectors = between.astype(np.float32)
            self._distances = np.full((count, 0), np.inf)
            self._ids = [[] for _ in range(count)]
        distances = self._measured(matrix)
        names = [record.id for record in records if record.embedding is not None]
        keep = NEIGHBOURS + _SPARE
        merged = np.concatenate([self._distances, distances], axis=1)
        chosen = np.argsort(merged, axis=1, kind="stable")[:, :keep]
        known = self._distances.shape[1]
        self._ids = [
            [own[place] if place < known else names[place - known] for place in row]
            for own, row in zip(self._ids, chosen, strict=True)
        ]
        self._distances = np.take_along_axis(merged, chosen, axis=1)

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

    @staticmethod
    def notice(collection: SourceCollection, answers: Json) -> Problem | None:
        """Return what the operator should know of answers that are worse than an index usually makes them."""
        if answers["recall"] >= EXPECTED_RECALL:
            return None
        return Problem(
            "notice",
            "recall-low",
            collection.path,
            f"the target finds {answers['recall']:.1%} of the nearest records (recall@{NEIGHBOURS}), less than {EXPECTED_RECALL:.0%}: "
            "its index wants other settings, see docs/INDEXES.md",
        )

    @staticmethod
    def objection(answers: Json) -> str | None:
        """Return why answers are so wrong that no index explains it; None when they are not."""
        if answers["recall"] >= LEAST_RECALL:
            return None
        return (
            f"the target finds {answers['recall']:.1%} of the nearest records (recall@{NEIGHBOURS}): its index is damaged, "
            "or is about other vectors"
        )

    async def put_to(self, ask: Ask) -> Json | None:
        """Ask the target and return recall and number of questions; None when there is nothing to ask or nobody to be asked."""
        if not self.vectors.size:
            return None
        answers = await ask(self.collection, self.vectors, NEIGHBOURS)
        if answers is None:
            return None
        hits = wanted = 0
        for answer, ids, distances in zip(answers, self._ids, self._distances, strict=True):
            count = min(NEIGHBOURS, len(ids))
            limit = distances[count - 1] + _ROUNDING * max(1.0, abs(float(distances[count - 1])))
            right = {name for name, distance in zip(ids, distances, strict=True) if distance <= limit}
            hits += len(right.intersection(answer[:count]))
            wanted += count
        return {
            "questions": len(self.vectors),
            "neighbours": NEIGHBOURS,
            "recall": round(hits / wanted, 4) if wanted else 1.0,
        }
