"""The contract of everything but records: status codes, error names and bodies, as upstream's Rust server 1.5.9 answers."""

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from chromadb.api import ClientAPI
from chromadb.api.types import Schema

from support.api import CHROMA, COLLECTIONS, DATABASE, INVALID, MISSING, NOWHERE, Api, check


def test_system_routes(api: Api) -> None:
    for path in ("/api/v2", "/api/v2/heartbeat"):
        status, body, _ = api("GET", path)
        assert status == 200
        assert body["nanosecond heartbeat"] > 1.7e18
    assert api("GET", "/api/v2/version")[:2] == (200, "1.0.0")
    assert api("GET", "/api/v2/healthcheck")[:2] == (
        200,
        {"is_executor_ready": True, "is_log_client_ready": True},
    )
    status, body, _ = api("GET", "/api/v2/pre-flight-checks")
    assert status == 200
    assert body == {"max_batch_size": 100_000, "supports_base64_encoding": True}
    assert api("GET", "/api/v2/auth/identity")[:2] == (
        200,
        {"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]},
    )
    assert api("HEAD", "/api/v2/heartbeat")[:2] == (200, None)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/heartbeat", 410),
        ("GET", "/api/v1/collections", 410),
        ("GET", "/", 404),
        ("GET", "/api/v2/", 404),
        ("GET", "/api/v2/heartbeat/", 404),
        ("GET", "/api/v2//heartbeat", 404),
        ("GET", "/api/v3/x", 404),
        ("GET", f"{COLLECTIONS}/by-id/", 404),
        ("POST", "/api/v2/heartbeat", 405),
        ("DELETE", "/api/v2/tenants/x", 405),
        ("GET", f"{COLLECTIONS}/{NOWHERE}/get", 405),
    ],
)
def test_routes_that_are_not(api: Api, method: str, path: str, status: int) -> None:
    answer, _, headers = api(method, path)
    assert answer == status
    assert ("allow" in headers) == (status == 405)


def test_allow_names_the_methods(api: Api) -> None:
    assert api("DELETE", "/api/v2/tenants/x")[2]["allow"] == "GET,HEAD,PATCH"


@pytest.mark.parametrize(
    ("body", "status", "error", "message"),
    [
        ({}, 422, CHROMA, "name"),
        ([], 422, CHROMA, "Failed to deserialize the JSON body into the target type"),
        ({"name": 5}, 422, CHROMA, "name"),
        ({"name": None}, 422, CHROMA, "name"),
        ({"name": "ab"}, 400, INVALID, "name"),
        (b"", 400, INVALID, "Failed to parse the request body as JSON"),
        (b"{", 400, INVALID, "Failed to parse the request body as JSON"),
        (b'{"name":NaN}', 400, INVALID, "Failed to parse the request body as JSON"),
        (b'{"name":"trail"} x', 400, INVALID, "Failed to parse the request body as JSON"),
        (b'{"name":"\xff\xfeab"}', 400, INVALID, "Failed to parse the request body as JSON"),
        (b'{"name":"a\\ud800bc"}', 400, INVALID, "Failed to parse the request body as JSON"),
    ],
)
def test_bodies_that_are_not(api: Api, body: object, status: int, error: str, message: str) -> None:
    check(api("POST", "/api/v2/tenants", body), status, error, message)


def test_content_type_matters_only_when_it_is_another(api: Api) -> None:
    def create(headers: dict[str, str]) -> int:
        return api("POST", "/api/v2/tenants", {"name": f"t{uuid.uuid4().hex}"}, headers=headers)[0]

    assert create({}) == 200
    assert create({"Content-Type": "application/json; charset=utf-8"}) == 200
    assert create({"Content-Type": "text/plain"}) == 415


def test_tenants(api: Api, client: ClientAPI) -> None:
    assert api("POST", "/api/v2/tenants", {"name": "acme", "other": 1})[:2] == (200, {})
    check(api("POST", "/api/v2/tenants", {"name": "acme"}), 409, CHROMA, "Tenant [acme] already exists")
    assert api("GET", "/api/v2/tenants/acme")[1] == {"name": "acme", "resource_name": None}
    check(api("GET", "/api/v2/tenants/nope"), 404, MISSING, "Tenant [nope] not found")
    assert api("PATCH", "/api/v2/tenants/acme", {"resource_name": "x"})[:2] == (200, {})
    check(api("PATCH", "/api/v2/tenants/acme", {}), 422, CHROMA, "resource_name")
    assert api("POST", "/api/v2/tenants", {"name": "with/slash and ü"})[0] == 200
    found = api("GET", "/api/v2/tenants/with%2Fslash%20and%20%C3%BC")
    assert found[1]["name"] == "with/slash and ü"
    check(api("GET", "/api/v2/tenants/%ff"), 400, INVALID, "Invalid UTF-8")


