"""Copies of a Chroma folder that Chroma itself can open again: taken while the application runs, checked, restored.

The copy is consistent because of the order in which Chroma writes: an index's files first, then the number in the database
up to which they are complete, and only then may the log be shortened. So a database copied while no index file changed, from
before it until after the files were copied, has in its log whatever the files lack.
"""

import contextlib
import json
import os
import shutil
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import zstandard

from pgchroma.errors import ConfigurationError, RefusedError, SourceChangedError, SourceError
from pgchroma.migrate import aside
from pgchroma.migrate.archive import Manifest, Member, differences, manifest_of, opened, pack, sha256_of
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.chroma.snapshot import DATABASE, connect, require_folder, require_sound
from pgchroma.migrate.sqlite_files import copy_database

FORMAT: Final = "pgchroma-chroma-backup/1"
# In capitals, so that it stands before the folder in the archive.
MANIFEST: Final = "MANIFEST.json"
_SIDE_FILES: Final = tuple(DATABASE + suffix for suffix in ("", "-wal", "-shm", "-journal"))
_ATTEMPTS: Final = 10
_PAUSE_SECONDS: Final = 0.5


@dataclass(frozen=True, slots=True)
class Backup:
    """A finished copy: the archive and what its manifest says."""

    path: Path
    manifest: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """Return it for a program."""
        return {"archive": str(self.path), "archive_bytes": self.path.stat().st_size, **self.manifest}


def _index_stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Return size and modification time of every file beside the database."""
    stamps = {}
    for path in sorted(folder.rglob("*")):
        # A segment that is deleted while it is listed is a change like any other.
        with contextlib.suppress(FileNotFoundError):
            if path.is_file() and path.name not in _SIDE_FILES:
                status = path.stat()
                stamps[path.relative_to(folder).as_posix()] = (status.st_size, status.st_mtime_ns)
    return stamps


def _copy_at_rest(folder: Path, copy: Path) -> None:
    """Copy a folder between two writes of its indexes.

    Raises:
        SourceChangedError: indexes changed during every attempt.
    """
    pause = threading.Event()
    for attempt in range(_ATTEMPTS):
        if attempt:
            shutil.rmtree(copy)
            pause.wait(_PAUSE_SECONDS)
        copy.mkdir(exist_ok=True)
        before = _index_stamps(folder)
        if not copy_database(folder / DATABASE, copy / DATABASE):
            continue
        try:
            for name in before:
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(folder / name, copy / name)
        except FileNotFoundError:
            continue
        if _index_stamps(folder) == before:
            return
    raise SourceChangedError(
        f"the indexes of {folder} were written to during each of {_ATTEMPTS} attempts to copy them",
        hint="try when the application writes less, or stop it",
    )


def _contents(copy: Path, work_folder: Path | None) -> dict[str, Any]:
    """Check the copy's database and describe what it holds."""
    with contextlib.closing(connect(copy)) as connection:
        require_sound(connection)
        damage = [row[0] for row in connection.execute("PRAGMA integrity_check(5)")]
    if damage != ["ok"]:
        raise SourceError(
            f"{DATABASE} is damaged: {'; '.join(damage)}",
            hint="no backup was made of it; recover it with `sqlite3 chroma.sqlite3 .recover`, or use an older backup",
        )
    with open_folder(copy, work_folder) as source:
        return {
            "layout": source.layout.name,
            "collections": {item.path: item.count for item in source.collections()},
        }


