"""Metadata in the form that PostgreSQL gets it; what PostgreSQL makes of it is in the integration tests."""

import json
import math
import struct
from typing import Any

import msgspec
import pytest
from hypothesis import example, given

from pgchroma.store import metadata
from support.metadata import METADATA, same


def round_trip(value: dict[str, Any]) -> dict[str, Any] | None:
    stored, exact = metadata.encode(value)
    return metadata.decode(stored, exact)


@given(METADATA)
@example({"k": 1e15 + 0.5})
@example({"k": 2**52 - 0.5})
@example({"k": [1e15 + 0.125, -0.0]})
def test_metadata_comes_back_in_its_types_to_the_last_bit(value: dict[str, Any]) -> None:
    assert same(round_trip(value), value)


@given(METADATA)
def test_what_postgresql_gets_is_json_without_nul(value: dict[str, Any]) -> None:
    stored, exact = metadata.encode(value)
    decoded = json.loads(stored)
    assert "\x00" not in str([*decoded, *decoded.values(), exact]).replace("\\x00", "\x00")


@pytest.mark.parametrize(
    "value",
    [1e15, 1e15 + 0.5, 1e16, 1e22, -1e16, 1.7976931348623157e308, 5e-324, 2.0**63, 4503599627370495.5, 0.1],
)
def test_jsonb_alone_holds_every_finite_float_but_negative_zero(value: float) -> None:
    stored, exact = metadata.encode({"k": value})
    assert exact is None
    assert struct.pack("d", msgspec.json.decode(stored)["k"]) == struct.pack("d", value)


@pytest.mark.parametrize("value", [-0.0, math.nan, math.inf, -math.inf, [1.0, -0.0]])
def test_what_jsonb_cannot_hold_is_kept_beside_it(value: object) -> None:
    assert metadata.encode({"k": value})[1] is not None


def test_an_answer_is_standard_json() -> None:
    stored, exact = metadata.encode({"nan": math.nan, "zero": -0.0, "nul\x00": "\x00", "n": 1})
    answer = metadata.to_json(stored, exact)
    assert answer is not None
    assert json.loads(answer) == {"nan": None, "zero": -0.0, "nul\x00": "\x00", "n": 1}
    assert math.copysign(1, json.loads(answer)["zero"]) == -1


def test_an_answer_of_ordinary_metadata_is_passed_on_untouched() -> None:
    stored, exact = metadata.encode({"k": "v", "n": 2.0})
    assert metadata.to_json(stored, exact) is stored
    assert metadata.to_json(None, None) is None
    assert metadata.decode(None, None) is None


@pytest.mark.parametrize(
    ("old", "patch", "merged"),
    [
        (None, {"a": 1}, {"a": 1}),
        ({"a": 1, "b": 2}, {"b": "x"}, {"a": 1, "b": "x"}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({"a": 1}, {"a": None}, None),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
        ({"a": 1}, {}, {"a": 1}),
        (None, {"gone": None}, None),
    ],
)
def test_a_patch_is_laid_over_key_by_key(
    old: dict[str, Any] | None, patch: dict[str, Any], merged: dict[str, Any] | None
) -> None:
    assert metadata.merge(old, patch) == merged


def test_nested_documents_keep_words_with_nul() -> None:
    schema = {"keys": {"a\x00b": {"c": ["\x00", {"\ufdd0": 1}]}}}
    assert metadata.decode(metadata.encode_document(schema), None) == schema
