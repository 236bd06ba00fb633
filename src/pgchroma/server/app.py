"""The ASGI application of one worker: its lifespan, and from a request to an answer."""

import asyncio
import contextlib
import gc
import logging
from dataclasses import dataclass
from typing import Any

from pgchroma.server import errors, logs, metrics
from pgchroma.server.auth import Guard
from pgchroma.server.cors import CrossOrigin, origins_of
from pgchroma.server.handlers import Context, records
from pgchroma.server.http import CHROMA_ERROR, HttpError, Receive, Request, Response, Scope, Send
from pgchroma.server.middleware import RequestLog
from pgchroma.server.router import Router
from pgchroma.server.routes import ROUTES
from pgchroma.server.settings import ServerSettings, variable_name
from pgchroma.store import Store, bounds
from pgchroma.store.watch import Watch

logger = logging.getLogger("pgchroma.server")

_RETIRED = b"/api/v1"
# How long the indexer stays away after it failed; the requests do not need it.
_INDEXER_PAUSE_SECONDS = 30.0
# Less than the supervisor waits for a worker beyond the time of its requests.
_LAST_WORDS_SECONDS = 3.0


class Application:
    """Answers `/api/v2`. A database that is away makes requests fail with 503, never the application."""

    def __init__(self, settings: ServerSettings) -> None:
        self._settings = settings
        self._router = Router(ROUTES)
        self.metrics = metrics.Metrics()
        self._context: Context | None = None
        self._guard: Guard | None = None
        self._seconds = settings.request_timeout_seconds or None
        self._indexer: asyncio.Task[None] | None = None
        self._requests: set[asyncio.Task[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope of ASGI."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no such protocol here: {scope['type']}")
        task = asyncio.current_task()
        if task is not None:
            self._requests.add(task)
            task.add_done_callback(self._requests.discard)
        response = await self._answer(scope, receive)
        if response.error:
            self.metrics.failed(response.error)
        headers = [(b"content-length", str(len(response.body)).encode()), *response.headers]
        if response.content_type is not None:
            headers.append((b"content-type", response.content_type))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _answer(self, scope: Scope, receive: Receive) -> Response:
        request = None
        try:
            path: bytes = scope.get("raw_path") or scope["path"].encode()
            if path == _RETIRED or path.startswith(_RETIRED + b"/"):
                raise HttpError(410, "Unimplemented", "The v1 API is deprecated. Please use /v2 apis")
            route, params = self._router.find(scope["method"], path)
            scope["route"] = route.path
            request = Request(scope, receive, params, max_body_bytes=self._settings.max_body_bytes)
            if self._context is None:
                raise RuntimeError("a request before the start of the application")
            async with asyncio.timeout(self._seconds) as request.deadline:
                if self._guard is not None and route.scope != "open":
                    request.token = await self._guard.admit(route.scope, request)
                if "collection" in params:
                    # An id says nothing of the database that its collection is in; the store looks.
                    bounds.confine(params["tenant"], params["database"])
                response = await route.handler(self._context, request)
            scope["body_bytes"] = request.body_bytes
        except asyncio.CancelledError:
            # The time granted at a stop is over; nothing follows this answer, so that swallowing the cancellation harms nobody.
            return errors.response_to(
                HttpError(503, "ServiceUnavailable", "The server stopped before the request was done")
            )
        except TimeoutError as error:
            if (
                self._seconds is None
                or request is None
                or request.deadline is None
                or not request.deadline.expired()
            ):
                return errors.response_to(error)
            return errors.response_to(_too_slow(request, self._seconds))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, the client gets an answer and the log the rest
            return errors.response_to(error)
        return response

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        store = await Store.open(self._settings.database_url, self._settings.store_settings())
        asks_for_tokens = self._settings.auth != "off"
        watch = store.watch(with_tokens=asks_for_tokens)
        watch.on_look = lambda: self.metrics.sample(
            len(self._requests), store.pool_stats(), store.sketch_bytes
        )
        watching = asyncio.create_task(_keep_watching(watch), name="watch")
        self._guard = Guard(watch) if asks_for_tokens else None
        read_ahead = records.reading_ahead(store, self._settings.read_ahead_mb << 20)
        self._context = Context(store, self._settings, watch, self.metrics, read_ahead)
        if self._settings.indexer:
            self._indexer = asyncio.create_task(_keep_indexing(store), name="indexer")
        # What lives now lives until the end; the collector need not look at it again.
        gc.collect()
        gc.freeze()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if self._requests:
            # Cancelled because their time is over; they still take back what they began and tell their clients.
            await asyncio.wait(self._requests, timeout=_LAST_WORDS_SECONDS)
        await read_ahead.close()
        if self._indexer is not None:
            self._indexer.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._indexer
        watching.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watching
        await store.close()
        await send({"type": "lifespan.shutdown.complete"})


def _too_slow(request: Request, seconds: float) -> HttpError:
    """Return the answer to a request whose time is over, which says whether it was the body that did not come in time."""
    if request.is_reading:
        return HttpError(
            408,
            CHROMA_ERROR,
            f"The body did not arrive within {seconds:g} s (PGCHROMA_REQUEST_TIMEOUT_SECONDS)",
            [(b"connection", b"close")],
        )
    return HttpError(
        408,
        CHROMA_ERROR,
        f"The request took longer than {seconds:g} s (PGCHROMA_REQUEST_TIMEOUT_SECONDS) and was given up; "
        "a write may have been done, and an upsert is safe to repeat",
        errors.RETRY_AFTER,
    )


async def _keep_watching(watch: Watch) -> None:
    """Run the watch; it ends by itself only through a fault of its own."""
    while True:
        try:
            await watch.run()
        except Exception:
            logger.exception("the watch over PostgreSQL failed; it starts again")
        await asyncio.sleep(1.0)


async def _keep_indexing(store: Store) -> None:
    """Run the store's indexer, and again after a pause when it failed."""
    while True:
        try:
            await store.run_indexer()
        except Exception:
            logger.exception("the indexer failed; it starts again in %g s", _INDEXER_PAUSE_SECONDS)
        await asyncio.sleep(_INDEXER_PAUSE_SECONDS)


@dataclass(frozen=True, slots=True)
class ApplicationFactory:
    """Makes the application in a worker; can be handed to another process, which an application cannot."""

    settings: ServerSettings

    def __call__(self) -> RequestLog:
        """Return the application with its request log around it; the worker's logs go where the parent's do."""
        logs.configure(self.settings.log_level)
        application = Application(self.settings)
        origins = origins_of(self.settings.cors_allow_origins, variable_name("cors_allow_origins"))
        return RequestLog(
            CrossOrigin(application, origins) if origins else application,
            application.metrics,
            access_log=self.settings.access_log,
        )
