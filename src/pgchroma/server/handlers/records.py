"""Records: add, upsert, update, get, query, delete, count."""

from collections.abc import Sequence
from typing import Any

from pgchroma.server import embeddings, limits, metadata, read_ahead, responses
from pgchroma.server.handlers import Context
from pgchroma.server.handlers.collections import collection_id
from pgchroma.server.http import Request, Response, bad_request, json_response
from pgchroma.server.payloads import (
    Decoder,
    DeletePayload,
    GetPayload,
    QueryPayload,
    UpdatePayload,
    WritePayload,
)
from pgchroma.server.read_ahead import Page, ReadAhead
from pgchroma.store import Store
from pgchroma.types import Filter, Float32Matrix, RecordBatch, Rows

DEFAULT_N_RESULTS = 10
_READ_LEVELS = ("index_and_wal", "index_only", "index_and_bounded_wal")

_write: Decoder[WritePayload] = Decoder(WritePayload)
_update: Decoder[UpdatePayload] = Decoder(UpdatePayload)
_get: Decoder[GetPayload] = Decoder(GetPayload)
_query: Decoder[QueryPayload] = Decoder(QueryPayload)
_delete: Decoder[DeletePayload] = Decoder(DeletePayload)


async def add(context: Context, request: Request) -> Response:
    """Add records; those whose id exists are ignored."""
    payload = _write.decode(await request.body())
    collection = collection_id(request)
    matrix, _, count = embeddings.decode(payload.embeddings)
    batch = _batch(context, payload, matrix, count, allow_null=False)
    if batch.ids:
        await context.store.add(collection, batch)
    else:
        await context.store.get_collection_by_id(collection)
    return json_response({}, 201)


async def upsert(context: Context, request: Request) -> Response:
    """Add records, merging into those whose id exists."""
    payload = _write.decode(await request.body())
    collection = collection_id(request)
    matrix, _, count = embeddings.decode(payload.embeddings)
    batch = _batch(context, payload, matrix, count, allow_null=True)
    if batch.ids:
        await context.store.upsert(collection, batch)
    else:
        await context.store.get_collection_by_id(collection)
    return json_response({})


async def update(context: Context, request: Request) -> Response:
    """Merge into the records that exist; other ids are ignored."""
    payload = _update.decode(await request.body())
    collection = collection_id(request)
    matrix, rows, count = None, None, len(payload.ids)
    if not embeddings.is_absent(payload.embeddings):
        matrix, rows, count = embeddings.decode(payload.embeddings, allow_null=True)
    batch = _batch(context, payload, matrix, count, allow_null=True)
    batch.embedding_rows = rows
    if batch.ids:
        await context.store.update(collection, batch)
    else:
        await context.store.get_collection_by_id(collection)
    return json_response({})


def _batch(
    context: Context,
    payload: WritePayload | UpdatePayload,
    matrix: Float32Matrix | None,
    embedding_count: int,
    *,
    allow_null: bool,
) -> RecordBatch:
    """Return the batch of a write, checked as far as that can be done without its collection."""
    count = len(payload.ids)
    limits.check_batch_size(count, context.settings)
    limits.check_dimension(matrix, context.settings)
    limits.check_documents(payload.documents, context.settings)
    columns: tuple[Sequence[Any] | None, ...] = (payload.documents, payload.metadatas, payload.uris)
    if embedding_count != count or any(column is not None and len(column) != count for column in columns):
        raise bad_request("Inconsistent number of IDs, embeddings, documents, URIs and metadatas")
    if not all(payload.ids):
        raise bad_request("Empty ID, ID must have at least one character")
    return RecordBatch(
        ids=payload.ids,
        embeddings=matrix,
        documents=payload.documents,
        metadatas=metadata.record_columns(
            payload.metadatas, allow_null=allow_null, allow_sparse=context.settings.sparse_vectors
        ),
        uris=payload.uris,
    )


