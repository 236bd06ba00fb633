"""Chroma's HTTP API as a migration needs it: `/api/v2` (0.5.16 and later) or `/api/v1` (before), paged and repeated on failure.

Every request here may be sent twice: reading changes nothing, and Chroma ignores records whose id it has.
"""

import base64
import functools
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote, urlsplit

import numpy as np
import orjson

from pgchroma.errors import ConfigurationError, RefusedError, SourceError
from pgchroma.migrate.model import Json
from pgchroma.types import Float32Matrix, Record

if TYPE_CHECKING:
    # Imported where it is needed: it takes a while to load, and most migrations have no server at either end.
    import httpx

logger = logging.getLogger("pgchroma.migrate")

ATTEMPTS: Final = 6
# What a server says that is busy, starting or failing, and may not say the next time.
_PASSING: Final = (408, 425, 429, 500, 502, 503, 504)
_FIRST_PAUSE_SECONDS = 0.25
_TIMEOUT_SECONDS, _CONNECT_SECONDS = 120.0, 10.0
_EVERYTHING: Final = ["embeddings", "documents", "metadatas", "uris"]
# Chroma's server refuses bodies of more than 40 MiB.
LARGEST_BODY_BYTES: Final = 12 * 1024 * 1024


class RemoteError(SourceError):
    """The server does not answer, or fails; it may do better later."""


class RemoteRefusalError(SourceError):
    """The server understands a request and will not carry it out, however often it is repeated."""


@dataclass(frozen=True, slots=True)
class Access:
    """Where a server is and what it asks for.

    Attributes:
        headers: sent with every request; they hold secrets and are never shown.
    """

    url: str
    headers: Mapping[str, str]


