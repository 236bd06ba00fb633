"""`$regex` in the syntax Chroma documents (Rust's), run by RE2: linear time, no look-around, no back-references.

PostgreSQL's own engine differs in `.`, `\\b`, `\\p{..}` and flags, and accepts look-ahead; RE2 agrees with Rust except that its
`\\d`, `\\w` and `\\s` know ASCII only, so these are rewritten to Unicode classes first. What RE2 would silently read in another way
is refused: set operations (`[\\p{L}--a]`), classes within classes, `\\Q..\\E`, `\\C`, loose braces. Left to itself: `\\b`, and `\\W`
and `\\S` inside of brackets, stay ASCII; `(?x)` is an error.
"""

import re

import re2

from pgchroma.errors import InvalidArgumentError

_UNICODE_CLASSES = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}",
    "s": r"\s\x{0B}\x{85}\p{Z}",
}
_NEGATED_INSIDE = {"D": r"\P{Nd}"}
# RE2 knows these escapes, Rust does not.
_FOREIGN_ESCAPES = "QEC"
_HEX_DIGITS = {"u": 4, "U": 8}
_SET_OPERATORS = ("--", "&&", "~~")
_REPETITION = re.compile(r"\{\d+(,\d*)?\}")


class _Translator:
    """Turns a pattern of Rust's into one that RE2 understands alike; ValueError for what it would read differently."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._position = 0
        self._in_class = False

    def translate(self) -> str:
        out = []
        while self._position < len(self._pattern):
            out.append(self._escape() if self._at("\\") else self._character())
        return "".join(out)

    def _at(self, text: str) -> bool:
        return self._pattern.startswith(text, self._position)

    def _take(self, count: int) -> str:
        taken = self._pattern[self._position : self._position + count]
        self._position += count
        return taken

    def _escape(self) -> str:
        escape = self._take(2)
        letter = escape[1:]
        if letter and letter in _FOREIGN_ESCAPES:
            raise ValueError(f"unrecognized escape sequence: {escape}")
        if letter in _HEX_DIGITS:
            return r"\x" if self._at("{") else rf"\x{{{self._hex_digits(_HEX_DIGITS[letter])}}}"
        if letter in ("p", "P", "x") and self._at("{"):
            # As it is, lest the braces be taken for a repetition.
            end = self._pattern.find("}", self._position)
            return escape + self._take(end + 1 - self._position if end >= 0 else 1)
        if letter in _UNICODE_CLASSES:
            body = _UNICODE_CLASSES[letter]
            return body if self._in_class else f"[{body}]"
        if self._in_class:
            return _NEGATED_INSIDE.get(letter, escape)
        return f"[^{_UNICODE_CLASSES[letter.lower()]}]" if letter.lower() in _UNICODE_CLASSES else escape

    def _hex_digits(self, count: int) -> str:
        digits = self._take(count)
        if len(digits) < count:
            raise ValueError("incomplete escape sequence, reached end of pattern prematurely")
        return digits

    def _character(self) -> str:
        if not self._in_class:
            if self._at("{"):
                repetition = _REPETITION.match(self._pattern, self._position)
                if repetition is None:
                    raise ValueError("repetition quantifier expects a valid decimal")
                return self._take(len(repetition.group()))
            return self._open_class() if self._at("[") else self._take(1)
        if self._at("[:"):
            end = self._pattern.find(":]", self._position)
            return self._take(end + 2 - self._position if end >= 0 else 1)
        if self._at("[") or any(map(self._at, _SET_OPERATORS)):
            raise ValueError("set operations and classes within classes are not supported")
        self._in_class = not self._at("]")
        return self._take(1)

    def _open_class(self) -> str:
        self._in_class = True
        out = self._take(1)
        if self._at("^"):
            out += self._take(1)
        # A bracket or hyphen right after the opening one is a literal.
        if self._at("]"):
            self._take(1)
            out += r"\]"
        while self._at("-"):
            self._take(1)
            out += r"\-"
        return out


class Regex:
    """A compiled pattern.

    Raises:
        InvalidArgumentError: the pattern is not valid; the message starts as Chroma's does.
    """

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(_Translator(pattern).translate(), options)
        except (re2.error, ValueError) as error:
            reason = error.args[0]
            text = reason.decode() if isinstance(reason, bytes) else str(reason)
            raise InvalidArgumentError(
                f"Regex syntax errror: regex parse error:\n    {pattern}\nerror: {text}"
            ) from error

    def matches(self, document: str) -> bool:
        """Whether the pattern is found anywhere in `document`."""
        return self._compiled.search(document) is not None
