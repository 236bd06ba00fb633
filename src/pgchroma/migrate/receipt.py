"""The receipt: one JSON file that says what was moved from where to where, and that it was proven equal."""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from pgchroma.errors import ConfigurationError
from pgchroma.migrate.model import Json

FORMAT: Final = "pgchroma-migration-receipt/1"
# Readable by the operator's group: receipts name collections and records, but hold no document, vector or password.
MODE: Final = 0o640

# What every receipt of collections has that something later asks for.
_SHAPE: Final = {
    "run_id": str,
    "result": str,
    "records": int,
    "skipped": list,
    "source": {"kind": str, "path": str, "fingerprint": str},
    "target": {"kind": str, "path": str, "layout": str},
    "collections": list,
}
_COLLECTION: Final = {
    "collection": str,
    "source_id": str,
    "state": dict,
    "records_source": int,
    "digest_source": str,
    "digest_target": str,
    "distance": str,
}


def now() -> str:
    """Return the time of day, UTC, for a person; durations are measured by the monotonic clock instead."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def default_path(run_id: object) -> Path:
    """Return receipts/migration-<run>.json below the current folder."""
    return Path("receipts") / f"migration-{run_id}.json"


def require_writable(path: Path) -> None:
    """Raise ConfigurationError unless a receipt can be written there; asked before the work, not after it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ConfigurationError(
            f"cannot write a receipt to {path}: {error.strerror}",
            hint="name a place that can be written to by --receipt",
        ) from error


def write(path: Path, content: Json) -> None:
    """Write a receipt so that under its name there is never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, **content}, file, indent=2, ensure_ascii=True)
            file.write("\n")
            file.flush()
            os.fchmod(file.fileno(), MODE)
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def read(path: Path) -> Json:
    """Return a receipt's content.

    Raises:
        ConfigurationError: there is none, or it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(
            f"cannot read the receipt {path}: {error.strerror}",
            hint="name the file that `pgchroma migrate run` wrote",
        ) from error
    except ValueError as error:
        raise ConfigurationError(
            f"{path} is not a receipt: {error}", hint="name the file that `pgchroma migrate run` wrote"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ConfigurationError(
            f"{path} is not a receipt of this version ({FORMAT})",
            hint="name the file that `pgchroma migrate run` wrote",
        )
    return content


def read_moved(path: Path) -> Json:
    """Return the receipt of a move of collections.

    Raises:
        ConfigurationError: there is none, it is about something else, or it lacks what every such receipt has.
    """
    return require_moved(read(path), path)


def require_moved(content: Json, path: Path) -> Json:
    """Return a receipt's content if it is that of a move of collections; raises as `read_moved` does.

    Args:
        path: where it was read, for the message.
    """
    if is_about_tables(content):
        raise ConfigurationError(
            f"{path} is the receipt of a move of tables", hint="for these use `pgchroma tables verify`"
        )
    lacks = _lacks(content, _SHAPE, "") or [
        f"collections[{place}]{missing}"
        for place, item in enumerate(content["collections"])
        for missing in (_lacks(item, _COLLECTION, ".") if isinstance(item, dict) else [""])
    ]
    if lacks:
        raise ConfigurationError(
            f"{path} is not a whole receipt: it lacks or misstates {', '.join(lacks[:5])}",
            hint="name an unedited file that `pgchroma migrate run` wrote",
        )
    return content


def is_about_tables(content: Json) -> bool:
    """Whether a receipt is that of an application's tables."""
    return bool(content.get("kind") == "tables")


def _lacks(content: Json, shape: Mapping[str, Any], where: str) -> list[str]:
    """Return the paths of members that are missing or of another type."""
    found = []
    for name, wanted in shape.items():
        value = content.get(name)
        if isinstance(wanted, dict):
            found += _lacks(value, wanted, f"{where}{name}.") if isinstance(value, dict) else [where + name]
        elif not isinstance(value, wanted):
            found.append(where + name)
    return found
