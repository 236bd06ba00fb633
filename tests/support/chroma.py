"""The committed Chroma folders, and what they must yield."""

import json
import lzma
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pgchroma.migrate.digest import differing_parts
from pgchroma.types import Record

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
VERSIONS = ("1.5.9", "1.0.21", "0.6.3", "0.5.23", "0.4.24")
# Where the version makes no difference but the age of the layout does.
EXTREMES = ("1.5.9", "0.4.24")

# Chroma keeps cosine vectors divided by their norm; multiplied again, they are the original up to rounding.
COSINE_TOLERANCE = 1e-6


def extract(version: str, into: Path) -> Path:
    """Unpack the folder that chromadb `version` wrote and return it."""
    with tarfile.open(FIXTURES / f"chroma-{version}.tar.xz") as archive:
        # Debian 12's Python 3.11.2 has no extraction filters yet; the archive is our own.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(into)  # noqa: S202
    return into / f"chroma-{version}"


@dataclass(slots=True)
class Expected:
    """A collection as it was written."""

    path: str
    distance: str
    rows: list[dict[str, Any]] = field(default_factory=list)


def expected(version: str) -> dict[str, Expected]:
    """Return what a folder must yield, by collection path."""
    found: dict[str, Expected] = {}
    current: Expected | None = None
    for line in lzma.decompress((FIXTURES / f"chroma-{version}.expected.jsonl.xz").read_bytes()).splitlines():
        row = json.loads(line)
        if "collection" in row:
            current = found.setdefault(row["collection"], Expected(row["collection"], row["distance"]))
        else:
            assert current is not None
            current.rows.append(row)
    return found


def differences(records: list[Record], wanted: Expected) -> list[str]:
    """Return in words how records differ from what was written: ids, order, types, text, vectors."""
    if [record.id for record in records] != [row["id"] for row in wanted.rows]:
        return [f"{wanted.path}: other ids or another order"]
    found = []
    for record, row in zip(records, wanted.rows, strict=True):
        vector = np.array(row["embedding"], dtype=np.float32)
        assert record.embedding is not None, record.id
        if wanted.distance == "cosine":
            error = float(np.abs(record.embedding - vector).max())
            if error > COSINE_TOLERANCE * float(np.linalg.norm(vector)):
                found.append(f"{wanted.path} {record.id!r}: embedding off by {error}")
            vector = record.embedding
        original = Record(record.seq, row["id"], vector, row["document"], row["metadata"], row["uri"])
        found += [f"{wanted.path} {record.id!r}: {part}" for part in differing_parts(original, record)]
    return found
