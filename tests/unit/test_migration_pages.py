"""Pages on their way to a target that takes larger batches."""

from dataclasses import replace

import numpy as np
import pytest

from pgchroma.migrate import pages
from pgchroma.migrate.model import Quarantined
from pgchroma.migrate.remote.client import record_bytes
from pgchroma.types import Record

EMPTY = Record(0, "id", np.zeros(4, np.float32), "text", None)


def page(first: int, count: int, put_aside: int = 0) -> tuple[list[Record], list[Quarantined], int]:
    records = [replace(EMPTY, seq=first + number, id=str(first + number)) for number in range(count)]
    kept, others = records[: count - put_aside], records[count - put_aside :]
    return kept, [Quarantined("c", "nul", "why", record) for record in others], first + count - 1


@pytest.mark.parametrize(
    ("sizes", "most", "expected"),
    [
        ([20, 20, 20, 20], 50, [50, 30]),
        ([20, 20, 5], 45, [45]),
        ([60, 20, 20], 50, [50, 50]),
        ([20, 60, 25], 50, [50, 50, 5]),
        ([], 50, []),
    ],
    ids=str,
)
def test_records_are_put_together_up_to_a_batch(sizes: list[int], most: int, expected: list[int]) -> None:
    given, first = [], 1
    for size in sizes:
        given.append(page(first, size))
        first += size
    found = list(pages.gathered(iter(given), most))
    assert [len(records) for records, _, _ in found] == expected
    assert [record.seq for records, _, _ in found for record in records] == list(range(1, first))
    assert [position for _, _, position in found] == [records[-1].seq for records, _, _ in found]


def test_a_page_with_something_put_aside_is_not_cut() -> None:
    found = pages.gathered(iter([page(1, 30), page(31, 30, put_aside=1), page(61, 30)]), 50)
    assert [(len(records), len(aside), position) for records, aside, position in found] == [
        (30, 0, 30),
        (50, 1, 81),
        (9, 0, 90),
    ]


def test_what_is_put_aside_goes_with_the_page_it_was_in() -> None:
    given = [page(1, 3, put_aside=3), page(4, 3, put_aside=1), page(7, 3)]
    (records, aside, position), (last, _, end) = pages.gathered(iter(given), 4)
    assert ([record.seq for record in records], [item.record.seq for item in aside], position) == (
        [4, 5, 7, 8],
        [1, 2, 3, 6],
        8,
    )
    assert ([record.seq for record in last], end) == ([9], 9)


def test_bytes_bound_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "LARGEST_BODY_BYTES", 3 * record_bytes(EMPTY))
    found = list(pages.gathered(iter([page(1, 2), page(3, 1), page(4, 1)]), 100))
    assert [len(records) for records, _, _ in found] == [3, 1]
