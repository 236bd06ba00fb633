"""The way back for what is newer than a receipt: records born, changed and deleted in pgchroma are applied to the old side.

PostgreSQL tells which rows were written since: a receipt holds the transaction and the record number at which it was written, and
every row knows its transaction. Deletions leave no row; they are what the old side has and the database has not.
"""

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pgchroma.errors import RefusedError
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.model import Json, SourceCollection
from pgchroma.migrate.proof import (
    NORMALISED_TOLERANCE,
    CollectionProof,
    compare_description,
    vector_error,
)
from pgchroma.migrate.remote.client import RemoteClient, in_batches
from pgchroma.migrate.remote.sink import ServerSink
from pgchroma.migrate.remote.source import ServerSource
from pgchroma.types import Record


@dataclass(slots=True)
class Increment:
    """What was applied to one collection.

    Attributes:
        described: which parts of its description were changed.
    """

    path: str
    born: int = 0
    changed: int = 0
    deleted: int = 0
    created: bool = False
    described: list[str] = field(default_factory=list)

    def as_json(self) -> Json:
        """Return the numbers as a JSON object."""
        return {
            "collection": self.path,
            "born": self.born,
            "changed": self.changed,
            "deleted": self.deleted,
            "created": self.created,
            "described": self.described,
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
        self._source, self._sink, self._receipt = source, sink, receipt
        self._horizon = receipt["horizon"]
        self._client: RemoteClient = sink.client

    async def arrange(self) -> Json:
        """Delete and rename collections as the database did; return which, for the receipt."""
        return await asyncio.to_thread(self._arrange)

    def _arrange(self) -> Json:
        gone: list[SourceCollection] = []
        renamed: list[tuple[SourceCollection, SourceCollection]] = []
        for target, now in self._pairs():
            if now is None or (target.tenant, target.database) != (now.tenant, now.database):
                gone.append(target)
            elif target.name != now.name:
                renamed.append((target, now))
        for target in gone:
            self._client.drop(target.tenant, target.database, target.name)
        # By way of names that nobody has, since two may have exchanged theirs.
        for target, _ in renamed:
            self._rename(target, f"renamed-{uuid.uuid4().hex}")
        for target, now in renamed:
            self._rename(target, now.name)
        return {
            "collections_gone": [target.path for target in gone],
            "collections_renamed": [{"from": target.path, "to": now.path} for target, now in renamed],
        }

    def _rename(self, target: SourceCollection, name: str) -> None:
        self._client.modify(target.tenant, target.database, str(target.id), {"new_name": name})

    def _pairs(self) -> Iterator[tuple[SourceCollection, SourceCollection | None]]:
        """Yield the collections of the receipt: as the target has them, and as the database has them now, if it does."""
        items = self._receipt["collections"]
        scopes = {tuple(item["collection"].split("/", 2)[:2]) for item in items}
        there = ServerSource(self._client, [(*scope, None) for scope in sorted(scopes)], fingerprinted=False)
        by_id = {str(item.id): item for item in there.collections()}
        by_path = {item.path: item for item in there.collections()}
        now_by_id = {str(item.id): item for item in self._source.collections()}
        now_by_path = {item.path: item for item in self._source.collections()}
        for item in items:
            ident, path = item["source_id"], item["collection"]
            # The ids are the same where the receipt is about a move from the one side to the other and ids were free.
            target = by_id.get(ident) or by_path.get(path)
            if target is not None:
                yield target, now_by_id.get(ident) or now_by_path.get(path)

    async def require_applicable(self) -> None:
        """Raise RefusedError, before anything is changed, where Chroma before 1.0 cannot be told what has changed."""
        if self._client.number < (1,):
            await asyncio.to_thread(self._require_applicable)

    def _require_applicable(self) -> None:
        for target, now in self._pairs():
            if now is None:
                continue
            where = (target.tenant, target.database, str(target.id))
            old, _ = self._newer(now)
            for batch in self._batches(now, old):
                before = {
                    record.id: record
                    for record in self._client.records(*where, ids=[record.id for record in batch])
                }
                for record in batch:
                    keys = _vanished(before[record.id], record) if record.id in before else []
                    if keys:
                        raise RefusedError(
                            f"{now.path}: record {record.id!r} has lost the metadata keys {', '.join(keys)}, and Chroma "
                            f"{self._client.version} cannot be told so",
                            hint="move everything to a new folder or server instead: the same command without --since",
                        )

    def _newer(self, collection: SourceCollection) -> tuple[list[int], list[int]]:
        """Return the numbers of the records written since the receipt: those that it knows, those born later."""
        newer = self._source.snapshot.changed_seqs(self._source.stored[collection.id], self._horizon["xid"])
        old = [seq for seq in newer if seq <= self._horizon["record_seq"]]
        return old, newer[len(old) :]

    def _batches(self, collection: SourceCollection, seqs: list[int]) -> Iterator[list[Record]]:
        for records in self._pages(collection, seqs):
            yield from in_batches(records, min(self._client.max_batch, 500))

    async def apply(
        self, collection: SourceCollection, target: SourceCollection, advance: Callable[[int], None]
    ) -> Increment:
        """Apply what is newer to a collection that the target has, and has described as `target`."""
        return await asyncio.to_thread(self._apply, collection, target, advance)

    def _describe(self, collection: SourceCollection, target: SourceCollection) -> list[str]:
        """Change what the target says of a collection to what the database says; return which parts."""
        found = CollectionProof(collection.path)
        compare_description(collection, target, found)
        differing = {item["what"] for item in found.differences}
        change: Json = {}
        if "collection metadata" in differing:
            change["new_metadata"] = self._sink.metadata_of(collection)
            if not change["new_metadata"]:
                raise RefusedError(
                    f"{collection.path} has lost all its metadata, and Chroma cannot be told so",
                    hint="move everything to a new folder or server instead: the same command without --since",
                )
        if "configuration" in differing and self._client.number >= (1,):
            wanted, shown = collection.configuration["hnsw"], target.configuration["hnsw"]
            other = {key: wanted[key] for key in shown if key in wanted and wanted[key] != shown[key]}
            if other:
                change["new_configuration"] = {"hnsw": other}
        if change:
            self._client.modify(*self._sink.where(collection), change)
        return sorted(key.removeprefix("new_") for key in change)

    def _apply(
        self, collection: SourceCollection, target: SourceCollection, advance: Callable[[int], None]
    ) -> Increment:
        done = Increment(collection.path)
        where = self._sink.where(collection)
        done.described = self._describe(collection, target)
        stored = self._source.stored[collection.id]
        present: set[str] = set()
        while ids := self._client.ids(*where, 10_000, len(present)):
            present.update(ids)
        gone = set(present)
        for page in self._source.snapshot.ids(stored):
            gone.difference_update(page)
        self._client.delete(*where, sorted(gone))
        done.deleted = len(gone)
        old, born = self._newer(collection)
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
                if keys := _vanished(before[record.id], record):
                    vanished.append((record.id, dict.fromkeys(keys)))
            self._client.update_metadata(*where, vanished)
            count += len(differing)
        return count


def _vanished(before: Record, now: Record) -> list[str]:
    """Return the metadata keys that a record had and has no more."""
    return sorted((before.metadata or {}).keys() - (now.metadata or {}).keys())


def _same(one: Record, other: Record, space: str) -> bool:
    """Whether two records are equal but for the rounding of a normalised vector."""
    if (one.document, one.uri) != (other.document, other.uri):
        return False
    if json.dumps(one.metadata or {}, sort_keys=True) != json.dumps(other.metadata or {}, sort_keys=True):
        return False
    return vector_error(one, other) <= (NORMALISED_TOLERANCE if space == "cosine" else 0.0)
