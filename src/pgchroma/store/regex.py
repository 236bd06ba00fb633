"""`$regex` in the syntax Chroma documents (Rust's), run by RE2: linear time, no look-around, no back-references.

PostgreSQL's own engine differs in `.`, `\\b`, `\\p{..}` and flags, and accepts look-ahead; RE2 agrees with Rust except that its
`\\d`, `\\w` and `\\s` know ASCII only, so these are rewritten to Unicode classes first.
"""

import re2

from pgchroma.errors import InvalidArgumentError

_UNICODE_CLASSES = {
    "d": r"\p{Nd}",
    "w": r"\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}",
    "s": r"\s\x{0B}\x{85}\p{Z}",
}
_NEGATED_INSIDE = {"D": r"\P{Nd}"}


def _to_unicode(pattern: str) -> str:
    """Return `pattern` with Perl classes widened to Unicode, inside and outside of brackets."""
    out: list[str] = []
    depth = 0
    position = 0
    while position < len(pattern):
        char = pattern[position]
        if char == "\\" and position + 1 < len(pattern):
            letter = pattern[position + 1]
            position += 2
            if letter in _UNICODE_CLASSES:
                body = _UNICODE_CLASSES[letter]
                out.append(body if depth else f"[{body}]")
            elif letter.lower() in _UNICODE_CLASSES and not depth:
                out.append(f"[^{_UNICODE_CLASSES[letter.lower()]}]")
            else:
                out.append(_NEGATED_INSIDE.get(letter, "\\" + letter) if depth else "\\" + letter)
            continue
        if char == "[" and (depth == 0 or pattern.startswith("[:", position)):
            depth += 1
        elif char == "]" and depth:
            depth -= 1
        out.append(char)
        position += 1
        if char == "[" and depth == 1:
            # A bracket right after the opening one is a literal.
            for literal in ("^", "]"):
                if pattern.startswith(literal, position):
                    out.append(literal if literal == "^" else r"\]")
                    position += 1
    return "".join(out)


class Regex:
    """A compiled pattern.

    Raises:
        InvalidArgumentError: the pattern is not valid; the message starts as Chroma's does.
    """

    def __init__(self, pattern: str) -> None:
        options = re2.Options()
        options.log_errors = False
        try:
            self._compiled = re2.compile(_to_unicode(pattern), options)
        except re2.error as error:
            reason = error.args[0]
            text = reason.decode() if isinstance(reason, bytes) else str(reason)
            raise InvalidArgumentError(
                f"Regex syntax errror: regex parse error:\n    {pattern}\nerror: {text}"
            ) from error

    def matches(self, document: str) -> bool:
        """Whether the pattern is found anywhere in `document`."""
        return self._compiled.search(document) is not None
