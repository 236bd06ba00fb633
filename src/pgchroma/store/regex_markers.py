"""How many markers of word borders a regular expression may match at one place, one after the other.

In the marked form each `\\b` takes a marker, so that a text needs as many of them at every place as a pattern may ask for there.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Markers:
    """How many markers a part of a pattern matches at one place, at most.

    Attributes:
        before: ahead of its first character.
        after: behind its last character.
        within: at any place between two of its characters.
        empty: where it matches no character; None where it always matches one.
    """

    before: int = 0
    after: int = 0
    within: int = 0
    empty: int | None = None

    @property
    def most(self) -> int:
        """Of all places."""
        return max(self.before, self.after, self.within, self.empty or 0)

    def then(self, other: "Markers") -> "Markers":
        """Return those of this part with another behind it."""
        return Markers(
            max(self.before, 0 if self.empty is None else self.empty + other.before),
            max(other.after, 0 if other.empty is None else other.empty + self.after),
            max(self.within, other.within, self.after + other.before),
            None if self.empty is None or other.empty is None else self.empty + other.empty,
        )

    def either(self, other: "Markers") -> "Markers":
        """Return those of this part or another."""
        empty = [found for found in (self.empty, other.empty) if found is not None]
        return Markers(
            max(self.before, other.before),
            max(self.after, other.after),
            max(self.within, other.within),
            max(empty, default=None),
        )

    def repeated(self, least: int) -> "Markers":
        """Return those of this part at least so many times: more often than that it need never match without a character."""
        idle = least * (self.empty or 0)
        return Markers(
            self.before + idle,
            self.after + idle,
            max(self.within, self.after + idle + self.before),
            idle if self.empty is not None or not least else None,
        )


NOTHING = Markers(empty=0)
CHARACTER = Markers()
MARKER = Markers(empty=1)
