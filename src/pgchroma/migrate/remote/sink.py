"""The sink `Chroma server`: batches within the server's limits, written so that writing one twice changes nothing."""

import asyncio
import contextlib
import logging
import math
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from pgchroma.migrate.journal import Journal
from pgchroma.migrate.model import (
    Checkpoint,
    Encode,
    Json,
    Limits,
    Noted,
    Quarantined,
    RunNote,
    Source,
    SourceCollection,
    as_they_are,
)
from pgchroma.migrate.remote.client import Access, RemoteClient, RemoteError, RemoteRefusalError, in_batches
from pgchroma.migrate.remote.source import ServerSource, described
from pgchroma.migrate.selection import Scope
from pgchroma.store import configuration as configurations
from pgchroma.types import Float32Matrix, Record

logger = logging.getLogger("pgchroma.migrate")

_IDS_AT_ONCE = 10_000
# Parameters of an index that older versions take from metadata, with the values they have when nothing is said.
_OLD_DEFAULTS: Final[Json] = {
    "space": "l2",
    "ef_construction": 100,
    "max_neighbors": 16,
    "resize_factor": 1.2,
    "batch_size": 100,
    "sync_threshold": 1000,
}
_LEGACY: Final = {name: key for key, name in configurations.LEGACY_KEYS.items()}


def legacy_metadata(collection: SourceCollection) -> Json:
    """Return the metadata that make Chroma before 1.0 build the same index: there `hnsw:` keys are the only way to say how."""
    parameters = collection.configuration.get("hnsw") or {}
    needed = {
        _LEGACY[name]: parameters[name]
        for name, usual in _OLD_DEFAULTS.items()
        if name in parameters and parameters[name] != usual
    }
    return {**needed, **(collection.metadata or {})}


def _configuration(collection: SourceCollection) -> Json:
    whole = configurations.derive(collection.schema) if collection.schema else collection.configuration
    parameters = {key: value for key, value in whole["hnsw"].items() if value is not None}
    told: Json = {"hnsw": parameters}
    if whole.get("embedding_function") is not None:
        told["embedding_function"] = whole["embedding_function"]
    return told


