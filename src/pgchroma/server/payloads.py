"""The shapes of the request bodies, and their strict decoding.

Unknown members are ignored where upstream ignores them and refused where it refuses them. What is JSON but of another shape is a
422, what is not JSON a 400, as upstream answers.
"""

from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from pgchroma.server.http import HttpError, bad_request, unprocessable

Value = TypeVar("Value")

U32: TypeAlias = Annotated[int, Meta(ge=0, le=2**32 - 1)]
USize: TypeAlias = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Optional: TypeAlias = Value | UnsetType | None
# Lists and objects are looked at by `metadata.py`; msgspec cannot tell a list of strings from one of numbers.
MetadataJson: TypeAlias = dict[str, str | int | float | bool | list[Any] | dict[str, Any] | None]
# The decoder leaves these to others; the description of the API says what they look like.
_NUMBERS = {"type": "array", "items": {"type": "number"}}
_BASE64 = {"type": "string", "contentEncoding": "base64"}
_NULL = {"type": "null"}
EmbeddingsJson: TypeAlias = Annotated[
    Raw,
    Meta(
        description="For each id, its numbers or the base64 of them as float32 in little-endian order; all of one kind.",
        extra_json_schema={"anyOf": [{"type": "array", "items": items} for items in (_NUMBERS, _BASE64)]},
    ),
]
EmbeddingsOrNullJson: TypeAlias = Annotated[
    Raw,
    Meta(
        description="As when adding; null leaves that record's embedding, or all of them, alone.",
        extra_json_schema={
            "anyOf": [
                *({"type": "array", "items": {"anyOf": [items, _NULL]}} for items in (_NUMBERS, _BASE64)),
                _NULL,
            ]
        },
    ),
]
WhereJson: TypeAlias = Annotated[
    Any, Meta(extra_json_schema={"anyOf": [{"$ref": "#/components/schemas/Where"}, _NULL]})
]
WhereDocumentJson: TypeAlias = Annotated[
    Any, Meta(extra_json_schema={"anyOf": [{"$ref": "#/components/schemas/WhereDocument"}, _NULL]})
]
IncludeName: TypeAlias = Literal["distances", "documents", "embeddings", "metadatas", "uris"]


class Decoder(Generic[Value]):
    """Decodes bodies of one type."""

    def __init__(self, kind: type[Value]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes | Raw) -> Value:
        """Return the typed body.

        Raises:
            HttpError: 400 for what is not JSON, 422 for JSON of another shape.
        """
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            if str(error).startswith("Number out of range"):
                raise _not_json(str(error)) from None
            raise unprocessable(str(error)) from None
        except msgspec.DecodeError as error:
            raise _not_json(str(error)) from None
        except UnicodeDecodeError as error:
            raise _not_json(f"invalid unicode code point at byte {error.start}") from None
        except RecursionError:
            raise _not_json("recursion limit exceeded") from None


def _not_json(message: str) -> HttpError:
    return bad_request(f"Failed to parse the request body as JSON: {message}")


class NamePayload(Struct):
    """Creates a tenant or a database."""

    name: str


class UpdateTenantPayload(Struct):
    """Changes a tenant."""

    resource_name: str


class LegacyFunction(Struct, tag_field="type", tag="legacy"):
    """An embedding function that the client set by older means."""


class UnknownFunction(Struct, tag_field="type", tag="unknown"):
    """An embedding function nothing is known of."""


class KnownFunction(Struct, tag_field="type", tag="known"):
    """An embedding function by its registered name; the server only keeps it."""

    name: str
    config: Any


EmbeddingFunction: TypeAlias = LegacyFunction | UnknownFunction | KnownFunction
Space: TypeAlias = Literal["l2", "cosine", "ip"]


