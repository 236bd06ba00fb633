"""Checkpoints of a run whose target cannot keep them itself (a Chroma server, a Chroma folder): one small file beside the receipt.

The file is written after the batch it speaks of. A process killed between the two leaves a batch that the journal does not know;
the sink therefore asks the target which of the next records it has already. Records that were put aside stand, whole, in a
JSONL file next to it.
"""

import base64
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import numpy as np
import orjson

from pgchroma.errors import ConfigurationError, RefusedError
from pgchroma.migrate import receipt
from pgchroma.migrate.model import Checkpoint, Json, Noted, Quarantined, RunNote, SourceCollection

FORMAT: Final = "pgchroma-migration-journal/1"


def path_for(receipt_path: Path) -> Path:
    """Return where the journal of the run with this receipt is."""
    return receipt_path.with_suffix(".journal.json")


def quarantine_path_for(receipt_path: Path) -> Path:
    """Return where records are put aside when the target is no database."""
    return receipt_path.with_suffix(".quarantine.jsonl")


def find(folder: Path, target: str) -> Path:
    """Return the newest journal in a folder whose run went to `target`; RefusedError when there is none."""
    found = []
    for path in folder.glob("*.journal.json"):
        content = read(path)
        if content["target"].get("path") == target:
            found.append((path.stat().st_mtime_ns, path))
    if not found:
        raise RefusedError(
            f"{folder} holds no journal of an interrupted migration to {target}",
            hint="name the receipt that the interrupted command was to write by --receipt",
        )
    return max(found)[1]


def rows(folder: Path, run_id: UUID | None = None) -> list[Json]:
    """Return how far the interrupted runs are whose journals a folder holds, a row for each collection, newest run first."""
    found: list[Json] = []
    for path in folder.glob("*.journal.json"):
        content = read(path)
        if run_id is not None and content["run_id"] != str(run_id):
            continue
        found += [
            {
                "run_id": content["run_id"],
                "source_collection_id": ident,
                "collection": row["collection"],
                "phase": row["phase"],
                "started_at": content["started_at"],
                "completed_at": None,
                **{
                    key: row[key]
                    for key in ("source_records", "records", "skipped", "errors", "last_position")
                },
                "source": content["source"],
                "target": content["target"]["path"],
                "policies": content["policies"],
                "journal": str(path),
            }
            for ident, row in content["collections"].items()
        ]
    return sorted(found, key=lambda row: str(row["started_at"]), reverse=True)


def read(path: Path) -> Json:
    """Return a journal's content; ConfigurationError when it is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"cannot read the journal {path}: {error}",
            hint="it is written beside the receipt of an interrupted migration",
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigurationError(
            f"{path} is not a journal of this version ({FORMAT})", hint="start the migration anew"
        )
    return content


def was_publishing(receipt_path: Path) -> bool:
    """Whether the run with this receipt was interrupted while it put its proven result in its place."""
    path = path_for(receipt_path)
    return path.exists() and read(path).get("publishing") is not None


def release(receipt_path: Path) -> str | None:
    """Return the chromadb release that began the folder of the run with this receipt; None where there is none to go on with."""
    path = path_for(receipt_path)
    layout = str(read(path)["target"].get("layout")) if path.exists() else ""
    return layout.removeprefix("chromadb ") if layout.startswith("chromadb ") else None


def writer(receipt_path: Path) -> int | None:
    """Return the process id that the folder's writer had in the last attempt of the run with this receipt."""
    path = path_for(receipt_path)
    return read(path).get("writer") if path.exists() else None


