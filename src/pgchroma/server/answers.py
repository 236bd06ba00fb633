"""The shapes of the answers, for the description of the API; `responses.py` writes them, tests/integration compares the two."""

from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from pgchroma.server.payloads import EmbeddingFunction, IncludeName, MetadataJson, SchemaPayload, Space

Uuid: TypeAlias = Annotated[str, Meta(extra_json_schema={"format": "uuid"})]
Embedding: TypeAlias = Annotated[list[float], Meta(description="float32 numbers")]
Count: TypeAlias = Annotated[int, Meta(ge=0)]
Version: TypeAlias = Annotated[str, Meta(description="Version of the API.")]


class Done(Struct):
    """An empty object: done."""


class Error(Struct):
    """What went wrong. Clients choose their exception by `error`; `message` is for people."""

    error: Annotated[
        str,
        Meta(
            description="Name of the error.",
            examples=["InvalidArgumentError", "NotFoundError", "ChromaError"],
        ),
    ]
    message: str


class Heartbeat(Struct):
    """The server lives."""

    nanosecond_heartbeat: Annotated[int, Meta(description="Time in nanoseconds since 1970.")] = msgspec.field(
        name="nanosecond heartbeat"
    )


class Health(Struct):
    """Whether requests that need the database can be served; on a 503 the members of an error say what is missing."""

    is_executor_ready: bool
    is_log_client_ready: bool


class PreFlightChecks(Struct):
    """What clients adapt to."""

    max_batch_size: Annotated[int, Meta(ge=1, description="Most records in one add, upsert or update.")]
    supports_base64_encoding: Annotated[bool, Meta(description="Whether embeddings may be sent as base64.")]


class Identity(Struct):
    """Who the caller is."""

    user_id: str
    tenant: str
    databases: list[str]


class Tenant(Struct):
    """A tenant; a single node knows no resource names."""

    name: str
    resource_name: str | None


class Database(Struct):
    """A database of a tenant."""

    id: Uuid
    name: str
    tenant: str


class HnswConfiguration(Struct):
    """The index parameters of a collection, defaults filled in."""

    space: Space
    ef_construction: Count
    ef_search: Count
    max_neighbors: Count
    resize_factor: float
    sync_threshold: Count


class CollectionConfiguration(Struct):
    """The configuration of a collection, defaults filled in."""

    hnsw: HnswConfiguration
    spann: None
    embedding_function: EmbeddingFunction | None


class Collection(Struct):
    """A collection."""

    id: Uuid
    name: str
    configuration_json: CollectionConfiguration
    schema: SchemaPayload
    metadata: MetadataJson | None
    dimension: Annotated[int, Meta(ge=1)] | None
    tenant: str
    database: str
    log_position: Count
    version: Count


class Records(Struct):
    """Records column by column, in insertion order; a column that was not asked for is null."""

    ids: list[str]
    embeddings: list[Embedding] | None
    documents: list[str | None] | None
    uris: list[str | None] | None
    metadatas: list[MetadataJson | None] | None
    include: list[IncludeName]


class Neighbours(Struct):
    """The nearest records column by column, a list per query embedding in each, nearest first."""

    ids: list[list[str]]
    embeddings: list[list[Embedding]] | None
    documents: list[list[str | None]] | None
    uris: list[list[str | None]] | None
    metadatas: list[list[MetadataJson | None]] | None
    distances: list[list[float]] | None
    include: list[IncludeName]


class SearchResults(Struct):
    """What each search found, column by column; null where it did not select a column."""

    ids: list[list[str]]
    documents: list[list[str | None] | None]
    embeddings: list[list[Embedding | None] | None]
    metadatas: list[list[dict[str, Any] | None] | None]
    scores: list[list[float | None] | None]
    select: list[list[str]]


class Deleted(Struct):
    """How many records were deleted."""

    deleted: Count


class ForkCount(Struct):
    """How many forks there are of a collection's lineage."""

    count: Count


class IndexingStatus(Struct):
    """How many record operations the vector indexes cover."""

    num_indexed_ops: Count
    num_unindexed_ops: Count
    total_ops: Count
    op_indexing_progress: Annotated[float, Meta(ge=0, le=1)]
