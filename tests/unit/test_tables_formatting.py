"""Columns of an application's tables as COPY's text format has them."""

import math

import pytest

from pgchroma.migrate.tables import formatting

NUMBERS: list[float | None] = [
    0.0,
    -0.0,
    5e-324,
    1.7976931348623157e308,
    0.1,
    1e16,
    1e22,
    -1.5e-7,
    2**53,
    -7,
    3,
]


@pytest.mark.parametrize(
    "others",
    [[], [None], [math.inf, -math.inf], [None, math.inf, None]],
    ids=["numbers", "with nulls", "with infinities", "with both"],
)
def test_numbers_are_written_so_that_each_is_read_as_itself(others: list[float | None]) -> None:
    values = tuple(NUMBERS + others)
    written = list(formatting._numbers(values))
    read = [None if text == b"\x00" else float(text) for text in written]
    assert [repr(value) for value in read] == [
        repr(None if value is None else float(value)) for value in values
    ]
