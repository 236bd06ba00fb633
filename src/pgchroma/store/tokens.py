"""Tokens: who may use the server. Their table is the owner's; the server's role may only read it and note when one was used.

A token is `pgc_<id>_<secret>`. The id is no secret: it finds the row, and lists show it. The secret has 256 random bits, of which
the database keeps the SHA-256 only. A slow, salted hash as for passwords would add nothing: there is nothing to guess.
"""

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, TypeAlias, get_args

import psycopg
from psycopg import sql
from psycopg.rows import class_row

from pgchroma.errors import AlreadyExistsError, InvalidArgumentError, NotFoundError
from pgchroma.store.connection import Connection, Database

Scope: TypeAlias = Literal["read", "write", "admin", "operator", "monitor"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
# These belong to no tenant.
UNBOUND: tuple[Scope, ...] = ("operator", "monitor")

_PREFIX = "pgc"
_ID_ALPHABET = string.ascii_letters + string.digits
_ID_LENGTH = 12
_SECRET_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,99}")
# The channel on which the database tells that a token changed.
CHANNEL = "pgchroma_tokens"
# Compared with when there is no such token, so that both cases take the same steps.
_NOBODYS_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Token:
    """What a token may do.

    Attributes:
        tenant: the one it reaches; None for a scope that belongs to no tenant.
        databases: those of the tenant that it reaches; None for all.
        expires: seconds since 1970, or None.
    """

    id: str
    name: str
    digest: bytes
    tenant: str | None
    databases: frozenset[str] | None
    scope: Scope
    expires: float | None


@dataclass(frozen=True, slots=True)
class TokenEntry:
    """A token as lists show it; nothing in it is secret."""

    id: str
    name: str
    tenant: str | None
    databases: list[str] | None
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    state: Literal["active", "expired", "revoked"]


_ENTRY = sql.SQL(
    "id, name, tenant, databases, scope, created_at, expires_at, revoked_at, last_used_at, "
    "CASE WHEN revoked_at IS NOT NULL THEN 'revoked' WHEN expires_at <= now() THEN 'expired' ELSE 'active' END AS state"
)


