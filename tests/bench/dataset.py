"""What the benchmarks are run on: documents with metadata and embeddings of 384 dimensions, made here or read from a folder.

The project's own data are the docstrings of the installed, hash-locked Python packages: 20,000 texts of 120 to 1,500 characters on
a hundred subjects. Their embeddings come from latent semantic analysis: weighted word counts, hashed into 4,096 features, brought
down to 384 dimensions by a randomised singular value decomposition. They cluster by subject, as a language model's do, and need no
model. The same lock file and Python make the same data; the result is kept in the cache folder.

Another folder may hold `packages.jsonl.gz` (id, document, metadata a line), `packages.f16.npy` and `queries.f16.npy`.
"""

import gzip
import hashlib
import json
import os
import re
import zlib
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pgchroma.types import Float32Matrix

ROWS = 20_000
QUERIES = 200
DIMENSION = 384
# To be raised when what is made here changes.
_VERSION = 2
_FEATURES = 4_096
_DOCSTRING = re.compile(r'"""(.+?)"""', re.DOTALL)
_WORD = re.compile(r"[a-z]{3,}")
_SHORTEST, _LONGEST = 120, 1_500


@dataclass(frozen=True, slots=True)
class Dataset:
    """Records and queries of the same shape.

    Attributes:
        name: where the data are from.
        embeddings: float32, shape (n, 384), unit length.
        queries: float32, shape (200, 384), unit length; not among the embeddings.
    """

    name: str
    ids: list[str]
    documents: list[str]
    metadatas: list[dict[str, Any]]
    embeddings: Float32Matrix
    queries: Float32Matrix

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """The same for the same data."""
        digest = hashlib.blake2b(self.embeddings.tobytes(), digest_size=8)
        digest.update("\n".join(self.documents).encode())
        return digest.hexdigest()

    def part(self, start: int, stop: int) -> "Dataset":
        """Return the records from `start` to `stop`, the queries being the same."""
        part = slice(start, stop)
        return replace(
            self,
            ids=self.ids[part],
            documents=self.documents[part],
            metadatas=self.metadatas[part],
            embeddings=self.embeddings[part],
        )

    def grown(self, rows: int) -> "Dataset":
        """Return `rows` records: these, and beyond them the same with another id and an embedding moved a little."""
        if rows <= len(self):
            return self.part(0, rows)
        order = np.random.default_rng(20_000)
        matrices = [self.embeddings]
        ids = list(self.ids)
        for copy in range(1, -(-rows // len(self))):
            # As far from its original as neighbours are from each other.
            noise = order.standard_normal(self.embeddings.shape, np.float32)
            matrices.append(unit(self.embeddings + noise * (0.5 / np.sqrt(DIMENSION))))
            ids += [f"{record_id}~{copy}" for record_id in self.ids]
        copies = -(-rows // len(self))
        return replace(
            self,
            ids=ids[:rows],
            documents=(self.documents * copies)[:rows],
            metadatas=(self.metadatas * copies)[:rows],
            embeddings=np.concatenate(matrices)[:rows],
        )

    def renamed(self, prefix: str) -> "Dataset":
        """Return the same records under other ids."""
        return replace(self, ids=[prefix + record_id for record_id in self.ids])


def unit(matrix: NDArray[Any]) -> Float32Matrix:
    """Return the rows at unit length."""
    lengths = np.linalg.norm(matrix, axis=1, keepdims=True)
    return np.asarray(matrix / np.where(lengths == 0, 1, lengths), np.float32)


def load(folder: Path | None = None) -> Dataset:
    """Return the data of a folder, or the project's own."""
    if folder is not None:
        return _read(folder, str(folder.name))
    cache = Path(os.environ.get("PGCHROMA_CACHE", "/var/cache/pgchroma")) / "bench" / f"docstrings-{_VERSION}"
    if not (cache / "queries.f16.npy").exists():
        _make(cache)
    return _read(cache, "docstrings of the installed Python packages")


def _read(folder: Path, name: str) -> Dataset:
    ids, documents, metadatas = [], [], []
    with gzip.open(folder / "packages.jsonl.gz", "rt") as lines:
        for line in lines:
            row = json.loads(line)
            ids.append(row["id"])
            documents.append(row["document"])
            metadatas.append(row["metadata"])
    embeddings = unit(np.load(folder / "packages.f16.npy").astype(np.float32))
    queries = unit(np.load(folder / "queries.f16.npy").astype(np.float32))
    return Dataset(name, ids, documents, metadatas, embeddings, queries)


def _make(cache: Path) -> None:
    rows = _docstrings(Path(np.__file__).parents[1])
    embeddings = _embed([row["document"] for row in rows]).astype(np.float16)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(cache / "packages.f16.npy", embeddings[QUERIES:])
    with gzip.open(cache / "packages.jsonl.gz", "wt", compresslevel=1) as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows[QUERIES:])
    # Last, because its presence says that all are there.
    np.save(cache / "queries.f16.npy", embeddings[:QUERIES])


def _docstrings(packages: Path) -> list[dict[str, Any]]:
    """Return records made of the docstrings below a folder, in an order that has nothing to do with their place."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(packages.rglob("*.py")):
        source = path.read_text(errors="replace")
        parts = path.relative_to(packages).parts
        section = ".".join(parts[1:3] if parts[0] == "ansible_collections" else parts[:1])
        for number, match in enumerate(_DOCSTRING.finditer(source)):
            text = match.group(1)
            if not _SHORTEST <= len(text) <= _LONGEST:
                continue
            key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
            found.setdefault(
                key,
                {
                    "id": key,
                    "document": text,
                    "metadata": {
                        "section": section.removesuffix(".py"),
                        "module": "/".join(parts),
                        "line": source.count("\n", 0, match.start()) + 1,
                        "number": number,
                        "size": len(text),
                        "test": any("test" in part for part in parts),
                    },
                },
            )
    if len(found) < ROWS + QUERIES:
        raise SystemExit(
            f"only {len(found)} docstrings below {packages}; build the environment with `make venv`"
        )
    return [found[key] for key in sorted(found)[: ROWS + QUERIES]]


def _embed(documents: list[str]) -> Float32Matrix:
    counts = np.zeros((len(documents), _FEATURES), np.float32)
    for row, document in enumerate(documents):
        for word, number in Counter(_WORD.findall(document.lower())).items():
            counts[row, zlib.crc32(word.encode()) % _FEATURES] += 1 + np.log(number)
    rarity = np.log(len(documents) / (1 + np.count_nonzero(counts, axis=0)))
    weighted = unit(counts * rarity)
    order = np.random.default_rng(384)
    sample = order.standard_normal((_FEATURES, DIMENSION + 32), np.float32)
    basis, _ = np.linalg.qr(weighted @ sample)
    basis, _ = np.linalg.qr(weighted @ (weighted.T @ basis))
    small = basis.T @ weighted
    left, values, _ = np.linalg.svd(small, full_matrices=False)
    # Directions that say much count more, but not as much more as they are longer.
    reduced = (basis @ left[:, :DIMENSION]) * np.sqrt(values[:DIMENSION])
    return unit(reduced)
