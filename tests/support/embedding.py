"""A small deterministic text embedding, so that fixtures and the demo need no model and no download.

Words and their stems' letter groups are hashed into a fixed number of signed buckets (feature hashing) and the result is scaled
to unit length. Texts that share words come out near each other: enough to ask a handbook a question. Standard library only,
because it also runs inside the virtual environments of old chromadb versions.
"""

import hashlib
import math
import re
import struct

DIMENSION = 384

_WORD = re.compile(r"\w+", re.UNICODE)
_COMMON = frozenset(
    [
        "a",
        "about",
        "after",
        "all",
        "an",
        "and",
        "any",
        "are",
        "as",
        "at",
        "be",
        "because",
        "been",
        "before",
        "but",
        "by",
        "can",
        "do",
        "does",
        "for",
        "from",
        "had",
        "has",
        "have",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "may",
        "more",
        "no",
        "nor",
        "not",
        "of",
        "on",
        "one",
        "only",
        "or",
        "our",
        "out",
        "so",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "they",
        "this",
        "to",
        "was",
        "we",
        "what",
        "when",
        "where",
        "which",
        "while",
        "who",
        "will",
        "with",
        "without",
        "you",
        "your",
    ]
)


def float32(value: float) -> float:
    """Return the nearest float32, as a Python float."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _features(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for word in _WORD.findall(text.lower()):
        if word in _COMMON:
            continue
        weights[word] = weights.get(word, 0.0) + 1.0
        # The first letters stand for the stem, so that backup and backups are neighbours.
        for size in (4, 5, 6):
            if len(word) >= size:
                stem = f"{word[:size]}*"
                weights[stem] = weights.get(stem, 0.0) + 0.5
    return weights


def embed(text: str, dimension: int = DIMENSION) -> list[float]:
    """Return the embedding of a text: `dimension` float32 values of unit length."""
    vector = [0.0] * dimension
    for feature, weight in sorted(_features(text).items()):
        digest = hashlib.blake2b(feature.encode(), digest_size=8).digest()
        number = int.from_bytes(digest, "little")
        vector[number % dimension] += weight if number >> 63 else -weight
    length = math.sqrt(sum(value * value for value in vector))
    if length == 0.0:
        # A text without any word of its own still needs a place.
        return [1.0, *([0.0] * (dimension - 1))]
    return [float32(value / length) for value in vector]
