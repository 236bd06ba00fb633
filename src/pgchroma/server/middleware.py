"""What happens around every request: an id, the time it took, its metrics and a line in the log."""

import os
import re
import time
from collections.abc import Awaitable, Callable

from pgchroma.server import logs
from pgchroma.server.http import Message, Receive, Scope, Send
from pgchroma.server.metrics import Metrics

_USABLE_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
# Asked every few seconds by load balancers; not worth a line when all is well.
_PROBES = frozenset({"/api/v2", "/api/v2/heartbeat", "/api/v2/healthcheck", "/metrics"})


class RequestLog:
    """Gives each request an id, the caller's own (`X-Request-Id`) where it sends a usable one, and logs how it went.

    The answer carries the id as `x-request-id` and as `chroma-trace-id`, which upstream's clients show in their exceptions.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], metrics: Metrics, *, access_log: bool
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log
        self._log = logs.AccessLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        identifier = _identifier(scope)
        logs.request_id.set(identifier)
        status, size = 0, 0

        async def send_with_id(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
                encoded = identifier.encode()
                message["headers"] += [(b"x-request-id", encoded), (b"chroma-trace-id", encoded)]
            else:
                size += len(message.get("body", b""))
            await send(message)

        await self._app(scope, receive, send_with_id)
        seconds = time.perf_counter() - started
        route = scope.get("route")
        self._metrics.answered(scope["method"], route, status, seconds)
        if status >= 500 or (self._access_log and not (status == 200 and route in _PROBES)):
            self._write(scope, identifier, status, size, seconds)

    def _write(self, scope: Scope, identifier: str, status: int, size: int, seconds: float) -> None:
        client = scope.get("client")
        entry = {
            "method": scope["method"],
            "path": scope["path"],
            "route": scope.get("route"),
            "status": status,
            "milliseconds": round(seconds * 1000, 3),
            "bytes_in": scope.get("body_bytes", 0),
            "bytes_out": size,
            "client": client[0] if client else None,
            "token": scope.get("token"),
        }
        self._log.write("error" if status >= 500 else "info", identifier, entry)


def _identifier(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _USABLE_ID.fullmatch(value):
            return str(value.decode())
    return os.urandom(16).hex()
