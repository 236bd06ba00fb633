"""Tenants and databases."""

from pgchroma.server import auth
from pgchroma.server.handlers import Context
from pgchroma.server.http import Request, Response, bad_request, json_response
from pgchroma.server.payloads import Decoder, NamePayload, UpdateTenantPayload
from pgchroma.store import Database

MINIMUM_NAME_LENGTH = 3

_name: Decoder[NamePayload] = Decoder(NamePayload)
_update_tenant: Decoder[UpdateTenantPayload] = Decoder(UpdateTenantPayload)


async def create_tenant(context: Context, request: Request) -> Response:
    """Create a tenant."""
    payload = _name.decode(await request.body())
    await context.store.create_tenant(payload.name)
    return json_response({})


async def get_tenant(context: Context, request: Request) -> Response:
    """Return a tenant."""
    name = await context.store.get_tenant(request.params["tenant"])
    return json_response({"name": name, "resource_name": None})


async def update_tenant(_context: Context, request: Request) -> Response:
    """Accept a resource name and forget it, which is what upstream's single node does."""
    _update_tenant.decode(await request.body())
    return json_response({})


async def create_database(context: Context, request: Request) -> Response:
    """Create a database."""
    payload = _name.decode(await request.body())
    if not auth.reaches(request.token, payload.name):
        raise auth.forbidden(f"the token does not reach the database {payload.name}")
    await context.store.create_database(request.params["tenant"], payload.name)
    return json_response({})


async def list_databases(context: Context, request: Request) -> Response:
    """Return a tenant's databases by name, those that the caller reaches."""
    limit, offset = request.query_number("limit"), request.query_number("offset")
    tenant = request.params["tenant"]
    if request.token is None or request.token.databases is None:
        found = await context.store.list_databases(tenant, limit, offset or 0)
    else:
        every = await context.store.list_databases(tenant)
        reached = [database for database in every if auth.reaches(request.token, database.name)]
        found = reached[offset or 0 :][:limit]
    return json_response([_shown(database) for database in found])


async def get_database(context: Context, request: Request) -> Response:
    """Return a database."""
    if len(request.params["database"]) < MINIMUM_NAME_LENGTH:
        raise bad_request(f"database name must be at least {MINIMUM_NAME_LENGTH} characters")
    found = await context.store.get_database(request.params["tenant"], request.params["database"])
    return json_response(_shown(found))


async def delete_database(context: Context, request: Request) -> Response:
    """Delete a database with everything in it."""
    request.lift_deadline()
    await context.store.delete_database(request.params["tenant"], request.params["database"])
    return json_response({})


def _shown(database: Database) -> dict[str, str]:
    return {"id": str(database.id), "name": database.name, "tenant": database.tenant}
