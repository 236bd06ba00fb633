"""What servers refuse, do not tell or answer wrongly, and how it is told to the operator."""

import asyncio
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.remote import client, versions
from pgchroma.migrate.remote.client import Access, RemoteClient
from pgchroma.migrate.remote.folder import ChromaProcess
from pgchroma.store import Store
from pgchroma.types import Record, RecordBatch
from support import chroma
from support.command import Outcome, pgchroma, within
from support.server import running_server
from support.tokens import make_token

SPARSE = {"#type": "sparse_vector", "indices": [1, 5], "values": [0.5, 2.0]}


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running `chroma run` of the newest version, shared by tests that use tenants of their own; its URL."""
    folder = tmp_path_factory.mktemp("stock")
    process = ChromaProcess(versions.program("1.5.9"), folder / "served", folder / "log")
    yield process.url
    process.stop()


@contextmanager
def answering(answer: Callable[[str, str], tuple[int, bytes]]) -> Iterator[tuple[str, list[str]]]:
    """Run a server that answers as it is told; its URL, and what it was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            self.rfile.read(int(self.headers.get("content-length") or 0))
            asked.append(f"{self.command} {self.path}")
            status, body = answer(self.command, self.path)
            self.send_response(status)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = _answer  # noqa: N815 - the library calls them by these names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def move(source: object, target: object, receipt: Path, *more: object) -> Outcome:
    return within("migrate", "run", source, "--to", target, "--receipt", receipt, "--format", "json", *more)


async def hold(url: str, path: str, metadata: dict[str, Any]) -> None:
    """Make a collection with two records."""
    tenant, database, name = path.split("/")
    async with await Store.open(url) as store:
        await store.ensure_database(tenant, database)
        made = await store.create_collection(tenant, database, name)
        vectors = np.eye(2, 3, dtype=np.float32)
        await store.add(made.id, RecordBatch(["a", "b"], vectors, metadatas=[metadata, None]))


def test_a_sparse_vector_stops_a_run_to_a_server_that_has_none(
    stock: str, database_url: str, tmp_path: Path
) -> None:
    asyncio.run(hold(database_url, "sparse/prod/one", {"s": SPARSE, "list": [1, 2]}))
    refused = move(database_url, stock, tmp_path / "r.json")
    assert refused.code == ExitCode.SOURCE_UNREADABLE
    assert "--policy metadata-sparse=convert" in refused.stderr
    scope = ("--scope", "sparse/prod", "--policy", "metadata-sparse=convert")
    done = within(
        "migrate", "resume", "--source", database_url, "--to", stock, "--receipt", tmp_path / "r.json"
    )
    assert done.code == ExitCode.SOURCE_UNREADABLE, "a resumed run keeps its policies"
    httpx.delete(f"{stock}/api/v2/tenants/sparse/databases/prod/collections/one").raise_for_status()
    done = move(database_url, stock, tmp_path / "again.json", *scope)
    assert done.code == ExitCode.OK, done.stderr


def test_lists_are_sent_only_to_a_server_that_says_it_takes_them(stock: str) -> None:
    remote = RemoteClient(Access(stock, {}))
    assert remote.takes_arrays
    assert not remote.is_pgchroma
    remote.close()

    described = {
        "components": {"schemas": {"HashMap": {"additionalProperties": {"oneOf": [{"type": "string"}]}}}}
    }

    def answer(_method: str, path: str) -> tuple[int, bytes]:
        return 200, json.dumps(
            {"/openapi.json": described, "/api/v2/version": "1.0.0"}.get(path, {})
        ).encode()

    with answering(answer) as (url, _):
        remote = RemoteClient(Access(url, {}))
        assert not remote.takes_arrays
        remote.close()


@pytest.mark.parametrize("status", [400, 413, 422, 501])
def test_what_a_server_refuses_is_no_interruption(status: int, database_url: str, tmp_path: Path) -> None:
    asyncio.run(hold(database_url, "t/d/one", {"k": 1}))

    def answer(method: str, path: str) -> tuple[int, bytes]:
        if path.endswith("/add"):
            return status, b'{"error":"Unimplemented"}'
        if path.endswith("/collections") or "/collections?" in path:
            made = {"id": "00000000-0000-0000-0000-000000000001", "name": "one", "schema": {}}
            return 200, json.dumps(made if method == "POST" else []).encode()
        return 200, b'"1.0.0"' if path.endswith("/version") else b"{}"

    with answering(answer) as (url, asked):
        done = move(database_url, url, tmp_path / "r.json")
    assert done.code == ExitCode.SOURCE_UNREADABLE, done.stderr
    assert "to repeat it changes nothing" in done.stderr
    assert "Unimplemented" in done.stderr
    assert sum(request.endswith("/add") for request in asked) == 1