class Journal:
    """The journal of one run, kept in memory and written whole at each step: it is small."""

    def __init__(self, receipt_path: Path, target: Json) -> None:
        self.path = path_for(receipt_path)
        self.quarantine_path = quarantine_path_for(receipt_path)
        self.target = target
        self.content: Json = {}

    def begin(self, note: RunNote, collections: Sequence[SourceCollection]) -> None:
        """Note a new run."""
        self.content = {
            "run_id": str(note.run_id),
            "source": note.source,
            "fingerprint": note.fingerprint,
            "policies": note.policies,
            "target": self.target,
            "started_at": receipt.now(),
            "quarantine_bytes": 0,
            "collections": {
                str(item.id): {
                    "collection": item.path,
                    "phase": "planned",
                    "source_records": item.count,
                    "records": 0,
                    "skipped": 0,
                    "errors": 0,
                    "last_position": 0,
                    "state": item.state,
                }
                for item in collections
            },
        }
        self._write()

    def noted(self, run_id: UUID | None) -> Noted:
        """Take up the earlier run."""
        self.content = read(self.path)
        if self.quarantine_path.exists():
            # What was put aside after the last checkpoint is put aside again.
            os.truncate(self.quarantine_path, self.content["quarantine_bytes"])
        kept = self.content
        if run_id and kept["run_id"] != str(run_id):
            raise RefusedError(
                f"{self.path} is about migration {kept['run_id']}, not {run_id}",
                hint="name the receipt that the interrupted command was to write by --receipt",
            )
        return Noted(
            RunNote(UUID(kept["run_id"]), kept["source"], kept["fingerprint"], kept["policies"]),
            {entry["collection"]: entry["state"] for entry in kept["collections"].values()},
            {
                UUID(ident): entry["collection"].split("/", 2)[2]
                for ident, entry in kept["collections"].items()
            },
        )

    def _row(self, collection: SourceCollection) -> dict[str, Any]:
        try:
            row: dict[str, Any] = self.content["collections"][str(collection.id)]
        except KeyError:
            raise RefusedError(
                f"migration {self.content.get('run_id')} knows no collection {collection.path}",
                hint="start a new one with `pgchroma migrate run`",
            ) from None
        return row

    def checkpoint(self, run_id: UUID, collection: SourceCollection) -> Checkpoint:
        """Return how far the copy of a collection is."""
        row = self._row(collection)
        return Checkpoint(
            run_id, collection.id, row["phase"], row["records"], row["skipped"], row["last_position"]
        )

    def advance(
        self,
        collection: SourceCollection,
        checkpoint: Checkpoint,
        written: int,
        aside: Sequence[Quarantined],
        position: int,
    ) -> Checkpoint:
        """Move a checkpoint after its batch is in the target; records put aside are made safe first."""
        if aside:
            self.content["quarantine_bytes"] = put_aside(self.quarantine_path, aside)
        row = self._row(collection)
        row["phase"] = "copying"
        row["records"] += written
        row["skipped"] += len(aside)
        row["last_position"] = position
        self._write()
        return Checkpoint(
            checkpoint.run_id, collection.id, "copying", row["records"], row["skipped"], position
        )

    def set_phase(self, collection: SourceCollection, phase: str, errors: int | None) -> None:
        """Note a phase."""
        row = self._row(collection)
        row["phase"] = phase
        if errors is not None:
            row["errors"] = errors
        self._write()

    def note_writer(self, process_id: int) -> None:
        """Note which process writes the folder."""
        self.content["writer"] = process_id
        self._write()

    @property
    def publishing(self) -> Json | None:
        """What `note_publishing` noted, None when it was not called."""
        told: Json | None = self.content.get("publishing")
        return told

    def note_publishing(self, told: Json) -> None:
        """Note that the proven result is about to be put in its place, and what a receipt will say about that."""
        self.content["publishing"] = told
        self._write()

    def remove(self) -> None:
        """Forget the run: it is through, the receipt tells of it."""
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        receipt.write(self.path, {**self.content, "format": FORMAT})


def put_aside(path: Path, aside: Sequence[Quarantined]) -> int:
    """Append records that were put aside to a file, have it on disk, and return how long it is."""
    with path.open("ab") as file:
        file.writelines(quarantine_line(item) for item in aside)
        file.flush()
        os.fsync(file.fileno())
        return file.tell()


def quarantine_line(item: Quarantined) -> bytes:
    """Return a record that was put aside as one line of JSON, whole: vectors as base64 of little-endian float32."""
    record = item.record
    vector = None
    if record.embedding is not None:
        vector = base64.b64encode(np.ascontiguousarray(record.embedding, "<f4").tobytes()).decode()
    told = {
        "collection": item.collection,
        "code": item.code,
        "reason": item.reason,
        "id": record.id,
        "embedding": vector,
        "document": record.document,
        "uri": record.uri,
        # As text, so that NaN and integers of any size survive.
        "metadata": None if record.metadata is None else json.dumps(record.metadata),
    }
    try:
        return orjson.dumps(told) + b"\n"
    except orjson.JSONEncodeError:
        # A text that is no Unicode (a lone surrogate) can still be escaped.
        return json.dumps(told).encode() + b"\n"
