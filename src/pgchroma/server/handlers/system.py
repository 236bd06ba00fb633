"""Liveness, readiness, version, limits, identity, reset, and what upstream has retired."""

import asyncio
import time

from pgchroma.errors import DatabaseNotReadyError, DatabaseUnreachableError, PgchromaError
from pgchroma.server import errors, metrics
from pgchroma.server.handlers import Context
from pgchroma.server.http import HttpError, Request, Response, bad_request, json_response
from pgchroma.store import gauges
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT

# The version of the API, which upstream's servers of 1.x all answer; clients only compare its first number.
API_VERSION = "1.0.0"
READINESS_TIMEOUT_SECONDS = 2.0


async def heartbeat(_context: Context, _request: Request) -> Response:
    """Liveness: the time in nanoseconds, whether or not the database answers."""
    return json_response({"nanosecond heartbeat": time.time_ns()})


async def healthcheck(context: Context, _request: Request) -> Response:
    """Readiness: 200, or 503 and a body that names what is missing."""
    try:
        await context.store.check_ready(READINESS_TIMEOUT_SECONDS, context.watch)
    except (DatabaseUnreachableError, DatabaseNotReadyError) as error:
        body = {"is_executor_ready": False, "is_log_client_ready": False, **errors.body_of_unavailable(error)}
        answer = json_response(body, 503, errors.RETRY_AFTER)
        answer.error = errors.UNAVAILABLE
        return answer
    return json_response({"is_executor_ready": True, "is_log_client_ready": True})


async def version(_context: Context, _request: Request) -> Response:
    """Return the version of the API."""
    return json_response(API_VERSION)


async def pre_flight_checks(context: Context, _request: Request) -> Response:
    """Return what clients adapt to."""
    return json_response(
        {"max_batch_size": context.settings.max_batch_size, "supports_base64_encoding": True}
    )


async def identity(_context: Context, request: Request) -> Response:
    """Return who the caller is; clients take tenant and database from it where there is only one that it can be."""
    token = request.token
    if token is None:
        return json_response({"user_id": "", "tenant": DEFAULT_TENANT, "databases": [DEFAULT_DATABASE]})
    databases = ["*"] if token.databases is None else sorted(token.databases)
    return json_response({"user_id": token.name, "tenant": token.tenant or "*", "databases": databases})


async def metrics_text(context: Context, _request: Request) -> Response:
    """Return the metrics of all workers, and the database's figures while it answers."""
    if not context.settings.metrics:
        raise HttpError(404, "NotFoundError", "There are no metrics here (PGCHROMA_METRICS=false)")
    found: list[gauges.Gauge] = []
    database_up = True
    try:
        found = await context.watch.ask(gauges.read)
    except PgchromaError:
        database_up = False
    text = await asyncio.to_thread(context.metrics.text, found, database_up=database_up)
    return Response(text, content_type=metrics.CONTENT_TYPE)


async def reset(context: Context, request: Request) -> Response:
    """Delete everything, where the settings allow it."""
    if not context.settings.allow_reset:
        raise HttpError(403, "ChromaError", "Reset is disabled by config")
    request.lift_deadline()
    await context.store.reset()
    return json_response(True)


async def collection_by_resource_name(_context: Context, request: Request) -> Response:
    """Look a collection up by its tenant's resource name; no tenant has one here, as on upstream's single node."""
    name = request.params["crn"]
    parts = name.split(":")
    if len(parts) != 3 or not all(parts):
        raise bad_request(
            "Validation error: crn: CRN must be in the format "
            "<tenant_resource_name>:<database_name>:<collection_name> with non-empty parts"
        )
    raise HttpError(404, "NotFoundError", f"Collection [{name}] does not exist")
