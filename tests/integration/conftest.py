"""Fixtures of the integration tests."""

from collections.abc import AsyncIterator, Iterator

import chromadb
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings

from pgchroma.store import Store
from support.api import COLLECTIONS, Api
from support.server import ServerProcess, running_server


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """What runs the tests marked `anyio`."""
    return "asyncio"


@pytest.fixture
async def store(module_database_url: str) -> AsyncIterator[Store]:
    """A store over a database shared by the tests of a module, which make collections of their own."""
    async with await Store.open(module_database_url) as opened:
        yield opened


@pytest.fixture(scope="module")
def server(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two workers, shared by the tests of a module."""
    with running_server(module_database_url, tmp_path_factory.mktemp("server")) as process:
        yield process


@pytest.fixture
def client(server: ServerProcess) -> ClientAPI:
    """Chroma's own client, at an emptied server."""
    settings = Settings(anonymized_telemetry=False)
    found = chromadb.HttpClient(host="127.0.0.1", port=server.port, settings=settings)
    found.reset()
    return chromadb.HttpClient(host="127.0.0.1", port=server.port, settings=settings)


@pytest.fixture
def api(server: ServerProcess) -> Api:
    """The server's API, request by request."""
    return Api(server.port)


@pytest.fixture
def records(api: Api, client: ClientAPI) -> str:
    """The path of a collection with two records of dimension 2."""
    status, body, _ = api("POST", COLLECTIONS, {"name": "records"})
    assert status == 200
    path = f"{COLLECTIONS}/{body['id']}"
    add = {
        "ids": ["a", "b"],
        "embeddings": [[1, 2], [3, 4]],
        "metadatas": [{"k": 1}, None],
        "documents": ["x", None],
    }
    assert api("POST", f"{path}/add", add)[:2] == (201, {})
    return path
