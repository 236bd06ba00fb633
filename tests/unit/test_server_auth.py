"""Tokens in memory: the same steps whatever is wrong, what each scope may, how long what is known is trusted."""

import contextlib
import contextvars
import hmac
import secrets
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgchroma.errors import DatabaseUnreachableError, InvalidArgumentError
from pgchroma.server import auth, limits
from pgchroma.server.http import HttpError, Request
from pgchroma.server.settings import ServerSettings
from pgchroma.store import bounds, tokens, watch
from pgchroma.store.tokens import SCOPES, Token
from pgchroma.store.watch import Watch
from pgchroma.types import Filter

SECRET = secrets.token_urlsafe(32)
NOW = 1_800_000_000.0


def token(**changes: Any) -> Token:
    values: dict[str, Any] = {
        "id": "abcdefghijkl",
        "name": "app",
        "digest": tokens.digest_of(SECRET),
        "tenant": "acme",
        "databases": frozenset({"prod"}),
        "scope": "write",
        "expires": None,
    }
    return Token(**{**values, **changes})


def request(*headers: tuple[bytes, bytes]) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    return Request({"headers": list(headers)}, receive, {}, max_body_bytes=1)


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (f"pgc_abcdefghijkl_{SECRET}", True),
        (f"pgc_abcdefghijkl_{SECRET[:-1]}", False),
        (f"pgc_abcdefghijkm_{SECRET}", False),
        ("pgc_abcdefghijkl_", False),
        ("pgc_abcdefghijkl", False),
        ("", False),
        (SECRET, False),
        ("pgc_\udc80_\udc80", False),
    ],
)
def test_every_token_takes_the_same_steps(monkeypatch: pytest.MonkeyPatch, text: str, known: bool) -> None:
    compared: list[tuple[int, int]] = []
    real = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert (tokens.find({"abcdefghijkl": token()}, text, NOW) is not None) == known
    assert compared == [(32, 32)], "one comparison of whole digests, whatever is wrong"


def test_the_dummy_that_unknown_ids_are_compared_with_has_no_secret() -> None:
    assert tokens.find({}, "pgc_x_", NOW) is None
    assert tokens.find({}, "", NOW) is None


@pytest.mark.parametrize(("expires", "good"), [(None, True), (NOW + 1, True), (NOW, False), (NOW - 1, False)])
def test_a_token_ends_when_it_should(expires: float | None, good: bool) -> None:
    found = tokens.find({"abcdefghijkl": token(expires=expires)}, f"pgc_abcdefghijkl_{SECRET}", NOW)
    assert (found is not None) == good


@given(st.text())
def test_no_text_breaks_the_search(text: str) -> None:
    assert tokens.find({"abcdefghijkl": token()}, text, NOW) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"x-chroma-token", b"abc")], "abc"),
        ([(b"authorization", b"Basic xyz"), (b"x-chroma-token", b"abc")], "abc"),
        ([(b"x-chroma-token", b"abc"), (b"authorization", b"Bearer xyz")], "xyz"),
        ([], None),
        ([(b"authorization", b"Bearer \xff\xfe")], "\xff\xfe"),
    ],
)
def test_where_a_token_is_looked_for(headers: list[tuple[bytes, bytes]], expected: str | None) -> None:
    assert auth.presented(request(*headers)) == expected


def allowed(holder: Token, scope: Any, tenant: str | None = None, database: str | None = None) -> bool:
    with contextlib.suppress(HttpError):
        auth.require(holder, scope, tenant, database)
        return True
    return False


def test_what_each_scope_may() -> None:
    may = {
        scope: {
            wanted
            for wanted in ("read", "write", "admin", "operator", "monitor")
            if allowed(token(scope=scope, tenant=None, databases=None), wanted)
        }
        for scope in SCOPES
    }
    assert may == {
        "read": {"read"},
        "write": {"read", "write"},
        "admin": {"read", "write", "admin"},
        "operator": {"read", "write", "admin", "operator", "monitor"},
        "monitor": {"monitor"},
    }


@pytest.mark.parametrize(
    ("databases", "tenant", "database", "good"),
    [
        ({"prod"}, "acme", "prod", True),
        ({"prod"}, "acme", "test", False),
        ({"prod"}, "acme", None, True),
        ({"prod"}, "other", "prod", False),
        ({"prod"}, "ACME", "prod", False),
        (None, "acme", "anything", True),
        (None, "other", None, False),
        (None, None, None, True),
    ],
)
def test_what_a_token_reaches(
    databases: set[str] | None, tenant: str | None, database: str | None, good: bool
) -> None:
    holder = token(databases=databases and frozenset(databases))
    assert allowed(holder, "read", tenant, database) == good


def test_what_is_known_is_trusted_for_seconds_only() -> None:
    watching = Watch("host=/nowhere", with_tokens=True)
    with pytest.raises(DatabaseUnreachableError):
        watching.tokens()
    watching._looked_at = time.monotonic() - watch.TRUST_SECONDS + 1
    assert watching.tokens() == {}
    watching._looked_at = time.monotonic() - watch.TRUST_SECONDS - 0.1
    with pytest.raises(DatabaseUnreachableError):
        watching.tokens()


def test_bounds_hold_for_one_database() -> None:
    def confined() -> list[bool]:
        bounds.confine("acme", "prod")
        return [bounds.contain(*place) for place in (("acme", "prod"), ("acme", "test"), ("other", "prod"))]

    assert contextvars.copy_context().run(confined) == [True, False, False]
    assert bounds.contain("anyone", "anything"), "outside of the request there are none"


def test_limit_and_offset_beyond_postgresqls_are_refused_by_name() -> None:
    assert Filter(limit=2**63 - 1).limit == 2**63 - 1
    for values in ({"limit": 2**63}, {"offset": 2**64}, {"limit": -1}, {"offset": -1}):
        with pytest.raises(InvalidArgumentError, match=next(iter(values))):
            Filter(**values)  # type: ignore[arg-type]


def test_a_filter_is_measured_without_recursion() -> None:
    settings = ServerSettings(database_url="x")
    deep: dict[str, Any] = {"k": 1}
    for _ in range(50_000):
        deep = {"$and": [deep]}
    with pytest.raises(HttpError, match="PGCHROMA_MAX_WHERE_DEPTH"):
        limits.clause(deep, "where", settings)
    with pytest.raises(HttpError, match="PGCHROMA_MAX_WHERE_CONDITIONS"):
        limits.clause({"$or": [{"k": {"$eq": n}} for n in range(5_001)]}, "where", settings)
    wide = {"$or": [{"k": {"$in": list(range(1_000))}} for _ in range(5_000)]}
    assert limits.clause(wide, "where", settings) is wide
    assert limits.clause(None, "where", settings) is None
    with pytest.raises(HttpError, match="Invalid where clause"):
        limits.clause([], "where", settings)
