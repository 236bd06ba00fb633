"""Checks of a running server over HTTP: alive, ready, and a round trip through a scratch collection that is removed again."""

import http.client
import json
import ssl
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, replace
from typing import Any

from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT
from pgchroma.verify.checks import Check, check

_IDS = ["first", "second", "third"]
_VECTORS = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


class _UnexpectedAnswerError(Exception):
    """A step of the round trip went otherwise than it must."""


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class Front:
    """How to reach a server.

    Attributes:
        url: scheme, host and port, e.g. http://127.0.0.1:8000.
        timeout_seconds: for each request.
        certificate_authority: file with the certificate that the server's must be signed by; None for the system's.
        token: sent with every request; None for a server that asks for none.
    """

    url: str
    timeout_seconds: float = 10.0
    certificate_authority: str | None = None
    token: str | None = None

    def request(self, method: str, path: str, body: object = None) -> _Answer:
        """Return the answer, whatever its status; OSError when there is none."""
        request = urllib.request.Request(  # noqa: S310 - the operator names the URL
            self.url.rstrip("/") + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "User-Agent": "pgchroma-verify"},
        )
        if self.token:
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        context = None
        if self.url.startswith("https:"):
            context = ssl.create_default_context(cafile=self.certificate_authority)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_seconds, context=context) as answer:  # noqa: S310
                return _Answer(answer.status, _decoded(answer.read()))
        except urllib.error.HTTPError as error:
            return _Answer(error.code, _decoded(error.read()))
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP answer: {type(error).__name__}") from error


def _decoded(raw: bytes) -> Any:  # noqa: ANN401 - any JSON value
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        return raw[:200].decode(errors="replace")


def check_server(front: Front, tenant: str = DEFAULT_TENANT, database: str = DEFAULT_DATABASE) -> list[Check]:
    """Return the outcome of every check; later ones are left out when an earlier one makes them pointless."""
    try:
        heartbeat = front.request("GET", "/api/v2/heartbeat")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return [
            check(
                "server-alive",
                "critical",
                False,
                f"{front.url} does not answer: {reason}",
                "check that the service runs (systemctl status pgchroma) and where it listens",
            )
        ]
    alive = heartbeat.status == 200 and isinstance(heartbeat.body, dict)
    checks = [
        check(
            "server-alive",
            "critical",
            alive,
            f"heartbeat {heartbeat.status}",
            f"{front.url} is answered by something that is not a Chroma server",
        )
    ]
    if not alive:
        return checks
    try:
        ready = front.request("GET", "/api/v2/healthcheck")
    except OSError as error:
        ready = _Answer(0, str(error))
    checks.append(
        check(
            "server-ready",
            "critical",
            ready.status == 200,
            "ready" if ready.status == 200 else f"{ready.status}: {_message(ready.body)}",
            "the server runs but its database does not serve it; see `pgchroma verify database`",
        )
    )
    if ready.status != 200:
        return checks
    if front.token:
        checks.append(_refuses_strangers(front))
    return [*checks, *_round_trip(front, f"/api/v2/tenants/{tenant}/databases/{database}/collections")]


def _refuses_strangers(front: Front) -> Check:
    """Check that a request without a token is refused where one with a token is expected."""
    path = "/api/v2/auth/identity"
    try:
        status = replace(front, token=None).request("GET", path).status
    except OSError as error:
        return check("token-required", "critical", False, str(error), "see the server's log at this time")
    return check(
        "token-required",
        "critical",
        status == 403,
        f"without a token: {status}",
        "the server lets everyone in; take PGCHROMA_AUTH=off out of its settings",
    )


def _message(body: object) -> str:
    if isinstance(body, dict):
        return str(body.get("message") or body.get("error") or body)
    return str(body)


def _round_trip(front: Front, collections: str) -> list[Check]:
    # The name tells an operator who finds it after a crash what it is.
    name = f"pgchroma-verify-{uuid.uuid4()}"
    started = time.monotonic()
    created = False
    problem = ""
    try:
        answer = _expect(front, "POST", collections, {"name": name, "metadata": {"scratch": True}})
        created = True
        _use(front, f"{collections}/{answer['id']}")
    except (OSError, _UnexpectedAnswerError, KeyError, TypeError) as error:
        problem = (
            f"{type(error).__name__}: {error}" if isinstance(error, KeyError | TypeError) else str(error)
        )
    seconds = time.monotonic() - started
    checks = [
        check(
            "round-trip",
            "critical",
            not problem,
            problem or f"wrote, read, searched and deleted in {seconds * 1000:.0f} ms",
            "give --token-file with a token that may write (`pgchroma token create`)"
            if ": 403 " in problem
            else "see the server's log (journalctl -u pgchroma) at this time",
        )
    ]
    if created:
        try:
            _expect(front, "DELETE", f"{collections}/{name}")
            gone = front.request("GET", f"{collections}/{name}").status == 404
            left = "" if gone else "it is still there"
        except (OSError, _UnexpectedAnswerError) as error:
            left = str(error)
        checks.append(
            check(
                "scratch-removed",
                "critical",
                not left,
                left or "the scratch collection is gone",
                f"delete the collection {name} by hand",
            )
        )
    return checks


def _expect(front: Front, method: str, path: str, body: object = None) -> Any:  # noqa: ANN401 - any JSON value
    answer = front.request(method, path, body)
    if not 200 <= answer.status < 300:
        action = path.rsplit("/", 1)[1]
        raise _UnexpectedAnswerError(f"{method} {action}: {answer.status} {_message(answer.body)}")
    return answer.body


def _require(what: str, seen: object, wanted: object) -> None:
    if seen != wanted:
        raise _UnexpectedAnswerError(f"{what}: {seen!r} instead of {wanted!r}")


def _use(front: Front, collection: str) -> None:
    documents = [f"the {name} record" for name in _IDS]
    metadatas = [{"place": number, "half": number / 2, "last": number == 2} for number in range(3)]
    _expect(
        front,
        "POST",
        f"{collection}/add",
        {"ids": _IDS, "embeddings": _VECTORS, "documents": documents, "metadatas": metadatas},
    )
    _require("count after writing", _expect(front, "GET", f"{collection}/count"), 3)
    read = _expect(front, "POST", f"{collection}/get", {"include": ["documents", "metadatas", "embeddings"]})
    _require("ids", read["ids"], _IDS)
    _require("documents", read["documents"], documents)
    _require("metadatas", read["metadatas"], metadatas)
    _require("embeddings", read["embeddings"], _VECTORS)
    found = _expect(
        front,
        "POST",
        f"{collection}/query",
        {
            "query_embeddings": [[0.1, 0.9, 0.0]],
            "n_results": 1,
            "where": {"place": {"$gte": 0}},
            "include": ["distances"],
        },
    )
    _require("nearest record", found["ids"], [["second"]])
    _expect(front, "POST", f"{collection}/delete", {"ids": ["second"]})
    _require("count after deleting", _expect(front, "GET", f"{collection}/count"), 2)
    found = _expect(
        front,
        "POST",
        f"{collection}/query",
        {"query_embeddings": [[0.1, 0.9, 0.0]], "n_results": 3, "include": []},
    )
    _require("records left", sorted(found["ids"][0]), ["first", "third"])
