"""Parses regular expressions in Rust's syntax and writes them for RE2, in two forms.

The plain form is for texts in which RE2's `\\b` and `\\B`, which know ASCII only, mean what Rust's do. The marked form is for all
others: there the text has markers wherever a word begins or ends, and these are what `\\b` matches; everything else skips them.
"""

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from pgchroma.store import regex_classes
from pgchroma.store.regex_classes import Item, Operator, Set
from pgchroma.store.regex_markers import CHARACTER, MARKER, NOTHING, Markers

# Noncharacters: one for the border of a word, one for any other place.
BORDER, ELSEWHERE = "\ufdd6", "\ufdd7"
_SKIP = f"[{BORDER}{ELSEWHERE}]*"
_MARKERS = (0xFDD6, 0xFDD7)

_CONTROLS = {"a": 7, "f": 12, "t": 9, "n": 10, "r": 13, "v": 11}
_HEX_DIGITS = {"x": 2, "u": 4, "U": 8}
_REPETITION = re.compile(r"\{\s*(\d+)\s*(?:(,)\s*(\d*)\s*)?\}")
_FLAGS = re.compile(r"\(\?([a-zA-Z]*)(-[a-zA-Z]+)?([:)])")
_GROUP_NAME = re.compile(r"\(\?P?<([^\W\d][\w.\[\]]*)>")
_POSIX = re.compile(
    r"\[:\^?(alnum|alpha|ascii|blank|cntrl|digit|graph|lower|print|punct|space|upper|word|xdigit):\]"
)
_OPERATORS: tuple[Operator, ...] = ("&&", "--", "~~")
_MAX_DEPTH = 200
# Every text gets as many markers at a place as a pattern may match there one after the other.
_MAX_MARKERS = 10

# Writes a part of the pattern, in the marked form or in the plain one.
Node: TypeAlias = Callable[[bool], str]


@dataclass(frozen=True, slots=True)
class Parsed:
    """A pattern: how to write it, how many markers it may match at one place, and whether also where no border is."""

    write: Node
    markers: int
    elsewheres: bool


@dataclass(slots=True)
class _Part:
    """A part of a sequence; those of no width at one place are put in an order in which the marked form can match them."""

    node: Node
    markers: Markers = NOTHING
    order: int | None = None
    # Of a border: to ask for the same one twice is to ask for it once.
    letter: str = ""


def parse(pattern: str, check: Callable[[], None] = lambda: None) -> Parsed:
    """Return a pattern as a tree; ValueError says what is wrong with it.

    Args:
        check: called before a class is computed, which may take a tenth of a second; may raise.
    """
    parser = _Parser(pattern, check)
    whole = parser.alternation(0)
    if parser.position < len(pattern):
        raise ValueError("unopened group")
    if whole.markers.most > _MAX_MARKERS:
        raise ValueError(f"more than {_MAX_MARKERS} word boundaries in a row")
    return Parsed(whole.node, whole.markers.most, parser.elsewheres)


def _literal(code: int) -> str:
    char = chr(code)
    return char if char.isalnum() and char.isascii() else rf"\x{{{code:X}}}"


def _atom(plain: str) -> Node:
    return lambda marked: f"(?:{_SKIP}{plain})" if marked else plain


def _class(members: Set, check: Callable[[], None], *, fold: bool) -> Node:
    def write(marked: bool) -> str:
        if not marked and members.is_plain:
            return members.plain()
        check()
        mask = members.mask(fold=fold)
        if marked:
            mask[list(_MARKERS)] = False
        text = regex_classes.from_mask(mask)
        return f"(?:{_SKIP}{text})" if marked else text

    return write


