"""What the parent of the workers hears of them."""

import threading

import pytest
from uvicorn import Config
from uvicorn.server import Server

from pgchroma.server.supervisor import Worker


def test_the_server_that_is_asked_for_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that answers must not make a server of its own, which would never have started."""
    worker = Worker(Config("app"), [])
    seen: list[Server | None] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: seen.append(worker._server))
    monkeypatch.setattr(Server, "run", lambda server, sockets=None: seen.append(server))
    worker.target([])
    asked, runs = seen
    assert asked is runs
