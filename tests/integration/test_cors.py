"""Calls from pages of other origins, as a browser makes them: a preflight without a token first, then the request with it."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from support.server import ServerProcess, running_server
from support.tokens import bearer, make_token

PAGE, STRANGER = "https://app.example.org", "https://elsewhere.example.org"
COLLECTIONS = "/api/v2/tenants/default_tenant/databases/default_database/collections"


@pytest.fixture(scope="module")
def server(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server that asks for tokens and lets in pages of two origins."""
    environment = {
        "PGCHROMA_AUTH": "token",
        "CHROMA_SERVER_CORS_ALLOW_ORIGINS": f'["{PAGE}", "http://localhost:5173"]',
    }
    with running_server(
        module_database_url, tmp_path_factory.mktemp("cors"), workers=1, environment=environment
    ) as process:
        yield process


def _preflight(server: ServerProcess, origin: str) -> httpx.Response:
    return httpx.options(
        server.url + COLLECTIONS,
        headers={
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization, content-type",
        },
    )


def test_a_page_of_a_named_origin_may_call(server: ServerProcess, module_database_url: str) -> None:
    asked = _preflight(server, PAGE)
    assert (asked.status_code, asked.content) == (200, b"")
    assert asked.headers["access-control-allow-origin"] == PAGE
    assert asked.headers["access-control-allow-methods"] == "POST"
    assert asked.headers["access-control-allow-headers"] == "authorization, content-type"

    token = make_token(module_database_url, "page", "write")
    called = httpx.post(
        server.url + COLLECTIONS, json={"name": "pages"}, headers={"origin": PAGE, **bearer(token)}
    )
    assert called.status_code == 200
    assert called.headers["access-control-allow-origin"] == PAGE
    assert "origin" in called.headers["vary"]


def test_it_may_read_why_it_was_refused(server: ServerProcess) -> None:
    refused = httpx.get(server.url + COLLECTIONS, headers={"origin": PAGE})
    assert refused.status_code == 403
    assert refused.headers["access-control-allow-origin"] == PAGE


def test_others_may_not(server: ServerProcess) -> None:
    for answer in (
        _preflight(server, STRANGER),
        httpx.get(f"{server.url}/api/v2/heartbeat", headers={"origin": STRANGER}),
    ):
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_programs_are_answered_as_ever(server: ServerProcess) -> None:
    answer = httpx.get(f"{server.url}/api/v2/heartbeat")
    assert answer.status_code == 200
    assert "access-control-allow-origin" not in answer.headers


def test_without_the_setting_there_is_none_of_it(module_database_url: str, tmp_path: Path) -> None:
    with running_server(module_database_url, tmp_path, workers=1) as server:
        assert _preflight(server, PAGE).status_code == 405
        answer = httpx.get(f"{server.url}/api/v2/heartbeat", headers={"origin": PAGE})
        assert not {"vary", "access-control-allow-origin"} & set(answer.headers)