def test_databases(api: Api, client: ClientAPI) -> None:
    path = "/api/v2/tenants/nobody-made-it/databases"
    assert api("GET", path)[:2] == (200, [])
    for name in ("dbb", "dba"):
        assert api("POST", path, {"name": name})[:2] == (200, {})
    check(api("POST", path, {"name": "dba"}), 409, CHROMA, "Database [dba] already exists")
    for name in ("ab", "-db", "d b", "x" * 513):
        check(api("POST", path, {"name": name}), 400, INVALID, "Expected a name containing 3-512 characters")
    _, found, _ = api("GET", path)
    assert [(entry["name"], entry["tenant"]) for entry in found] == [
        ("dba", "nobody-made-it"),
        ("dbb", "nobody-made-it"),
    ]
    assert [entry["name"] for entry in api("GET", f"{path}?limit=1&offset=1")[1]] == ["dbb"]
    assert api("GET", f"{path}?limit=0")[1] == []
    assert api("GET", f"{path}/dba")[1] == found[0]
    check(api("GET", f"{path}/nope"), 404, MISSING, "Database [nope] not found")
    check(api("GET", f"{path}/ab"), 400, INVALID, "at least 3 characters")
    check(api("DELETE", f"{path}/nope"), 404, MISSING, "Database [nope] not found")
    assert api("DELETE", f"{path}/dba")[:2] == (200, {})


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "limit=", "limit=4294967296", "offset=-1"])
def test_numbers_in_the_query_string(api: Api, query: str) -> None:
    for path in ("/api/v2/tenants/default_tenant/databases", COLLECTIONS):
        check(api("GET", f"{path}?{query}"), 400, INVALID, f"query string: {query.partition('=')[0]}: ")


@pytest.mark.parametrize(
    ("body", "status", "error", "message"),
    [
        ({"name": "ab"}, 400, INVALID, "Validation error: name: Expected a name"),
        ({"name": "c1x", "metadata": {}}, 400, INVALID, "metadata: Metadata cannot be empty"),
        ({"name": "c1x", "metadata": {"a": None}}, 422, CHROMA, "metadata.a"),
        ({"name": "c1x", "metadata": {"a": {"b": 1}}}, 422, CHROMA, "metadata.a"),
        ({"name": "c1x", "metadata": 5}, 422, CHROMA, "metadata"),
        ({"name": "c1x", "metadata": {"#x": 1}}, 400, INVALID, "cannot start with '#' or '$': #x"),
        ({"name": "c1x", "metadata": {"": 1}}, 400, INVALID, "Metadata key cannot be empty"),
        ({"name": "c1x", "metadata": {"hnsw:space": "bad"}}, 400, INVALID, ""),
        ({"name": "c1x", "metadata": {"hnsw:M": "x"}}, 400, INVALID, ""),
        ({"name": "c1x", "get_or_create": None}, 422, CHROMA, "get_or_create"),
        ({"name": "c1x", "configuration": 5}, 422, CHROMA, "configuration"),
        ({"name": "c1x", "configuration": {"hnsw": {"space": "nope"}}}, 422, CHROMA, "nope"),
        ({"name": "c1x", "configuration": {"hnsw": {"ef_search": -1}}}, 422, CHROMA, "ef_search"),
        ({"name": "c1x", "configuration": {"hnsw": {"foo": 1}}}, 422, CHROMA, "foo"),
        ({"name": "c1x", "configuration": {"hnsw": {}, "spann": {}}}, 400, INVALID, "Multiple vector index"),
        ({"name": "c1x", "configuration": {"embedding_function": {"type": "?"}}}, 422, CHROMA, "?"),
        ({"name": "c1x", "schema": 5}, 422, CHROMA, "schema"),
        ({"name": "c1x", "schema": {}}, 422, CHROMA, "defaults"),
    ],
)
def test_collections_that_cannot_be(api: Api, body: object, status: int, error: str, message: str) -> None:
    check(api("POST", COLLECTIONS, body), status, error, message)


