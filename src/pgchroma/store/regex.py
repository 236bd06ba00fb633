"""`$regex` in the syntax Chroma documents (Rust's), run by RE2: linear time, no look-around, no back-references.

PostgreSQL's own engine differs in `.`, `\\b`, `\\p{..}` and flags, and accepts look-ahead; RE2 agrees with Rust except that its `\\d`,
`\\w`, `\\s` and `\\b` know ASCII only and that it has neither set operations within brackets nor `(?x)`. So the pattern is parsed and
written anew (regex_syntax.py). Refused: `(?R)`, `(?-u)`, `\\b{start}` and its like.
"""

import functools
import itertools
from typing import Any

import re2

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import regex_classes, regex_syntax

_WORD = f"[{regex_classes.SHORTHANDS['w']}]+"


@functools.cache
def _words() -> Any:  # noqa: ANN401 - RE2 comes without types
    return re2.compile(_WORD)


class Regex:
    """A compiled pattern.

    Raises:
        InvalidArgumentError: the pattern is not valid; the message starts as Chroma's does.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        try:
            self._parsed = regex_syntax.parse(pattern)
            self._plain = _compiled(self._parsed.write(False))
        except (re2.error, ValueError) as error:
            raise self._refused(error) from error
        self._marked: Any = None

    def _refused(self, error: Exception) -> InvalidArgumentError:
        reason = error.args[0]
        text = reason.decode() if isinstance(reason, bytes) else str(reason)
        return InvalidArgumentError(
            f"Regex syntax errror: regex parse error:\n    {self._pattern}\nerror: {text}"
        )

    def matches(self, document: str) -> bool:
        """Whether the pattern is found anywhere in `document`."""
        if not (self._parsed.borders or self._parsed.elsewheres) or document.isascii():
            return self._plain.search(document) is not None
        if regex_syntax.BORDER in document or regex_syntax.ELSEWHERE in document:
            # Noncharacters that no text should have; there, borders are those of ASCII words.
            return self._plain.search(document) is not None
        if self._marked is None:
            try:
                self._marked = _compiled(self._parsed.write(True))
            except (re2.error, ValueError) as error:
                raise self._refused(error) from error
        return self._marked.search(self._with_markers(document)) is not None

    def _with_markers(self, document: str) -> str:
        """Return a text with as many markers at each place as the pattern may ask for in a row."""
        borders = {place for match in _words().finditer(document) for place in match.span()}
        border = regex_syntax.BORDER * (self._parsed.borders + self._parsed.elsewheres)
        elsewhere = regex_syntax.ELSEWHERE * len(border) if self._parsed.elsewheres else ""
        if not elsewhere:
            places = [0, *sorted(borders), len(document)]
            pieces = [document[start:end] for start, end in itertools.pairwise(places)]
            # Every border stands between two pieces; the ends of the text may be borders, too.
            return border.join(pieces)
        return "".join(
            (border if place in borders else elsewhere) + document[place : place + 1]
            for place in range(len(document) + 1)
        )


def _compiled(pattern: str) -> Any:  # noqa: ANN401 - RE2 comes without types
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