def test_a_server_that_fails_is_asked_again(
    database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_FIRST_PAUSE_SECONDS", 0.001)
    with answering(lambda *_: (503, b"starting")) as (url, asked):
        done = within("migrate", "plan", url)
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert len(asked) == client.ATTEMPTS


def test_a_page_that_is_not_json_is_named(tmp_path: Path) -> None:
    with answering(lambda *_: (200, b"<html>Welcome</html>")) as (url, asked):
        done = within("migrate", "plan", url)
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert "not JSON: '<html>" in done.stderr
    assert len(asked) == 1


def test_a_token_is_asked_for_and_never_shown(database_url: str, tmp_path: Path) -> None:
    asyncio.run(hold(database_url, "acme/prod/one", {"k": 1}))
    token = make_token(database_url, "mover", "read", "--tenant", "acme")
    (tmp_path / "token").write_text(f"{token}\n")
    (tmp_path / "headers").write_text(f"X-Chroma-Token: {token}\n")
    (tmp_path / "wrong").write_text("not-the-token\n")
    environment = {"PGCHROMA_AUTH": "token"}
    with running_server(database_url, tmp_path, workers=1, environment=environment) as server:
        # Where Chroma on one node takes none, pgchroma takes sparse vectors.
        remote = RemoteClient(Access(server.url, {"Authorization": f"Bearer {token}"}))
        assert remote.is_pgchroma
        assert remote.takes_arrays
        remote.close()
        for refused in ((), ("--source-token-file", tmp_path / "wrong")):
            done = within("migrate", "plan", server.url, *refused)
            assert done.code == ExitCode.REFUSED
            assert "--source-token-file" in done.stderr
            assert "not-the-token" not in done.stderr
        for number, option in enumerate(("--source-token-file", "--source-headers-file")):
            given = (option, tmp_path / option.split("-")[3], "--log-file", tmp_path / "log")
            done = move(server.url, tmp_path / f"{number}.jsonl", tmp_path / f"{number}.json", *given)
            assert done.code == ExitCode.OK, done.stderr
            # The token says which tenant to look into.
            assert [item["collection"] for item in done.json["collections"]] == ["acme/prod/one"]
            assert done.json["notices"] == []
            for shown in (done.stdout, done.stderr, *(path.read_text() for path in tmp_path.glob("*.[jl]*"))):
                assert token not in shown
        assert token not in (tmp_path / "log").read_text()


def test_a_file_that_is_no_token_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for option in ("--source-token-file", "--source-headers-file"):
        done = within("migrate", "plan", "http://127.0.0.1:9", option, tmp_path / "binary")
        assert done.code == ExitCode.CONFIGURATION
        assert "something else than ASCII" in done.stderr


def test_what_a_server_does_not_list_is_told(stock: str, database_url: str, tmp_path: Path) -> None:
    for path in ("acme/prod/one", "beta/prod/two", "default_tenant/default_database/three"):
        asyncio.run(hold(database_url, path, {"k": 1}))
    assert move(database_url, stock, tmp_path / "to.json", "--scope", "acme", "--scope", "beta", "--scope", "default_tenant").code == ExitCode.OK  # fmt: skip
    plan = within("migrate", "plan", stock, "--format", "json").json
    (noticed,) = [problem for item in plan["collections"] for problem in item["problems"]]
    assert "cannot list tenants" in noticed["message"]
    done = move(stock, tmp_path / "x.jsonl", tmp_path / "r.json")
    assert done.code == ExitCode.OK, done.stderr
    assert "cannot list tenants" in done.json["notices"][0]["message"]
    assert "cannot list tenants" in (tmp_path / "r.html").read_text()

    typo = ("--scope", "acme/prod", "--scope", "typo")
    refused = move(stock, tmp_path / "y.jsonl", tmp_path / "s.json", *typo)
    assert refused.code == ExitCode.CONFIGURATION
    assert "--scope typo" in refused.stderr
    named = move(stock, tmp_path / "y.jsonl", tmp_path / "s.json", *typo[:2])
    assert named.code == ExitCode.OK, named.stderr
    assert named.json["notices"] == []
    verified = within("migrate", "verify", tmp_path / "y.jsonl", "--to", stock)
    assert verified.code == ExitCode.OK, verified.stderr


def test_an_empty_server_says_where_it_was_looked(tmp_path: Path) -> None:
    process = ChromaProcess(versions.program("1.5.9"), tmp_path / "served", tmp_path / "served.log")
    try:
        done = within("migrate", "plan", process.url)
    finally:
        process.stop()
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert "only tenant default_tenant" in done.stderr


def test_a_scope_that_a_folder_does_not_have_is_refused(tmp_path: Path) -> None:
    folder = chroma.extract("1.5.9", tmp_path)
    done = within("migrate", "plan", folder, "--scope", "south", "--scope", "north/typo")
    assert done.code == ExitCode.CONFIGURATION
    assert "--scope north/typo" in done.stderr


_KILL_AFTER_THE_FIRST_BATCH = """
import os, signal
from pgchroma.migrate.sink import StoreSink
write = StoreSink.write

async def write_once(self, *arguments):
    await write(self, *arguments)
    os.kill(os.getpid(), signal.SIGKILL)

StoreSink.write = write_once
"""


def test_a_run_from_named_tenants_of_a_server_is_resumed_without_naming_them_again(
    stock: str, database_url: str, tmp_path: Path
) -> None:
    remote = RemoteClient(Access(stock, {}))
    for database in ("live", "trial"):
        remote.ensure_database("interrupted", database)
        made = remote.create("interrupted", database, {"name": "notes"})
        records = [Record(n, f"{database}-{n}", np.ones(3, np.float32) * n) for n in range(5)]
        remote.write("interrupted", database, made["id"], "add", records)
    remote.close()
    killed = pgchroma(
        "migrate",
        "run",
        stock,
        "--scope",
        "interrupted",
        "--to",
        database_url,
        prelude=_KILL_AFTER_THE_FIRST_BATCH,
    )
    assert killed.code == -signal.SIGKILL, killed.stderr
    done = within(
        "migrate", "resume", "--to", database_url, "--receipt", tmp_path / "r.json", "--format", "json"
    )
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["records"] == 10
    assert done.json["resumed"] is True