class ServerSink:
    """A server as the target of one run; see model.Sink.

    Attributes:
        client: the connection; the folder sink starts the server first.
    """

    asks_early = False
    transactional = False

    def __init__(self, client: RemoteClient, receipt_path: Path) -> None:
        self.client = client
        self.description: Json = {
            "kind": "chroma-server",
            "path": client.host,
            "layout": f"Chroma server {client.version}, {client.api}",
        }
        self.journal = Journal(receipt_path, self.description)
        self._ids: dict[UUID, str] = {}
        self._present: dict[UUID, set[str]] = {}

    @property
    def limits(self) -> Limits:
        """What this server cannot hold."""
        old = self.client.number < (1,)
        return Limits(
            vectors=1_000_000,
            name=63 if old else 512,
            plain_metadata=True,
            arrays=self.client.takes_arrays,
            sparse=self.client.is_pgchroma,
            finite_vectors=True,
            batch=self.client.max_batch,
        )

    def _found(self, collection: SourceCollection) -> tuple[SourceCollection, int] | None:
        for item in self.client.collections(collection.tenant, collection.database):
            if item["name"] == collection.name:
                self._ids[collection.id] = str(item["id"])
                count = self.client.count(collection.tenant, collection.database, item["id"])
                return described(item, collection.tenant, collection.database, count, None), count
        return None

    async def find(self, collection: SourceCollection) -> tuple[SourceCollection, int] | None:
        """Return the target collection of the same tenant, database and name with its number of records, or None."""
        return await asyncio.to_thread(self._found, collection)

    async def begin(self, note: RunNote, collections: Sequence[SourceCollection]) -> None:
        """Note a new run in the journal."""
        self.journal.begin(note, collections)

    async def noted(self, run_id: UUID | None) -> Noted:
        """Take up the run of the journal."""
        return self.journal.noted(run_id)

    async def server(self) -> "ServerSink":
        """Return what talks to the server: itself."""
        return self

    async def checkpoint(self, run_id: UUID, collection: SourceCollection) -> Checkpoint:
        """Return how far the copy of a collection is."""
        return self.journal.checkpoint(run_id, collection)

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> None:
        """Create the collection, or learn which records an interrupted attempt has written beyond its last checkpoint."""
        await asyncio.to_thread(self._prepare, run_id, collection)

    def _prepare(self, run_id: UUID, collection: SourceCollection) -> None:
        found = self._found(collection)
        if found is None:
            self.client.ensure_database(collection.tenant, collection.database)
            self._ids[collection.id] = self._create(collection)
            return
        done = self.journal.checkpoint(run_id, collection).records
        present: set[str] = set()
        while ids := self.client.ids(*self.where(collection), _IDS_AT_ONCE, done + len(present)):
            present.update(ids)
        self._present[collection.id] = present

    def _create(self, collection: SourceCollection) -> str:
        where = (collection.tenant, collection.database)
        plain: Json = {"name": collection.name, "get_or_create": False}
        metadata = self.metadata_of(collection)
        if self.client.number < (1,):
            return str(self.client.create(*where, {**plain, "metadata": metadata or None})["id"])
        if collection.schema:
            # Metadata that once set the index would be taken for a second configuration; they come after.
            told = {**plain, "schema": collection.schema, "metadata": None}
            created = self.client.create(*where, told)
            if "schema" in created:
                if metadata:
                    self.client.modify(*where, created["id"], {"new_metadata": metadata})
                return str(created["id"])
            # A server before 1.5 knows no schema and has ignored it.
            self.delete(collection)
        told = {**plain, "configuration": _configuration(collection), "metadata": metadata or None}
        return str(self.client.create(*where, told)["id"])

    def metadata_of(self, collection: SourceCollection) -> Json:
        """Return the metadata that this server's collection is to have."""
        if self.client.number < (1,):
            return legacy_metadata(collection)
        return {
            key: value
            for key, value in (collection.metadata or {}).items()
            if not (isinstance(value, float) and not math.isfinite(value))
        }

    def delete(self, collection: SourceCollection) -> None:
        """Delete the target collection."""
        self.client.drop(collection.tenant, collection.database, collection.name)

    def where(self, collection: SourceCollection) -> tuple[str, str, str]:
        """Return what the client's calls need to name the target collection."""
        if collection.id not in self._ids:
            # An earlier attempt copied all of it; this one only asks it.
            self._found(collection)
        return collection.tenant, collection.database, self._ids[collection.id]

    async def encoder(self, collection: SourceCollection) -> Encode:
        """Return records as they are."""
        return as_they_are

    async def write(
        self,
        collection: SourceCollection,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        quarantined: Sequence[Quarantined],
        position: int,
    ) -> Checkpoint:
        """Append records in batches that the server takes, then move the checkpoint."""
        present = self._present.get(collection.id)
        missing = [record for record in records if record.id not in present] if present else records
        for batch in in_batches(missing, self.client.max_batch):
            await asyncio.to_thread(self.client.write, *self.where(collection), "add", batch)
        return self.journal.advance(collection, checkpoint, len(records), quarantined, position)

    async def set_phase(
        self, run_id: UUID, collection: SourceCollection, phase: str, errors: int | None = None
    ) -> None:
        """Note a collection's phase."""
        self.journal.set_phase(collection, phase, errors)

    async def query(
        self, collection: SourceCollection, vectors: Float32Matrix, count: int
    ) -> list[list[str]] | None:
        """Ask the server; None when it cannot answer, which some do where distances leave the range of floats."""
        try:
            return await asyncio.to_thread(self.client.query, *self.where(collection), vectors, count)
        except (RemoteError, RemoteRefusalError) as error:
            logger.warning("%s is not asked: %s", collection.path, error.message)
            return None

    def _scopes(self) -> list[Scope]:
        return [
            tuple(row["collection"].split("/", 2)) for row in self.journal.content["collections"].values()
        ]

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[Source]:
        """Read what the server holds now."""
        yield await asyncio.to_thread(ServerSource, self.client, self._scopes(), fingerprinted=False)

    async def publish(self) -> Json:
        """Do nothing: what was sent is in its place."""
        return {}

    async def finish(self) -> None:
        """Forget the journal: the run is through."""
        self.journal.remove()

    async def close(self) -> None:
        """Close the connections."""
        self.client.close()


def open_sink(access: Access, receipt_path: Path) -> ServerSink:
    """Return a server as a sink.

    Raises:
        RemoteError, RefusedError: it does not answer, or wants a token.
    """
    return ServerSink(RemoteClient(access), receipt_path)
