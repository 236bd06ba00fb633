"""The values that server, store, migrator and verifier hand to each other; no HTTP and no SQL in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from pgchroma.errors import InvalidArgumentError

Float32Matrix: TypeAlias = NDArray[np.float32]
Scalar: TypeAlias = str | int | float | bool
# A sparse vector: {"#type": "sparse_vector", "indices": [...], "values": [...]} and perhaps "tokens"; see store/sparse.py.
SparseValue: TypeAlias = dict[str, Any]
MetadataValue: TypeAlias = Scalar | list[str] | list[int] | list[float] | list[bool] | SparseValue
Metadata: TypeAlias = Mapping[str, MetadataValue]
# In an update a value of None deletes the key.
MetadataPatch: TypeAlias = Mapping[str, MetadataValue | None]

DEFAULT_TENANT = "default_tenant"
DEFAULT_DATABASE = "default_database"
_BIGINT_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Collection:
    """One row of the catalog.

    Attributes:
        configuration: Chroma's `configuration_json`, defaults filled in.
        schema: Chroma's schema JSON, defaults filled in.
        dimension: None until the first embedding was written, then fixed.
        table_number: names the collection's two tables, see store/tables.py; None until the first write.
        sketch: bits per dimension of the sketches beside its records, see store/sketches.py; 0 for none.
        unit_length: whether every embedding ever written had length 1; not kept up where the space is cosine.
    """

    id: UUID
    name: str
    tenant: str
    database: str
    metadata: dict[str, Any] | None
    configuration: dict[str, Any]
    schema: dict[str, Any]
    dimension: int | None
    table_number: int | None
    version: int = 0
    log_position: int = 0
    sketch: int = 0
    unit_length: bool = True

    @property
    def path(self) -> str:
        """`tenant/database/name`, the way messages and receipts name a collection."""
        return f"{self.tenant}/{self.database}/{self.name}"

    @property
    def space(self) -> str:
        """The distance: `l2`, `cosine` or `ip`."""
        return str(self.configuration["hnsw"]["space"])


@dataclass(slots=True)
class RecordBatch:
    """Records to write, column by column; every column has one entry per id, or is None when absent.

    Attributes:
        ids: non-empty strings.
        embeddings: float32 array of shape (n, dimension); for updates, `embedding_rows` says which ids it belongs to.
        embedding_rows: positions in `ids` that have an embedding; None means all of them, in order.
        documents, metadatas, uris: one value per id; None in a column means "absent" for that record.
    """

    ids: Sequence[str]
    embeddings: Float32Matrix | None = None
    documents: Sequence[str | None] | None = None
    metadatas: Sequence[MetadataPatch | None] | None = None
    uris: Sequence[str | None] | None = None
    embedding_rows: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(slots=True)
class Record:
    """One whole record, as the migrator and the verifier compare them.

    Attributes:
        seq: insertion order within the collection.
        embedding: float32 array of shape (dimension,), or None where a damaged source lost it.
    """

    seq: int
    id: str
    embedding: NDArray[np.float32] | None
    document: str | None = None
    metadata: dict[str, MetadataValue] | None = None
    uri: str | None = None


class RecordPage(list[Record]):
    """Records of which every one has an embedding of the same length, and these embeddings as one array.

    Attributes:
        matrix: float32, shape (records, dimension); each record's embedding is a row of it.
        stored: each record's metadata as JSON text, empty for none, where the source had it so; None where not.
    """

    def __init__(
        self, records: Sequence[Record], matrix: Float32Matrix, stored: Sequence[bytes] | None = None
    ) -> None:
        super().__init__(records)
        self.matrix = matrix
        self.stored = stored


@dataclass(frozen=True, slots=True)
class Filter:
    """What a get, query or delete selects by; None means "not restricted"."""

    ids: Sequence[str] | None = None
    where: Mapping[str, Any] | None = None
    where_document: Mapping[str, Any] | None = None
    limit: int | None = None
    offset: int = 0

    def __post_init__(self) -> None:
        """Refuse what PostgreSQL's bigint, which LIMIT and OFFSET are, does not hold."""
        for name, value in (("limit", self.limit), ("offset", self.offset)):
            if value is not None and not 0 <= value <= _BIGINT_MAX:
                raise InvalidArgumentError(f"{name} is {value}, but must lie between 0 and {_BIGINT_MAX}")


@dataclass(frozen=True, slots=True)
class Include:
    """Which columns a get or query returns beside the ids."""

    documents: bool = False
    metadatas: bool = False
    embeddings: bool = False
    uris: bool = False
    distances: bool = False


@dataclass(slots=True)
class Rows:
    """Records read, column by column; a column that was not included is None.

    Attributes:
        metadatas: each the JSON text of an object as UTF-8 bytes, or None. Kept as text so that a server can pass it on
            without parsing it.
        embeddings: float32 array of shape (n, dimension).
        distances: one per row, in Chroma's definition (l2 squared, 1 - cosine, 1 - dot), ascending.
    """

    ids: list[str] = field(default_factory=list)
    documents: list[str | None] | None = None
    metadatas: list[bytes | None] | None = None
    uris: list[str | None] | None = None
    embeddings: Float32Matrix | None = None
    distances: NDArray[np.float32] | None = None
