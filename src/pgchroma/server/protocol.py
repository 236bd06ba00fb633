"""uvicorn's HTTP protocol, but an answer's head and body go out in one piece.

uvicorn writes them one after the other and uvloop sends each at once, so that a short answer is two packets, two system calls and two
wake-ups of whoever reads it: a tenth of what a query costs a worker.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class JoiningTransport:
    """Keeps an answer's head until its body comes, or until the event loop's next turn; all else is the transport's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write what uvicorn writes: heads, each in one piece, and bodies."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Close once everything is sent."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the transport has
        return getattr(self._transport, name)


class JoiningProtocol(HttpToolsProtocol):
    """A connection whose answers are written through a `JoiningTransport`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin a connection."""
        super().connection_made(transport)
        self.transport = JoiningTransport(transport)  # type: ignore[assignment]
