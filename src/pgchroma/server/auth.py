"""Who may do what: the token of a request, and whether it reaches what the request names.

The same answer, 403 "Forbidden", goes to a missing, an unknown, a wrong, an expired and a revoked token. A token that is good but
does not reach that far is told so, in words that do not depend on whether the tenant, database or collection exists.
"""

import time

from pgchroma.errors import PgchromaError
from pgchroma.server.http import HttpError, Request
from pgchroma.server.router import Scope
from pgchroma.store.tokens import Token, find
from pgchroma.store.watch import Watch

AUTH_ERROR = "AuthError"
# What upstream's servers say, and its clients raise as ChromaAuthError.
FORBIDDEN = "Forbidden"
_RANK = {"read": 1, "write": 2, "admin": 3, "operator": 4}
_BEARER = b"bearer "
_SECOND_LOOK_SECONDS = 1.0


def forbidden(reason: str = "") -> HttpError:
    """Return the 403; `reason` must be known to whoever holds the token anyway."""
    return HttpError(403, AUTH_ERROR, f"{FORBIDDEN}: {reason}" if reason else FORBIDDEN)


def presented(request: Request) -> str | None:
    """Return the token of `Authorization: Bearer` or else of `X-Chroma-Token`, None without one."""
    chroma = None
    for name, value in request.scope["headers"]:
        if name == b"authorization" and value[:7].lower() == _BEARER:
            return str(value[7:].strip().decode("latin-1"))
        if name == b"x-chroma-token":
            chroma = value
    return None if chroma is None else str(chroma.strip().decode("latin-1"))


class Guard:
    """Lets a request pass or raises; knows the tokens from the worker's watch."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    async def admit(self, scope: Scope, request: Request) -> Token:
        """Return the token of a request that may have what it asks for.

        Raises:
            HttpError: 403.
            DatabaseUnreachableError, DatabaseNotReadyError: it cannot be known.
        """
        # One that is missing takes the way of a wrong one, down to the time it takes.
        text = presented(request) or ""
        try:
            token = find(self._watch.tokens(), text, time.time())
        except PgchromaError:
            # PostgreSQL may have come back since the last look.
            await self._watch.look_again(_SECOND_LOOK_SECONDS)
            token = find(self._watch.tokens(), text, time.time())
        if token is None:
            # It may have been made a moment ago. A wrong one waits as long, whatever is wrong with it.
            await self._watch.look_again()
            token = find(self._watch.tokens(), text, time.time())
        if token is None:
            raise forbidden()
        request.scope["token"] = token.name
        require(token, scope, request.params.get("tenant"), request.params.get("database"))
        self._watch.note_use(token)
        return token


def require(token: Token, scope: Scope, tenant: str | None, database: str | None) -> None:
    """Raise the 403 unless a token has the scope and reaches tenant and database; None for a request that names none."""
    if scope == "monitor":
        if token.scope not in ("monitor", "operator"):
            raise _too_narrow(token, "monitor or operator")
        return
    if _RANK.get(token.scope, 0) < _RANK[scope]:
        raise _too_narrow(token, scope)
    if token.tenant is None:
        return
    if tenant is not None and tenant != token.tenant:
        raise forbidden(f"the token {token.name} does not reach the tenant {tenant}")
    if database is not None and not reaches(token, database):
        raise forbidden(f"the token {token.name} does not reach the database {database}")


def reaches(token: Token | None, database: str) -> bool:
    """Whether a token reaches a database of its tenant; without tokens everyone reaches all."""
    return token is None or token.databases is None or database in token.databases


def _too_narrow(token: Token, needed: str) -> HttpError:
    return forbidden(f"this needs the scope {needed}, and the token {token.name} has {token.scope}")
