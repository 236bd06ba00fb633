"""Large answers are ASCII and mean the same."""

import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgchroma.server import plain

TEXTS = [
    "",
    'quote " and \\ backslash',
    "ÄÖ\u20ac",
    "🜁 beyond U+FFFF",
    "\x00\x1f\x7f",
    "\ud7ff\ue000\uffff",
    "plain",
]


@pytest.mark.parametrize("repeated", [1, 40])
def test_strings_and_objects_mean_the_same(repeated: int) -> None:
    texts: list[str | None] = [*TEXTS, None] * repeated
    body = orjson.dumps(plain.texts(texts))
    assert orjson.loads(body) == json.loads(body) == texts
    metadata = [orjson.dumps({text: text, "n": 1.5, "list": [text]}) for text in TEXTS]
    column: list[bytes | None] = [*metadata, None] * repeated
    encoded = orjson.dumps(plain.objects(column))
    assert orjson.loads(encoded) == [None if text is None else orjson.loads(text) for text in column]
    if repeated > 1:
        assert body.isascii()
        assert encoded.isascii()


@given(st.text())
def test_any_text_survives(text: str) -> None:
    column = [text.encode("utf-8", "ignore").decode()] * 100
    assert orjson.loads(orjson.dumps(plain.texts(column))) == column
    objects: list[bytes | None] = [orjson.dumps({"k": value}) for value in column]
    assert orjson.loads(orjson.dumps(plain.objects(objects)))[0]["k"] == column[0]


def test_ascii_is_passed_on_as_it_is() -> None:
    column = ["plain"] * 200
    assert plain.texts(column) is column
    assert plain.texts(None) is None
