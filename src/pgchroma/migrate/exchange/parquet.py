"""Exchange files of Parquet: a folder with a manifest and one file per collection, for other tools to read as tables."""

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pgchroma.errors import ConfigurationError, SourceError
from pgchroma.migrate.digest import CollectionDigest, record_digest
from pgchroma.migrate.exchange import form
from pgchroma.migrate.model import Json, Problem, SourceCollection, describe_changes
from pgchroma.types import Record

MANIFEST: Final = "manifest.json"
PAGE_RECORDS = 2_000
_PIECE = 1 << 20
_SCHEMA: Final = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32())),
        pa.field("document", pa.string()),
        pa.field("metadata", pa.string()),
        pa.field("uri", pa.string()),
    ]
)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _table(records: Sequence[Record]) -> pa.Table:
    given = [record.embedding for record in records]
    lengths = [0 if vector is None else len(vector) for vector in given]
    offsets: list[int | None] = np.concatenate([[0], np.cumsum(lengths)]).tolist()
    for place, vector in enumerate(given):
        if vector is None:
            offsets[place] = None
    whole = [vector for vector in given if vector is not None]
    values = pa.array(np.concatenate(whole) if whole else np.empty(0, np.float32), pa.float32())
    vectors = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)
    columns: list[Any] = [
        pa.array([record.id for record in records], pa.string()),
        vectors,
        pa.array([record.document for record in records], pa.string()),
        pa.array([form.metadata_to_text(record.metadata) for record in records], pa.string()),
        pa.array([record.uri for record in records], pa.string()),
    ]
    return pa.Table.from_arrays(columns, schema=_SCHEMA)


class ParquetWriter:
    """Writes one folder, under another name until `publish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"partial-{path.name}")
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            for left in self.partial.iterdir():
                left.unlink()
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self.partial}: {error.strerror}", hint="name a place that can be written to"
            ) from error
        self._entries: list[Json] = []
        self._digest = CollectionDigest()
        self._file: pq.ParquetWriter | None = None

    def begin(self, collection: SourceCollection) -> None:
        """Begin a collection's file."""
        self._digest = CollectionDigest()
        name = f"{len(self._entries) + 1:04}.parquet"
        self._entries.append({"file": name, "collection": form.collection_to_json(collection)})
        self._file = pq.ParquetWriter(self.partial / name, _SCHEMA, compression="zstd")

    def write(self, records: Sequence[Record]) -> None:
        """Append records as a row group."""
        if records and self._file is not None:
            self._file.write_table(_table(records))
            self._digest.add(record_digest(record) for record in records)

    def end(self) -> None:
        """End the collection's file."""
        if self._file is not None:
            self._file.close()
        entry = self._entries[-1]
        entry |= {
            "records": self._digest.count,
            "sha256_records": self._digest.hexdigest(),
            "sha256_file": _sha256(self.partial / entry["file"]),
        }

    def finish(self) -> None:
        """Write the manifest."""
        told = {"format": form.FORMAT, "files": self._entries}
        (self.partial / MANIFEST).write_text(json.dumps(told, indent=2) + "\n")

    def publish(self) -> None:
        """Give the finished folder its name."""
        if self.path.is_dir():
            self.path.rmdir()
        self.partial.rename(self.path)

    def abandon(self) -> None:
        """Close without completing."""
        if self._file is not None:
            self._file.close()


class ParquetSource:
    """One folder; see model.Source. Checksums are verified when it is opened. Use `open_parquet`."""

    frozen = True

    def __init__(self, path: Path) -> None:
        self.path = path
        self.description: Json = {
            "kind": "exchange-parquet",
            "path": str(path.resolve()),
            "layout": form.FORMAT,
        }
        self._files: dict[UUID, Path] = {}
        self._collections: list[SourceCollection] = []
        try:
            manifest = (path / MANIFEST).read_bytes()
            told = json.loads(manifest)
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{path} holds no readable {MANIFEST}: {error}",
                hint="name a folder that `pgchroma migrate export` wrote, see docs/EXCHANGE_FORMAT.md",
            ) from error
        if not isinstance(told, dict) or told.get("format") != form.FORMAT:
            raise SourceError(
                f"{path} is no exchange folder of this version ({form.FORMAT})", hint="export it anew"
            )
        try:
            for entry in told["files"]:
                self._add(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise form.damaged(path / MANIFEST, f"an entry lacks or misstates {error}") from error
        self.fingerprint = hashlib.sha256(manifest).hexdigest()

    def _add(self, entry: Json) -> None:
        file = self.path / Path(entry["file"]).name
        if not file.is_file():
            raise form.damaged(self.path, f"{file.name} is missing")
        if _sha256(file) != entry["sha256_file"]:
            raise form.damaged(file, "its SHA-256 is not the one in the manifest")
        state = {"records": entry["records"], "sha256": entry["sha256_records"]}
        item = form.collection_from_json(entry["collection"], entry["records"], state)
        self._collections.append(item)
        self._files[item.id] = file

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections in the manifest's order."""
        return self._collections

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records; `seq` is the place in the collection, beginning with 1."""
        seq = 0
        digest = CollectionDigest()
        with pq.ParquetFile(self._files[collection.id]) as file:
            for batch in file.iter_batches(batch_size=PAGE_RECORDS):
                columns = {name: batch.column(name) for name in batch.schema.names}
                texts = {name: columns[name].to_pylist() for name in ("id", "document", "metadata", "uri")}
                vectors = columns["embedding"]
                values = vectors.values.to_numpy(zero_copy_only=False)
                offsets, there = vectors.offsets.to_numpy(), vectors.is_valid().to_numpy(zero_copy_only=False)
                page = [
                    Record(
                        seq + row + 1,
                        texts["id"][row],
                        values[offsets[row] : offsets[row + 1]].astype(np.float32) if there[row] else None,
                        texts["document"][row],
                        form.metadata_from_text(texts["metadata"][row]),
                        texts["uri"][row],
                    )
                    for row in range(batch.num_rows)
                ]
                seq += batch.num_rows
                digest.add(map(record_digest, page))
                if rest := [record for record in page if record.seq > after]:
                    yield rest
        form.require_digest(self._files[collection.id], collection, digest)

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield nothing."""
        return iter(())

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Return nothing: the checksums were verified when the folder was opened."""
        return []

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return the bytes of the vectors and of the file."""
        return self._files[collection.id].stat().st_size

    def changes(self) -> list[str]:
        """Return what is different in the folder now."""
        try:
            now = ParquetSource(self.path)
        except SourceError as error:
            return [error.message]
        if now.fingerprint == self.fingerprint:
            return []
        before = {item.path: item.state for item in self._collections}
        return describe_changes(before, {item.path: item.state for item in now.collections()}) or [
            "its manifest is another"
        ]


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[ParquetSource]:
    """Open a folder as a source for as long as the context lasts.

    Raises:
        SourceError: it is damaged, or no exchange folder.
    """
    try:
        yield ParquetSource(path)
    except pa.ArrowException as error:
        raise form.damaged(path, str(error)) from error
