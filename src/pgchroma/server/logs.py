"""Structured logs: one JSON object a line on standard error, with the request id where there is one, never a record's content."""

import contextlib
import logging
import os
import sys
import time
import traceback
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

import orjson

request_id: ContextVar[str] = ContextVar("request_id", default="")

_STDERR = 2
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


class AccessLog:
    """Writes a line for a request. Not through `logging`, which takes ten times as long: this is done for every request."""

    def __init__(self) -> None:
        self._head = {
            "level": "info",
            "logger": "pgchroma.access",
            "message": "request",
            "process": os.getpid(),
        }
        self._second = 0
        self._prefix = ""

    def write(self, level: str, ident: str, entry: dict[str, Any]) -> None:
        """Write a line to standard error if `level` is logged at all."""
        if _LEVELS[level] < logging.getLogger().level:
            return
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._prefix = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
        line = {
            "time": f"{self._prefix}{int((now - second) * 1000):03d}+00:00",
            **self._head,
            "level": level,
            "request_id": ident,
            **entry,
        }
        # One write, so that lines of several workers never mix.
        with contextlib.suppress(OSError):
            os.write(_STDERR, orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


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
    # What Python and its libraries warn of would otherwise be lines of plain text among the JSON.
    logging.captureWarnings(True)
    # The parent tells of workers itself; psycopg's pool repeats every attempt to connect, which is noise while the database is away.
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
