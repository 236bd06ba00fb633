"""One number for a record and one for a collection, the same on both sides exactly when nothing is lost, types included.

A record's digest is SHA-256 over the JSON text of (id, document, uri), that of the metadata, and the bytes of the vector. JSON
tells the types apart as they were given: 3 is an int, 3.0 a float, true a bool, "3" a string, and each float is written in the
one shortest way that reads back to the same bits, -0.0 included. Keys are sorted, since neither side keeps their order. What
the fast encoder cannot write (NaN, infinity, integers beyond 64 bits, texts that are no Unicode) is written by Python's, which
depends on nothing but the value either. A collection's digest is SHA-256 over its records' digests in insertion order.
"""

import hashlib
import json
from collections.abc import Iterable

import numpy as np
import orjson

from pgchroma.types import Record

# One encoder for all: building it anew costs more than a record's encoding.
_encode_slowly = json.JSONEncoder(
    ensure_ascii=True, sort_keys=True, separators=(",", ":"), allow_nan=True
).encode
_SORTED = orjson.OPT_SORT_KEYS


def _encode(value: object) -> bytes:
    try:
        data = orjson.dumps(value, option=_SORTED)
    except orjson.JSONEncodeError:
        return _encode_slowly(value).encode("ascii")
    # The fast encoder writes NaN and infinity as null; metadata hold no null.
    return _encode_slowly(value).encode("ascii") if b"null" in data else data


def record_digest(record: Record) -> bytes:
    """Return the 32 bytes that stand for a record's id, document, uri, metadata and vector; not for its place."""
    try:
        texts = orjson.dumps((record.id, record.document, record.uri))
    except orjson.JSONEncodeError:
        texts = _encode_slowly((record.id, record.document, record.uri)).encode("ascii")
    metadata = _encode(record.metadata) if record.metadata else b""
    vector = b"" if record.embedding is None else np.ascontiguousarray(record.embedding, "<f4").tobytes()
    return hashlib.sha256(
        b"".join((len(texts).to_bytes(8, "big"), texts, len(metadata).to_bytes(8, "big"), metadata, vector))
    ).digest()


class CollectionDigest:
    """Adds up records in insertion order."""

    def __init__(self) -> None:
        self._all = hashlib.sha256()
        self.count = 0

    def add(self, digests: Iterable[bytes]) -> None:
        """Take in the digests of the next records."""
        for digest in digests:
            self._all.update(digest)
            self.count += 1

    def hexdigest(self) -> str:
        """Return the digest so far, in hex."""
        return self._all.hexdigest()


def differing_parts(source: Record, target: Record) -> list[str]:
    """Return which parts of two records differ, in words."""
    parts = []
    for part in ("id", "document", "uri"):
        if getattr(source, part) != getattr(target, part):
            parts.append(part)
    if _encode(source.metadata or None) != _encode(target.metadata or None):
        left, right = source.metadata or {}, target.metadata or {}
        keys = [
            key
            for key in sorted(left.keys() | right.keys())
            if key not in left or key not in right or _encode(left[key]) != _encode(right[key])
        ]
        parts.append("metadata: " + ", ".join(keys))
    one, other = source.embedding, target.embedding
    if (one is None) != (other is None) or (
        one is not None and other is not None and one.tobytes() != other.tobytes()
    ):
        parts.append("embedding")
    return parts