def test_a_collection_has_every_member_with_its_defaults(api: Api, client: ClientAPI) -> None:
    body = {"name": "whole", "configuration": {"spann": {"space": "cosine"}}, "metadata": {"a": [1, 2]}}
    status, made, _ = api("POST", COLLECTIONS, body)
    assert status == 200
    assert sorted(made) == [
        "configuration_json",
        "database",
        "dimension",
        "id",
        "log_position",
        "metadata",
        "name",
        "schema",
        "tenant",
        "version",
    ]
    assert made["configuration_json"] == {
        "hnsw": {
            "space": "cosine",
            "ef_construction": 100,
            "ef_search": 100,
            "max_neighbors": 16,
            "resize_factor": 1.2,
            "sync_threshold": 1000,
        },
        "spann": None,
        "embedding_function": None,
    }
    assert (made["tenant"], made["database"], made["metadata"]) == (
        "default_tenant",
        "default_database",
        {"a": [1, 2]},
    )
    assert (made["dimension"], made["version"], made["log_position"]) == (None, 0, 0)
    assert made["schema"]["keys"]["#embedding"]["float_list"]["vector_index"]["config"]["space"] == "cosine"
    for path in (f"{COLLECTIONS}/whole", f"{COLLECTIONS}/by-id/{made['id']}"):
        assert api("GET", path)[:2] == (200, made)
    assert api("GET", COLLECTIONS)[1] == [made]
    assert api("GET", f"{DATABASE}/collections_count")[1] == 1


def test_collections_that_are_not_there(api: Api, client: ClientAPI) -> None:
    check(api("GET", f"{COLLECTIONS}/nope"), 404, MISSING, "Collection [nope] does not exist")
    check(api("DELETE", f"{COLLECTIONS}/nope"), 404, MISSING, "Collection [nope] does not exist")
    check(api("GET", f"{COLLECTIONS}/by-id/nope"), 400, INVALID, "expected UUID")
    check(api("GET", f"{COLLECTIONS}/by-id/{NOWHERE}"), 404, MISSING, NOWHERE)
    check(api("PUT", f"{COLLECTIONS}/{NOWHERE}", {"new_name": "abcd"}), 404, MISSING, NOWHERE)
    check(api("PUT", f"{COLLECTIONS}/nope", {"new_name": "abcd"}), 400, INVALID, "not a valid UUIDv4")
    elsewhere = "/api/v2/tenants/nope/databases/nodb"
    assert api("GET", f"{elsewhere}/collections")[:2] == (200, [])
    assert api("GET", f"{elsewhere}/collections_count")[:2] == (200, 0)
    check(api("POST", f"{elsewhere}/collections", {"name": "abc"}), 400, INVALID, "[nodb]")
    for action, body in {
        "add": {"ids": ["a"], "embeddings": [[1]]},
        "upsert": {"ids": [], "embeddings": []},
        "update": {"ids": ["a"]},
        "get": {},
        "query": {"query_embeddings": [[1]]},
        "delete": {},
    }.items():
        check(api("POST", f"{COLLECTIONS}/{NOWHERE}/{action}", body), 404, MISSING, NOWHERE)
        check(api("POST", f"{COLLECTIONS}/nouuid/{action}", body), 400, INVALID, "not a valid UUIDv4")
    check(api("GET", f"{COLLECTIONS}/{NOWHERE}/count"), 404, MISSING, NOWHERE)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ({}, 200, ""),
        ({"new_name": None, "new_metadata": None}, 200, ""),
        ({"new_metadata": {"a": None, "b": 1}}, 200, ""),
        ({"new_metadata": {"a": None}}, 200, ""),
        ({"new_configuration": {}}, 200, ""),
        ({"new_configuration": {"hnsw": {"ef_search": 50}}}, 200, ""),
        ({"new_configuration": {"spann": {"ef_search": 50}}}, 200, ""),
        ({"new_name": "ab"}, 400, INVALID),
        ({"new_metadata": {}}, 400, INVALID),
        ({"new_metadata": 5}, 422, CHROMA),
        ({"new_configuration": {"hnsw": {"space": "ip"}}}, 422, CHROMA),
        ({"new_configuration": {"hnsw": {"ef_search": "x"}}}, 422, CHROMA),
        ({"new_name": "taken"}, 409, CHROMA),
    ],
)
def test_modify(api: Api, records: str, body: object, status: int, error: str) -> None:
    assert api("POST", COLLECTIONS, {"name": "taken"})[0] == 200
    answer = api("PUT", records, body)
    assert answer[0] == status
    assert answer[1].get("error", "") == error


@pytest.mark.parametrize(
    ("method", "action", "body", "status"),
    [
        ("POST", "functions/attach", {"name": "x", "function_id": "f", "output_collection": "o"}, 501),
        ("POST", "attached_functions/x/detach", {}, 501),
        ("GET", "functions/x", None, 404),
    ],
)
def test_what_one_node_does_not_do(
    api: Api, records: str, method: str, action: str, body: object, status: int
) -> None:
    answer = api(method, f"{records}/{action}", body)
    assert answer[0] == status
    assert answer[1]["error"] == (MISSING if status == 404 else CHROMA)


def test_every_answer_has_a_request_id(api: Api) -> None:
    own = api("GET", "/api/v2/version", headers={"X-Request-Id": "mine-1"})[2]
    assert own["x-request-id"] == own["chroma-trace-id"] == "mine-1"
    for unusable in ("", "a b", "x" * 200):
        made = api("GET", "/nope", headers={"X-Request-Id": unusable})[2]["x-request-id"]
        assert len(made) == 32


