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
        (r"^a**$", ["", "aaa"], ["b"]),
        (r"^a{2}{3}$", ["aaaaaa"], ["aaaaa"]),
        # Borders of words are those of Unicode.
        (r"\bcafé\b", ["ein café hier", "café"], ["cafés", "xcafé"]),
        (r"é\b", ["café!", "é"], ["éa", "éß"]),
        (r"\bß\b", ["a ß b"], ["aß", "ßa"]),
        (r"^\b漢", ["漢字"], ["a漢"]),
        (r"字\b$", ["漢字"], ["字!"]),
        (r"\b(cat|dog\b)\b", ["ü cat", "ü dog"], ["ü cats"]),
        (r"\bé{1}\b{2}(?:\b)+", ["é"], ["éa"]),
        (r"\b*é\B{0,1}$", ["aé"], ["éa"]),
        (r"\Bé", ["café"], ["é", "x é"]),
        (r"é\B", ["éa"], ["é", "é x"]),
        (r"ü\B.\b", ["üx!"], ["ü x"]),
        (r"(?m)^\bü\b$", ["a\nü\nb"], ["a\nüb"]),
        (r"\b[^a]ü", [" bü"], ["aü"]),
        (r"\b.ü", ["xü"], [" ü"]),
        (r"(?i)\bÉ", ["ein é"], ["xé"]),
        (r"^[\W]\b", ["!é"], ["éé"]),
        # Borders that are asked for more than once at one place.
        (r"(?:\b){3}é(?:\b){2}", ["é"], ["éa", "aé"]),
        (r"(?:x\b|\bé)(?:\b)\b", ["é", "üx"], ["xü", "éa"]),
        (r"^(?:\b|é){3}$", ["é", "ééé"], ["!é"]),
        (r"(?:(?:\b){2}é\b ){3}", ["é é é "], ["é éé é "]),
        (r"é(?:\B|\b){5}ü", ["éü"], ["é ü"]),
        (r"(?:\B\B)+\Bé", ["üé"], ["é"]),
        (r"(?:\bé|\b)*$", ["é", "ü"], []),
        # Set operations, classes within classes.
        (r"^[\p{L}--a]+$", ["bä"], ["a"]),
        (r"^[a-z&&[^aeiou]]+$", ["xyz"], ["xyza"]),
        (r"^[a-d~~c-f]+$", ["abef"], ["c"]),
        (r"^[[a-c][x-z]]+$", ["axc"], ["m"]),
        (r"^[^[a-c]--b]$", ["b", "x"], ["a"]),
        (r"^[\w--\p{Greek}&&[^0-9]]+$", ["abä"], ["α", "1"]),
        (r"(?i)^[\p{L}--b]+$", ["aC"], ["B"]),
        (r"^[^\W\d]+$", ["aä_"], ["1", "!"]),
        (r"^[\S]+$", ["ä"], ["\u00a0"]),
        (r"^[^\u{0}-\u{7f}]$", ["ä", "🙂"], ["a"]),
        # White space and comments in patterns.
        ("(?x) a \\ b # b\n c", ["a bc"], ["abc", "a b c"]),
        (r"(?x: a b ) c", ["ab c"], ["abc"]),
        (r"(?x)[ a b ]{1,2}\ ", ["ab "], ["  "]),
        (r"(?x-i)a", ["a"], ["A"]),
        # Properties by their long names.
        (r"^\p{Letter}\p{gc=Lu}\p{Script=Greek}\p{^L}$", ["aAα1"], ["aaα1"]),
        (r"^\p{Old_Italic}\p{sc=Cyrillic}\p{Uppercase_Letter}$", ["\U00010300жA"], ["aaa"]),
        (r"^\p{any}\p{ascii}$", ["äa"], ["ää"]),
    ],
)
def test_patterns_find_what_rust_finds(pattern: str, found: list[str], not_found: list[str]) -> None:
    regex = Regex(pattern)
    assert [text for text in found if not regex.matches(text)] == []
    assert [text for text in not_found if regex.matches(text)] == []


@pytest.mark.parametrize(
    "pattern",
    ["(", ")", "[", "[z-a]", "*", "|*", "(?i)*", "(?R)$", "(?-u)a", "(?ii)a", r"\b{start}", "[\\d-z]", "(?P<n>a)(?<n>b)", "(?", "(?=a)", "(?!a)", "(?<=a)b", "(?<!a)b", r"(a)\1", "\\", r"\p{Nope}", r"\y",
     "a{2,1}", "a{2,", "a{x}", "{", r"\Qa\E", r"\C", "[a&&b]", "[a[b]", r"[^\s\S\W]", r"\u{zz}", r"\u{d800}", r"\x{110000}", "(" * 1000, r"\u00"],
)  # fmt: skip
def test_what_rust_refuses_or_re2_would_misread_is_refused(pattern: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"^Regex syntax errror: regex parse error:\n"):
        Regex(pattern)


def test_borders_in_a_row_are_one_and_text_does_not_grow_with_them() -> None:
    regex = Regex(r"\b" * 1_000 + "é" + r"\b" * 1_000)
    assert regex.matches("ein é")
    assert not regex.matches("einé")
    assert len(regex._with_markers("ein é")) == len("ein é") + 4
    for pattern in (r"(?:\b){11}", r"(?:(?:\b){5}){5}x", r"(?:\B|x){1000}"):
        with pytest.raises(InvalidArgumentError, match="more than 10 word boundaries in a row"):
            Regex(pattern)


def test_no_pattern_takes_exponential_time() -> None:
    assert not Regex("(a*)*(a|aa)+$").matches("a" * 50_000 + "!")
