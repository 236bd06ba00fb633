"""WAL that a repository lacks after its newest backup, so that a restore from it would end there, and how it comes there after all.

A restore has the repository that it goes by hold everything until now. To another one that is away just then nobody sends what only the
former cluster had, and the restored server knows nothing of it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import backup, engine, receipts, recovery, timelines, wal
from .errors import BackupError, RefusedError
from .settings import Repository, Settings
from .timelines import Archive, Line

# Of PostgreSQL, where there is no cluster to ask yet.
SEGMENT_BYTES = 16 << 20
EVEN_OUT = "pgchroma-backup-even-out.service"


def told(files: list[str]) -> str:
    """Return files of WAL for people."""
    return files[0] if len(files) == 1 else f"{files[0]} to {files[-1]} ({len(files)} files)"


def between(first: str, line: Line, last: str, size: int) -> list[str]:
    """Return the files of WAL on the way that a timeline took, and the histories of those it passes, oldest first.

    A segment in which a timeline was left is begun anew on the next one, with all that was in it.

    Args:
        first: name of a segment.
        last: that of one on the timeline, or the LSN at which it began where there is none of it yet.
        size: bytes of a segment.
    """
    each = (1 << 32) // size
    own, at = int(first[:8], 16), recovery.end_of(first, size) // size - 1
    files = []
    for one in [*sorted(passed for passed in line.forks if passed >= own), line.number]:
        end = recovery.end_of(line.forks.get(one, last), size) // size
        files += [f"{one:08X}.history"] if one != own else []
        files += [f"{one:08X}{count // each:08X}{count % each:08X}" for count in range(at, end)]
        at = max(at, end)
    return files


def absent(archive: Archive, files: list[str]) -> list[str]:
    """Return which of these files an archive does not hold.

    Raises:
        BackupError: the repository cannot be read.
    """
    held = set(archive.names)
    for folder in sorted({name[:16] for name in files if recovery.SEGMENT.match(name)} & held):
        held |= set(archive.segments(folder))
    return [name for name in files if name not in held]


def find(settings: Settings, archive: Archive, entry: dict[str, Any], line: Line) -> list[str]:
    """Return the files that an archive lacks between a backup and the last that it holds of a timeline that goes on from there.

    Raises:
        BackupError: the repository cannot be read.
    """
    size = recovery.segment_bytes(settings, settings.data, SEGMENT_BYTES)
    wanted = between(entry["archive"]["start"], line, archive.end(entry, line), size)
    files = absent(archive, wanted)
    # Looked for twice: segments are sent several at a time, and a later one may have come first.
    return absent(archive, files) if files else files


def of(settings: Settings, number: int) -> list[str]:
    """Return the files that a repository lacks on the way from its newest good backup to the running cluster.

    What PostgreSQL has yet to archive is late, not lacking.

    Raises:
        BackupError: the repository cannot be read.
        RefusedError: no backup in it leads to the running cluster.
    """
    late = wal.waiting(settings)
    own = wal.timeline(settings)
    info = engine.holding(settings, number)
    good = [entry for entry in backup.backups_of(info, number) if not entry["error"]]
    if not good:
        return []
    archive = timelines.archive(settings, info, number, good[-1]["database"]["id"])
    line = archive.line(own)
    history = settings.data / "pg_wal" / f"{own:08X}.history"
    if not line.forks and history.exists():
        line = timelines.told(own, history.read_text(encoding="utf-8"))
    leading = [entry for entry in good if line.follows(entry)]
    if not leading:
        raise RefusedError(
            f"no backup in {settings.repository(number)} leads to the cluster as it is: it was restored to before them, onto timeline {own}",
            f"run backup.yml with -e backup_repository={number}",
        )
    return [name for name in find(settings, archive, leading[-1], line) if name not in late]


def mend(settings: Settings, number: int, files: list[str]) -> list[str]:
    """Send a repository files that another one holds; return those that none does.

    Raises:
        BackupError: it does not take one.
    """
    if not files:
        return []
    with wal.only(settings, number) as alone, tempfile.TemporaryDirectory(dir=wal.PLACE) as place:
        receipts.give(Path(place))
        return [name for name in files if not carried(settings, alone, number, Path(place) / name)]


@dataclass(frozen=True)
class Evened:
    """What became of one repository: the files that it lacked, those of them that no other one holds, or why it could not be asked."""

    repository: Repository
    lacked: list[str]
    lost: list[str]
    fault: BackupError | None = None


def evened(settings: Settings) -> Iterator[Evened]:
    """Send each repository what it lacks on the way to the running cluster and another one holds."""
    for repository in settings.repositories:
        try:
            lacked = of(settings, repository.number)
            yield Evened(repository, lacked, mend(settings, repository.number, lacked))
        except BackupError as error:
            yield Evened(repository, [], [], error)


def even_out(settings: Settings) -> dict[str, Any]:
    """Have every repository hold what another one does of the way to the running cluster; returns what was sent and what none holds.

    Raises:
        BackupError: one cannot be read, or does not take what it lacks; the others have got theirs.
    """
    found = list(evened(settings))
    # One without a way to the cluster wants a backup: the hourly check says so.
    away = [one.fault for one in found if one.fault and not isinstance(one.fault, RefusedError)]
    if away:
        raise BackupError("; ".join(error.message for error in away), away[0].hint, away[0].code)
    whole = [one for one in found if not one.fault]
    sent = {one.repository.name: [name for name in one.lacked if name not in one.lost] for one in whole}
    lost = {one.repository.name: one.lost for one in whole}
    return {"kind": "even-out", "sent": sent, "lost": lost}


def even_out_later(settings: Settings) -> None:
    """Have systemd do that in the background, again and again until every repository answers; without it the hourly check does.

    A restore sends by hand what one repository needs, so that another one that was away is nothing to wait for. Until the others have
    it, too, nothing written since could be restored from them.
    """
    engine.run_as_root(["systemctl", "reset-failed", EVEN_OUT])
    engine.run_as_root(["systemctl", "start", "--no-block", EVEN_OUT])


def carried(settings: Settings, alone: Settings, number: int, file: Path) -> bool:
    """Have a repository hold a file that another one holds; whether there is such a one.

    ``alone`` are the settings by which pgBackRest knows the one repository.

    Raises:
        BackupError: it does not take the file.
    """
    for other in settings.repositories:
        if other.number == number:
            continue
        options = (f"--repo={other.number}", "--no-archive-async")
        command = engine.command_line(settings, "archive-get", *options)
        if engine.run([*command, file.name, str(file)]).status != 0:
            continue
        wal.deliver(alone, file, number)
        file.unlink()
        return True
    return False


def refuse(settings: Settings, found: dict[str, Any]) -> None:
    """Refuse a plan to restore to the end of a repository that lacks WAL before that.

    Raises:
        RefusedError: it lacks some.
    """
    if not found["lacks"]:
        return
    source = settings.repository(found["repository"])
    others = [f"repository: {entry.number}" for entry in settings.repositories if entry != source]
    hint = f"restore with {' or '.join(others)}, or " if others else "restore "
    hint += "to a time before that, or to the end of the backup itself (immediate)"
    hint += (
        ". While the cluster runs the hourly check (pgchroma-backup check) sends one repository what another one holds"
        if others
        else ""
    )
    raise RefusedError(
        f"{source} lacks {told(found['lacks'])}: from {found['set']} no restore comes to the end, {found['until']}",
        hint,
    )
