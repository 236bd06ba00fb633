"""The description of the API, for programs and for people."""

import functools
from typing import Any

import orjson

from pgchroma.server import docs_page
from pgchroma.server import openapi as description
from pgchroma.server.handlers import Context
from pgchroma.server.http import Request, Response


async def openapi(_context: Context, _request: Request) -> Response:
    """Return this description as OpenAPI 3.1."""
    return Response(_as_json())


async def docs(_context: Context, _request: Request) -> Response:
    """Return this description as a page for a browser, which loads nothing from elsewhere."""
    return Response(_as_page(), content_type=docs_page.CONTENT_TYPE)


@functools.cache
def _document() -> dict[str, Any]:
    # The table of routes names the functions above, so it is there only later.
    from pgchroma.server.routes import ROUTES

    return description.build(ROUTES)


@functools.cache
def _as_json() -> bytes:
    return orjson.dumps(_document())


@functools.cache
def _as_page() -> bytes:
    return docs_page.render(_document()).encode()
