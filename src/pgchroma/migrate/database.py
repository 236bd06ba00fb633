"""The source `pgchroma database`: one moment of it, read through the store."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

from psycopg.conninfo import conninfo_to_dict

from pgchroma.migrate.model import Json, Problem, SourceCollection
from pgchroma.store import StoreSettings
from pgchroma.store.snapshot import DatabaseSnapshot
from pgchroma.types import Collection, Record


def describe(database_url: str) -> Json:
    """Return host, port, database and user of a database URL; never its password."""
    parts = conninfo_to_dict(database_url)
    named: Json = {key: str(parts[key]) for key in ("host", "port", "dbname", "user") if parts.get(key)}
    where = f"{named.get('host', '')}:{named.get('port', '5432')}/{named.get('dbname', '')}"
    return {"kind": "pgchroma-database", "path": where, **named}


def settings_for(password_file: Path | None) -> StoreSettings:
    """Return the store settings of a migration: no time limit on statements, few connections."""
    return StoreSettings(
        pool_size=3,
        pool_timeout_seconds=10.0,
        statement_timeout_seconds=0,
        password_file=password_file,
        application_name="pgchroma migrate",
    )


def described(collection: Collection, records: int, state: Json | None = None) -> SourceCollection:
    """Return a collection of the store in the form in which sources describe theirs."""
    return SourceCollection(
        id=collection.id,
        tenant=collection.tenant,
        database=collection.database,
        name=collection.name,
        metadata=collection.metadata,
        configuration=collection.configuration,
        schema=collection.schema or None,
        dimension=collection.dimension,
        count=records,
        state=state or {},
    )


class DatabaseSource:
    """Another pgchroma; see model.Source. Use `open_database`."""

    frozen = True

    def __init__(self, snapshot: DatabaseSnapshot, database_url: str, settings: StoreSettings) -> None:
        self.snapshot = snapshot
        self._url, self._settings = database_url, settings
        self.description: Json = {**describe(database_url), "layout": "pgchroma"}
        self.stored: dict[UUID, Collection] = {}
        self._collections: list[SourceCollection] = []
        for item in snapshot.collections():
            state = _state(snapshot, item)
            self.stored[item.id] = item
            self._collections.append(described(item, state["records"], state))
        states = {item.path: item.state for item in self._collections}
        self.fingerprint = hashlib.sha256(json.dumps(states, sort_keys=True).encode()).hexdigest()

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections, ordered by tenant, database and name."""
        return self._collections

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order."""
        return self.snapshot.records(self.stored[collection.id], after)

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield nothing: a database either has a record or does not."""
        return iter(())

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Return nothing: what a database holds, it holds whole."""
        return []

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return the bytes of the collection's tables."""
        return self.snapshot.size_bytes(self.stored[collection.id])

    def elsewhere(self) -> Callable[[], DatabaseSnapshot]:
        """Return what opens the same moment in another process, for as long as this one keeps it."""
        return functools.partial(DatabaseSnapshot, self._url, self._settings, self.snapshot.moment())

    def changes(self) -> list[str]:
        """Return nothing: the copy is of one moment, and what is written later is no change to that."""
        return []


def _state(snapshot: DatabaseSnapshot, collection: Collection) -> dict[str, Any]:
    told = {
        "id": str(collection.id),
        "metadata": collection.metadata,
        "schema": collection.schema,
        "dimension": collection.dimension,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    return {**snapshot.state(collection), "description_sha256": digest}


@contextlib.contextmanager
def open_database(database_url: str, settings: StoreSettings) -> Iterator[DatabaseSource]:
    """Open a pgchroma database as a source for as long as the context lasts.

    Raises:
        DatabaseUnreachableError, DatabaseNotReadyError: it cannot be read.
    """
    with DatabaseSnapshot(database_url, settings) as snapshot:
        yield DatabaseSource(snapshot, database_url, settings)