class HnswUpdate(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The HNSW parameters that can change."""

    ef_search: Optional[USize] = UNSET
    max_neighbors: Optional[USize] = UNSET
    num_threads: Optional[USize] = UNSET
    resize_factor: Optional[float] = UNSET
    sync_threshold: Optional[USize] = UNSET
    batch_size: Optional[USize] = UNSET


class Hnsw(HnswUpdate, forbid_unknown_fields=True, omit_defaults=True):
    """The HNSW parameters of a new collection."""

    space: Optional[Space] = UNSET
    ef_construction: Optional[USize] = UNSET


class SchemaHnsw(Struct):
    """The HNSW parameters within a schema."""

    ef_construction: Optional[USize] = UNSET
    max_neighbors: Optional[USize] = UNSET
    ef_search: Optional[USize] = UNSET
    num_threads: Optional[USize] = UNSET
    batch_size: Optional[USize] = UNSET
    sync_threshold: Optional[USize] = UNSET
    resize_factor: Optional[float] = UNSET


class SpannUpdate(Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Parameters of upstream's distributed index, which is accepted and answered by HNSW."""

    ef_search: Optional[USize] = UNSET
    search_nprobe: Optional[U32] = UNSET


class Spann(SpannUpdate, forbid_unknown_fields=True, omit_defaults=True):
    """The same for a new collection."""

    space: Optional[Space] = UNSET
    ef_construction: Optional[USize] = UNSET
    max_neighbors: Optional[USize] = UNSET
    merge_threshold: Optional[U32] = UNSET
    reassign_neighbor_count: Optional[U32] = UNSET
    split_threshold: Optional[U32] = UNSET
    write_nprobe: Optional[U32] = UNSET


class Configuration(Struct, omit_defaults=True):
    """`configuration` of a new collection."""

    hnsw: Optional[Hnsw] = UNSET
    spann: Optional[Spann] = UNSET
    embedding_function: Optional[EmbeddingFunction] = UNSET


class ConfigurationUpdate(Struct, omit_defaults=True):
    """`new_configuration` of a collection."""

    hnsw: Optional[HnswUpdate] = UNSET
    spann: Optional[SpannUpdate] = UNSET
    embedding_function: Optional[EmbeddingFunction] = UNSET


class IndexType(Struct):
    """An index without parameters of its own."""

    enabled: bool
    config: dict[str, Any]


class VectorIndexConfig(Struct):
    """Parameters of a dense vector index."""

    space: Optional[Space] = UNSET
    embedding_function: Optional[EmbeddingFunction] = UNSET
    source_key: Optional[str] = UNSET
    hnsw: Optional[SchemaHnsw] = UNSET
    spann: Optional[dict[str, Any]] = UNSET


class VectorIndexType(Struct):
    """A dense vector index."""

    enabled: bool
    config: VectorIndexConfig


class SparseVectorIndexConfig(Struct):
    """Parameters of a sparse vector index."""

    embedding_function: Optional[EmbeddingFunction] = UNSET
    source_key: Optional[str] = UNSET
    bm25: Optional[bool] = UNSET


class SparseVectorIndexType(Struct):
    """A sparse vector index."""

    enabled: bool
    config: SparseVectorIndexConfig


class StringIndexes(Struct):
    """The indexes of values that are strings."""

    fts_index: Optional[IndexType] = UNSET
    string_inverted_index: Optional[IndexType] = UNSET


class FloatListIndexes(Struct):
    """The index of dense vectors."""

    vector_index: Optional[VectorIndexType] = UNSET


class SparseVectorIndexes(Struct):
    """The index of sparse vectors."""

    sparse_vector_index: Optional[SparseVectorIndexType] = UNSET


class IntIndexes(Struct):
    """The index of values that are integers."""

    int_inverted_index: Optional[IndexType] = UNSET


class FloatIndexes(Struct):
    """The index of values that are floats."""

    float_inverted_index: Optional[IndexType] = UNSET


class BoolIndexes(Struct):
    """The index of values that are booleans."""

    bool_inverted_index: Optional[IndexType] = UNSET


class ValueTypes(Struct):
    """The indexes of a key, by the type of its values."""

    string: Optional[StringIndexes] = UNSET
    float_list: Optional[FloatListIndexes] = UNSET
    sparse_vector: Optional[SparseVectorIndexes] = UNSET
    int_: Optional[IntIndexes] = msgspec.field(default=UNSET, name="int")
    float_: Optional[FloatIndexes] = msgspec.field(default=UNSET, name="float")
    bool_: Optional[BoolIndexes] = msgspec.field(default=UNSET, name="bool")


class SchemaPayload(Struct):
    """`schema` of a new collection: its indexes by metadata key, and those of keys that are not named."""

    defaults: ValueTypes
    keys: dict[str, ValueTypes]


class CreateCollectionPayload(Struct):
    """Creates a collection."""

    name: str
    metadata: MetadataJson | None = None
    configuration: Configuration | None = None
    schema: SchemaPayload | None = None
    get_or_create: bool = False


class ModifyCollectionPayload(Struct):
    """Changes a collection; what is absent or null stays."""

    new_name: str | None = None
    new_metadata: MetadataJson | None = None
    new_configuration: ConfigurationUpdate | None = None


class ForkPayload(Struct):
    """Copies a collection."""

    new_name: str


class WritePayload(Struct):
    """Adds or upserts records; `embeddings` is decoded by `embeddings.py`."""

    ids: list[str]
    embeddings: EmbeddingsJson
    documents: list[str | None] | None = None
    metadatas: list[MetadataJson | None] | None = None
    uris: list[str | None] | None = None


class UpdatePayload(Struct):
    """Updates records."""

    ids: list[str]
    embeddings: EmbeddingsOrNullJson = msgspec.field(default_factory=Raw)
    documents: list[str | None] | None = None
    metadatas: list[MetadataJson | None] | None = None
    uris: list[str | None] | None = None


class GetPayload(Struct):
    """Reads records; the clauses are checked by the store."""

    ids: list[str] | None = None
    where: WhereJson = None
    where_document: WhereDocumentJson = None
    limit: U32 | None = None
    offset: U32 | None = None
    include: list[IncludeName] = msgspec.field(default_factory=lambda: ["documents", "metadatas"])


class QueryPayload(Struct):
    """Searches by embeddings."""

    query_embeddings: EmbeddingsJson
    ids: list[str] | None = None
    where: WhereJson = None
    where_document: WhereDocumentJson = None
    n_results: U32 | None = None
    include: list[IncludeName] = msgspec.field(
        default_factory=lambda: ["documents", "metadatas", "distances"]
    )


class DeletePayload(Struct):
    """Deletes records."""

    ids: list[str] | None = None
    where: WhereJson = None
    where_document: WhereDocumentJson = None
    limit: U32 | None = None


def to_dict(value: Struct | None) -> dict[str, Any] | None:
    """Return a payload as plain dictionaries, without what was absent."""
    return None if value is None else msgspec.to_builtins(value)