DEFAULT_FUNCTION = {"type": "known", "name": "default", "config": {}}
OTHER_FUNCTION = {"type": "known", "name": "mine", "config": {"a": 1}}


@pytest.mark.parametrize(
    ("schema_space", "configuration", "space", "function"),
    [
        # A schema that says nothing new leaves the word to the configuration.
        ("l2", None, "l2", None),
        ("l2", {"hnsw": {"space": "l2"}, "embedding_function": DEFAULT_FUNCTION}, "l2", DEFAULT_FUNCTION),
        ("l2", {"hnsw": {"space": "cosine"}}, "cosine", None),
        ("l2", {"embedding_function": OTHER_FUNCTION}, "l2", OTHER_FUNCTION),
        # One that does has it, and a configuration of defaults does not contradict.
        ("cosine", None, "cosine", DEFAULT_FUNCTION),
        ("cosine", {"hnsw": {"space": "l2", "ef_search": 100}}, "cosine", DEFAULT_FUNCTION),
        (
            "cosine",
            {"hnsw": {"space": "l2"}, "embedding_function": DEFAULT_FUNCTION},
            "cosine",
            DEFAULT_FUNCTION,
        ),
        ("cosine", {"spann": {"space": "l2"}}, "cosine", DEFAULT_FUNCTION),
        ("cosine", {"hnsw": {"space": "cosine"}}, None, None),
        ("cosine", {"hnsw": {"ef_search": 101}}, None, None),
        ("cosine", {"embedding_function": OTHER_FUNCTION}, None, None),
    ],
)
def test_schema_and_configuration_together(
    api: Api, client: ClientAPI, schema_space: str, configuration: object, space: str | None, function: object
) -> None:
    # As Chroma's client sends it: with its default embedding function, without what it leaves to the server.
    schema = Schema().serialize_to_json()
    for part in (schema["defaults"], schema["keys"]["#embedding"]):
        part["float_list"]["vector_index"]["config"]["space"] = schema_space
    answer = api("POST", COLLECTIONS, {"name": "both", "schema": schema, "configuration": configuration})
    if space is None:
        check(answer, 400, INVALID, "Cannot set both collection config and schema simultaneously")
        return
    made = answer[1]["configuration_json"]
    assert (made["hnsw"]["space"], made["embedding_function"]) == (space, function)
    vector = answer[1]["schema"]["keys"]["#embedding"]["float_list"]["vector_index"]["config"]
    assert (vector["space"], vector.get("embedding_function")) == (space, function)


def test_get_or_create_survives_a_deletion_by_somebody_else(api: Api, client: ClientAPI) -> None:
    def race(number: int) -> int:
        status = api("POST", COLLECTIONS, {"name": "contested", "get_or_create": True})[0]
        if number % 2:
            api("DELETE", f"{COLLECTIONS}/contested")
        return status

    with ThreadPoolExecutor(16) as threads:
        assert set(threads.map(race, range(200))) == {200}


@pytest.mark.parametrize(
    ("metadata", "hnsw", "expected"),
    [
        ({"hnsw:space": "cosine", "hnsw:M": 20}, None, ("cosine", 20, 100)),
        # Clients send a configuration of defaults although the caller gave none.
        ({"hnsw:space": "cosine", "hnsw:M": 20}, {"space": "l2"}, ("cosine", 20, 100)),
        ({"hnsw:space": "cosine", "hnsw:M": 20}, {}, ("cosine", 20, 100)),
        ({"hnsw:space": "cosine", "hnsw:M": 20}, {"ef_search": 50}, ("l2", 16, 50)),
        ({"hnsw:space": "ip"}, {"space": "cosine"}, ("cosine", 16, 100)),
        ({"hnsw:foo": 1}, None, None),
        ({"hnsw:batch_size": 1}, {"ef_search": 50}, None),
        ({"hnsw:search_ef": 50.0}, None, None),
    ],
)
def test_legacy_metadata_configures_a_collection(
    api: Api,
    client: ClientAPI,
    metadata: dict[str, object],
    hnsw: dict[str, object] | None,
    expected: tuple[str, int, int] | None,
) -> None:
    answer = api(
        "POST", COLLECTIONS, {"name": "legacy", "metadata": metadata, "configuration": {"hnsw": hnsw}}
    )
    if expected is None:
        check(answer, 400, INVALID, "Failed to parse hnsw parameters from segment metadata")
        return
    made = answer[1]["configuration_json"]["hnsw"]
    assert (made["space"], made["max_neighbors"], made["ef_search"]) == expected
    assert answer[1]["metadata"] == metadata
