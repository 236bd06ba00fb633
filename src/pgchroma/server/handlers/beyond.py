"""What upstream's single node lacks: search, forks, the state of the index; and what is lacking here, too."""

import numpy as np

from pgchroma import ranking
from pgchroma.server import limits, responses, searches
from pgchroma.server.handlers import Context
from pgchroma.server.handlers.collections import collection_id
from pgchroma.server.http import HttpError, Request, Response, json_response, unimplemented
from pgchroma.server.payloads import Decoder, ForkPayload

_search: Decoder[searches.SearchPayload] = Decoder(searches.SearchPayload)
_fork: Decoder[ForkPayload] = Decoder(ForkPayload)


async def search(context: Context, request: Request) -> Response:
    """Return what each search of the request finds, column by column; the read level changes nothing, every read sees every write."""
    payload = _search.decode(await request.body())
    collection = collection_id(request)
    wanted = searches.parse(payload)
    for each in wanted:
        limits.clause(each.where, "filter", context.settings)
        if each.limit is not None:
            limits.check_results(each.limit, context.settings, "the limit of a search")
        for knn in ranking.knns(each.rank) if each.rank else ():
            limits.check_results(knn.limit, context.settings, "the limit of a $knn")
            if not isinstance(knn.query, dict):
                limits.check_dimension(knn.query[np.newaxis], context.settings)
    results = await context.store.search(collection, wanted)
    return json_response(responses.search_result(wanted, results))


async def fork(context: Context, request: Request) -> Response:
    """Copy a collection into a new one of the same database and return that."""
    payload = _fork.decode(await request.body())
    request.lift_deadline()
    created = await context.store.fork(
        collection_id(request), payload.new_name, request.params["tenant"], request.params["database"]
    )
    return json_response(responses.collection(created))


async def fork_count(context: Context, request: Request) -> Response:
    """Return how many forks there are of a collection's lineage."""
    return json_response({"count": await context.store.fork_count(collection_id(request))})


async def indexing_status(context: Context, request: Request) -> Response:
    """Return how many record operations the vector indexes cover."""
    status = await context.store.indexing_status(collection_id(request))
    return json_response(
        {
            "num_indexed_ops": status.indexed,
            "num_unindexed_ops": status.unindexed,
            "total_ops": status.total,
            "op_indexing_progress": status.progress,
        }
    )


async def attach_function(_context: Context, _request: Request) -> Response:
    """Refuse, as upstream's single node does."""
    raise unimplemented(
        "Attached functions are not implemented: this server has no function runner, so none can be attached to a collection"
    )


async def detach_function(_context: Context, request: Request) -> Response:
    """Refuse, as upstream's single node does."""
    raise unimplemented(
        f"Attached functions are not implemented: this server has no function runner, so {request.params['function']!r} "
        "cannot be detached"
    )


async def get_function(_context: Context, request: Request) -> Response:
    """Find none, as upstream's single node does."""
    raise HttpError(
        404,
        "NotFoundError",
        f"Attached function {request.params['function']!r} not found: this server has no function runner, so none is attached",
    )
