"""Writes a Chroma folder of the benchmark's data with the installed chromadb, in a process of its own, and keeps it in the cache.

PYTHONPATH=tests python -m bench.chroma_folder ROWS TARGET
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench import dataset

COLLECTION = "documents"
_AT_ONCE = 1_000
# A sparse graph: it is built quickly, and nothing here searches it.
_QUICK = {"space": "cosine", "max_neighbors": 4, "ef_construction": 8}


def folder(rows: int) -> Path:
    """Return a folder with so many records, made once."""
    cache = Path(os.environ.get("PGCHROMA_CACHE", "/var/cache/pgchroma")) / "bench"
    target = cache / f"chroma-{dataset.load().fingerprint}-{rows}"
    if not target.exists():
        partial = cache / f"partial-{target.name}"
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "bench.chroma_folder", str(rows), str(partial)], check=True)
        partial.rename(target)
    return target


def write(rows: int, target: Path) -> None:
    """Write the folder in this process."""
    import chromadb
    from chromadb.config import Settings

    data = dataset.load().grown(rows)
    client: Any = chromadb.PersistentClient(str(target), settings=Settings(anonymized_telemetry=False))
    collection = client.create_collection(COLLECTION, configuration={"hnsw": _QUICK}, embedding_function=None)
    for start in range(0, rows, _AT_ONCE):
        part = data.part(start, start + _AT_ONCE)
        collection.add(
            ids=part.ids, embeddings=part.embeddings, documents=part.documents, metadatas=part.metadatas
        )


if __name__ == "__main__":
    write(int(sys.argv[1]), Path(sys.argv[2]))
