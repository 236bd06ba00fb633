"""Cross-origin resource sharing: pages of the named origins may call the server from a browser.

Off by default. Upstream's server has the same under `cors_allow_origins`. Written by hand, because it is two headers and the
libraries for it are parts of frameworks.
"""

import re
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from pgchroma.errors import ConfigurationError
from pgchroma.server.http import Headers, Message, Receive, Scope, Send

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s?#@]+", re.IGNORECASE)
# How long a browser may remember the answer to a preflight, in seconds.
_REMEMBERED = b"600"
_EXPOSED = b"x-request-id, chroma-trace-id"


def origins_of(text: str, variable: str) -> tuple[str, ...]:
    """Return the origins of a setting, separated by commas or, as Chroma's setting has them, a JSON list; `*` stands for all.

    Raises:
        ConfigurationError: for what is no origin, which a browser would never send.
    """
    found = tuple(part.strip() for part in _parts(text, variable) if part.strip())
    for origin in found:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigurationError(
                f"{variable}: {origin} is not an origin",
                hint="write scheme://host or scheme://host:port without a path, several separated by commas, or * for all",
            )
    return found


def _parts(text: str, variable: str) -> list[str]:
    if not text.lstrip().startswith("["):
        return text.split(",")
    try:
        return msgspec.json.decode(text, type=list[str])
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{variable}={text} is not a list of origins",
            hint='write ["https://app.example.org"], or ["*"] for all',
        ) from error


class CrossOrigin:
    """Answers preflights itself and adds to every other answer whether the page it goes to may read it.

    A token is no cookie: no page has it unless it was told, so that `*` gives nobody a right.
    """

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], origins: Sequence[str]
    ) -> None:
        self._app = app
        self._everyone = "*" in origins
        self._origins = {origin.lower().encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection scope of ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asked = dict(scope["headers"])
        granted = self._granted(asked.get(b"origin"))
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in asked:
            headers: Headers = [(b"content-length", b"0"), *granted]
            if len(granted) > 1:
                headers += [
                    (b"access-control-allow-methods", asked[b"access-control-request-method"]),
                    # Named, because `*` does not stand for Authorization.
                    (b"access-control-allow-headers", asked.get(b"access-control-request-headers", b"*")),
                    (b"access-control-max-age", _REMEMBERED),
                ]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def send_with_grant(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += granted
            await send(message)

        await self._app(scope, receive, send_with_grant)

    def _granted(self, origin: bytes | None) -> Headers:
        """Return the headers that let an origin read the answer; always the one that keeps caches from mixing origins up."""
        vary = (b"vary", b"origin, access-control-request-method, access-control-request-headers")
        if origin is None or not (self._everyone or origin.lower() in self._origins):
            return [vary]
        allowed = b"*" if self._everyone else origin
        return [
            vary,
            (b"access-control-allow-origin", allowed),
            (b"access-control-expose-headers", _EXPOSED),
        ]
