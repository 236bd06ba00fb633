"""Removing the old folder once it is not needed: only what a green receipt proves, byte for byte, and never without a copy by default."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pgchroma.errors import RefusedError, SourceChangedError, SourceError
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.archive import Manifest, differences, manifest_of, pack, packed_manifest
from pgchroma.migrate.model import Json, Source
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.progress import Display
from pgchroma.migrate.reverify import against_receipt, limits_of

FORMAT: Final = "pgchroma-cleanup-receipt/1"


@dataclass(frozen=True, slots=True)
class Cleanup:
    """What a cleanup would do; nothing is done before `carry_out`.

    Attributes:
        backup: where the copy goes; None when the operator wants none.
    """

    folder: Path
    receipt: Json
    manifest: Manifest
    backup: Path | None

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(int(size) for size, _ in self.manifest.values())

    def as_json(self) -> Json:
        """Return the plan as a JSON object."""
        return {
            "folder": str(self.folder),
            "files": len(self.manifest),
            "bytes": self.bytes,
            "run_id": self.receipt["run_id"],
            "records": self.receipt["records"],
            "put_aside": len(self.receipt["skipped"]),
            "target": self.receipt["target"],
            "backup": str(self.backup) if self.backup else None,
        }


def prepare(
    receipt: Json, folder: Path | None = None, backup_folder: Path | None = None, *, backup: bool = True
) -> Cleanup:
    """Check everything that must hold before a folder may go.

    Args:
        folder: where it is now, when that is elsewhere than the receipt says.
        backup_folder: where the copy goes; beside the folder when None.

    Raises:
        RefusedError: the receipt is not green, or not about a whole folder.
        SourceError: the folder is not there.
        SourceChangedError: a file of it differs from what was moved; the message says which.
    """
    told = receipt["source"]
    if receipt["result"] != "equal":
        raise RefusedError(
            f"the receipt is not green: its result is {receipt['result']}",
            hint="migrate again until every record is proven equal",
        )
    if told["kind"] != "chroma-folder":
        raise RefusedError(
            "the receipt is not about a Chroma folder that was moved",
            hint="name the receipt of such a migration",
        )
    if "manifest" not in receipt:
        raise RefusedError(
            "only a part of the folder was moved: " + ", ".join(receipt.get("scopes", ())),
            hint="move all of it, then clean up with that receipt",
        )
    # Of a link, it is the folder behind it that goes.
    where = (folder or Path(told["path"])).resolve()
    if not where.is_dir():
        raise SourceError(f"the folder {where} is gone", hint="name its new place by --source")
    found = manifest_of(where)
    if changed := differences(receipt["manifest"], found):
        raise SourceChangedError(
            f"{where} is not what was moved: " + "; ".join(changed[:10]),
            hint="something has written to it since; migrate again",
        )
    name = f"{where.name}-{receipt['run_id']}.tar.zst"
    return Cleanup(where, receipt, found, (backup_folder or where.parent) / name if backup else None)


def require_target(receipt: Json, target: Source, display: Display, *, equal: bool) -> None:
    """Raise RefusedError unless what was moved is still in the target.

    Args:
        equal: every record must be what the receipt says; otherwise applications may have written to the collections.
    """
    where = target.description["path"]
    present = {item.path: item for item in target.collections()}
    for item in receipt["collections"]:
        found = present.get(item["collection"])
        if found is None or (item["records_source"] > len(_aside(receipt, item)) and not found.count):
            raise RefusedError(
                f"{where} has {'no' if found is None else 'an empty'} collection {item['collection']}, which was moved there",
                hint="the folder may be all that is left of it: restore the target, or migrate again",
            )
    if not equal:
        return
    limits = limits_of(receipt["target"]["kind"], receipt["target"]["layout"])
    policies = Policies(receipt.get("policies", {}))
    proofs = against_receipt(receipt, target, "target", policies, limits, display)
    if different := [proof.path for proof in proofs if not proof.equal]:
        raise RefusedError(
            f"{where} is not what the receipt proves: {', '.join(different)}",
            hint="if applications have written to it since, add --check-target present; otherwise migrate again",
        )


def _aside(receipt: Json, item: Json) -> list[Json]:
    return [skipped for skipped in receipt["skipped"] if skipped["collection"] == item["collection"]]


def carry_out(cleanup: Cleanup, note_path: Path) -> Json:
    """Copy the folder, verify the copy, remove the folder, leave a note.

    Raises:
        ConfigurationError: the copy or the note cannot be written; then nothing is removed.
        RefusedError: the copy does not verify.
    """
    receipts.require_writable(note_path)
    told = {
        **cleanup.as_json(),
        "format": FORMAT,
        "manifest": cleanup.manifest,
        "completed_at": receipts.now(),
    }
    if cleanup.backup is not None:
        pack(cleanup.folder, cleanup.backup)
        if changed := differences(cleanup.manifest, packed_manifest(cleanup.backup)):
            raise RefusedError(
                f"the copy {cleanup.backup} does not verify: {changed[0]}",
                hint="nothing was removed; remove the copy and try again",
            )
    if changed := differences(cleanup.manifest, manifest_of(cleanup.folder)):
        raise SourceChangedError(
            f"{cleanup.folder} changed while it was copied: {changed[0]}",
            hint="nothing was removed; stop the application that writes to it",
        )
    # One rename first: an application never finds half of the folder under its name.
    doomed = cleanup.folder.with_name(f"{cleanup.folder.name}.removing-{cleanup.receipt['run_id']}")
    cleanup.folder.rename(doomed)
    receipts.write(note_path, told)
    shutil.rmtree(doomed)
    return told
