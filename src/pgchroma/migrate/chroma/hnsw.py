"""The HNSW files of one Chroma vector segment, read as what they are: a header, an array of elements and a pickle.

Format (the same in Chroma 0.4.24 to 1.5.9): header.bin holds the sizes; data_level0.bin is an array of elements of
`size_per_element` bytes (link list, vector as float32, label as uint64); length.bin holds each vector's L2 norm as float32;
index_metadata.pickle maps the user's ids to labels. Rows are reused after deletes, so the label, not the row, names a vector.
"""

import io
import mmap
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import SourceError
from pgchroma.types import Float32Matrix

HEADER: Final = "header.bin"
DATA: Final = "data_level0.bin"
LENGTHS: Final = "length.bin"
PICKLE: Final = "index_metadata.pickle"
# link_lists.bin, the graph's upper levels, is not needed to read vectors.
FILES: Final = (HEADER, DATA, LENGTHS, PICKLE)

_HEADER_FORMAT = struct.Struct("<iQQQQQQiIQQQdQ")
_PERSISTENT_DATA = ("chromadb.segment.impl.vector.local_persistent_hnsw", "PersistentData")
_SCAN_ROWS = 16_384
# Chroma divides by the norm in float32, so a stored cosine vector is of unit length up to rounding.
_UNIT_TOLERANCE = 1e-3


class _PersistentData:
    """Stands for the one class that a genuine file names; it has no code for a pickle to run."""


class _NothingButData(pickle.Unpickler):
    """An unpickler that can build plain containers and `_PersistentData`, and refuses to look up anything else."""

    def find_class(self, module_name: str, global_name: str) -> type:
        if (module_name, global_name) == _PERSISTENT_DATA:
            return _PersistentData
        raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}")


@dataclass(frozen=True, slots=True)
class IndexMetadata:
    """What index_metadata.pickle says: which label each id has, and in 0.4 up to which log position."""

    id_to_label: dict[str, int]
    max_seq_id: int | None


def read_pickle(path: Path) -> IndexMetadata:
    """Read index_metadata.pickle without running anything it might carry.

    Raises:
        SourceError: the file is cut, malicious, or holds something else.
    """
    try:
        content = _NothingButData(io.BytesIO(path.read_bytes())).load()
    except Exception as error:
        raise SourceError(
            f"{path} is refused: {str(error) or type(error).__name__}",
            hint="the file is damaged or was tampered with; restore the folder from a backup, "
            "or migrate with --policy vector-missing=quarantine to put the records without a vector aside",
        ) from error
    fields: dict[str, Any] = {}
    if isinstance(content, dict):
        fields = content
    elif isinstance(content, _PersistentData):
        fields = vars(content)
    labels = fields.get("id_to_label")
    if not isinstance(labels, dict) or not all(
        isinstance(key, str) and isinstance(label, int) for key, label in labels.items()
    ):
        raise SourceError(
            f"{path} is refused: it has no map from ids to labels",
            hint="restore the folder from a backup",
        )
    max_seq_id = fields.get("max_seq_id")
    return IndexMetadata(labels, max_seq_id if isinstance(max_seq_id, int) else None)


@dataclass(frozen=True, slots=True)
class _Header:
    cur_count: int
    size_per_element: int
    label_offset: int
    data_offset: int

    @property
    def dimension(self) -> int:
        return (self.label_offset - self.data_offset) // 4


def _read_header(path: Path) -> _Header:
    raw = path.read_bytes()
    if len(raw) < _HEADER_FORMAT.size:
        raise SourceError(f"{path} is cut: {len(raw)} of {_HEADER_FORMAT.size} bytes")
    values = _HEADER_FORMAT.unpack_from(raw)
    header = _Header(values[3], values[4], values[5], values[6])
    if not (
        header.data_offset < header.label_offset
        and (header.label_offset - header.data_offset) % 4 == 0
        and header.size_per_element == header.label_offset + 8
        and header.cur_count <= values[2]
    ):
        raise SourceError(f"{path} contradicts itself: {values}")
    return header