def create(folder: Path, target_folder: Path, work_folder: Path | None = None) -> Backup:
    """Copy a Chroma folder, which may be in use, into an archive with a manifest, and read the archive back.

    Args:
        target_folder: where the archive goes, under a name with the folder's name and the time.
        work_folder: where the copy is made; needs as much room as the folder takes.

    Raises:
        SourceError: the folder is missing, unreadable or damaged.
        SourceChangedError: it could not be caught at rest.
        ConfigurationError: the archive cannot be written.
    """
    require_folder(folder)
    taken_at = datetime.now(UTC)
    name = folder.resolve().name
    target = target_folder / f"{name}-{taken_at:%Y%m%dT%H%M%SZ}.tar.zst"
    if target.exists():
        raise ConfigurationError(f"{target} exists already", hint="wait a second, or name another folder")
    try:
        with tempfile.TemporaryDirectory(prefix="pgchroma-backup-", dir=work_folder) as scratch:
            copy = Path(scratch) / name
            _copy_at_rest(folder, copy)
            manifest = {
                "format": FORMAT,
                "source": str(folder.resolve()),
                "taken_at": taken_at.isoformat(timespec="seconds"),
                **_contents(copy, work_folder),
                "files": manifest_of(copy),
            }
            (Path(scratch) / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            _pack(Path(scratch), name, target)
    except OSError as error:
        raise SourceError(
            f"cannot copy {error.filename or folder}: {error.strerror}",
            hint="run as a user that may read the folder, with room for a copy in --work-folder",
        ) from error
    verify(target)
    return Backup(target, manifest)


def _pack(scratch: Path, name: str, target: Path) -> None:
    bundle = scratch / "bundle"
    bundle.mkdir()
    (scratch / MANIFEST).rename(bundle / MANIFEST)
    (scratch / name).rename(bundle / "folder")
    pack(bundle, target)


@contextlib.contextmanager
def _members(archive: Path) -> Iterator[Iterator[Member]]:
    """Yield what `opened` does, or raise SourceError for a damaged archive."""
    try:
        with opened(archive) as members:
            yield members
    except FileNotFoundError as error:
        raise SourceError(f"{archive} does not exist", hint="name an archive that `create` made") from error
    except (tarfile.TarError, zstandard.ZstdError, EOFError) as error:
        raise SourceError(f"{archive} is damaged: {error}", hint="use another backup") from error


def _read_manifest(archive: Path) -> dict[str, Any]:
    with _members(archive) as members:
        for name, _, content in members:
            if name == MANIFEST:
                manifest = json.loads(content.read())
                if manifest.get("format") == FORMAT:
                    return dict(manifest)
    raise SourceError(
        f"{archive} is not a backup of a Chroma folder", hint="name an archive that `create` made"
    )


def verify(archive: Path) -> Backup:
    """Read an archive whole and compare every file with its manifest.

    Raises:
        SourceError: the archive is missing, damaged, or differs from its manifest; the message says in what.
    """
    manifest = _read_manifest(archive)
    found: Manifest = {}
    with _members(archive) as members:
        for name, size, content in members:
            if name.startswith("folder/"):
                found[name.removeprefix("folder/")] = [size, sha256_of(content)]
    if wrong := differences(manifest["files"], found):
        raise SourceError(
            f"{archive} differs from its manifest: {'; '.join(wrong[:5])}", hint="use another backup"
        )
    return Backup(archive, manifest)


def restore(archive: Path, folder: Path, *, replace: bool = False) -> tuple[Backup, Path | None]:
    """Put a folder back from an archive; under its name it appears whole or not at all.

    Args:
        replace: move a folder that is there aside, instead of refusing.

    Returns:
        The backup, and where the former folder is now.

    Raises:
        RefusedError: the folder exists and holds something.
        SourceError: the archive is damaged; nothing was changed.
    """
    backup = verify(archive)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())) and not replace:
        raise RefusedError(
            f"{folder} exists and is not empty",
            hint="stop the application and give --replace: the former folder is kept beside it",
        )
    folder = folder.absolute()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            made = Path(scratch) / "folder"
            _unpack(archive, backup.manifest["files"], made)
            if wrong := differences(backup.manifest["files"], manifest_of(made)):
                raise SourceError(
                    f"what was written differs from the manifest: {wrong[0]}", hint="check the disk"
                )
            aside = _move_aside(folder)
            made.rename(folder)
    except OSError as error:
        raise ConfigurationError(
            f"cannot restore to {folder}: {error.strerror}",
            hint="name a place with room that may be written to",
        ) from error
    return backup, aside


def _unpack(archive: Path, files: Manifest, target: Path) -> None:
    """Write the files that the manifest names; by hand, since tarfile cannot be told what to refuse before Python 3.11.4."""
    target.mkdir()
    with _members(archive) as members:
        for member, _, content in members:
            name = member.removeprefix("folder/")
            if name == member or name not in files:
                continue
            if Path(name).is_absolute() or ".." in Path(name).parts:
                raise SourceError(
                    f"{archive} holds the path {name!r}, which leads out of the folder",
                    hint="do not trust it",
                )
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            with (target / name).open("xb") as file:
                shutil.copyfileobj(content, file)
                file.flush()
                os.fsync(file.fileno())


def _move_aside(folder: Path) -> Path | None:
    if not folder.exists():
        return None
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        return None
    former = aside.name_for(folder, "before-restore")
    folder.rename(former)
    return former
