"""Finds the handler of a method and path.

Paths are matched before percent-decoding, so that a name with an encoded slash (`ten%2Fant`) stays one segment as it does
upstream; a router over the decoded path would not find it.
"""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from pgchroma.server.http import HttpError, Request, Response, bad_request

Context = TypeVar("Context")
Handler: TypeAlias = Callable[[Context, Request], Awaitable[Response]]
# What a caller must be allowed to do; "open" is for everyone, with or without a token. See auth.py.
Scope: TypeAlias = Literal["open", "read", "write", "admin", "operator", "monitor"]


@dataclass(frozen=True, slots=True)
class Route(Generic[Context]):
    """One operation of the API.

    Attributes:
        path: `{name}` stands for one segment; as written here it also labels logs and metrics.
    """

    method: str
    path: str
    handler: Handler[Context]
    scope: Scope


@dataclass(slots=True)
class _Node(Generic[Context]):
    static: dict[str, "_Node[Context]"] = field(default_factory=dict)
    parameter: "_Node[Context] | None" = None
    routes: dict[str, tuple[Route[Context], tuple[str, ...]]] = field(default_factory=dict)


class Router(Generic[Context]):
    """A tree of path segments."""

    def __init__(self, routes: Iterable[Route[Context]]) -> None:
        self._root: _Node[Context] = _Node()
        for route in routes:
            self._add(route)

    def _add(self, route: Route[Context]) -> None:
        node, names = self._root, []
        for segment in route.path.split("/")[1:]:
            if segment.startswith("{"):
                names.append(segment[1:-1])
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.static.setdefault(segment, _Node())
        node.routes[route.method] = (route, tuple(names))

    def find(self, method: str, raw_path: bytes) -> tuple[Route[Context], dict[str, str]]:
        """Return the route and its decoded parameters; HEAD finds what GET does.

        Raises:
            HttpError: 404, or 405 with the header Allow, or 400 for a parameter that is not UTF-8.
        """
        segments = raw_path.decode("latin-1").split("/")[1:]
        found = self._walk(self._root, segments, 0, ())
        if found is None:
            raise HttpError(404, "NotFoundError", "No such route")
        node, values = found
        entry = node.routes.get("GET" if method == "HEAD" else method)
        if entry is None:
            allowed = [*node.routes, *(["HEAD"] if "GET" in node.routes else [])]
            headers = [(b"allow", ",".join(sorted(allowed)).encode())]
            raise HttpError(405, "ChromaError", f"Method {method} is not allowed here", headers)
        route, names = entry
        return route, {name: _decode(name, value) for name, value in zip(names, values, strict=True)}

    def _walk(
        self, node: _Node[Context], segments: list[str], position: int, values: tuple[str, ...]
    ) -> tuple[_Node[Context], tuple[str, ...]] | None:
        if position == len(segments):
            return (node, values) if node.routes else None
        segment = segments[position]
        child = node.static.get(segment)
        if child is not None:
            found = self._walk(child, segments, position + 1, values)
            if found is not None:
                return found
        if node.parameter is None or segment == "":
            return None
        return self._walk(node.parameter, segments, position + 1, (*values, segment))


def _decode(name: str, value: str) -> str:
    if "%" not in value and value.isascii():
        return value
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise bad_request(f"Invalid URL: Invalid UTF-8 in `{name}`") from None