async def get(context: Context, request: Request) -> Response:
    """Return records in insertion order."""
    payload = _get.decode(await request.body())
    if (
        payload.offset is not None
        and (payload.limit or 0) >= read_ahead.SHORTEST
        and payload.ids is None
        and payload.where is None
        and payload.where_document is None
    ):
        return await _get_page(context, request, payload)
    selection = Filter(
        payload.ids,
        limits.clause(payload.where, "where", context.settings),
        limits.clause(payload.where_document, "where document", context.settings),
        payload.limit,
        payload.offset or 0,
    )
    include = responses.include_of(payload.include)
    rows = await context.store.get(collection_id(request), selection, include)
    return json_response(responses.get_result(rows, payload.include))


async def _get_page(context: Context, request: Request, payload: GetPayload) -> Response:
    """Return one page of all records, which another is likely to follow."""
    page = Page(
        request.params["tenant"],
        request.params["database"],
        collection_id(request),
        tuple(payload.include),
        payload.limit or 0,
        payload.offset or 0,
    )
    return Response(await context.read_ahead.get(page))


def reading_ahead(store: Store, limit_bytes: int) -> ReadAhead[Rows]:
    """Return what reads pages of all records; see `ReadAhead`."""

    async def read(page: Page) -> tuple[Rows, int]:
        selection = Filter(limit=page.limit, offset=page.offset)
        rows = await store.get(page.collection, selection, responses.include_of(page.include))
        return rows, len(rows.ids)

    async def write(page: Page, rows: Rows) -> bytes:
        return await responses.page_body(rows, page.include)

    return ReadAhead(store.moment, read, write, limit_bytes)


async def query(context: Context, request: Request) -> Response:
    """Return, for each embedding, the nearest records that match."""
    payload = _query.decode(await request.body())
    collection = collection_id(request)
    wanted = DEFAULT_N_RESULTS if payload.n_results is None else payload.n_results
    limits.check_results(wanted, context.settings)
    matrix, _, _ = embeddings.decode(payload.query_embeddings, allow_empty=True, member="query_embeddings")
    limits.check_queries(matrix, context.settings)
    limits.check_dimension(matrix, context.settings)
    if matrix is None:
        await context.store.get_collection_by_id(collection)
        return json_response(responses.query_result([], payload.include))
    selection = Filter(
        payload.ids,
        limits.clause(payload.where, "where", context.settings),
        limits.clause(payload.where_document, "where document", context.settings),
    )
    include = responses.include_of(payload.include)
    results = await context.store.query(collection, matrix, wanted, selection, include)
    return json_response(responses.query_result(results, payload.include))


async def delete(context: Context, request: Request) -> Response:
    """Delete what ids and clauses select; nothing given deletes nothing."""
    payload = _delete.decode(await request.body())
    collection = collection_id(request)
    where = limits.clause(payload.where, "where", context.settings)
    where_document = limits.clause(payload.where_document, "where document", context.settings)
    has_clause = where is not None or where_document is not None
    if payload.limit is not None and not has_clause:
        raise bad_request(
            "Validation error: limit, where: limit can only be specified when a where clause is provided"
        )
    if payload.ids is None and not has_clause:
        await context.store.get_collection_by_id(collection)
        return json_response({"deleted": 0})
    if payload.ids is not None and not payload.ids and not has_clause:
        raise bad_request("Validation error: ids, where: Either ids or where must be specified")
    selection = Filter(payload.ids, where, where_document, payload.limit)
    return json_response({"deleted": await context.store.delete(collection, selection)})


async def count(context: Context, request: Request) -> Response:
    """Return how many records a collection has; the read level changes nothing, every read sees every write."""
    level = request.query("read_level")
    if level is not None and level not in _READ_LEVELS:
        expected = ", ".join(f"`{name}`" for name in _READ_LEVELS)
        raise bad_request(
            f"Failed to deserialize query string: read_level: unknown variant `{level}`, expected one of {expected}"
        )
    return json_response(await context.store.count(collection_id(request)))
