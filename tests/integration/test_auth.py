"""Tokens: who gets in, what each reaches, and that nobody can tell what is behind a closed door."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import psycopg
import pytest
from chromadb.config import Settings
from chromadb.errors import ChromaAuthError

from pgchroma.server.routes import ROUTES
from pgchroma.store import watch
from support.api import COLLECTIONS, Api
from support.postgres import Databases
from support.server import ServerProcess, running_server
from support.store import execute
from support.tokens import bearer, make_token, token_command
from support.waiting import wait_for

FORBIDDEN = {"error": "AuthError", "message": "Forbidden"}
IDENTITY = "/api/v2/auth/identity"
ACME = "/api/v2/tenants/acme/databases/prod/collections"
OTHER = "/api/v2/tenants/other/databases/prod/collections"
TENANTS = ("acme", "other")


@pytest.fixture(scope="module")
def server(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks for tokens."""
    folder = tmp_path_factory.mktemp("auth")
    with running_server(module_database_url, folder, environment={"PGCHROMA_AUTH": "token"}) as process:
        yield process


@pytest.fixture(scope="module")
def tokens(module_database_url: str) -> dict[str, str]:
    """A token of each kind, by a name that says what it reaches."""
    made = {
        "operator": make_token(module_database_url, "operator", "operator"),
        "monitor": make_token(module_database_url, "monitor", "monitor"),
        "read": make_token(module_database_url, "read", "read"),
    }
    for tenant in TENANTS:
        options = ("--tenant", tenant, "--create-missing")
        made[tenant] = make_token(module_database_url, tenant, "admin", *options)
        name = f"{tenant}-prod"
        made[name] = make_token(module_database_url, name, "admin", *options, "--database", "prod")
    return made


@pytest.fixture(scope="module")
def foreign(server: ServerProcess, tokens: dict[str, str]) -> dict[str, Any]:
    """A collection of the tenant `other`, with a record in it."""
    api = Api(server.port)
    status, body, _ = api(
        "POST", OTHER, {"name": "ledger", "get_or_create": True}, headers=bearer(tokens["other"])
    )
    assert status == 200, body
    batch = {"ids": ["secret"], "embeddings": [[1, 2]], "documents": ["x"]}
    assert api("POST", f"{OTHER}/{body['id']}/upsert", batch, headers=bearer(tokens["other"]))[0] == 200
    return dict(body)


