"""Exchange files of JSON lines, plain or compressed with zstandard: one file, written and read as a stream."""

import base64
import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, cast
from uuid import UUID

import numpy as np
import orjson
import zstandard

from pgchroma.errors import ConfigurationError, SourceError
from pgchroma.migrate.digest import CollectionDigest, record_digest
from pgchroma.migrate.exchange import form
from pgchroma.migrate.model import Json, Problem, SourceCollection, describe_changes
from pgchroma.types import Record

PAGE_RECORDS = 2_000
PAGE_BYTES = 16 * 1024 * 1024
COMPRESSED = ".zst"
_PIECE = 1 << 20


def _line(told: Json) -> bytes:
    return orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE)


def record_to_line(record: Record) -> bytes:
    """Return a record as a line: its vector as base64 of little-endian float32, its metadata as JSON text."""
    vector = None
    if record.embedding is not None:
        vector = base64.b64encode(np.ascontiguousarray(record.embedding, "<f4").tobytes()).decode("ascii")
    return _line(
        {
            "id": record.id,
            "embedding": vector,
            "document": record.document,
            "metadata": form.metadata_to_text(record.metadata),
            "uri": record.uri,
        }
    )


def record_from_json(told: Json, seq: int) -> Record:
    """Return the record of a line; KeyError, TypeError or ValueError when it is none."""
    vector = told["embedding"]
    return Record(
        seq,
        told["id"],
        None if vector is None else np.frombuffer(base64.b64decode(vector, validate=True), "<f4").copy(),
        told["document"],
        form.metadata_from_text(told["metadata"]),
        told["uri"],
    )


