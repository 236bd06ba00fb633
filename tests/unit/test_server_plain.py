"""Large answers are ASCII and mean the same."""

import json

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgchroma.server import plain, responses
from pgchroma.types import Rows

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
    assert plain.texts(column) == column
    assert plain.texts(None) is None


@pytest.mark.anyio
@pytest.mark.parametrize("floats", [1, 7, 10_000], ids=["a row at a time", "an uneven rest", "all at once"])
@pytest.mark.parametrize("count", [0, 1, 5])
async def test_a_page_written_in_turns_is_the_same_answer(
    monkeypatch: pytest.MonkeyPatch, floats: int, count: int
) -> None:
    monkeypatch.setattr(responses, "_FLOATS_OF_A_TURN", floats)
    embeddings = np.random.default_rng(1).normal(size=(count, 3)).astype(np.float32)
    rows = Rows(
        ids=[str(number) for number in range(count)],
        documents=["text"] * count,
        metadatas=[b'{"a": 1}'] * count,
        embeddings=embeddings,
    )
    for names in (["embeddings", "documents"], ["metadatas"], []):
        whole = orjson.dumps(responses.get_result(rows, names), option=orjson.OPT_SERIALIZE_NUMPY)
        assert orjson.loads(await responses.page_body(rows, names)) == orjson.loads(whole)