class TestGettingIn:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer pgc_nobody_nothing"},
            {"Authorization": "Basic YTpi"},
            {"Authorization": "Bearer \xe4\xf6"},
            {"X-Chroma-Token": "pgc_nobody_nothing"},
            {"X-Chroma-Token": "'; DROP TABLE pgchroma.tokens; --"},
        ],
        ids=lambda headers: "-".join(headers) or "none",
    )
    def test_strangers_get_one_answer(self, server: ServerProcess, headers: dict[str, str]) -> None:
        for path in (IDENTITY, COLLECTIONS, "/metrics"):
            assert Api(server.port)("GET", path, headers=headers)[:2] == (403, FORBIDDEN)

    def test_wrong_revoked_and_expired_tokens_get_the_answer_of_none(
        self, server: ServerProcess, module_database_url: str
    ) -> None:
        api = Api(server.port)
        good = make_token(module_database_url, "short-lived", "read")
        assert api("GET", IDENTITY, headers=bearer(good))[0] == 200
        wrong = good[:-1] + ("a" if good[-1] != "a" else "b")
        assert api("GET", IDENTITY, headers=bearer(wrong))[:2] == (403, FORBIDDEN)
        expired = make_token(module_database_url, "expired", "read", "--expires", "1h")
        with psycopg.connect(module_database_url) as connection:
            connection.execute(
                "UPDATE pgchroma.tokens SET expires_at = now() - interval '1 s' WHERE name = 'expired'"
            )
        wait_for(
            "the expired token to be refused", lambda: api("GET", IDENTITY, headers=bearer(expired))[0] == 403
        )
        token_command(module_database_url, "revoke", "short-lived")
        wait_for(
            "the revoked token to be refused", lambda: api("GET", IDENTITY, headers=bearer(good))[0] == 403
        )
        for text in (wrong, expired, good):
            status, body, headers = api("GET", IDENTITY, headers=bearer(text))
            nothing = api("GET", IDENTITY, headers={})
            assert (status, body) == nothing[:2] == (403, FORBIDDEN)
            volatile = {"date", "x-request-id", "chroma-trace-id"}
            assert {k: v for k, v in headers.items() if k not in volatile} == {
                k: v for k, v in nothing[2].items() if k not in volatile
            }

    @pytest.mark.parametrize("header", ["Authorization", "authorization", "X-Chroma-Token"])
    def test_both_headers_carry_a_token(
        self, server: ServerProcess, tokens: dict[str, str], header: str
    ) -> None:
        text = tokens["read"] if header == "X-Chroma-Token" else f"bearer {tokens['read']}"
        assert Api(server.port)("GET", IDENTITY, headers={header: text})[0] == 200

    @pytest.mark.parametrize("name", ["", "heartbeat", "healthcheck", "version", "pre-flight-checks"])
    def test_probes_need_no_token(self, server: ServerProcess, name: str) -> None:
        path = f"/api/v2/{name}".rstrip("/")
        assert Api(server.port)("GET", path, headers={})[0] == 200

    def test_a_token_works_in_the_moment_it_is_made(
        self, server: ServerProcess, module_database_url: str
    ) -> None:
        for number in range(5):
            made = make_token(module_database_url, f"fresh-{number}", "read")
            for _ in range(4):
                assert Api(server.port)("GET", IDENTITY, headers=bearer(made))[0] == 200

    def test_a_revoked_token_is_refused_by_every_worker_once_the_command_is_done(
        self, server: ServerProcess, module_database_url: str
    ) -> None:
        api = Api(server.port)
        made = make_token(module_database_url, "to-revoke", "read")
        for _ in range(20):
            assert api("GET", IDENTITY, headers=bearer(made))[0] == 200
        token_command(module_database_url, "revoke", "to-revoke")
        revoked = last_success = time.monotonic()
        while time.monotonic() < revoked + 2 * watch.LOOK_SECONDS:
            if api("GET", IDENTITY, headers=bearer(made))[0] == 200:
                last_success = time.monotonic()
        # The command returns when it holds.
        assert last_success == revoked
        for _ in range(20):
            assert api("GET", IDENTITY, headers=bearer(made))[:2] == (403, FORBIDDEN)

    def test_a_worker_cut_off_from_the_database_trusts_what_it_knows_for_seconds_only(
        self, database_url: str, databases: Databases, tmp_path: Path
    ) -> None:
        made = bearer(make_token(database_url, "app", "read"))
        name = psycopg.conninfo.conninfo_to_dict(database_url)["dbname"]
        environment = {"PGCHROMA_AUTH": "token", "PGCHROMA_INDEXER": "false"}
        with (
            running_server(database_url, tmp_path, workers=1, environment=environment) as server,
            psycopg.connect(database_url, autocommit=True) as inside,
        ):
            api = Api(server.port)
            assert api("GET", IDENTITY, headers=made)[0] == 200
            execute(databases.postgres.url(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
            try:
                inside.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pgchroma watch' "
                    "AND datname = current_database()"
                )
                inside.execute("UPDATE pgchroma.tokens SET revoked_at = now()")
                revoked = last_success = time.monotonic()
                while time.monotonic() < revoked + watch.TRUST_SECONDS + 2:
                    if api("GET", IDENTITY, headers=made)[0] == 200:
                        last_success = time.monotonic()
                assert last_success - revoked < watch.TRUST_SECONDS + watch.LOOK_SECONDS
                assert api("GET", IDENTITY, headers=made)[0] == 503
            finally:
                execute(databases.postgres.url(), f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")
            wait_for(
                "the revoked token to be refused",
                lambda: api("GET", IDENTITY, headers=made)[:2] == (403, FORBIDDEN),
            )

    def test_its_use_is_noted(self, server: ServerProcess, module_database_url: str) -> None:
        made = make_token(module_database_url, "noted", "read")

        def last_used() -> object:
            entries = token_command(module_database_url, "list")["tokens"]
            return next(entry["last_used_at"] for entry in entries if entry["name"] == "noted")

        assert last_used() is None
        Api(server.port)("GET", IDENTITY, headers=bearer(made))
        wait_for("the use to be noted", last_used)

    def test_no_token_is_in_the_log(self, server: ServerProcess, tokens: dict[str, str]) -> None:
        for text in tokens.values():
            Api(server.port)("GET", IDENTITY, headers=bearer(text))
        log = server.log.read_text()
        for text in tokens.values():
            assert text.split("_", 2)[2] not in log
            assert text not in log
        assert '"token":"read"' in log


class TestScopes:
    @pytest.mark.parametrize(
        ("name", "allowed"),
        [("monitor", set()), ("read", {"read"}), ("acme", {"read", "write", "admin"})],
    )
    def test_each_route_asks_for_its_scope(
        self, server: ServerProcess, tokens: dict[str, str], name: str, allowed: set[str]
    ) -> None:
        tenant = "acme" if name == "acme" else "default_tenant"
        values = {"tenant": tenant, "database": "nowhere", "collection": "x", "crn": "x", "function": "x"}
        for route in ROUTES:
            if route.scope == "open" or (route.scope == "monitor" and name == "monitor"):
                continue
            path = route.path.format(**values)
            status, body, _ = Api(server.port)(route.method, path, {}, headers=bearer(tokens[name]))
            refused = status == 403 and body["error"] == "AuthError"
            assert refused == (route.scope not in allowed), (route.method, path, status, body)
            if refused:
                assert f"needs the scope {route.scope}" in body["message"]

    def test_a_tenant_is_made_by_an_operator_only(
        self, server: ServerProcess, tokens: dict[str, str]
    ) -> None:
        api = Api(server.port)
        status, body, _ = api("POST", "/api/v2/tenants", {"name": "newco"}, headers=bearer(tokens["acme"]))
        assert (status, body["error"]) == (403, "AuthError")
        assert api("POST", "/api/v2/tenants", {"name": "newco"}, headers=bearer(tokens["operator"]))[0] == 200

    def test_databases_are_made_and_listed_as_far_as_the_token_reaches(
        self, server: ServerProcess, tokens: dict[str, str]
    ) -> None:
        api = Api(server.port)
        path = "/api/v2/tenants/acme/databases"
        assert api("POST", path, {"name": "test"}, headers=bearer(tokens["acme"]))[0] == 200
        status, body, _ = api("POST", path, {"name": "more"}, headers=bearer(tokens["acme-prod"]))
        assert (status, body["error"]) == (403, "AuthError")
        everything = [entry["name"] for entry in api("GET", path, headers=bearer(tokens["acme"]))[1]]
        assert {"prod", "test"} <= set(everything)
        assert [e["name"] for e in api("GET", path, headers=bearer(tokens["acme-prod"]))[1]] == ["prod"]
        assert api("GET", f"{path}?offset=1", headers=bearer(tokens["acme-prod"]))[1] == []
        assert api("GET", f"{path}/test", headers=bearer(tokens["acme-prod"]))[0] == 403


class TestIsolation:
    @pytest.mark.parametrize("name", ["acme", "acme-prod"])
    def test_another_tenant_is_refused_alike_whether_it_exists_or_not(
        self, server: ServerProcess, tokens: dict[str, str], foreign: dict[str, Any], name: str
    ) -> None:
        api = Api(server.port)
        for method, rest in (
            ("GET", ""),
            ("GET", f"/{foreign['name']}"),
            ("GET", f"/{foreign['id']}/count"),
            ("POST", f"/{foreign['id']}/get"),
        ):
            there = api(method, OTHER + rest, {}, headers=bearer(tokens[name]))
            nowhere = api(method, OTHER.replace("other", "nobody") + rest, {}, headers=bearer(tokens[name]))
            assert there[0] == nowhere[0] == 403
            assert there[1]["message"].replace("other", "nobody") == nowhere[1]["message"]

    def test_no_route_reaches_another_tenants_collection_by_its_id(
        self, server: ServerProcess, tokens: dict[str, str], foreign: dict[str, Any]
    ) -> None:
        """Through the caller's own path every route answers as for an id that nobody has; new routes are in it by themselves."""
        api = Api(server.port)
        bodies: dict[str, object] = {
            "add": {"ids": ["intruder"], "embeddings": [[1, 2]]},
            "upsert": {"ids": ["secret"], "embeddings": [[9, 9]]},
            "update": {"ids": ["secret"], "documents": ["stolen"]},
            "delete": {"ids": ["secret"]},
            "query": {"query_embeddings": [[1, 2]]},
            "fork": {"new_name": "copy"},
            "search": {"searches": [{"rank": {"$knn": {"query": [1, 2]}}}]},
        }
        nobody = "00000000-0000-4000-8000-00000000abcd"
        # What the server remembers of a collection must not open it to others.
        for _ in range(10):
            for action, body in (("get", {}), ("query", bodies["query"])):
                path = f"{OTHER}/{foreign['id']}/{action}"
                assert api("POST", path, body, headers=bearer(tokens["other"]))[0] == 200
        tried = 0
        for route in ROUTES:
            if "{collection}" not in route.path:
                continue
            action = route.path.rsplit("/", 1)[1]
            body = bodies.get(action, {"new_name": "taken"} if route.method == "PUT" else {})
            answers = []
            for ident in (foreign["id"], nobody):
                path = route.path.format(tenant="acme", database="prod", collection=ident, function="f")
                status, answer, _ = api(
                    route.method,
                    path,
                    None if route.method == "GET" else body,
                    headers=bearer(tokens["acme"]),
                )
                answers.append((status, str(answer).replace(ident, "ID")))
            assert answers[0] == answers[1], route.path
            assert answers[0][0] in (404, 501), (route.path, answers)
            tried += 1
        assert tried >= 18
        # As it was for its owner.
        mine = bearer(tokens["other"])
        got = api("POST", f"{OTHER}/{foreign['id']}/get", {}, headers=mine)[1]
        assert (got["ids"], got["documents"]) == (["secret"], ["x"])
        assert api("GET", f"{OTHER}/ledger", headers=mine)[1]["id"] == foreign["id"]

    def test_another_database_of_the_same_tenant_is_as_far(
        self, server: ServerProcess, tokens: dict[str, str]
    ) -> None:
        api = Api(server.port)
        admin = bearer(tokens["acme"])
        api("POST", "/api/v2/tenants/acme/databases", {"name": "back"}, headers=admin)
        back = ACME.replace("prod", "back")
        ident = api("POST", back, {"name": "hidden", "get_or_create": True}, headers=admin)[1]["id"]
        limited = bearer(tokens["acme-prod"])
        assert api("GET", f"{back}/{ident}/count", headers=limited)[0] == 403
        assert api("GET", f"{ACME}/{ident}/count", headers=limited)[0] == 404
        assert api("GET", f"{ACME}/by-id/{ident}", headers=limited)[0] == 404
        assert api("GET", f"{back}/{ident}/count", headers=admin)[:2] == (200, 0)


class TestChromasClient:
    def test_its_settings_bring_the_token_and_take_tenant_and_database_from_it(
        self, server: ServerProcess, tokens: dict[str, str]
    ) -> None:
        settings = Settings(
            anonymized_telemetry=False,
            chroma_client_auth_provider="chromadb.auth.token_authn.TokenAuthClientProvider",
            chroma_client_auth_credentials=tokens["acme-prod"],
            chroma_overwrite_singleton_tenant_database_access_from_auth=True,
        )
        client = chromadb.HttpClient(host="127.0.0.1", port=server.port, settings=settings)
        assert (client.tenant, client.database) == ("acme", "prod")
        collection = client.get_or_create_collection("by-client", embedding_function=None)
        collection.add(ids=["a"], embeddings=[1.0, 2.0])
        assert collection.count() == 1
        identity = client.get_user_identity()
        assert (identity.user_id, identity.tenant, identity.databases) == ("acme-prod", "acme", ["prod"])

    def test_headers_will_do_and_a_wrong_token_is_chromas_own_error(
        self, server: ServerProcess, tokens: dict[str, str]
    ) -> None:
        def client(text: str) -> Any:
            return chromadb.HttpClient(
                host="127.0.0.1",
                port=server.port,
                tenant="acme",
                database="prod",
                headers={"X-Chroma-Token": text},
                settings=Settings(anonymized_telemetry=False),
            )

        assert client(tokens["acme"]).list_collections() is not None
        with pytest.raises(ChromaAuthError):
            client("pgc_wrong_token")
        with pytest.raises(ChromaAuthError):
            client(tokens["other"]).list_collections()

    def test_an_operator_makes_a_tenant_with_the_admin_client(
        self, server: ServerProcess, tokens: dict[str, str]
    ) -> None:
        settings = Settings(
            anonymized_telemetry=False,
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host="127.0.0.1",
            chroma_server_http_port=server.port,
            chroma_server_headers={"Authorization": f"Bearer {tokens['operator']}"},
        )
        admin = chromadb.AdminClient(settings)
        admin.create_tenant("made-by-admin")
        admin.create_database("first", "made-by-admin")
        assert [entry["name"] for entry in admin.list_databases(tenant="made-by-admin")] == ["first"]


def test_auth_off_lets_everyone_in_and_says_so(database_url: str, tmp_path: Path) -> None:
    with running_server(database_url, tmp_path, workers=1, environment={"PGCHROMA_AUTH": "off"}) as server:
        api = Api(server.port)
        assert api("GET", COLLECTIONS, headers={})[0] == 200
        status, made, _ = api("POST", COLLECTIONS, {"name": "here"})
        assert status == 200
        # Confined to the database of the path all the same.
        elsewhere = COLLECTIONS.replace("default_tenant", "other")
        assert api("GET", f"{COLLECTIONS}/{made['id']}/count")[:2] == (200, 0)
        assert api("GET", f"{elsewhere}/{made['id']}/count")[0] == 404
        log = server.log.read_text()
    assert '"level":"warning"' in log
    assert "PGCHROMA_AUTH=off: everyone who can reach" in log


def test_a_server_asks_for_tokens_unless_told_otherwise_and_says_when_there_are_none(
    database_url: str, tmp_path: Path
) -> None:
    with running_server(database_url, tmp_path, workers=1, environment={"PGCHROMA_AUTH": ""}) as server:
        assert Api(server.port)("GET", COLLECTIONS, headers={})[:2] == (403, FORBIDDEN)
        wait_for("the warning", lambda: "pgchroma token create" in server.log.read_text())
