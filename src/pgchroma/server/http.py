"""The little of HTTP that the handlers need: a request, a response, and the errors that end a request."""

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qs

import orjson

from pgchroma.store.tokens import Token

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Headers: TypeAlias = list[tuple[bytes, bytes]]

JSON = b"application/json"
U32_MAX = 2**32 - 1
INVALID_ARGUMENT = "InvalidArgumentError"
# What upstream calls everything that its clients have no class of their own for.
CHROMA_ERROR = "ChromaError"


# application/json and its kin, such as application/vnd.api+json, with or without parameters.
_JSON_TYPE = re.compile(rb"\s*application/([^;\s]+\+)?json\s*(;|$)", re.IGNORECASE)


class HttpError(Exception):
    """Ends a request with `status` and the body `{"error": ..., "message": ...}` that Chroma's clients turn into an exception."""

    def __init__(self, status: int, error: str, message: str, headers: Headers | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = error
        self.message = message
        self.headers = headers or []


def bad_request(message: str) -> HttpError:
    """Return a 400, which clients raise as InvalidArgumentError."""
    return HttpError(400, INVALID_ARGUMENT, message)


def unprocessable(message: str) -> HttpError:
    """Return a 422: JSON, but not of the shape that the route takes."""
    return HttpError(
        422, CHROMA_ERROR, f"Failed to deserialize the JSON body into the target type: {message}"
    )


def unimplemented(message: str) -> HttpError:
    """Return a 501, naming what is missing."""
    return HttpError(501, CHROMA_ERROR, message)


@dataclass(slots=True)
class Response:
    """A whole response; `content_type` is None for one without a body, `error` the name of what went wrong, for the metrics."""

    body: bytes
    status: int = 200
    headers: Headers = field(default_factory=list)
    content_type: bytes | None = JSON
    error: str = ""


def json_response(value: object, status: int = 200, headers: Headers | None = None) -> Response:
    """Return a response with `value` as JSON; NumPy arrays and `orjson.Fragment` are allowed in it."""
    return Response(orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY), status, headers or [])


class Request:
    """One HTTP request, its path parameters decoded."""

    __slots__ = (
        "_max_body_bytes",
        "_receive",
        "body_bytes",
        "deadline",
        "is_reading",
        "params",
        "scope",
        "token",
    )

    def __init__(
        self, scope: Scope, receive: Receive, params: dict[str, str], *, max_body_bytes: int
    ) -> None:
        self.scope = scope
        self.params = params
        self.body_bytes = 0
        # Whether the body is still under way, so that it is the client who is slow.
        self.is_reading = False
        # When it is given up; None while nobody has set one.
        self.deadline: asyncio.Timeout | None = None
        # Who asks; None when the server asks nobody for a token.
        self.token: Token | None = None
        self._receive = receive
        self._max_body_bytes = max_body_bytes

    def header(self, name: bytes) -> bytes | None:
        """Return a header's value, or None; `name` in lower case."""
        for key, value in self.scope["headers"]:
            if key == name:
                return bytes(value)
        return None

    async def body(self) -> bytes:
        """Read and return the whole body.

        Raises:
            HttpError: 413 for a body over the limit, 415 for one that is declared as other than JSON, 400 when it breaks off.
        """
        content_type = self.header(b"content-type")
        if content_type is not None and not _JSON_TYPE.match(content_type):
            raise HttpError(415, CHROMA_ERROR, "Expected request with `Content-Type: application/json`")
        declared = self.header(b"content-length")
        if declared is not None and declared.isdigit() and int(declared) > self._max_body_bytes:
            raise self._too_large()
        self.is_reading = True
        message = await self._receive()
        if not message.get("more_body"):
            body = bytes(message.get("body", b""))
            self.body_bytes = len(body)
        else:
            parts = [message["body"]]
            self.body_bytes = len(parts[0])
            while message.get("more_body"):
                message = await self._receive()
                parts.append(message.get("body", b""))
                self.body_bytes += len(parts[-1])
                if self.body_bytes > self._max_body_bytes:
                    raise self._too_large()
            body = b"".join(parts)
        self.is_reading = False
        if message["type"] == "http.disconnect":
            raise bad_request("the connection was closed before the whole body arrived")
        if self.body_bytes > self._max_body_bytes:
            raise self._too_large()
        return body

    def lift_deadline(self) -> None:
        """Let the request take as long as it takes: for what works through any amount of data and is wanted whole."""
        if self.deadline is not None:
            self.deadline.reschedule(None)

    def _too_large(self) -> HttpError:
        return HttpError(
            413,
            CHROMA_ERROR,
            f"Payload too large: the body may have {self._max_body_bytes} bytes at most (PGCHROMA_MAX_BODY_BYTES)",
        )

    def query(self, name: str) -> str | None:
        """Return a parameter of the query string, or None; HttpError 400 where it is repeated."""
        raw = self.scope.get("query_string", b"")
        if not raw:
            return None
        values: list[str] = parse_qs(raw.decode("latin-1"), keep_blank_values=True).get(name, [])
        if not values:
            return None
        if len(values) > 1:
            raise bad_request(f"Failed to deserialize query string: duplicate field `{name}`")
        return values[0]

    def query_number(self, name: str) -> int | None:
        """Return a parameter of the query string as a 32-bit unsigned number, or None.

        Raises:
            HttpError: 400, in upstream's words.
        """
        text = self.query(name)
        if text is None:
            return None
        problem, text = "", text.removeprefix("+")
        if text == "":
            problem = "cannot parse integer from empty string"
        elif not (text.isascii() and text.isdigit()):
            problem = "invalid digit found in string"
        elif int(text[:11]) > U32_MAX:
            problem = "number too large to fit in target type"
        if problem:
            raise bad_request(f"Failed to deserialize query string: {name}: {problem}")
        return int(text)