def digest_of(secret: str) -> bytes:
    """Return what the database keeps of a secret."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def find(tokens: Mapping[str, Token], text: str, now: float) -> Token | None:
    """Return the token that `text` is, or None for one that is unknown, wrong or expired; all cases take the same steps."""
    _, _, rest = text.partition("_")
    identifier, _, secret = rest.partition("_")
    token = tokens.get(identifier)
    expected = _NOBODYS_DIGEST if token is None else token.digest
    matches = hmac.compare_digest(digest_of(secret), expected)
    if token is None or not matches or (token.expires is not None and token.expires <= now):
        return None
    return token


async def version(connection: Connection) -> int:
    """Return a number that differs whenever a token was made, changed or revoked."""
    cursor = await connection.execute("SELECT version FROM pgchroma.token_version")
    row = await cursor.fetchone()
    return int(row[0]) if row else 0


async def listen(connection: Connection) -> bool:
    """Have PostgreSQL tell the connection whenever a token changes; False where it cannot, as a standby."""
    try:
        await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(CHANNEL)))
    except psycopg.errors.ReadOnlySqlTransaction:
        return False
    return True


async def load(connection: Connection) -> dict[str, Token]:
    """Return the tokens that are not revoked, by id."""
    cursor = await connection.execute(
        "SELECT id, name, digest, tenant, databases, scope, extract(epoch FROM expires_at)::float8 FROM pgchroma.tokens "
        "WHERE revoked_at IS NULL"
    )
    return {
        row[0]: Token(row[0], row[1], row[2], row[3], row[4] and frozenset(row[4]), row[5], row[6])
        for row in await cursor.fetchall()
    }


async def note_use(connection: Connection, ids: Collection[str]) -> None:
    """Record that these tokens were used just now."""
    await connection.execute(
        "UPDATE pgchroma.tokens SET last_used_at = now() WHERE id = ANY(%s)", [sorted(ids)]
    )


class Tokens:
    """Making, listing and revoking, as the owner of the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(
        self,
        name: str,
        scope: Scope,
        *,
        tenant: str | None = None,
        databases: Sequence[str] | None = None,
        expires_at: datetime | None = None,
        replace: bool = False,
    ) -> tuple[str, TokenEntry]:
        """Make a token and return it, this once, with its entry.

        Args:
            databases: those of the tenant that it reaches; None for all.
            replace: revoke the one of that name, if there is one, in the same transaction.

        Raises:
            AlreadyExistsError: the name is taken.
            InvalidArgumentError: the name, or scope and tenant do not go together.
            NotFoundError: no such tenant or database.
        """
        if not _NAME.fullmatch(name):
            raise InvalidArgumentError(
                f"{name!r} cannot be the name of a token",
                hint="use up to 100 letters, digits and . _ - @, the first a letter or digit",
            )
        if (tenant is None) != (scope in UNBOUND):
            raise InvalidArgumentError(
                f"a token with the scope {scope} belongs to "
                + ("no tenant" if scope in UNBOUND else "one tenant"),
                hint=f"{', '.join(UNBOUND)} take none, all other scopes need one",
            )
        wanted = sorted(set(databases)) if databases else None
        identifier = "".join(secrets.choice(_ID_ALPHABET) for _ in range(_ID_LENGTH))
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        row = [identifier, name, digest_of(secret), tenant, wanted, scope, expires_at]

        async def work(connection: Connection) -> TokenEntry:
            if tenant is not None:
                await _require_place(connection, tenant, wanted or [])
            if replace:
                await connection.execute(
                    "UPDATE pgchroma.tokens SET revoked_at = now() WHERE name = %s AND revoked_at IS NULL",
                    [name],
                )
            async with connection.cursor(row_factory=class_row(TokenEntry)) as cursor:
                await cursor.execute(
                    sql.SQL(
                        "INSERT INTO pgchroma.tokens (id, name, digest, tenant, databases, scope, expires_at) "
                        "VALUES (%s, %s, %s, %s, %s, %s, %s) ON CONFLICT (name) WHERE revoked_at IS NULL DO NOTHING RETURNING {}"
                    ).format(_ENTRY),
                    row,
                )
                entry = await cursor.fetchone()
            if entry is None:
                raise AlreadyExistsError(
                    f"there is a token named {name} already",
                    hint="take another name, or --replace to revoke that one",
                )
            return entry

        return f"{_PREFIX}_{identifier}_{secret}", await self._database.write(work)

    async def entries(self, *, revoked: bool = False) -> list[TokenEntry]:
        """Return the tokens by name, with `revoked` those that are revoked, too."""

        async def work(connection: Connection) -> list[TokenEntry]:
            async with connection.cursor(row_factory=class_row(TokenEntry)) as cursor:
                await cursor.execute(
                    sql.SQL(
                        "SELECT {} FROM pgchroma.tokens WHERE %s OR revoked_at IS NULL ORDER BY name, created_at"
                    ).format(_ENTRY),
                    [revoked],
                )
                return await cursor.fetchall()

        return await self._database.read(work)

    async def revoke(self, name_or_id: str) -> TokenEntry:
        """Revoke a token; NotFoundError when no token that is not revoked has this name or id."""

        async def work(connection: Connection) -> TokenEntry:
            async with connection.cursor(row_factory=class_row(TokenEntry)) as cursor:
                await cursor.execute(
                    sql.SQL(
                        "UPDATE pgchroma.tokens SET revoked_at = now() "
                        "WHERE %s IN (id, name) AND revoked_at IS NULL RETURNING {}"
                    ).format(_ENTRY),
                    [name_or_id],
                )
                entry = await cursor.fetchone()
            if entry is None:
                raise NotFoundError(
                    f"there is no token {name_or_id}", hint="`pgchroma token list` shows names and ids"
                )
            return entry

        return await self._database.write(work)

    async def identify(self, text: str, now: float) -> TokenEntry | None:
        """Return the entry of a token as it stands in a file, or None when the server would refuse it."""

        async def work(connection: Connection) -> TokenEntry | None:
            token = find(await load(connection), text, now)
            if token is None:
                return None
            async with connection.cursor(row_factory=class_row(TokenEntry)) as cursor:
                await cursor.execute(
                    sql.SQL("SELECT {} FROM pgchroma.tokens WHERE id = %s").format(_ENTRY), [token.id]
                )
                return await cursor.fetchone()

        return await self._database.read(work)


async def _require_place(
    connection: psycopg.AsyncConnection[Any], tenant: str, databases: Sequence[str]
) -> None:
    """Refuse a tenant or databases that do not exist: a slip would give a token that reaches nothing."""
    cursor = await connection.execute("SELECT FROM pgchroma.tenants WHERE name = %s", [tenant])
    if await cursor.fetchone() is None:
        raise NotFoundError(f"there is no tenant {tenant}", hint="give --create-missing to create it")
    cursor = await connection.execute(
        "SELECT wanted FROM unnest(%s::text[]) AS wanted "
        "WHERE NOT EXISTS (SELECT FROM pgchroma.databases d WHERE d.tenant = %s AND d.name = wanted) ORDER BY wanted",
        [list(databases), tenant],
    )
    missing = [row[0] for row in await cursor.fetchall()]
    if missing:
        raise NotFoundError(
            f"the tenant {tenant} has no database {', '.join(missing)}",
            hint="give --create-missing to create it",
        )
