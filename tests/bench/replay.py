"""Answers kept and given again by a program that does nothing else: what is left is the time of the client."""

import contextlib
import http.client
import multiprocessing
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from support.server import free_port
from support.waiting import wait_for


def _serve(port: int, server_port: int) -> None:
    kept: dict[tuple[str, bytes], tuple[int, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            key = (f"{self.command} {self.path}", body)
            if key not in kept:
                kept[key] = self._ask(body)
            status, answer = kept[key]
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def _ask(self, body: bytes) -> tuple[int, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", server_port)
            connection.request(self.command, self.path, body, {"content-type": "application/json"})
            response = connection.getresponse()
            return response.status, response.read()

        do_GET = do_POST = _answer  # noqa: N815 - the names that the base class calls

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        http.client.HTTPConnection("127.0.0.1", port).connect()
        return True
    return False


@contextlib.contextmanager
def replaying(server_port: int) -> Iterator[int]:
    """Run a program that asks the server for what it has not been asked before and gives the same answer ever after; yield its port."""
    port = free_port()
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(port, server_port), daemon=True
    )
    process.start()
    try:
        wait_for("the replay to answer", lambda: _answers(port))
        yield port
    finally:
        process.terminate()
        process.join()
