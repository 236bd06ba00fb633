"""The nearest records of a migration's questions, found while its pages go by, against comparing with every record."""

import asyncio
from collections.abc import Sequence
from uuid import uuid4

import numpy as np
import pytest

from pgchroma.migrate.model import SourceCollection
from pgchroma.migrate.questions import NEIGHBOURS, QUESTIONS, Questions
from pgchroma.types import Float32Matrix, Record, RecordPage

_PAGE = 300
_RNG = np.random.default_rng(11)


def _collection(space: str) -> SourceCollection:
    return SourceCollection(
        id=uuid4(),
        tenant="default_tenant",
        database="default_database",
        name="things",
        metadata=None,
        configuration={"hnsw": {"space": space}},
        schema=None,
        dimension=24,
        count=0,
        state={},
    )


def _records(matrix: Float32Matrix) -> list[Record]:
    return [Record(place, str(place), vector) for place, vector in enumerate(matrix)]


def _exact(space: str, questions: Float32Matrix, matrix: Float32Matrix) -> list[list[str]]:
    asked, rows = questions.astype(np.float64), matrix.astype(np.float64)
    if space == "ip":
        distances = 1.0 - asked @ rows.T
    elif space == "cosine":
        norms = np.linalg.norm(asked, axis=1)[:, None] * np.linalg.norm(rows, axis=1)
        distances = 1.0 - asked @ rows.T / norms
    else:
        distances = ((asked[:, None, :] - rows[None, :, :]) ** 2).sum(axis=2)
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :NEIGHBOURS]
    return [[str(place) for place in row] for row in nearest]


def _recall(questions: Questions, answers: Sequence[Sequence[str]]) -> float | None:
    async def ask(_: SourceCollection, vectors: Float32Matrix, count: int) -> list[list[str]]:
        assert (len(vectors), count) == (len(answers), NEIGHBOURS)
        return [list(row) for row in answers]

    told = asyncio.run(questions.put_to(ask))
    return None if told is None else float(told["recall"])


@pytest.mark.parametrize("space", ["l2", "cosine", "ip"])
@pytest.mark.parametrize("paged", [True, False], ids=["arrays", "lists"])
def test_nearest_are_those_of_an_exact_search(space: str, paged: bool) -> None:
    matrix = _RNG.standard_normal((2_000, 24)).astype(np.float32)
    questions = Questions(_collection(space))
    for start in range(0, len(matrix), _PAGE):
        part = matrix[start : start + _PAGE]
        records = [Record(start + place, str(start + place), vector) for place, vector in enumerate(part)]
        questions.see(RecordPage(records, part) if paged else records)
    assert len(questions.vectors) == QUESTIONS
    right = _exact(space, questions.vectors, matrix)
    assert _recall(questions, right) == 1.0
    # Something else than the nearest is no answer.
    wrong = [[str(int(name) + 1) for name in row] for row in right]
    assert (_recall(questions, wrong) or 0.0) < 0.2


def test_of_equally_near_records_each_is_an_answer() -> None:
    matrix = np.repeat(_RNG.standard_normal((200, 24)).astype(np.float32), 5, axis=0)
    questions = Questions(_collection("l2"))
    for start in range(0, len(matrix), _PAGE):
        part = matrix[start : start + _PAGE]
        questions.see([Record(n, str(start + n), vector) for n, vector in enumerate(part)])
    last_first = [
        [str(place) for place in np.lexsort((-np.arange(len(matrix)), distances.round(6)))[:NEIGHBOURS]]
        for distances in ((questions.vectors[:, None, :] - matrix[None, :, :]) ** 2).sum(axis=2)
    ]
    assert _recall(questions, last_first) == 1.0


def test_distances_beyond_what_can_be_told_lose_to_others() -> None:
    odd = np.full((60, 24), np.nan, np.float32)
    usual = _RNG.standard_normal((100, 24)).astype(np.float32)
    questions = Questions(_collection("l2"))
    questions.see(_records(usual[:50]))
    questions.see([Record(n, f"odd {n}", vector) for n, vector in enumerate(odd)])
    questions.see([Record(n, str(n + 50), vector) for n, vector in enumerate(usual[50:])])
    assert _recall(questions, _exact("l2", questions.vectors, usual)) == 1.0


def test_records_without_vectors_are_passed_over() -> None:
    questions = Questions(_collection("l2"))
    questions.see([Record(1, "none", None)])
    assert _recall(questions, []) is None
    vectors = _RNG.standard_normal((30, 24)).astype(np.float32)
    questions.see([Record(1, "none", None), *_records(vectors)])
    assert _recall(questions, _exact("l2", questions.vectors, vectors)) == 1.0
