"""The description of the API (OpenAPI 3.1), made from the routes, their handlers' docstrings and the types they decode."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec

from pgchroma import __version__
from pgchroma.server import answers, payloads, searches
from pgchroma.server.router import Route

Json = dict[str, Any]

_REFERENCE = "#/components/schemas/"
_ERROR = {"content": {"application/json": {"schema": {"$ref": f"{_REFERENCE}Error"}}}}
# What every route may answer beside its own.
_EVERYWHERE = {
    400: "A value, name, filter or the JSON itself is not allowed.",
    408: "The body did not arrive in time, or the request took longer than it may (PGCHROMA_REQUEST_TIMEOUT_SECONDS).",
    500: "The server failed; its log tells more under the request id of the answer.",
    503: "The database does not answer; the answer says when to try again.",
}
_WITH_TOKEN = {403: "The token is missing or wrong, or does not reach that far."}
_WITH_BODY = {
    413: "The body or the batch is too large; the message names the limit.",
    415: "The body is declared as other than JSON.",
    422: "The body is JSON of another shape.",
}
_TAGS = {
    "system": "Liveness, readiness, limits, identity.",
    "tenants": "Tenants and databases.",
    "collections": "Collections by name and by id.",
    "records": "Records of a collection.",
    "beyond": "Search, forks and the state of the index, which upstream's single node lacks.",
}
_PARAMETERS = {
    "tenant": "Name of a tenant, percent-encoded.",
    "database": "Name of a database.",
    "collection": "Id of a collection, a UUID.",
    "function": "Name of a function.",
    "crn": "Resource name of a collection: `<tenant_resource_name>:<database_name>:<collection_name>`.",
}
_READ_LEVEL = {"enum": ["index_and_wal", "index_only", "index_and_bounded_wal"]}
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**32 - 1}
_PAGE = {"limit": ("Most entries to return.", _NUMBER), "offset": ("Entries to skip.", _NUMBER)}

# Filters are read by the store from plain JSON, so that their description is written by hand.
_SCALAR = {"type": ["string", "number", "boolean"]}
_OPERATORS = {
    **dict.fromkeys(("$eq", "$ne", "$contains", "$not_contains"), _SCALAR),
    **{name: {"type": "number"} for name in ("$gt", "$gte", "$lt", "$lte")},
    **{name: {"type": "array", "items": _SCALAR, "minItems": 1} for name in ("$in", "$nin")},
}
_TEXT_OPERATORS = {
    name: {"type": "string"} for name in ("$contains", "$not_contains", "$regex", "$not_regex")
}


def _combined(name: str) -> Json:
    return {
        operator: {"type": "array", "items": {"$ref": f"{_REFERENCE}{name}"}} for operator in ("$and", "$or")
    }


_FILTERS: Json = {
    "Where": {
        "title": "Where",
        "description": (
            "A filter over metadata: one key with a value or one operator, or `$and` or `$or` with a list of filters. "
            "`#document` takes the operators of `WhereDocument`."
        ),
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {
            **_combined("Where"),
            "#document": {
                "type": "object",
                "minProperties": 1,
                "maxProperties": 1,
                "properties": _TEXT_OPERATORS,
                "additionalProperties": False,
            },
        },
        "additionalProperties": {
            "anyOf": [
                _SCALAR,
                {
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "properties": _OPERATORS,
                    "additionalProperties": False,
                },
            ]
        },
        "examples": [{"year": {"$gte": 2020}}, {"$and": [{"lang": "en"}, {"tags": {"$contains": "news"}}]}],
    },
    "WhereDocument": {
        "title": "WhereDocument",
        "description": "A filter over documents: one operator, or `$and` or `$or` with a list. Patterns are in Rust's syntax.",
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {**_TEXT_OPERATORS, **_combined("WhereDocument")},
        "additionalProperties": False,
        "examples": [{"$contains": "backup"}, {"$regex": "^A\\b"}],
    },
}


@dataclass(frozen=True, slots=True)
class Description:
    """What the description of a route holds beside its docstring.

    Attributes:
        answer: type of the answer's body; None for text that is not JSON.
        status: of the answer.
        body: type of the request's body, or None.
        errors: statuses of errors beside those that any such route may answer.
        query: parameters of the query string, as name -> (description, schema).
        by_name: whether `{collection}` is a name instead of an id.
        content: media type of an answer that is not JSON.
    """

    answer: Any
    status: int = 200
    body: Any = None
    errors: tuple[int, ...] = ()
    query: Sequence[tuple[str, tuple[str, Json]]] = ()
    by_name: bool = False
    content: str = "application/json"


_PAGED = tuple(_PAGE.items())
_MISSING, _TAKEN, _NOT_HERE = 404, 409, 501

# Handler, as module.function -> what is not in its docstring.
DESCRIPTIONS: dict[str, Description] = {
    "description.openapi": Description(dict[str, Any]),
    "description.docs": Description(None, content="text/html"),
    "system.metrics_text": Description(None, content="text/plain", errors=(_MISSING,)),
    "system.heartbeat": Description(answers.Heartbeat),
    "system.healthcheck": Description(answers.Health),
    "system.version": Description(answers.Version),
    "system.pre_flight_checks": Description(answers.PreFlightChecks),
    "system.identity": Description(answers.Identity),
    "system.reset": Description(bool, errors=(403,)),
    "system.collection_by_resource_name": Description(answers.Collection, errors=(_MISSING,)),
    "tenants.create_tenant": Description(answers.Done, body=payloads.NamePayload, errors=(_TAKEN,)),
    "tenants.get_tenant": Description(answers.Tenant, errors=(_MISSING,)),
    "tenants.update_tenant": Description(answers.Done, body=payloads.UpdateTenantPayload),
    "tenants.create_database": Description(answers.Done, body=payloads.NamePayload, errors=(_TAKEN,)),
    "tenants.list_databases": Description(list[answers.Database], query=_PAGED),
    "tenants.get_database": Description(answers.Database, errors=(_MISSING,)),
    "tenants.delete_database": Description(answers.Done, errors=(_MISSING,)),
    "collections.count": Description(answers.Count),
    "collections.create": Description(
        answers.Collection, body=payloads.CreateCollectionPayload, errors=(_TAKEN,)
    ),
    "collections.list_all": Description(list[answers.Collection], query=_PAGED),
    "collections.get_by_id": Description(answers.Collection, errors=(_MISSING,)),
    "collections.get": Description(answers.Collection, errors=(_MISSING,), by_name=True),
    "collections.modify": Description(
        answers.Done, body=payloads.ModifyCollectionPayload, errors=(_MISSING, _TAKEN)
    ),
    "collections.delete": Description(answers.Done, errors=(_MISSING,), by_name=True),
    "records.count": Description(
        answers.Count,
        errors=(_MISSING,),
        query=(("read_level", ("Accepted; every read sees every write.", _READ_LEVEL)),),
    ),
    "records.add": Description(answers.Done, status=201, body=payloads.WritePayload, errors=(_MISSING,)),
    "records.upsert": Description(answers.Done, body=payloads.WritePayload, errors=(_MISSING,)),
    "records.update": Description(answers.Done, body=payloads.UpdatePayload, errors=(_MISSING,)),
    "records.delete": Description(answers.Deleted, body=payloads.DeletePayload, errors=(_MISSING,)),
    "records.get": Description(answers.Records, body=payloads.GetPayload, errors=(_MISSING,)),
    "records.query": Description(answers.Neighbours, body=payloads.QueryPayload, errors=(_MISSING,)),
    "beyond.search": Description(
        answers.SearchResults, body=searches.SearchPayload, errors=(_MISSING, _NOT_HERE)
    ),
    "beyond.fork": Description(answers.Collection, body=payloads.ForkPayload, errors=(_MISSING, _TAKEN)),
    "beyond.fork_count": Description(answers.ForkCount, errors=(_MISSING,)),
    "beyond.indexing_status": Description(answers.IndexingStatus, errors=(_MISSING,)),
    "beyond.attach_function": Description(answers.Done, errors=(_NOT_HERE,)),
    "beyond.get_function": Description(answers.Done, errors=(_MISSING,)),
    "beyond.detach_function": Description(answers.Done, errors=(_NOT_HERE,)),
}


def key_of(route: Route[Any]) -> str:
    """Return the key of a route in DESCRIPTIONS."""
    module = route.handler.__module__.rpartition(".")[2]
    return f"{module}.{route.handler.__name__}"


def build(routes: Iterable[Route[Any]]) -> Json:
    """Return the OpenAPI document of the routes; KeyError for one whose handler is missing in DESCRIPTIONS."""
    described = [(route, DESCRIPTIONS[key_of(route)]) for route in routes]
    types = {answers.Error, *(item for _, found in described for item in _types(found))}
    ordered = sorted(types, key=str)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCE + "{name}")
    by_type = dict(zip(map(str, ordered), schemas, strict=True))
    paths: dict[str, Json] = {}
    for route, found in described:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, found, by_type)
    used = {key_of(route).partition(".")[0] for route, _ in described}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "pgchroma",
            "version": __version__,
            "summary": "Chroma's HTTP API over PostgreSQL and pgvector.",
            "description": (
                "Clients of Chroma 1.x work unchanged. Every answer has the headers `x-request-id` and `chroma-trace-id`, "
                "under which the server's log tells more."
            ),
            "license": {"name": "Apache 2.0", "identifier": "Apache-2.0"},
        },
        "tags": [
            {"name": name, "description": text}
            for name, text in {**_TAGS, "description": "This description."}.items()
            if name in used
        ],
        "paths": paths,
        "components": {
            "schemas": dict(sorted({**components, **_FILTERS}.items())),
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `pgchroma token create`.",
                },
                "chromaToken": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "X-Chroma-Token",
                    "description": "The same token, as Chroma's cloud client sends it.",
                },
            },
        },
    }


def _types(description: Description) -> list[Any]:
    return [kind for kind in (description.answer, description.body) if kind is not None]


def _operation(route: Route[Any], description: Description, schemas: dict[str, Json]) -> Json:
    tag, _, name = key_of(route).partition(".")
    summary, _, rest = (route.handler.__doc__ or "").strip().partition("\n\n")
    is_open = route.scope == "open"
    operation: Json = {
        "operationId": _operation_id(route, tag, name),
        "tags": [tag],
        "summary": " ".join(summary.split()),
        "description": " ".join(rest.split()),
        "parameters": [*_path_parameters(route, description), *_query_parameters(description)],
        "security": [] if is_open else [{"bearer": []}, {"chromaToken": []}],
        "x-scope": route.scope,
    }
    if description.body is not None:
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schemas[str(description.body)]}},
        }
    schema = {"type": "string"} if description.answer is None else schemas[str(description.answer)]
    operation["responses"] = {
        str(description.status): {
            "description": "Done.",
            "content": {description.content: {"schema": schema}},
        }
    }
    errors = (
        _EVERYWHERE | ({} if is_open else _WITH_TOKEN) | (_WITH_BODY if description.body is not None else {})
    )
    for status in description.errors:
        errors.setdefault(status, HTTPStatus(status).phrase + ".")
    for status, text in sorted(errors.items()):
        operation["responses"][str(status)] = {"description": text, **_ERROR}
    return operation


def _operation_id(route: Route[Any], tag: str, name: str) -> str:
    # Liveness has two paths.
    return f"{tag}_{name}" + ("_root" if route.path == "/api/v2" else "")


def _path_parameters(route: Route[Any], description: Description) -> list[Json]:
    parameters = []
    for name in re.findall(r"\{(\w+)\}", route.path):
        schema: Json = {"type": "string"}
        text = _PARAMETERS[name]
        if name == "collection":
            text = "Name of a collection." if description.by_name else text
            schema |= {} if description.by_name else {"format": "uuid"}
        parameters.append(
            {"name": name, "in": "path", "required": True, "description": text, "schema": schema}
        )
    return parameters


def _query_parameters(description: Description) -> list[Json]:
    return [
        {"name": name, "in": "query", "required": False, "description": text, "schema": schema}
        for name, (text, schema) in description.query
    ]
