"""The way back for what is newer than a receipt: records born, changed and deleted in pgchroma are applied to the old side.

PostgreSQL tells which rows were written since: a receipt holds the transaction and the record number at which it was written, and
every row knows its transaction. Deletions leave no row; they are what the old side has and the database has not.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pgchroma.errors import RefusedError
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.model import Json, SourceCollection
from pgchroma.migrate.proof import NORMALISED_TOLERANCE, vector_error
from pgchroma.migrate.remote.client import RemoteClient, in_batches
from pgchroma.migrate.remote.sink import ServerSink
from pgchroma.types import Record


@dataclass(slots=True)
class Increment:
    """What was applied to one collection."""

    path: str
    born: int = 0
    changed: int = 0
    deleted: int = 0
    created: bool = False
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> Json:
        """Return the numbers as a JSON object."""
        return {
            "collection": self.path,
            "born": self.born,
            "changed": self.changed,
            "deleted": self.deleted,
            "created": self.created,
        }


def require_usable(receipt: Json, source: DatabaseSource) -> None:
    """Raise RefusedError unless a receipt tells what is newer than it in this very database."""
    horizon = receipt.get("horizon")
    if receipt["result"] != "equal" or not horizon:
        raise RefusedError(
            "the receipt does not say where a pgchroma database stood when all was equal",
            hint="name the green receipt of the migration into this database, or of the last increment out of it",
        )
    now = source.snapshot.horizon()
    for key, what in (("system", "cluster"), ("database", "database")):
        if horizon[key] != now[key]:
            raise RefusedError(
                f"the receipt is about another {what}, or about this one before it was restored from a dump",
                hint="move everything instead: the same command without --since, to a new place",
            )


class Applier:
    """Brings one target's collections to the state of the database."""

    def __init__(self, source: DatabaseSource, sink: ServerSink, receipt: Json) -> None:
        self._source, self._sink = source, sink
        self._horizon = receipt["horizon"]
        self._client: RemoteClient = sink.client

    async def apply(self, collection: SourceCollection, advance: Callable[[int], None]) -> Increment:
        """Apply what is newer to a collection that the target has."""
        return await asyncio.to_thread(self._apply, collection, advance)

    def _apply(self, collection: SourceCollection, advance: Callable[[int], None]) -> Increment:
        done = Increment(collection.path)
        where = self._sink.where(collection)
        stored = self._source.stored[collection.id]
        present: set[str] = set()
        while ids := self._client.ids(*where, 10_000, len(present)):
            present.update(ids)
        gone = set(present)
        for page in self._source.snapshot.ids(stored):
            gone.difference_update(page)
        self._client.delete(*where, sorted(gone))
        done.deleted = len(gone)
        newer = self._source.snapshot.changed_seqs(stored, self._horizon["xid"])
        old = [seq for seq in newer if seq <= self._horizon["record_seq"]]
        born = newer[len(old) :]
        for records in self._pages(collection, old):
            known = [record for record in records if record.id in present]
            done.changed += self._change(where, known, collection.space)
            # A record as old as the receipt that the target lacks: added at the end, and the proof will tell.
            self._add(where, [record for record in records if record.id not in present])
            advance(len(records))
        # Deleted and added again, or added by an interrupted attempt: removed first, so that the order comes out right.
        for records in self._pages(collection, born):
            self._client.delete(*where, [record.id for record in records if record.id in present])
        for records in self._pages(collection, born):
            self._add(where, records)
            done.born += len(records)
            advance(len(records))
        return done

    def _pages(self, collection: SourceCollection, seqs: list[int]) -> Iterator[list[Record]]:
        return self._source.snapshot.records_of(self._source.stored[collection.id], seqs)

    def _add(self, where: tuple[str, str, str], records: list[Record]) -> None:
        for batch in in_batches(records, self._client.max_batch):
            self._client.write(*where, "add", batch)

    def _change(self, where: tuple[str, str, str], records: list[Record], space: str) -> int:
        """Upsert records that differ; metadata keys that are gone are deleted by name, since an upsert merges."""
        count = 0
        for batch in in_batches(records, min(self._client.max_batch, 500)):
            ids = [record.id for record in batch]
            before = {record.id: record for record in self._client.records(*where, ids=ids)}
            differing = [record for record in batch if not _same(record, before[record.id], space)]
            self._client.write(*where, "upsert", differing)
            vanished: list[tuple[str, Json]] = []
            for record in differing:
                keys = (before[record.id].metadata or {}).keys() - (record.metadata or {}).keys()
                if keys:
                    vanished.append((record.id, dict.fromkeys(sorted(keys))))
            self._client.update_metadata(*where, vanished)
            count += len(differing)
        return count


def _same(one: Record, other: Record, space: str) -> bool:
    """Whether two records are equal but for the rounding of a normalised vector."""
    if (one.document, one.uri) != (other.document, other.uri):
        return False
    if json.dumps(one.metadata or {}, sort_keys=True) != json.dumps(other.metadata or {}, sort_keys=True):
        return False
    return vector_error(one, other) <= (NORMALISED_TOLERANCE if space == "cosine" else 0.0)