class JsonlWriter:
    """Writes one file, under another name until `finish`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f"partial-{path.name}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.partial.open("wb")
        except OSError as error:
            raise ConfigurationError(
                f"cannot write {self.partial}: {error.strerror}", hint="name a place that can be written to"
            ) from error
        self._out: BinaryIO = self._file
        if path.suffix == COMPRESSED:
            # A checksum within the compressed stream, beside the one over the content.
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            self._out = cast(BinaryIO, compressor.stream_writer(self._file, closefd=False))
        self._sha = hashlib.sha256()
        self._digest = CollectionDigest()
        self._records = self._collections = 0
        self._put(_line({"format": form.FORMAT}))

    def _put(self, line: bytes) -> None:
        self._out.write(line)
        self._sha.update(line)

    def begin(self, collection: SourceCollection) -> None:
        """Begin a collection."""
        self._digest = CollectionDigest()
        self._collections += 1
        self._put(_line({"collection": form.collection_to_json(collection)}))

    def write(self, records: Sequence[Record]) -> None:
        """Append records to the collection that was begun last."""
        for record in records:
            self._put(record_to_line(record))
        self._digest.add(record_digest(record) for record in records)
        self._records += len(records)

    def end(self) -> None:
        """End the collection."""
        self._put(_line({"end": {"records": self._digest.count, "sha256": self._digest.hexdigest()}}))

    def finish(self) -> None:
        """Complete the file and give it its name."""
        trailer = {
            "sha256": self._sha.hexdigest(),
            "collections": self._collections,
            "records": self._records,
        }
        self._out.write(_line(trailer))
        if self._out is not self._file:
            self._out.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def publish(self) -> None:
        """Give the finished file its name."""
        self.partial.replace(self.path)

    def abandon(self) -> None:
        """Close without completing; the unfinished file stays under its other name."""
        with contextlib.suppress(OSError):
            self._file.close()


class JsonlSource:
    """One file; see model.Source. Checksums are verified when it is opened. Use `open_jsonl`."""

    frozen = True

    def __init__(self, path: Path, plain: Path) -> None:
        self.path, self._plain = path, plain
        self._offsets: dict[UUID, int] = {}
        self._sizes: dict[UUID, int] = {}
        self._collections: list[SourceCollection] = []
        self.fingerprint = self._scan()
        self.description: Json = {
            "kind": "exchange-jsonl",
            "path": str(path.resolve()),
            "layout": form.FORMAT,
        }

    def _scan(self) -> str:
        """Read the file once: where collections are, and whether every byte is as it was written; return its SHA-256."""
        whole = hashlib.sha256()
        current: tuple[Json, int] | None = None
        trailer: Json | None = None
        records = total = 0
        with self._plain.open("rb", buffering=_PIECE) as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if trailer is not None:
                    raise form.damaged(self.path, f"line {number} stands after the end")
                # Records begin with their id; everything else is rare and looked into.
                if line.startswith(b'{"id":'):
                    records += 1
                else:
                    told = self._parsed(line, number)
                    if number == 1 and told.get("format") != form.FORMAT:
                        raise SourceError(
                            f"{self.path} is no exchange file of this version ({form.FORMAT})",
                            hint="name a file that `pgchroma migrate export` wrote, see docs/EXCHANGE_FORMAT.md",
                        )
                    if "collection" in told:
                        current, records = (told["collection"], offset + len(line)), 0
                    elif "end" in told:
                        end = told["end"] if isinstance(told["end"], dict) else {}
                        if not {"records", "sha256"} <= end.keys():
                            raise form.damaged(
                                self.path, f"line {number} says neither how many records nor their digest"
                            )
                        if current is None or end["records"] != records:
                            raise form.damaged(
                                self.path, f"line {number} ends {records} records, not as many as it says"
                            )
                        self._add(current, records, end, offset)
                        total, current = total + records, None
                    elif "sha256" in told:
                        trailer = told
                        continue
                whole.update(line)
                offset += len(line)
        if trailer is None:
            raise form.damaged(self.path, "it is cut: the last line, with the checksum, is missing")
        if trailer["sha256"] != whole.hexdigest():
            raise form.damaged(self.path, f"its SHA-256 is {whole.hexdigest()}, not {trailer['sha256']}")
        return whole.hexdigest()

    def _parsed(self, line: bytes, number: int) -> Json:
        try:
            told = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise form.damaged(self.path, f"line {number} is not JSON: {error}") from error
        if not isinstance(told, dict):
            raise form.damaged(self.path, f"line {number} is no JSON object")
        return told

    def _add(self, current: tuple[Json, int], records: int, end: Json, offset: int) -> None:
        told, start = current
        try:
            item = form.collection_from_json(told, records, {"records": records, "sha256": end["sha256"]})
        except (KeyError, TypeError, ValueError) as error:
            raise form.damaged(self.path, f"a collection's description lacks or misstates {error}") from error
        self._collections.append(item)
        self._offsets[item.id] = start
        self._sizes[item.id] = offset - start

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections in the file's order."""
        return self._collections

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records; `seq` is the place in the collection, beginning with 1."""
        page: list[Record] = []
        size = 0
        digest = CollectionDigest()
        with self._plain.open("rb", buffering=_PIECE) as file:
            file.seek(self._offsets[collection.id])
            for seq in range(1, collection.count + 1):
                line = file.readline()
                if seq <= after:
                    continue
                try:
                    page.append(record_from_json(self._parsed(line, seq), seq))
                except (KeyError, TypeError, ValueError) as error:
                    raise form.damaged(self.path, f"record {seq} of {collection.path}: {error}") from error
                size += len(line)
                if len(page) >= PAGE_RECORDS or size >= PAGE_BYTES:
                    digest.add(map(record_digest, page))
                    yield page
                    page, size = [], 0
        digest.add(map(record_digest, page))
        if not after:
            form.require_digest(self.path, collection, digest)
        if page:
            yield page

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield nothing."""
        return iter(())

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Return nothing: the checksums were verified when the file was opened."""
        return []

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return the bytes of the collection's lines."""
        return self._sizes[collection.id]

    def changes(self) -> list[str]:
        """Return what is different in the file now."""
        with open_jsonl(self.path) as now:
            if now.fingerprint == self.fingerprint:
                return []
            before = {item.path: item.state for item in self._collections}
            return describe_changes(before, {item.path: item.state for item in now.collections()}) or [
                "its content is another"
            ]


@contextlib.contextmanager
def open_jsonl(path: Path, work_folder: Path | None = None) -> Iterator[JsonlSource]:
    """Open a file as a source for as long as the context lasts; a compressed one is unpacked into the work folder.

    Raises:
        SourceError: it does not exist, is damaged, or is no exchange file.
    """
    try:
        if path.suffix != COMPRESSED:
            yield JsonlSource(path, path)
            return
        with tempfile.TemporaryDirectory(prefix="pgchroma-exchange-", dir=work_folder) as name:
            plain = Path(name) / "plain.jsonl"
            with path.open("rb") as packed, plain.open("wb") as unpacked:
                zstandard.ZstdDecompressor().copy_stream(packed, unpacked)
            yield JsonlSource(path, plain)
    except zstandard.ZstdError as error:
        raise form.damaged(path, str(error)) from error
    except OSError as error:
        raise SourceError(
            f"cannot read {path}: {error.strerror}", hint="name a file that `pgchroma migrate export` wrote"
        ) from error
