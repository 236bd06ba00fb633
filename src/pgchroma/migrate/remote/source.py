"""The source `Chroma server`: a running server, read page by page over HTTP."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma.catalog import configuration_in_force, space_of_schema
from pgchroma.migrate.model import Json, Problem, SourceCollection, describe_changes
from pgchroma.migrate.remote.client import Access, RemoteClient, record_bytes
from pgchroma.migrate.selection import Scope, in_scope
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Record

PAGE_RECORDS = 1_000
# How long the records are is known when the first are there.
_FIRST_PAGE_RECORDS = 16
# Half of what others take: an answer is held as text and as records.
PAGE_BYTES = 8 * 1024 * 1024
_IDS_AT_ONCE = 10_000


def described(item: Json, tenant: str, database: str, count: int, dimension: int | None) -> SourceCollection:
    """Return a collection in our terms, from the server's description of it."""
    metadata = item.get("metadata") or None
    schema = item.get("schema") or None
    stored = item.get("configuration_json") or {}
    if schema:
        configuration: Json = {
            **stored,
            "hnsw": {**(stored.get("hnsw") or {}), "space": space_of_schema(schema)},
        }
    elif isinstance(stored.get("hnsw"), dict):
        configuration = {key: value for key, value in stored.items() if value is not None}
    else:
        configuration = configuration_in_force({}, metadata or {}, {})
    return SourceCollection(
        id=UUID(item["id"]),
        tenant=tenant,
        database=database,
        name=str(item["name"]),
        metadata=metadata,
        configuration=configuration,
        schema=schema,
        dimension=item.get("dimension") or dimension,
        count=count,
    )


class ServerSource:
    """A server; see model.Source. It goes on serving, so what changes during the copy is looked for. Use `open_server`."""

    frozen = False

    def __init__(
        self, client: RemoteClient, scopes: Sequence[Scope] = (), *, fingerprinted: bool = True
    ) -> None:
        self.client = client
        self._scopes = list(scopes)
        self._overlooked = ""
        self._fingerprinted = fingerprinted
        self.description: Json = {
            "kind": "chroma-server",
            "path": client.host,
            "layout": f"Chroma server {client.version}, {client.api}",
        }
        self._collections = self._read()
        states = {item.path: item.state for item in self._collections}
        self.fingerprint = hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()
        if not self._collections and self._overlooked:
            raise SourceError(
                f"{client.host} has no collection in what was looked into: {self._overlooked}",
                hint="name where to look: --scope TENANT[/DATABASE]",
            )

    def _databases(self) -> list[tuple[str, str]]:
        """Return the (tenant, database) pairs to look into: those named, else those that the server tells of."""
        tenant, owned = self.client.identity()
        known = tenant not in (None, "", "*")
        tenants = [name for name, _, _ in self._scopes] or [str(tenant) if known else DEFAULT_TENANT]
        if not self._scopes and not known:
            self._overlooked = f"only tenant {DEFAULT_TENANT}, since its API cannot list tenants"
        pairs: list[tuple[str, str]] = []
        for name in dict.fromkeys(tenants):
            given = [scope[1] for scope in self._scopes if scope[0] == name]
            if given and None not in given:
                found = [database for database in given if database]
            else:
                listed = self.client.databases(name)
                if listed is None and not owned:
                    self._overlooked = (
                        f"only database {DEFAULT_DATABASE} of tenant {name}, since its API cannot list them"
                    )
                found = listed if listed is not None else [item for item in owned if item != "*"]
                found = found or [DEFAULT_DATABASE]
            pairs += [(name, database) for database in dict.fromkeys(found)]
        return sorted(pairs)

    def _read(self) -> list[SourceCollection]:
        found = []
        for tenant, database in self._databases():
            for item in self.client.collections(tenant, database):
                count = self.client.count(tenant, database, item["id"])
                dimension = None
                if not item.get("dimension") and count:
                    (first,) = self.client.records(tenant, database, item["id"], limit=1, offset=0)
                    dimension = None if first.embedding is None else len(first.embedding)
                collection = described(item, tenant, database, count, dimension)
                if in_scope(collection, self._scopes):
                    collection.state.update(self._state(collection))
                    found.append(collection)
        return sorted(found, key=lambda item: (item.tenant, item.database, item.name))

    def _state(self, collection: SourceCollection) -> Json:
        told: dict[str, Any] = {
            "id": str(collection.id),
            "metadata": collection.metadata,
            "configuration": collection.configuration,
            "dimension": collection.dimension,
        }
        state: Json = {
            "records": collection.count,
            "description_sha256": hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest(),
        }
        if self._fingerprinted:
            digest = hashlib.sha256()
            for ids in self.ids(collection):
                digest.update(json.dumps(ids).encode())
            state["ids_sha256"] = digest.hexdigest()
        return state

    def ids(self, collection: SourceCollection) -> Iterator[list[str]]:
        """Yield a collection's ids in insertion order, some thousands at a time."""
        done = 0
        where = (collection.tenant, collection.database, str(collection.id))
        while ids := self.client.ids(*where, _IDS_AT_ONCE, done):
            yield ids
            done += len(ids)

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections, ordered by tenant, database and name."""
        return self._collections

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records; `seq` is the place in the server's order, beginning with 1."""
        where = (collection.tenant, collection.database, str(collection.id))
        size = _FIRST_PAGE_RECORDS
        while page := self.client.records(*where, limit=size, offset=after):
            yield page
            after = page[-1].seq
            # Documents may be of any size: the next page is as long as the last one says is bearable.
            bearable = PAGE_BYTES * len(page) // max(1, sum(map(record_bytes, page)))
            size = max(1, min(PAGE_RECORDS, 2 * size, bearable))

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield nothing: what the server lost it does not show."""
        return iter(())

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Return, with the first collection, what was not looked into; what is in the records is found when they are read."""
        if not self._overlooked or collection.id != self._collections[0].id:
            return []
        return [
            Problem(
                "notice",
                "not-listed",
                "",
                f"not everything may be here: {self._overlooked}; name others by --scope",
            )
        ]

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return an estimate from the first records."""
        if not collection.count:
            return 0
        where = (collection.tenant, collection.database, str(collection.id))
        sample = self.client.records(*where, limit=20, offset=0)
        texts = sum(record_bytes(record) - 6 * (collection.dimension or 0) for record in sample)
        return int((texts / max(1, len(sample)) + 4 * (collection.dimension or 0)) * collection.count)

    def changes(self) -> list[str]:
        """Return what is different now: collections, counts, ids, descriptions. The proof finds changes within records."""
        now = {item.path: item.state for item in self._read()}
        return describe_changes({item.path: item.state for item in self._collections}, now)


@contextlib.contextmanager
def open_server(access: Access, scopes: Sequence[Scope] = ()) -> Iterator[ServerSource]:
    """Open a server as a source for as long as the context lasts.

    Raises:
        RemoteError, RefusedError: it cannot be read.
    """
    client = RemoteClient(access)
    try:
        yield ServerSource(client, scopes)
    finally:
        client.close()
