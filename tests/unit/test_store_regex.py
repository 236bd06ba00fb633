"""`$regex` in Rust's syntax."""

import pytest

from pgchroma.errors import InvalidArgumentError
from pgchroma.store.regex import Regex


@pytest.mark.parametrize(
    ("pattern", "found", "not_found"),
    [
        ("", ["", "x"], []),
        ("b", ["abc"], ["ac", "B"]),
        (r"^\w\w ", ["ÄÖ ß", "e\u0301 x", "_1 "], ["ß!"]),
        (r"^\d", ["1", "٣"], ["x", "½"]),
        (r"^[\d_]+$", ["٣1_"], ["٣x"]),
        (r"^\D+$", ["x"], ["٣"]),
        (r"^[\D]$", ["x"], ["٣"]),
        (r"^\W$", ["!", " "], ["Ä", "漢"]),
        (r"a\sb", ["a b", "a\u00a0b", "a\u0085b", "a\vb", "a\u3000b"], ["ab"]),
        (r"^\S+$", ["ab"], ["a\u00a0b"]),
        (r"^[\s\S]$", ["ä", "\n", "\u00a0"], []),
        (r"\bfoo\b", ["a foo b", "foo"], ["foobar"]),
        (r"^\p{Lu}$", ["Ä", "Σ"], ["ä", "1"]),
        (r"^\PL$", ["1"], ["a"]),
        (r"\p{Greek}{2}", ["αβ"], ["αa"]),
        (r"^[[:alpha:]]+$", ["ab"], ["1", "ä"]),
        (r"^[[:^alpha:]]$", ["1"], ["a"]),
        (r"\x41\x{42}\u0043\u{44}\U00000045", ["ABCDE"], ["x"]),
        (r"(?i)c(?-i)at", ["cat", "Cat"], ["cAt"]),
        (r"(?i)äö", ["ÄÖ"], ["ao"]),
        (r"(?i)STRASSE", ["strasse"], ["straße"]),
        (r"(?i:a)b", ["Ab"], ["aB"]),
        (r"a.b", ["axb", "a🙂b"], ["a\nb"]),
        (r"(?s)a.b", ["a\nb"], ["ab"]),
        (r"^b", ["b"], ["a\nb"]),
        (r"(?m)^b$", ["a\nb\nc"], ["ab"]),
        (r"b$", ["ab"], ["ab\n"]),
        (r"b\z", ["ab"], ["ab\n"]),
        (r"\Ab", ["ba"], ["ab"]),
        (r"(?P<x>a)(?<y>b)(?:c)", ["abc"], ["ab"]),
        (r"^a{2}b{1,}c{0,1}$", ["aab", "aabbc"], ["ab"]),
        (r"[]a]b", ["]b", "ab"], ["b"]),
        (r"^[^]a]$", ["b"], ["]", "a"]),
        (r"^[-a]+$", ["-a"], ["b"]),
        (r"^[a-c\-.\]\[]+$", ["a-.][b"], ["d"]),
        (r"^[{}]\{2\}$", ["{{2}"], ["aa"]),
        (r"a|b", ["xb"], ["c"]),
        (r"\x00", ["a\x00b"], ["a0b"]),
        (r"\.\*\+\?\(\)\|\^\$\\\/\#\-\&\~", [".*+?()|^$\\/#-&~"], ["x"]),
        (r"a+?b*?", ["a"], ["b"]),
    ],
)
def test_patterns_find_what_rust_finds(pattern: str, found: list[str], not_found: list[str]) -> None:
    regex = Regex(pattern)
    assert [text for text in found if not regex.matches(text)] == []
    assert [text for text in not_found if regex.matches(text)] == []


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "[", "[z-a]", "*", "a**", "(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", r"(a)\1", "\\", r"\p{Nope}", r"\y",
     "a{2,1}", "a{2,", "a{x}", "{", r"\Qa\E", r"\C", r"[\p{L}--a]", "[a&&b]", "[a~~b]", "[a[b]]", r"\u{zz}", r"\u00"],
)  # fmt: skip
def test_what_rust_refuses_or_re2_would_misread_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^Regex syntax errror: regex parse error:\n"):
        Regex(pattern)


def test_no_pattern_takes_exponential_time() -> None:
    assert not Regex("(a*)*(a|aa)+$").matches("a" * 50_000 + "!")
