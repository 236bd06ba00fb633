"""Character classes of Rust's regular expressions, written for RE2: Unicode shorthands, properties, set operations."""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import re2
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]
Operator: TypeAlias = Literal["&&", "--", "~~"]

# What RE2 has in ASCII only. Beside letters, marks, digits and connectors, \w holds circled letters and the two joiners.
SHORTHANDS = {
    "d": r"\p{Nd}",
    "w": (
        r"\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{200C}\x{200D}\x{24B6}-\x{24E9}"
        r"\x{1F130}-\x{1F149}\x{1F150}-\x{1F169}\x{1F170}-\x{1F189}"
    ),
    "s": r"\s\x{0B}\x{85}\p{Z}",
}
_CODE_POINTS = 0x110000
_SURROGATES = slice(0xD800, 0xE000)
# Long names of general categories; the short ones RE2 knows itself.
_CATEGORIES = {
    "letter": "L", "casedletter": "L&", "uppercaseletter": "Lu", "lowercaseletter": "Ll", "titlecaseletter": "Lt",
    "modifierletter": "Lm", "otherletter": "Lo", "mark": "M", "combiningmark": "M", "nonspacingmark": "Mn",
    "spacingmark": "Mc", "enclosingmark": "Me", "number": "N", "decimalnumber": "Nd", "digit": "Nd",
    "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "punct": "P", "connectorpunctuation": "Pc",
    "dashpunctuation": "Pd", "openpunctuation": "Ps", "closepunctuation": "Pe", "initialpunctuation": "Pi",
    "finalpunctuation": "Pf", "otherpunctuation": "Po", "symbol": "S", "mathsymbol": "Sm", "currencysymbol": "Sc",
    "modifiersymbol": "Sk", "othersymbol": "So", "separator": "Z", "spaceseparator": "Zs", "lineseparator": "Zl",
    "paragraphseparator": "Zp", "other": "C", "control": "Cc", "cntrl": "Cc", "format": "Cf", "privateuse": "Co",
}  # fmt: skip
_RANGE = re.compile(r"(?:\\x\{([0-9A-F]+)\}|([A-Za-z0-9]))(?:-(?:\\x\{([0-9A-F]+)\}|([A-Za-z0-9])))?")
_OWNERS = ("", "sc", "script", "gc", "generalcategory")


@dataclass(frozen=True, slots=True)
class Item:
    """A part of a class that RE2 understands: `text` stands between brackets, `negated` means all but it."""

    text: str
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Set:
    """A class: the union of its items, or a set operation between two of those, or all but that."""

    items: Sequence["Item | Set"]
    negated: bool = False
    operator: Operator | None = None
    right: "Set | None" = None

    @property
    def is_plain(self) -> bool:
        """Whether RE2 can be given the class as it is."""
        return self.operator is None and all(
            isinstance(item, Item) and not item.negated for item in self.items
        )

    def plain(self) -> str:
        """Return a plain class in RE2's syntax."""
        return f"[{'^' if self.negated else ''}{''.join(item.text for item in self.items if isinstance(item, Item))}]"

    def mask(self, *, fold: bool) -> Mask:
        """Return which code points the class holds; with `fold`, upper and lower case are one."""
        found = np.zeros(_CODE_POINTS, dtype=bool)
        for item in self.items:
            part = item.mask(fold=fold) if isinstance(item, Set) else _members(item.text, fold)
            found |= ~part if isinstance(item, Item) and item.negated else part
        if self.right is not None:
            right = self.right.mask(fold=fold)
            if self.operator == "&&":
                found &= right
            elif self.operator == "--":
                found &= ~right
            else:
                found ^= right
        found = ~found if self.negated else found
        found[_SURROGATES] = False
        return found


def from_mask(mask: Mask) -> str:
    """Return a class in RE2's syntax that holds what a mask does; ValueError for none at all, which upstream refuses, too."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    if not len(edges):
        raise ValueError("the class matches nothing")
    spans = zip(edges[::2], edges[1::2], strict=True)
    ranges = [rf"\x{{{low:X}}}-\x{{{high - 1:X}}}" for low, high in spans]
    return f"[{''.join(ranges)}]"


def _members(text: str, fold: bool) -> Mask:
    """Return which code points a part of a class holds."""
    span = None if fold else _RANGE.fullmatch(text)
    if span is None:
        return _enumerate(text, fold)
    low, high = (
        int(code, 16) if code else ord(char or "\0") for code, char in (span.groups()[:2], span.groups()[2:])
    )
    found = np.zeros(_CODE_POINTS, dtype=bool)
    found[low : max(low, high) + 1] = True
    return found


@functools.cache
def _everything() -> str:
    """Return all code points in order, the surrogates, which no text has, left out."""
    return "".join(map(chr, (*range(0xD800), *range(0xE000, _CODE_POINTS))))


@functools.lru_cache(maxsize=32)
def _enumerate(text: str, fold: bool) -> Mask:
    """Return which code points RE2 finds in a class; a tenth of a second, so that the last ones are kept."""
    options = re2.Options()
    options.log_errors = False
    options.case_sensitive = not fold
    found = np.zeros(_CODE_POINTS, dtype=bool)
    gap = _SURROGATES.stop - _SURROGATES.start
    for match in re2.compile(f"[{text}]+", options).finditer(_everything()):
        start, end = match.span()
        # Positions behind the surrogates are short of them.
        if end <= _SURROGATES.start:
            found[start:end] = True
        elif start >= _SURROGATES.start:
            found[start + gap : end + gap] = True
        else:
            found[start : _SURROGATES.start] = True
            found[_SURROGATES.stop : end + gap] = True
    found.setflags(write=False)
    return found


def property_item(name: str, *, negated: bool) -> Item:
    """Return the item of `\\p{name}`; ValueError where RE2 knows no such property."""
    if name.startswith("^"):
        return property_item(name[1:], negated=not negated)
    owner, separator, value = re.sub(r"[\s_-]", "", name).partition("!=" if "!=" in name else "=")
    if separator == "" and ":" in owner:
        owner, separator, value = owner.partition(":")
    negated ^= separator == "!="
    owner, value = (owner.lower(), value) if separator else ("", owner)
    if owner not in _OWNERS:
        raise ValueError("Unicode property not found")
    if value.lower() == "any":
        return Item(r"\x{0}-\x{10FFFF}", negated)
    if value.lower() == "ascii":
        return Item(r"\x{0}-\x{7F}", negated)
    known = _CATEGORIES.get(value.lower())
    if known == "L&":
        return Item(r"\p{Lu}\p{Ll}\p{Lt}", negated)
    words = [word.capitalize() for word in re.split(r"[\s_-]+", name.rpartition("=")[2].rpartition(":")[2])]
    for candidate in filter(
        None, (known, value if len(value) <= 2 else None, value.capitalize(), "_".join(words))
    ):
        text = rf"\p{{{candidate}}}"
        if _is_known(text):
            return Item(text, negated)
    raise ValueError("Unicode property not found")


@functools.lru_cache(maxsize=256)
def _is_known(text: str) -> bool:
    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(text, options)
    except re2.error:
        return False
    return True