class RemoteClient:
    """One server.

    Attributes:
        version: what the server says; the Rust server says 1.0.0 whatever its release.
        api: `/api/v2` or `/api/v1`.
        max_batch: records that it takes at once.
        base64: whether it takes vectors as base64.

    Raises:
        RemoteError: it does not answer.
        RemoteRefusalError: it is something else.
        RefusedError: it asks for a token, or for another one.
    """

    def __init__(self, access: Access) -> None:
        import httpx

        self.url = access.url.rstrip("/")
        timeout = httpx.Timeout(_TIMEOUT_SECONDS, connect=_CONNECT_SECONDS)
        self._http = httpx.Client(timeout=timeout, headers=dict(access.headers), follow_redirects=False)
        self._pause = threading.Event()
        self.api = "/api/v2"
        if self._call("GET", "/heartbeat", missing=(404, 410)) is None:
            self.api = "/api/v1"
            if self._call("GET", "/heartbeat", missing=(404, 410)) is None:
                raise RemoteRefusalError(
                    f"{self.host} is no Chroma server: it has no /api/v2/heartbeat",
                    hint="name the server's root, e.g. http://127.0.0.1:8000",
                )
        self.version = str(self._call("GET", "/version"))
        limits = self._call("GET", "/pre-flight-checks") or {}
        self.max_batch = max(1, int(limits.get("max_batch_size") or 1000))
        self.base64 = bool(limits.get("supports_base64_encoding"))

    @property
    def number(self) -> tuple[int, ...]:
        """The version as numbers, for comparisons."""
        return tuple(int(part) for part in self.version.split(".")[:3] if part.isdigit())

    @property
    def host(self) -> str:
        """The URL without anything secret."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "") + parts.path

    @functools.cached_property
    def _api_description(self) -> Json:
        """What the server says of its API by OpenAPI; empty where it says nothing."""
        found = self._call("GET", "/openapi.json", api="", missing=(401, 403, 404, 405, 410))
        return found if isinstance(found, dict) else {}

    @property
    def is_pgchroma(self) -> bool:
        """Whether it is pgchroma, which stores more than Chroma does."""
        return bool((self._api_description.get("info") or {}).get("title") == "pgchroma")

    @property
    def takes_arrays(self) -> bool:
        """Whether metadata may hold lists: Chroma 1.5 and later, whose servers all call themselves 1.0.0."""
        if self.number < (1,):
            return False
        schemas = (self._api_description.get("components") or {}).get("schemas") or {}
        values = ((schemas.get("HashMap") or {}).get("additionalProperties") or {}).get("oneOf")
        # One that does not say is tried.
        return values is None or any(value.get("type") == "array" for value in values)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str | int] | None = None,
        missing: Sequence[int] = (),
        attempts: int = ATTEMPTS,
        api: str | None = None,
    ) -> Any:  # noqa: ANN401 - whatever JSON the server sends
        """Send a request, several times if need be; None when the status is one of `missing`."""
        import httpx

        url = self.url + (self.api if api is None else api) + path
        content = None if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        headers = {} if content is None else {"content-type": "application/json"}
        problem = ""
        for attempt in range(attempts):
            if attempt:
                logger.warning("%s %s: %s; trying again", method, path, problem)
                self._pause.wait(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                answer = self._http.request(method, url, content=content, headers=headers, params=query)
            except httpx.TransportError as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
                continue
            except httpx.InvalidURL as error:
                raise ConfigurationError(f"{self.url} is not a URL: {error}") from error
            if answer.status_code in missing:
                return None
            if answer.is_success:
                return self._content(answer, f"{method} {path}")
            problem = f"status {answer.status_code}: {answer.text[:300]}"
            if answer.status_code in (401, 403):
                raise RefusedError(
                    f"{self.host} refuses the request ({problem})",
                    hint="give its token by --source-token-file or --target-token-file, or headers by the -headers-file options",
                )
            if answer.status_code not in _PASSING:
                raise RemoteRefusalError(
                    f"{self.host} refuses {method} {path} ({problem})",
                    hint="to repeat it changes nothing: see what it does not take; --policy says what becomes of such records",
                )
        raise RemoteError(
            f"{self.host} does not answer {method} {path}: {problem}",
            hint="check that the server runs and can be reached, then run again or resume",
        )

    def _content(self, answer: "httpx.Response", request: str) -> Any:  # noqa: ANN401 - whatever JSON the server sends
        try:
            return orjson.loads(answer.content) if answer.content else {}
        except orjson.JSONDecodeError as error:
            raise RemoteRefusalError(
                f"{self.host} answers {request} with something that is not JSON: {answer.text[:60]!r}",
                hint="name the root of a Chroma server, e.g. http://127.0.0.1:8000; a proxy before it must hand its answers on",
            ) from error

    # Tenants, databases, collections

    def _database_path(self, tenant: str, database: str) -> str:
        return (
            f"/tenants/{quote(tenant, safe='')}/databases/{quote(database, safe='')}"
            if self.api == "/api/v2"
            else ""
        )

    def _where(self, tenant: str, database: str) -> dict[str, str | int]:
        return {} if self.api == "/api/v2" else {"tenant": tenant, "database": database}

    def identity(self) -> tuple[str | None, list[str]]:
        """Return (tenant, databases) that the token belongs to, as far as the server says; `*` stands for no restriction."""
        found = self._call("GET", "/auth/identity", missing=(404, 405, 410)) or {}
        if not found.get("user_id"):
            # Who asks for no token says the names of the defaults to everybody.
            return None, []
        return found.get("tenant"), [str(name) for name in found.get("databases") or []]

    def databases(self, tenant: str) -> list[str] | None:
        """Return a tenant's databases; None where the server cannot list them."""
        if self.api == "/api/v1":
            return None
        found = self._call("GET", f"/tenants/{quote(tenant, safe='')}/databases", missing=(404, 405))
        return None if found is None else [str(item["name"]) for item in found]

    def collections(self, tenant: str, database: str) -> list[Json]:
        """Return a database's collections as the server describes them; none for a database that does not exist."""
        path = self._database_path(tenant, database) + "/collections"
        found: dict[str, Json] = {}
        while True:
            query: dict[str, str | int] = {"limit": 500, "offset": len(found)}
            page = self._call("GET", path, query=query | self._where(tenant, database), missing=(400, 404))
            new = [item for item in page or [] if item["id"] not in found]
            found |= {item["id"]: item for item in new}
            if len(new) < 500:
                return list(found.values())

    def ensure_database(self, tenant: str, database: str) -> None:
        """Create tenant and database where they are missing."""
        name = quote(tenant, safe="")
        if self._call("GET", f"/tenants/{name}", missing=(400, 404, 500)) is None:
            self._call("POST", "/tenants", {"name": tenant}, missing=(409,))
        if self.api == "/api/v2":
            if self._call("GET", self._database_path(tenant, database), missing=(400, 404, 500)) is None:
                self._call("POST", f"/tenants/{name}/databases", {"name": database}, missing=(409,))
        elif (
            self._call(
                "GET",
                f"/databases/{quote(database, safe='')}",
                query={"tenant": tenant},
                missing=(400, 404, 500),
            )
            is None
        ):
            self._call("POST", "/databases", {"name": database}, query={"tenant": tenant}, missing=(409,))

    def create(self, tenant: str, database: str, description: Json) -> Json:
        """Create a collection and return it as the server describes it."""
        path = self._database_path(tenant, database) + "/collections"
        created: Json = self._call("POST", path, description, query=self._where(tenant, database))
        return created

    def modify(self, tenant: str, database: str, ident: str, change: Json) -> None:
        """Change a collection's description."""
        self._call("PUT", self._records_path(tenant, database, ident), change)

    def drop(self, tenant: str, database: str, name: str) -> None:
        """Delete a collection."""
        path = f"{self._database_path(tenant, database)}/collections/{quote(name, safe='')}"
        self._call("DELETE", path, query=self._where(tenant, database))

    # Records

    def _records_path(self, tenant: str, database: str, ident: str) -> str:
        return f"{self._database_path(tenant, database)}/collections/{ident}"

    def count(self, tenant: str, database: str, ident: str) -> int:
        """Return how many records a collection has."""
        return int(self._call("GET", self._records_path(tenant, database, ident) + "/count"))

    def ids(self, tenant: str, database: str, ident: str, limit: int, offset: int) -> list[str]:
        """Return ids in insertion order."""
        body = {"limit": limit, "offset": offset, "include": []}
        found = self._call("POST", self._records_path(tenant, database, ident) + "/get", body)
        return [str(name) for name in found["ids"]]

    def records(
        self,
        tenant: str,
        database: str,
        ident: str,
        *,
        limit: int | None = None,
        offset: int | None = None,
        ids: Sequence[str] | None = None,
    ) -> list[Record]:
        """Return whole records in insertion order; `seq` counts from `offset`, beginning with 1."""
        body: Json = {"include": _EVERYTHING}
        if ids is not None:
            body["ids"] = list(ids)
        if limit is not None:
            body |= {"limit": limit, "offset": offset or 0}
        found = self._call("POST", self._records_path(tenant, database, ident) + "/get", body)
        names = found["ids"]
        empty = [None] * len(names)
        vectors = found.get("embeddings") or empty
        return [
            Record(
                seq=(offset or 0) + place,
                id=name,
                embedding=None if vector is None else np.array(vector, dtype=np.float32),
                document=document,
                metadata=metadata or None,
                uri=uri,
            )
            for place, (name, vector, document, metadata, uri) in enumerate(
                zip(
                    names,
                    vectors,
                    found.get("documents") or empty,
                    found.get("metadatas") or empty,
                    found.get("uris") or empty,
                    strict=True,
                ),
                start=1,
            )
        ]

    def query(
        self, tenant: str, database: str, ident: str, vectors: Float32Matrix, count: int
    ) -> list[list[str]]:
        """Return the ids nearest to each vector, nearest first."""
        body = {"query_embeddings": vectors.tolist(), "n_results": count, "include": ["distances"]}
        found = self._call("POST", self._records_path(tenant, database, ident) + "/query", body, attempts=1)
        return [[str(name) for name in ids] for ids in found["ids"]]

    def write(self, tenant: str, database: str, ident: str, verb: str, records: Sequence[Record]) -> None:
        """`add`, `upsert` or `update` whole records; the caller keeps to `max_batch` and the body's size."""
        if not records:
            return
        body: Json = {"ids": [record.id for record in records], "embeddings": self._vectors(records)}
        for column, values in (
            ("documents", [record.document for record in records]),
            ("metadatas", [record.metadata or None for record in records]),
            ("uris", [record.uri for record in records]),
        ):
            if any(value is not None for value in values):
                body[column] = values
        self._call("POST", f"{self._records_path(tenant, database, ident)}/{verb}", body)

    def _vectors(self, records: Sequence[Record]) -> list[Any]:
        if self.base64:
            return [
                base64.b64encode(np.ascontiguousarray(record.embedding, "<f4").tobytes()).decode("ascii")
                for record in records
            ]
        return [record.embedding for record in records]

    def update_metadata(
        self, tenant: str, database: str, ident: str, changes: Sequence[tuple[str, Json]]
    ) -> None:
        """Merge metadata into records; a value of None deletes its key (Chroma 1.0 and later)."""
        body = {"ids": [name for name, _ in changes], "metadatas": [patch for _, patch in changes]}
        if changes:
            self._call("POST", self._records_path(tenant, database, ident) + "/update", body)

    def delete(self, tenant: str, database: str, ident: str, ids: Sequence[str]) -> None:
        """Delete records."""
        for start in range(0, len(ids), 1000):
            body = {"ids": list(ids[start : start + 1000])}
            self._call("POST", self._records_path(tenant, database, ident) + "/delete", body)


def record_bytes(record: Record) -> int:
    """Return about how many bytes a record takes in a request."""
    size = len(record.id) + 64 + (0 if record.embedding is None else 6 * len(record.embedding))
    for text in (record.document, record.uri):
        size += 3 * len(text) if text and not text.isascii() else len(text or "")
    for key, value in (record.metadata or {}).items():
        size += len(key) + (3 * len(value) if isinstance(value, str) else 24) + 8
        size += 24 * len(value) if isinstance(value, list) else 0
    return size


def in_batches(records: Sequence[Record], most: int) -> list[list[Record]]:
    """Cut records into batches that a server takes at once: by number and by bytes."""
    batches: list[list[Record]] = []
    size = 0
    for record in records:
        needed = record_bytes(record)
        if not batches or len(batches[-1]) >= most or size + needed > LARGEST_BODY_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(record)
        size += needed
    return batches
