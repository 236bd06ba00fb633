"""Carries U+0000 through PostgreSQL, whose text and jsonb types refuse it.

U+0000 and six Unicode noncharacters are written as two-character words over those noncharacters. The first character of a
word is always one of `_FIRST`, the second one of `_SECOND`, and the sets are disjoint, so no word can be found across the
border of two others: a substring search over encoded text gives the same answer as over the original.
"""

import hashlib
import json
import re
from collections.abc import Iterable

_FIRST = "\ufdd0\ufdd1"
_SECOND = "\ufdd2\ufdd3\ufdd4\ufdd5"
_WORDS = [first + second for first in _FIRST for second in _SECOND]
_ENCODE = {ord(char): word for char, word in zip("\x00" + _FIRST + _SECOND, _WORDS, strict=False)}
_DECODE = {word: chr(code) for code, word in _ENCODE.items()}
# What the lone halves of surrogate pairs are, which no UTF-8 text can hold.
_SURROGATE = re.compile("[\ud800-\udfff]")
# No encoded text starts so.
_ESCAPED = _SECOND[1]
_SPECIAL = re.compile(f"[\x00{_FIRST}{_SECOND}]")
_WORD = re.compile(f"[{_FIRST}][{_SECOND}]")

# What appears in UTF-8 bytes of encoded text, and only there: U+FDD0 to U+FDD5 all start so.
SPECIAL_UTF8 = b"\xef\xb7\x90", b"\xef\xb7\x91"

# How the UTF-8 of U+FDC0 to U+FDFF begins, our noncharacters among them.
_LEADING_UTF8 = b"\xef\xb7"

# The largest id, in bytes, that is its own key; a B-tree entry must stay below about 2,700 bytes.
LONGEST_KEY_BYTES = 1024


def encode(text: str) -> str:
    """Return `text` in the form PostgreSQL can hold; the same object when nothing needs encoding."""
    return text.translate(_ENCODE) if _SPECIAL.search(text) else text


def encode_utf8(text: str) -> bytes:
    """Return `encode(text)` as UTF-8."""
    data = text.encode()
    return encode(text).encode() if b"\x00" in data or _LEADING_UTF8 in data else data


def may_need_encoding(json: bytes) -> bool:
    """Whether any string in JSON text may need `encode`; never False where one does."""
    return b"\\u0000" in json or _LEADING_UTF8 in json


def decode(text: str) -> str:
    """Return what `encode` was given."""
    if _FIRST[0] in text or _FIRST[1] in text:
        return _WORD.sub(lambda match: _DECODE[match.group()], text)
    return text


def are_plain(texts: Iterable[str | None]) -> bool:
    """Whether none of many texts from PostgreSQL needs `decode`, as far as that is seen at a glance."""
    return all(map(str.isascii, filter(None, texts)))


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold a text: Python's, and JSON's, may hold lone halves of surrogate pairs."""
    return text.isascii() or _SURROGATE.search(text) is None


def repaired(text: str) -> str:
    """Return a text in which U+FFFD stands for each lone half of a surrogate pair."""
    return _SURROGATE.sub("\ufffd", text)


def encode_any(text: str) -> str:
    """Return any text in a form PostgreSQL can hold: one that is no Unicode is escaped as JSON."""
    return encode(text) if is_unicode(text) else _ESCAPED + json.dumps(text)


def decode_any(text: str) -> str:
    """Return what `encode_any` was given."""
    return str(json.loads(text[1:])) if text.startswith(_ESCAPED) else decode(text)


def has_special(data: bytes) -> bool:
    """Whether UTF-8 `data` read from PostgreSQL holds encoded words."""
    return SPECIAL_UTF8[0] in data or SPECIAL_UTF8[1] in data


def id_key(record_id: str) -> tuple[str, str | None]:
    """Return (key, full): what the unique index holds, and the whole id when it is too long to be its own key.

    The key of a long id starts with a character no encoded text can start with, so it never equals a short id.
    """
    encoded = encode(record_id)
    if len(encoded) * 4 <= LONGEST_KEY_BYTES:
        return encoded, None
    data = encoded.encode()
    if len(data) <= LONGEST_KEY_BYTES:
        return encoded, None
    return _SECOND[0] + hashlib.sha256(data).hexdigest(), encoded
