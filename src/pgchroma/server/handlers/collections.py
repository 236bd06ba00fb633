"""Collections: by name and by id."""

from uuid import UUID

from pgchroma.server import metadata, responses
from pgchroma.server.handlers import Context
from pgchroma.server.http import Request, Response, bad_request, json_response
from pgchroma.server.payloads import CreateCollectionPayload, Decoder, ModifyCollectionPayload, to_dict
from pgchroma.store.schema_rules import has_sparse_index

_create: Decoder[CreateCollectionPayload] = Decoder(CreateCollectionPayload)
_modify: Decoder[ModifyCollectionPayload] = Decoder(ModifyCollectionPayload)


def collection_id(request: Request) -> UUID:
    """Return the collection id of the path; HttpError 400 when it is none."""
    try:
        return UUID(request.params["collection"])
    except ValueError:
        raise bad_request("Collection ID is not a valid UUIDv4") from None


async def create(context: Context, request: Request) -> Response:
    """Create a collection, or with get_or_create return the one of that name unchanged."""
    payload = _create.decode(await request.body())
    configuration, schema = to_dict(payload.configuration), to_dict(payload.schema)
    if not context.settings.sparse_vectors and has_sparse_index(schema):
        raise bad_request(
            "Failed to reconcile schema: Invalid schema input: Sparse vector indexing is not enabled in local "
            "(PGCHROMA_SPARSE_VECTORS=false)"
        )
    if configuration and configuration.get("spann") is not None:
        if configuration.get("hnsw") is not None:
            raise bad_request("Multiple vector index configurations provided")
        # Only the distance means the same in both kinds of index.
        space = configuration.pop("spann").get("space")
        configuration["hnsw"] = {"space": space} if space else None
    created = await context.store.create_collection(
        request.params["tenant"],
        request.params["database"],
        payload.name,
        metadata=metadata.of_collection(payload.metadata, "metadata", allow_null=False),
        configuration=configuration,
        schema=schema,
        get_or_create=payload.get_or_create,
    )
    return json_response(responses.collection(created))


async def list_all(context: Context, request: Request) -> Response:
    """Return a database's collections; none for a missing database."""
    limit, offset = request.query_number("limit"), request.query_number("offset")
    found = await context.store.list_collections(
        request.params["tenant"], request.params["database"], limit=limit, offset=offset or 0
    )
    return json_response([responses.collection(entry) for entry in found])


async def count(context: Context, request: Request) -> Response:
    """Return how many collections a database has."""
    return json_response(
        await context.store.count_collections(request.params["tenant"], request.params["database"])
    )


async def get(context: Context, request: Request) -> Response:
    """Return a collection by its name."""
    found = await context.store.get_collection(
        request.params["tenant"], request.params["database"], request.params["collection"]
    )
    return json_response(responses.collection(found))


async def get_by_id(context: Context, request: Request) -> Response:
    """Return a collection by its id."""
    try:
        wanted = UUID(request.params["collection"])
    except ValueError:
        raise bad_request(
            "Validation error: collection_id: Invalid collection ID format, expected UUID"
        ) from None
    found = await context.store.get_collection_by_id(
        wanted, request.params["tenant"], request.params["database"]
    )
    return json_response(responses.collection(found))


async def modify(context: Context, request: Request) -> Response:
    """Rename, replace metadata, change configuration; what is absent or null stays."""
    payload = _modify.decode(await request.body())
    configuration = to_dict(payload.new_configuration)
    if configuration and configuration.get("hnsw") is not None and configuration.get("spann") is not None:
        raise bad_request("Multiple vector index configurations provided")
    await context.store.modify_collection(
        collection_id(request),
        new_name=payload.new_name,
        new_metadata=metadata.of_collection(payload.new_metadata, "new_metadata", allow_null=True),
        new_configuration=configuration,
    )
    return json_response({})


async def delete(context: Context, request: Request) -> Response:
    """Delete a collection by its name."""
    await context.store.delete_collection(
        request.params["tenant"], request.params["database"], request.params["collection"]
    )
    return json_response({})
