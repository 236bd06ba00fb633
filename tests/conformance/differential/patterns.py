"""Random regular expressions, valid and invalid, and texts to search by them."""

import random

TEXTS = (
    "", "a", "ab", "café au lait", "ein Äpfel, zwei", "été été", "x\ny", "ÄÖ ß straße", "foo-bar_baz 12 ٣", "漢字 kanji", "a b  c", "αβγ Ωmega",
    "e\u0301a", "!é!", "Ⓐ\u200dx", "line\r\nend", "ABC abc", "\tü\t", "no", "ǅ ſ K", "aé", "éa", "a.b+c*",
)  # fmt: skip
_ATOMS = (
    "a", "b", "é", "ß", "ü", ".", r"\w", r"\W", r"\d", r"\D", r"\s", r"\S", r"\b", r"\B", "^", "$", r"\A", r"\z", r"\p{L}", r"\P{L}", r"\p{Lu}",
    r"\p{Greek}", r"\pN", "[a-c]", "[^a-c]", "[é-ü]", r"[\w]", r"[^\w]", r"[\W\d]", r"[\p{L}--a]", "[a-z&&[^b]]", "[a-e~~c-g]", "[[:alpha:]]",
    "[[:^alpha:]]", "[^[:space:]]", "[]x]", "[-a]", "[a-]", r"\x61", r"\u00e9", r"\.", r"\ ", "漢", "Ⓐ", " ", r"\n", r"[\s\S]", "[--a]", "[a--b]",
    "[^a&&é]", r"\p{Letter}", "k", "s", r"\-", "_", r"\_", r"[\-]", r"[\]]", "]", "}", "{", "[^]", "(?i)", "(?s)", "(?m)", "(?-i)", "(?x)", "#", "(?U)",
)  # fmt: skip
_OPERATORS = ("", "", "", "", "", "*", "+", "?", "*?", "{2}", "{1,}", "{0,2}", "{,2}", "**", "+*")
_GROUPS = ("(", "(?:", "(?i:", "(?P<n>", "(?s-i:", "(?x:")


def pattern(source: random.Random, depth: int = 0) -> str:
    """Return the next pattern of a source."""
    choice = source.random()
    if depth < 3 and choice < 0.15:
        return f"{source.choice(_GROUPS)}{pattern(source, depth + 1)}){source.choice(_OPERATORS)}"
    if depth < 3 and choice < 0.22:
        return f"{pattern(source, depth + 1)}|{pattern(source, depth + 1)}"
    parts = [source.choice(_ATOMS) + source.choice(_OPERATORS) for _ in range(source.randint(1, 3))]
    return "".join(parts) + (pattern(source, depth + 1) if depth < 2 and choice > 0.8 else "")
