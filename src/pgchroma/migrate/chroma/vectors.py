"""The vectors of one collection of a Chroma folder, wherever they are: in the HNSW files, or in the log, which has the last word."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma import catalog, hnsw, log
from pgchroma.migrate.chroma.hnsw import HnswIndex, IndexMetadata
from pgchroma.migrate.chroma.log import LogOverlay
from pgchroma.migrate.model import SourceCollection
from pgchroma.types import Float32Matrix

_LOG_ROWS = 2_000


def as_matrix(vectors: list[NDArray[np.float32] | None]) -> list[NDArray[np.float32] | None] | Float32Matrix:
    """Return the vectors as one array where they are all there and of one length, else as they are."""
    whole = [vector for vector in vectors if vector is not None]
    if len(whole) < len(vectors) or len({len(vector) for vector in whole}) != 1:
        return vectors
    return np.stack(whole)


def are_sound(vectors: list[NDArray[np.float32] | None] | Float32Matrix, dimension: int | None) -> bool:
    """Whether a page's vectors are all there, of one length and finite: one look at all of them instead of one at each."""
    if isinstance(vectors, list):
        return False
    return vectors.shape[1] == dimension and bool(np.isfinite(vectors).all())


class CollectionVectors:
    """Finds the vectors of one collection: the log's last word, else the HNSW files'."""

    def __init__(self, connection: sqlite3.Connection, folder: Path, collection: SourceCollection) -> None:
        segments = catalog.segments_of(connection, collection.id)
        self._dimension = collection.dimension
        self.damage: str | None = None
        self.index: HnswIndex | None = None
        position = segments.vector_position
        index_folder = folder / (segments.vector or "-")
        if (index_folder / hnsw.PICKLE).is_file():
            metadata = self._read_pickle(index_folder / hnsw.PICKLE)
            if position is None:
                position = metadata.max_seq_id
            self.index = HnswIndex(index_folder, cosine=collection.space == "cosine", metadata=metadata)
            self.damage = self.damage or self.index.damage
            self.index.damage = self.damage
        elif position:
            self.damage = f"the HNSW files in {segments.vector} are missing"
            self.index = HnswIndex(index_folder, cosine=False, metadata=IndexMetadata({}, None))
            self.index.damage = self.damage
        base = self.index
        if self.damage and log.is_complete(connection):
            # Chroma 0.4 kept every write in its log: then the files are not needed at all.
            base, position = None, 0
        self.overlay = LogOverlay(connection, collection.id, position or 0, base)

    def _read_pickle(self, path: Path) -> IndexMetadata:
        try:
            return hnsw.read_pickle(path)
        except SourceError as error:
            self.damage = error.message
            return IndexMetadata({}, None)

    def fetch(self, ids: list[str]) -> list[NDArray[np.float32] | None] | Float32Matrix:
        """Return the vector of each id: an array where all are there and of one length, else a list with None for what is not."""
        last = self.overlay.last
        matrix, found = (
            self.index.fetch(ids)
            if self.index
            else (np.empty((len(ids), 0), np.float32), np.zeros(len(ids), bool))
        )
        logged = [(place, last[name]) for place, name in enumerate(ids) if name in last] if last else []
        if not logged and found.all():
            return matrix
        from_log = self.overlay.fetch([seq for _, seq in logged if seq is not None])
        vectors: list[NDArray[np.float32] | None] = [
            row if there else None for row, there in zip(matrix, found, strict=True)
        ]
        for place, seq in logged:
            vectors[place] = None if seq is None else from_log.get(seq)
        return as_matrix(vectors)

    def all_sound(self) -> bool:
        """Whether one look at everything finds a finite vector of the right length for each of `live_ids`."""
        if self.damage:
            return False
        logged = [seq for seq in self.overlay.last.values() if seq is not None]
        for start in range(0, len(logged), _LOG_ROWS):
            part = logged[start : start + _LOG_ROWS]
            found = self.overlay.fetch(part)
            if len(found) < len(part) or not are_sound(as_matrix([*found.values()]), self._dimension):
                return False
        return not (self.index and self.index.ids) or self.index.all_sound(self._dimension)

    def live_ids(self) -> Iterator[str]:
        """Yield every id that has a vector, whether or not it has a record."""
        yield from (name for name, seq in self.overlay.last.items() if seq is not None)
        if self.index:
            yield from (name for name in self.index.ids if name not in self.overlay.last)
