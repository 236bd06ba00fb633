"""The sink `exchange files`: a file or folder that appears under its name only when it is complete and was read back."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from pgchroma.errors import RefusedError
from pgchroma.migrate import aside, journal
from pgchroma.migrate.exchange import form
from pgchroma.migrate.exchange.jsonl import JsonlWriter, open_jsonl
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
from pgchroma.types import Float32Matrix, Record

if TYPE_CHECKING:
    # Imported where it is needed: Arrow takes a while to load.
    from pgchroma.migrate.exchange.parquet import ParquetWriter


class ExchangeSink:
    """Files as the target of one run; see model.Sink. An interrupted export begins anew: a stream has no half.

    Attributes:
        replaces: there is an older file, which is kept under another name once the new one is proven.
    """

    limits = Limits(
        vectors=2**31, name=2**31, finite_vectors=False, plain_metadata=False, ids=False, missing_vectors=True
    )
    asks_early = False
    transactional = True

    def __init__(
        self,
        path: Path,
        receipt_path: Path,
        *,
        parquet: bool,
        work_folder: Path | None = None,
        replaces: bool = False,
    ) -> None:
        if not replaces and path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise RefusedError(
                f"{path} exists already", hint="name a file that does not exist yet, or remove it"
            )
        self._path, self._parquet, self._work_folder, self.replaces = path, parquet, work_folder, replaces
        self._quarantine_path = journal.quarantine_path_for(receipt_path)
        self._open: JsonlWriter | ParquetWriter | None = None
        self._finished = False
        self.description: Json = {
            "kind": "exchange-parquet" if parquet else "exchange-jsonl",
            "path": str(path.resolve()),
            "layout": form.FORMAT,
        }

    @property
    def _writer(self) -> "JsonlWriter | ParquetWriter":
        # Not before the first word: a dry run writes nothing.
        if self._open is None:
            if self._parquet:
                from pgchroma.migrate.exchange.parquet import ParquetWriter

                self._open = ParquetWriter(self._path)
            else:
                self._open = JsonlWriter(self._path)
        return self._open

    async def find(self, collection: SourceCollection) -> tuple[SourceCollection, int] | None:
        """Return None: a new file holds nothing."""
        return None

    async def begin(self, note: RunNote, collections: Sequence[SourceCollection]) -> None:
        """Note nothing, since only a complete file counts; forget what an interrupted attempt has put aside."""
        self._quarantine_path.unlink(missing_ok=True)

    async def noted(self, run_id: UUID | None) -> Noted:
        """Refuse: a stream has no half."""
        raise RefusedError(
            "an export to files is not resumed: there is a complete file or none",
            hint="run the export again",
        )

    async def checkpoint(self, run_id: UUID, collection: SourceCollection) -> Checkpoint:
        """Return the beginning."""
        return Checkpoint(run_id, collection.id, "planned", 0, 0, 0)

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> None:
        """Begin a collection."""
        self._writer.begin(collection)

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
        """Append records; those that were put aside are kept beside the receipt."""
        await asyncio.to_thread(self._writer.write, records)
        if quarantined:
            await asyncio.to_thread(journal.put_aside, self._quarantine_path, quarantined)
        return Checkpoint(
            checkpoint.run_id,
            checkpoint.source_collection,
            "copying",
            checkpoint.records + len(records),
            checkpoint.skipped + len(quarantined),
            position,
        )

    async def set_phase(
        self, run_id: UUID, collection: SourceCollection, phase: str, errors: int | None = None
    ) -> None:
        """End a collection that is copied."""
        if phase == "copied":
            self._writer.end()

    async def query(
        self, collection: SourceCollection, vectors: Float32Matrix, count: int
    ) -> list[list[str]] | None:
        """Return None: a file answers no questions."""
        return None

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[Source]:
        """Complete the file and read it back."""
        if not self._finished:
            self._writer.finish()
            self._finished = True
        if self._parquet:
            from pgchroma.migrate.exchange.parquet import open_parquet

            with open_parquet(self._writer.partial) as folder:
                yield folder
        else:
            with open_jsonl(self._writer.partial, self._work_folder) as file:
                yield file

    async def publish(self) -> Json:
        """Give the file its name."""
        kept = {}
        if self.replaces:
            former = aside.name_for(self._path)
            self._path.rename(former)
            kept = {"replaced": str(former)}
        self._writer.publish()
        return kept

    async def finish(self) -> None:
        """Do nothing: an interrupted export begins anew."""

    async def close(self) -> None:
        """Close what is open."""
        if self._open is not None and not self._finished:
            self._open.abandon()