class HnswIndex:
    """The vectors of one persisted segment, fetched by id.

    Attributes:
        ids: every id that the index knows, with its label.
        damage: what is wrong with the files, in words; None when they are whole. Vectors that are still whole can be fetched.
    """

    def __init__(self, folder: Path, *, cosine: bool, metadata: IndexMetadata) -> None:
        self.ids = metadata.id_to_label
        self.damage: str | None = None
        self._cosine = cosine
        self._mapping: mmap.mmap | None = None
        self._elements: NDArray[np.void] | None = None
        self._lengths: NDArray[np.float32] | None = None
        self._labels: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)
        self._rows: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.dimension: int | None = None
        try:
            self._open(folder)
        except OSError as error:
            self.damage = f"{error.filename or folder}: {error.strerror or error}"
        except SourceError as error:
            self.damage = error.message

    def _open(self, folder: Path) -> None:
        header = _read_header(folder / HEADER)
        self.dimension = header.dimension
        data = folder / DATA
        whole = min(header.cur_count, data.stat().st_size // header.size_per_element)
        if self._cosine:
            lengths = folder / LENGTHS
            whole = min(whole, lengths.stat().st_size // 4)
        if whole < header.cur_count:
            self.damage = f"{data.name} or {LENGTHS} in {folder.name} is cut: {whole} of {header.cur_count} elements are whole"
        if whole == 0:
            return
        element = np.dtype(
            {
                "names": ["links", "vector", "label"],
                "formats": ["<u4", ("<f4", (header.dimension,)), "<u8"],
                "offsets": [0, header.data_offset, header.label_offset],
                "itemsize": header.size_per_element,
            }
        )
        with data.open("rb") as file:
            self._mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._elements = np.frombuffer(self._mapping, dtype=element, count=whole)
        if self._cosine:
            self._lengths = np.fromfile(folder / LENGTHS, dtype="<f4", count=whole)
        labels = np.empty(whole, dtype=np.uint64)
        links = np.empty(whole, dtype=np.uint32)
        for start in range(0, whole, _SCAN_ROWS):
            part = slice(start, start + _SCAN_ROWS)
            labels[part] = self._elements["label"][part]
            links[part] = self._elements["links"][part]
            self._release()
        # Bit 0 of the third byte marks a deleted element, whose label may live on in another row.
        alive = np.flatnonzero((links >> 16) & 1 == 0)
        order = np.argsort(labels[alive], kind="stable")
        self._rows = alive[order]
        self._labels = labels[self._rows]

    def _release(self) -> None:
        # What was read stays in the kernel's cache, but no longer counts as this process's memory.
        if self._mapping is not None:
            self._mapping.madvise(mmap.MADV_DONTNEED)

    def fetch(self, ids: list[str]) -> tuple[Float32Matrix, NDArray[np.bool_]]:
        """Return (float32 array of shape (len(ids), dimension), which of the rows were found).

        Cosine vectors are stored normalised; they are returned times their norm in float32, which is what Chroma returns.
        """
        shape = (len(ids), self.dimension or 0)
        if self._elements is None or not len(self._labels):
            return np.zeros(shape, dtype=np.float32), np.zeros(len(ids), dtype=np.bool_)
        wanted = np.array([self.ids.get(name, -1) for name in ids], dtype=np.int64)
        slots = np.minimum(np.searchsorted(self._labels, wanted.astype(np.uint64)), len(self._labels) - 1)
        found = (wanted >= 0) & (self._labels[slots] == wanted.astype(np.uint64))
        rows = self._rows[slots[found]]
        if bool((rows[1:] > rows[:-1]).all()):
            stored = self._elements["vector"][rows]
        else:
            # Read in file order: a random walk over a file larger than memory would be slow.
            order = np.argsort(rows, kind="stable")
            stored = np.empty((len(rows), shape[1]), dtype=np.float32)
            stored[order] = self._elements["vector"][rows[order]]
        self._release()
        if self._lengths is not None:
            # A newer Chroma that took the collection for l2 after an upgrade appends vectors as they are.
            unit = np.abs(np.sqrt(np.einsum("ij,ij->i", stored, stored)) - 1.0) < _UNIT_TOLERANCE
            if bool(unit.all()):
                stored *= self._lengths[rows][:, None]
            else:
                stored[unit] *= self._lengths[rows][unit][:, None]
        if bool(found.all()):
            return stored, found
        vectors = np.zeros(shape, dtype=np.float32)
        vectors[found] = stored
        return vectors, found

    def all_sound(self, dimension: int | None) -> bool:
        """Whether every id of the index has a vector that can be fetched, of this length, without NaN or infinity."""
        if self.damage or self._elements is None or self.dimension != dimension:
            return False
        labels = np.fromiter(self.ids.values(), dtype=np.uint64, count=len(self.ids))
        if not len(self._labels):
            return not len(labels)
        slots = np.minimum(np.searchsorted(self._labels, labels), len(self._labels) - 1)
        if not bool((self._labels[slots] == labels).all()):
            return False
        for start in range(0, len(self._elements), _SCAN_ROWS):
            part = slice(start, start + _SCAN_ROWS)
            vectors = self._elements["vector"][part]
            # Adding up needs no array of its own. What overflows, or is no element any more, only means that a closer look is needed.
            with np.errstate(over="ignore", invalid="ignore"):
                if self._lengths is not None:
                    total = np.einsum("i,ij->j", self._lengths[part], vectors)
                else:
                    total = np.sum(vectors, axis=0)
            self._release()
            if not np.isfinite(total).all():
                return False
        return True
