"""The HTTP API without a client's own checks, and what its answers are compared with."""

import http.client
import json
from typing import Any

DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"
COLLECTIONS = f"{DATABASE}/collections"
# An id that no collection has.
NOWHERE = "00000000-0000-0000-0000-000000000001"
INVALID, CHROMA, MISSING = "InvalidArgumentError", "ChromaError", "NotFoundError"


class Api:
    """Sends requests as they are, without a client's own checks."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __call__(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any, dict[str, str]]:
        """Return status, decoded body and headers; a `bytes` body is sent as it is, anything else as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection.request(
            method, path, data, {"Content-Type": "application/json"} if headers is None else headers
        )
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return (
            answer.status,
            json.loads(text) if text else None,
            {k.lower(): v for k, v in answer.getheaders()},
        )


def check(answer: tuple[int, Any, dict[str, str]], status: int, error: str, message: str) -> None:
    assert answer[0] == status, answer
    assert answer[1]["error"] == error
    assert message in answer[1]["message"]
