"""Text with U+0000 and the noncharacters that stand for it, and ids as keys."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgchroma.store import text

# Few letters, so that needles are found, among them every one that the encoding uses.
SPECIAL = "\x00\ufdd0\ufdd1\ufdd2\ufdd3\ufdd4\ufdd5"
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DENSE_TEXT = st.text("ab" + SPECIAL, max_size=12)


@given(ANY_TEXT | DENSE_TEXT)
def test_text_comes_back_as_it_was(original: str) -> None:
    encoded = text.encode(original)
    assert "\x00" not in encoded
    assert text.decode(encoded) == original


@given(DENSE_TEXT, st.text("ab" + SPECIAL, max_size=3))
def test_a_search_in_encoded_text_finds_what_one_in_the_original_finds(document: str, needle: str) -> None:
    assert (text.encode(needle) in text.encode(document)) == (needle in document)


@given(DENSE_TEXT, DENSE_TEXT)
def test_different_texts_are_encoded_differently(one: str, other: str) -> None:
    assert (text.encode(one) == text.encode(other)) == (one == other)


def test_ordinary_text_is_stored_as_it_is() -> None:
    original = "Größe 漢字 🙂 \ufffe"
    assert text.encode(original) is original
    assert not text.has_special(original.encode())


@given(DENSE_TEXT)
def test_encoded_bytes_tell_that_there_is_something_to_decode(original: str) -> None:
    assert text.has_special(text.encode(original).encode()) == (text.encode(original) != original)


@pytest.mark.parametrize("length", [1, 256, 257, 1023, 1024])
def test_a_short_id_is_its_own_key(length: int) -> None:
    assert text.id_key("x" * length) == ("x" * length, None)


@pytest.mark.parametrize("record_id", ["x" * 1025, "ä" * 513, "🙂" * 257, "\x00" * 200, "x" * 1_000_000])
def test_a_long_id_gets_a_short_key_and_is_kept_whole(record_id: str) -> None:
    key, full = text.id_key(record_id)
    assert len(key.encode()) < 100
    assert full is not None
    assert text.decode(full) == record_id


LONG_IDS = st.builds(
    lambda repeated, tail: repeated * 400 + tail, st.sampled_from(["abc", "ä\x00", SPECIAL]), DENSE_TEXT
)


@given(DENSE_TEXT | LONG_IDS, DENSE_TEXT | LONG_IDS)
def test_different_ids_have_different_keys(one: str, other: str) -> None:
    assert (text.id_key(one)[0] == text.id_key(other)[0]) == (one == other)


def test_no_id_can_pose_as_the_key_of_a_long_one() -> None:
    key, _ = text.id_key("x" * 5000)
    assert text.id_key(key)[0] != key
