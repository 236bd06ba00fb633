"""Structured logs: one JSON object a line on standard error, with the request id where there is one, never a record's content."""

import logging
import os
import sys
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="")

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


class JsonFormatter(logging.Formatter):
    """Formats a record; `extra={"fields": {...}}` adds members to the object."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line of JSON."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "process": os.getpid(),
        }
        if current := request_id.get():
            entry["request_id"] = current
        entry |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1] is not None:
            entry["exception"] = describe_exception(record.exc_info[1])
        return orjson.dumps(entry, default=str).decode()


def describe_exception(error: BaseException) -> dict[str, Any]:
    """Return where an exception came from, without its message: that may quote a document, an id or a statement."""
    frames = traceback.extract_tb(error.__traceback__)
    described: dict[str, Any] = {
        "type": f"{type(error).__module__}.{type(error).__qualname__}",
        "at": [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames],
    }
    # PostgreSQL's error code says what happened without saying to which value.
    if sqlstate := getattr(error, "sqlstate", None):
        described["sqlstate"] = sqlstate
    if error.__cause__ is not None:
        described["cause"] = describe_exception(error.__cause__)
    return described


def configure(level: str) -> None:
    """Send everything of at least `level` to standard error as JSON."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    # The parent tells of workers itself; psycopg's pool repeats every attempt to connect, which is noise while the database is away.
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
