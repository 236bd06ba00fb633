"""Every operation of the API, and the right that each asks of its caller."""

from pgchroma.server.handlers import Context, beyond, collections, description, records, system, tenants
from pgchroma.server.router import Handler, Route, Scope

_DATABASES = "/api/v2/tenants/{tenant}/databases"
_COLLECTIONS = f"{_DATABASES}/{{database}}/collections"
_COLLECTION = f"{_COLLECTIONS}/{{collection}}"

_TABLE: tuple[tuple[str, str, Handler[Context], Scope], ...] = (
    ("GET", "/metrics", system.metrics_text, "monitor"),
    ("GET", "/openapi.json", description.openapi, "open"),
    ("GET", "/docs", description.docs, "open"),
    ("GET", "/api/v2", system.heartbeat, "open"),
    ("GET", "/api/v2/heartbeat", system.heartbeat, "open"),
    ("GET", "/api/v2/healthcheck", system.healthcheck, "open"),
    ("GET", "/api/v2/version", system.version, "open"),
    ("GET", "/api/v2/pre-flight-checks", system.pre_flight_checks, "open"),
    ("GET", "/api/v2/auth/identity", system.identity, "read"),
    ("POST", "/api/v2/reset", system.reset, "operator"),
    ("GET", "/api/v2/collections/{crn}", system.collection_by_resource_name, "read"),
    ("POST", "/api/v2/tenants", tenants.create_tenant, "operator"),
    ("GET", "/api/v2/tenants/{tenant}", tenants.get_tenant, "read"),
    ("PATCH", "/api/v2/tenants/{tenant}", tenants.update_tenant, "admin"),
    ("POST", _DATABASES, tenants.create_database, "admin"),
    ("GET", _DATABASES, tenants.list_databases, "read"),
    ("GET", f"{_DATABASES}/{{database}}", tenants.get_database, "read"),
    ("DELETE", f"{_DATABASES}/{{database}}", tenants.delete_database, "admin"),
    ("GET", f"{_DATABASES}/{{database}}/collections_count", collections.count, "read"),
    ("POST", _COLLECTIONS, collections.create, "write"),
    ("GET", _COLLECTIONS, collections.list_all, "read"),
    ("GET", f"{_COLLECTIONS}/by-id/{{collection}}", collections.get_by_id, "read"),
    ("GET", _COLLECTION, collections.get, "read"),
    ("PUT", _COLLECTION, collections.modify, "write"),
    ("DELETE", _COLLECTION, collections.delete, "write"),
    ("GET", f"{_COLLECTION}/count", records.count, "read"),
    ("POST", f"{_COLLECTION}/add", records.add, "write"),
    ("POST", f"{_COLLECTION}/upsert", records.upsert, "write"),
    ("POST", f"{_COLLECTION}/update", records.update, "write"),
    ("POST", f"{_COLLECTION}/delete", records.delete, "write"),
    ("POST", f"{_COLLECTION}/get", records.get, "read"),
    ("POST", f"{_COLLECTION}/query", records.query, "read"),
    ("POST", f"{_COLLECTION}/search", beyond.search, "read"),
    ("POST", f"{_COLLECTION}/fork", beyond.fork, "write"),
    ("GET", f"{_COLLECTION}/fork_count", beyond.fork_count, "read"),
    ("GET", f"{_COLLECTION}/indexing_status", beyond.indexing_status, "read"),
    ("POST", f"{_COLLECTION}/functions/attach", beyond.attach_function, "write"),
    ("GET", f"{_COLLECTION}/functions/{{function}}", beyond.get_function, "read"),
    (
        "POST",
        f"{_COLLECTION}/attached_functions/{{function}}/detach",
        beyond.detach_function,
        "write",
    ),
)

ROUTES = tuple(Route(*row) for row in _TABLE)