class _Parser:
    def __init__(self, pattern: str, check: Callable[[], None]) -> None:
        self._pattern = pattern
        self._check = check
        self.position = 0
        self.elsewheres = False
        self._flags: frozenset[str] = frozenset()
        self._names: set[str] = set()

    def _at(self, text: str) -> bool:
        return self._pattern.startswith(text, self.position)

    def _take(self, count: int = 1) -> str:
        taken = self._pattern[self.position : self.position + count]
        if len(taken) < count:
            raise ValueError("incomplete escape sequence, reached end of pattern prematurely")
        self.position += count
        return taken

    def _skip_space(self) -> None:
        while "x" in self._flags and self.position < len(self._pattern):
            if self._at("#"):
                end = self._pattern.find("\n", self.position)
                self.position = len(self._pattern) if end < 0 else end + 1
            elif self._pattern[self.position].isspace():
                self.position += 1
            else:
                return

    def alternation(self, depth: int) -> _Part:
        """Return what stands up to the end of a group."""
        if depth > _MAX_DEPTH:
            raise ValueError(f"exceeded the maximum nesting depth of {_MAX_DEPTH}")
        branches = [self._sequence(depth)]
        while self._at("|"):
            self.position += 1
            branches.append(self._sequence(depth))
        nodes = [branch.node for branch in branches]
        return _Part(
            lambda marked: "|".join(node(marked) for node in nodes),
            functools.reduce(Markers.either, (branch.markers for branch in branches)),
        )

    def _sequence(self, depth: int) -> _Part:
        parts: list[_Part] = []
        while True:
            self._skip_space()
            if self.position == len(self._pattern) or self._at("|") or self._at(")"):
                break
            char = self._pattern[self.position]
            if char in "*+?{":
                self._repeat(parts)
            elif char == "(":
                self._group(parts, depth)
            else:
                parts.append(self._single(char))
        return _joined(parts)

    def _repeat(self, parts: list[_Part]) -> None:
        if self._at("{"):
            found = _REPETITION.match(self._pattern, self.position)
            if found is None:
                closed = self._pattern.find("}", self.position) >= 0
                missing = "repetition operator missing expression"
                bad = (
                    "repetition quantifier expects a valid decimal"
                    if closed
                    else "unclosed counted repetition"
                )
                raise ValueError(bad if parts else missing)
            low, comma, high = found.groups()
            if high and int(high) < int(low):
                raise ValueError("invalid repetition count range, the start must be <= the end")
            operator = f"{{{int(low)}{comma or ''}{int(high) if high else ''}}}"
            least = int(low)
            self.position = found.end()
        else:
            operator = self._take()
            least = int(operator == "+")
        if not parts or parts[-1].order == -1:
            raise ValueError("repetition operator missing expression")
        self._skip_space()
        if self._at("?"):
            operator += self._take()
        if parts[-1].order is not None:
            # Something without width is there as often as one likes, or need not be.
            if operator[0] in "*?" or re.match(r"\{0\D", operator):
                parts[-1] = _Part(lambda _marked: "", order=parts[-1].order)
            return
        node = parts[-1].node
        parts[-1] = _Part(lambda marked: f"(?:{node(marked)}){operator}", parts[-1].markers.repeated(least))

    def _group(self, parts: list[_Part], depth: int) -> None:
        if any(map(self._at, ("(?=", "(?!", "(?<=", "(?<!"))):
            raise ValueError("look-around, including look-ahead and look-behind, is not supported")
        before = self._flags
        opening = "(?:"
        if self._at("(?"):
            named = _GROUP_NAME.match(self._pattern, self.position)
            if named is not None:
                if named[1] in self._names:
                    raise ValueError("duplicate capture group name")
                self._names.add(named[1])
                self.position = named.end()
            else:
                flags = _FLAGS.match(self._pattern, self.position)
                if flags is None:
                    raise ValueError("unrecognized flag")
                opening = self._set_flags(flags[1], (flags[2] or "-")[1:])
                self.position = flags.end()
                if flags[3] == ")":
                    if not (flags[1] or flags[2]):
                        raise ValueError("repetition operator missing expression")
                    parts.append(_Part(lambda _marked: f"{opening})" if opening != "(?" else "", order=-1))
                    return
                opening += ":"
        else:
            self.position += 1
        inner = self.alternation(depth + 1)
        if not self._at(")"):
            raise ValueError("unclosed group")
        self.position += 1
        self._flags = before
        parts.append(_Part(lambda marked: f"{opening}{inner.node(marked)})", inner.markers))

    def _set_flags(self, on: str, off: str) -> str:
        """Note flags and return the beginning of a group of RE2's that sets those it knows."""
        for flag in on + off:
            if flag == "R" or (flag == "u" and flag in off):
                raise ValueError(f"the flag {flag} is not supported here")
            if flag not in "imsUxu":
                raise ValueError("unrecognized flag")
        if len(set(on + off)) < len(on + off):
            raise ValueError("duplicate flag")
        self._flags = (self._flags | set(on)) - set(off)
        kept_on, kept_off = ("".join(flag for flag in flags if flag in "imsU") for flags in (on, off))
        return f"(?{kept_on}{'-' + kept_off if kept_off else ''}"

    def _single(self, char: str) -> _Part:
        if char == "[":
            return self._of_class(self._bracketed(0))
        if char == "\\":
            return self._escape()
        self.position += 1
        if char == ".":
            one_line = "" if "s" in self._flags else r"\n"
            return _Part(
                lambda marked: f"(?:{_SKIP}[^{one_line}{BORDER}{ELSEWHERE}])" if marked else ".", CHARACTER
            )
        if char == "^":
            return _Part(lambda _marked: "^", order=0)
        if char == "$":
            return _Part(_atom("$"), order=2)
        return _Part(_atom(_literal(ord(char))), CHARACTER)

    def _of_class(self, members: Set) -> _Part:
        return _Part(_class(members, self._check, fold="i" in self._flags), CHARACTER)

    def _escape(self) -> _Part:
        letter = self._pattern[self.position + 1 : self.position + 2]
        if letter in ("b", "B"):
            return self._border(letter)
        if letter == "A":
            self.position += 2
            return _Part(lambda _marked: r"\A", order=0)
        if letter == "z":
            self.position += 2
            return _Part(_atom(r"\z"), order=2)
        found = self._class_escape()
        if isinstance(found, Item):
            return self._of_class(Set([Item(found.text)], found.negated))
        return _Part(_atom(_literal(found)), CHARACTER)

    def _border(self, letter: str) -> _Part:
        self.position += 2
        if self._at("{") and self._pattern[self.position + 1 : self.position + 2].isalpha():
            raise ValueError("only \\b and \\B are supported of the word boundary assertions")
        if letter == "b":
            return _Part(lambda marked: BORDER if marked else r"\b", MARKER, 1, letter)
        self.elsewheres = True
        return _Part(lambda marked: ELSEWHERE if marked else r"\B", MARKER, 1, letter)

    def _class_escape(self) -> Item | int:
        """Take an escape that may stand within brackets, too; return the item or the one code point it stands for."""
        self._take()
        letter = self._take()
        if letter.lower() in regex_classes.SHORTHANDS:
            return Item(regex_classes.SHORTHANDS[letter.lower()], negated=letter.isupper())
        if letter in "pP":
            name = self._take()
            if name == "{":
                end = self._pattern.find("}", self.position)
                if end < 0:
                    raise ValueError("invalid escape sequence: unclosed brace")
                name = self._take(end - self.position)
                self._take()
            return regex_classes.property_item(name, negated=letter == "P")
        if letter in _CONTROLS:
            return _CONTROLS[letter]
        if letter in _HEX_DIGITS:
            return self._code_point(_HEX_DIGITS[letter])
        if letter.isdigit():
            raise ValueError("backreferences are not supported")
        if letter.isascii() and not letter.isalnum() and letter not in "<>":
            return ord(letter)
        raise ValueError("unrecognized escape sequence")

    def _code_point(self, count: int) -> int:
        digits = self._take(count) if not self._at("{") else ""
        if not digits:
            end = self._pattern.find("}", self.position)
            digits = self._pattern[self.position + 1 : end] if end >= 0 else ""
            self.position = end + 1
        if not re.fullmatch(r"[0-9a-fA-F]{1,8}", digits):
            raise ValueError("invalid hexadecimal digit")
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise ValueError("hexadecimal literal is not a Unicode scalar value")
        return code

    def _bracketed(self, depth: int) -> Set:
        if depth > _MAX_DEPTH:
            raise ValueError(f"exceeded the maximum nesting depth of {_MAX_DEPTH}")
        self._take()
        negated = self._at("^")
        self.position += negated
        items: list[Item | Set] = []
        # A bracket or hyphens right after the opening one are literals.
        self._skip_space()
        while self._at("-"):
            self._take()
            items.append(Item(_literal(ord("-"))))
        if not items and self._at("]"):
            self._take()
            items.append(Item(_literal(ord("]"))))
        left: Set | None = None
        operator: Operator | None = None
        while True:
            self._skip_space()
            if self.position >= len(self._pattern):
                raise ValueError("unclosed character class")
            following = next(filter(self._at, _OPERATORS), None)
            if self._at("]") or following is not None:
                union = Set(items)
                left = union if left is None else Set([left], operator=operator, right=union)
                if following is None:
                    self._take()
                    return Set(left.items, negated, left.operator, left.right)
                self._take(2)
                items, operator = [], following
            else:
                items.append(self._member(depth))

    def _member(self, depth: int) -> Item | Set:
        if self._at("["):
            posix = _POSIX.match(self._pattern, self.position)
            if posix is None:
                return self._bracketed(depth + 1)
            self.position = posix.end()
            return Item(posix[0])
        first = self._endpoint()
        self._skip_space()
        is_range = self._at("-") and not self._at("--") and not self._at("-]")
        if not is_range:
            return first if isinstance(first, Item) else Item(_literal(first))
        self._take()
        self._skip_space()
        last = self._endpoint()
        if isinstance(first, Item) or isinstance(last, Item):
            raise ValueError("invalid range boundary, must be a literal")
        if last < first:
            raise ValueError("invalid character class range, the start must be <= the end")
        return Item(f"{_literal(first)}-{_literal(last)}")

    def _endpoint(self) -> Item | int:
        if self.position >= len(self._pattern):
            raise ValueError("unclosed character class")
        return self._class_escape() if self._at("\\") else ord(self._take())


def _joined(parts: list[_Part]) -> _Part:
    """Return a sequence, assertions at one place in an order that the marked form can match: begin, borders, end."""
    ordered: list[_Part] = []
    run: list[_Part] = []
    for part in [*parts, _Part(lambda _marked: "")]:
        if part.order is not None and part.order >= 0:
            if not part.letter or part.letter not in (other.letter for other in run):
                run.append(part)
            continue
        ordered += [*sorted(run, key=lambda entry: entry.order or 0), part]
        run = []
    return _Part(
        lambda marked: "".join(part.node(marked) for part in ordered),
        functools.reduce(Markers.then, (part.markers for part in ordered), NOTHING),
    )
