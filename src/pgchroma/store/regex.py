"""`$regex` in the syntax Chroma documents (Rust's), run by RE2: linear time, no look-around, no back-references.

PostgreSQL's own engine differs in `.`, `\\b`, `\\p{..}` and flags, and accepts look-ahead; RE2 agrees with Rust except that its `\\d`,
`\\w`, `\\s` and `\\b` know ASCII only and that it has neither set operations within brackets nor `(?x)`. So the pattern is parsed and
written anew (regex_syntax.py). Refused: `(?R)`, `(?-u)`, `\\b{start}` and its like.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import re2

from pgchroma.errors import InvalidArgumentError
from pgchroma.store import regex_classes, regex_syntax

_CODE_POINT = "<u4"


@functools.cache
def _words() -> regex_classes.Mask:
    """Return which code points words are made of."""
    return regex_classes.Set([regex_classes.Item(regex_classes.SHORTHANDS["w"])]).mask(fold=False)


class Regex:
    """A compiled pattern.

    Raises:
        InvalidArgumentError: the pattern is not valid; the message starts as Chroma's does.
    """

    def __init__(self, pattern: str, check: Callable[[], None] = lambda: None) -> None:
        """Compile a pattern.

        Args:
            check: called before whatever takes long; may raise.
        """
        self._pattern = pattern
        try:
            self._parsed = regex_syntax.parse(pattern, check)
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

    @property
    def size(self) -> int:
        """Instructions that RE2 has made of the pattern."""
        return int(self._plain.programsize)

    @property
    def is_marked(self) -> bool:
        """Whether documents that are not ASCII are rewritten for the pattern, which takes longer than to run it."""
        return self._parsed.markers > 0

    def matches(self, document: str) -> bool:
        """Whether the pattern is found anywhere in `document`."""
        if not self._parsed.markers or document.isascii():
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
        codes = np.frombuffer(document.encode("utf-32-le", "surrogatepass"), _CODE_POINT)
        is_word = _words()[codes]
        # A place before each character and one at the end.
        is_border = np.zeros(len(codes) + 1, bool)
        is_border[:-1] = is_word
        is_border[1:] ^= is_word
        count = self._parsed.markers
        if self._parsed.elsewheres:
            markers = np.where(is_border, ord(regex_syntax.BORDER), ord(regex_syntax.ELSEWHERE))
            rows = np.repeat(markers[:, None].astype(_CODE_POINT), count + 1, axis=1)
            rows[:-1, count] = codes
            marked = rows.ravel()[:-1]
        else:
            marked = np.full(len(codes) + count * int(is_border.sum()), ord(regex_syntax.BORDER), _CODE_POINT)
            marked[np.arange(len(codes)) + count * np.cumsum(is_border)[:-1]] = codes
        return marked.tobytes().decode("utf-32-le", "surrogatepass")


def _compiled(pattern: str) -> Any:  # noqa: ANN401 - RE2 comes without types
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
