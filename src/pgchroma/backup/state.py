"""The files below the state directory: the digests of each restore point and the receipts of the drills, each also as latest.json."""

import contextlib
import errno
import json
import os
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pgchroma.errors import ConfigurationError
from pgchroma.store import digests
from pgchroma.store.backups import Point
from pgchroma.store.digests import Digests

DEFAULT_DIRECTORY: Final = Path("/var/lib/pgchroma-backup")
DIGESTS_FORMAT: Final = "pgchroma-backup-digests/1"
DRILL_FORMAT: Final = "pgchroma-restore-drill/1"
# They name collections, and so are for the operator's group at most.
_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
_KEPT_FILES: Final = 200
_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


def now() -> datetime:
    """Return the time of day, UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)


def write_atomically(path: Path, text: str, mode: int = _FILE_MODE) -> None:
    """Write a file so that under its name there is never half of one; ConfigurationError when that is not possible."""
    try:
        _make(path.parent)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            Path(name).replace(path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise ConfigurationError(
            f"cannot write {path}: {error.strerror}",
            hint=remedy(
                error, "name a directory that this user can write to, or run the command as postgres"
            ),
        ) from error


def remedy(error: OSError, otherwise: str) -> str:
    """Return what helps against an error of a file system: room where it is full, or what helps against anything else."""
    return "make room there, or name another place" if error.errno in _FULL else otherwise


def sync_directory(directory: Path) -> None:
    """Have the names in a directory be on disk: files that were made, renamed or removed there."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make(directory: Path) -> None:
    # Path.mkdir gives its mode to the last part only.
    if not directory.exists():
        _make(directory.parent)
        directory.mkdir(mode=_DIRECTORY_MODE, exist_ok=True)


def _write(directory: Path, name: str, content: dict[str, Any]) -> Path:
    text = json.dumps(content, indent=2, ensure_ascii=True, default=str) + "\n"
    path = directory / f"{name}.json"
    write_atomically(path, text)
    write_atomically(directory / "latest.json", text)
    files = sorted(
        (item for item in directory.glob("*.json") if not item.name.startswith("latest")),
        key=lambda item: item.stat().st_mtime,
    )
    for old in files[:-_KEPT_FILES]:
        old.unlink(missing_ok=True)
    return path


def write_point(
    state: Path, point: Point, *, backup_label: str | None, backup_type: str | None, version: str
) -> Path:
    """Write a restore point with its digests; return the file."""
    content = {
        "format": DIGESTS_FORMAT,
        "point": point.name,
        "created_at": point.created_at.astimezone(UTC).isoformat(),
        "lsn": point.lsn,
        "wal_file": point.wal_file,
        "archived": point.archived,
        "system_identifier": point.system_identifier,
        "backup_label": backup_label,
        "backup_type": backup_type,
        "pgchroma_version": version,
        "held_seconds": round(point.held_seconds, 4),
        "digest_seconds": round(point.digest_seconds, 3),
        **point.digests.as_json(),
    }
    return _write(state / "digests", point.name, content)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a digest file says."""

    path: Path
    point: str
    created_at: str
    lsn: str
    system_identifier: str
    digests: Digests


def read_json(path: Path, what: str, fmt: str) -> dict[str, Any]:
    """Return a file's content; ConfigurationError when there is none or it is something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read {path}: {error.strerror}", hint=f"name the file of {what}"
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is damaged: {error}", hint=f"name another file of {what}"
        ) from error
    if not isinstance(content, dict) or content.get("format") != fmt:
        raise ConfigurationError(f"{path} is not a file of the format {fmt}", hint=f"name the file of {what}")
    return content


def read_point(path: Path) -> Recorded:
    """Return a digest file's content; ConfigurationError when there is none, or it is damaged or something else."""
    what = "a restore point that `pgchroma backup record-digests` wrote"
    content = read_json(path, what, DIGESTS_FORMAT)
    try:
        return Recorded(
            path,
            str(content["point"]),
            str(content["created_at"]),
            str(content["lsn"]),
            str(content["system_identifier"]),
            digests.from_json(content),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is damaged: {error}", hint=f"name another file of {what}"
        ) from error


def write_drill(state: Path, content: dict[str, Any]) -> Path:
    """Write a drill's receipt, also as the latest of its repository; return the file."""
    name = str(content["started_at"]).replace(":", "").replace("+0000", "Z")
    path = _write(state / "drills", name, {"format": DRILL_FORMAT, **content})
    write_atomically(path.with_name(f"latest-{content['repository']}.json"), path.read_text(encoding="utf-8"))
    return path


def read_drills(state: Path) -> list[dict[str, Any]]:
    """Return the newest drill's receipt of each repository, or nothing where there was no drill yet.

    Where the receipts do not say of which repository they are, it is the newest of all, of repository 0.

    Raises:
        ConfigurationError: one is damaged.
    """
    files = sorted((state / "drills").glob("latest-*.json")) or [
        path for path in [state / "drills" / "latest.json"] if path.exists()
    ]
    what = "a drill that `pgchroma backup record-drill` wrote"
    return [{"repository": 0, **read_json(path, what, DRILL_FORMAT)} for path in files]


def read_first_backups(state: Path) -> dict[int, float]:
    """Return when the first backup was taken into each repository, in seconds since 1970; what cannot be read is left out."""
    found: dict[int, float] = {}
    for path in state.glob("first-backup-*.json"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(path.read_text(encoding="utf-8"))
            found[int(content["repository"]["number"])] = datetime.fromisoformat(content["time"]).timestamp()
    return found
