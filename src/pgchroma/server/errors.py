"""From exceptions to answers: which status and error name each of the store's refusals becomes."""

import logging

from pgchroma.errors import (
    AlreadyExistsError,
    DatabaseNotReadyError,
    DatabaseUnreachableError,
    InvalidArgumentError,
    InvalidDimensionError,
    NotFoundError,
    PgchromaError,
)
from pgchroma.server import logs
from pgchroma.server.http import CHROMA_ERROR, INVALID_ARGUMENT, Headers, HttpError, Response, json_response

logger = logging.getLogger("pgchroma.server")

UNAVAILABLE = "ServiceUnavailable"
RETRY_AFTER: Headers = [(b"retry-after", b"1")]
# Upstream calls a wrong dimension an invalid argument, too; "already exists" has no class in its clients.
_ANSWERS: tuple[tuple[type[PgchromaError], int, str], ...] = (
    (InvalidDimensionError, 400, INVALID_ARGUMENT),
    (InvalidArgumentError, 400, INVALID_ARGUMENT),
    (NotFoundError, 404, "NotFoundError"),
    (AlreadyExistsError, 409, CHROMA_ERROR),
)
_UNAVAILABLE = (DatabaseUnreachableError, DatabaseNotReadyError)


def body_of_unavailable(error: PgchromaError) -> dict[str, str]:
    """Return the body of a 503: what is missing and what to do about it."""
    hint = f"; {error.hint}" if error.hint else ""
    return {"error": UNAVAILABLE, "message": f"{error.message}{hint}"}


def response_to(error: Exception) -> Response:
    """Return the answer to a request that ended in `error`; what nobody foresaw is logged and says nothing but its request id."""
    if isinstance(error, HttpError):
        return _refusal(error.error, error.message, error.status, error.headers)
    if isinstance(error, _UNAVAILABLE):
        answer = json_response(body_of_unavailable(error), 503, RETRY_AFTER)
        answer.error = UNAVAILABLE
        return answer
    for kind, status, name in _ANSWERS:
        if isinstance(error, kind):
            return _refusal(name, str(error), status)
    logger.error("request failed unexpectedly", exc_info=error)
    message = (
        f"The server failed on this request; its log tells more under request id {logs.request_id.get()}"
    )
    return _refusal("InternalError", message, 500)


def _refusal(name: str, message: str, status: int, headers: Headers | None = None) -> Response:
    answer = json_response({"error": name, "message": message}, status, headers)
    answer.error = name
    return answer
