"""The restore drill: the newest backup, restored apart from the cluster, proven, timed and removed."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from . import backup, engine, proof, receipts, restore, side, target, ways
from .errors import BackupError, DamagedError
from .settings import Repository, Settings
from .timelines import lsn_number

LAST = "drill.json"
HINT = "run backup.yml; it records them after the backup"


def last_of(repository: Repository) -> str:
    """Return the name of the receipt of a repository's last drill; that of the last of all is LAST."""
    return f"drill-{repository.name}.json"


def in_turn(settings: Settings) -> tuple[Repository, ...]:
    """Return the repositories that drills go through: all, or the one that the settings name."""
    if settings.drill_repository:
        return (settings.repository(settings.drill_repository),)
    return settings.repositories


def turn(settings: Settings, named: str) -> Repository:
    """Return the repository whose turn it is: the one named, else the one whose last drill, held or not, is longest ago.

    Raises:
        BackupError: there is none of that number or name.
    """
    given = settings.given(named)
    if given:
        return given[0]

    def ended(repository: Repository) -> str:
        receipt = receipts.read(settings, last_of(repository))
        return str(receipt["finished"]) if receipt else ""

    return min(in_turn(settings), key=ended)


def digests_file(settings: Settings) -> Path:
    """Return the file of the newest restore point at which digests were recorded."""
    return settings.state / "digests" / "latest.json"


def recorded(settings: Settings) -> dict[str, Any]:
    """Return the newest restore point at which digests were recorded, with them.

    Raises:
        BackupError: there is none.
    """
    try:
        point: dict[str, Any] = json.loads(digests_file(settings).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackupError(f"no digests of the collections are recorded: {error}", HINT) from error
    return point


def wanted(settings: Settings, repository: Repository, point: dict[str, Any]) -> dict[str, Any]:
    """Return the drill as a side restore of a repository's newest backup to a point at which digests were recorded.

    Raises:
        BackupError: the repository cannot be read, or its newest backup was taken after the point, so nothing could be compared.
    """
    anywhere = target.read({"latest": True, "repository": repository.number})
    number, info = ways.choose_repository(settings, anywhere, lambda one: engine.information(settings, one))
    good = [entry for entry in backup.backups_of(info, number) if not entry["error"]]
    if not good:
        raise BackupError(f"{repository} holds no backup without errors", HINT)
    newest = good[-1]
    # A backup into several repositories records digests when the last of them has its own: until then the one before it is drilled.
    if receipts.is_held(settings, backup.AT_WORK):
        newest = next((entry for entry in reversed(good) if is_before(entry, point)), newest)
    if not is_before(newest, point):
        raise BackupError(
            f"no digests were recorded after {newest['label']}; the last are of {point['point']}", HINT
        )
    return {
        "name": point["point"],
        "set": newest["label"],
        "repository": number,
        "timeline": int(point["wal_file"][:8], 16),
        "directory": settings.drill_directory,
        "port": settings.drill_port,
    }


def is_before(entry: dict[str, Any], point: dict[str, Any]) -> bool:
    """Whether a backup had ended when digests were recorded."""
    return lsn_number(entry["lsn"]["stop"]) <= lsn_number(point["lsn"])


def plan(settings: Settings, named: str = "") -> dict[str, Any]:
    """Return what a drill would do: the side restore that it is, and a text for people. Changes nothing.

    Raises:
        BackupError: no digests were recorded after the newest backup, there is no room, or a drill is at work.
    """
    goal = wanted(settings, turn(settings, named), recorded(settings))
    found = restore.plan(settings, goal)
    after = [
        f"  pgchroma backup check-restored: pages, tables, indexes, a vector query, digests of {digests_file(settings)}",
        f"  {settings.bin_dir}/pg_checksums --check -D {found['directory']}",
        f"  {side.stop_line(settings, settings.drill_directory)}",
    ]
    return {**found, "kind": "drill-plan", "text": "\n".join([found["text"], *after])}


def prove(settings: Settings, place: Path, point: dict[str, Any]) -> dict[str, Any]:
    """Run pgchroma's checks on the copy: indexes by amcheck, digests as recorded, a vector query.

    Raises:
        DamagedError: what was restored is not what was backed up.
        BackupError: the checks could not run.
    """
    if not settings.pgchroma_command:
        hint = "set pgbackrest_pgchroma_command; a copy without these checks is not proven"
        raise BackupError("there is no pgchroma on this host to prove the restored collections with", hint)
    # What it was restored to, and not what a backup that ended meanwhile has recorded.
    digests = place / "digests.json"
    digests.write_text(json.dumps(point), encoding="utf-8")
    side.own(digests)
    url = backup.database_url(settings, f"{place}/socket", settings.drill_port)
    return proof.check(settings, url, digests)


def check_pages(settings: Settings, place: Path) -> str:
    """Read every page of the stopped copy against its checksum and return what pg_checksums counted.

    Raises:
        DamagedError: a page does not match.
    """
    done = engine.run([f"{settings.bin_dir}/pg_checksums", "--check", "-D", str(place / "data")])
    if done.status != 0:
        raise DamagedError(
            f"pages of the restored copy are damaged: {done.output.strip()[-600:]}", "take a full backup now"
        )
    return " ".join(done.output.split())


def run(settings: Settings, named: str = "") -> dict[str, Any]:
    """Carry out the drill and return its receipt, which is also kept as drill.json and drill-NAME.json, whatever the result.

    Raises:
        BackupError: the backup could not be restored or is not what was backed up.
    """
    with receipts.alone(settings, "drill"):
        started = time.time()
        repository = turn(settings, named)
        receipt: dict[str, Any] = {
            "kind": "drill",
            "started": receipts.stamp(started),
            "repository": repository.number,
            "repository_name": repository.name,
            "backup_label": "",
            "result": "failed",
            "detail": "it was ended from outside",
        }
        place = Path(settings.drill_directory)
        try:
            point = recorded(settings)
            goal = wanted(settings, repository, point)
            found = restore.plan(settings, goal)
            receipt["point"] = goal["name"]
            receipt |= {"backup_label": found["set"], "bytes": found["bytes"], "command": found["command"]}
            side.copy(settings, place, settings.drill_port, found)
            receipt["restore_seconds"] = round(time.time() - started, 1)
            receipt["checks"] = prove(settings, place, point)
            side.stop(settings, place)
            receipt["pages"] = check_pages(settings, place)
            receipt |= {"result": "ok", "detail": "restored, proven and removed"}
        except BackupError as error:
            receipt["detail"] = str(error)
            error.receipt = receipt
            raise
        except OSError as error:
            receipt["detail"] = str(error)
            raise
        finally:
            if (place / side.MARKER).exists():
                side.remove(settings, settings.drill_directory)
            receipt |= {"finished": receipts.now(), "seconds": round(time.time() - started, 1)}
            for name in (LAST, last_of(repository)):
                receipts.write(settings, name, receipt)
            note(settings, receipt)
        return receipt


def note(settings: Settings, receipt: dict[str, Any]) -> None:
    """Have pgchroma note the drill where its status and metrics look for it; that this fails is no failure of the drill."""
    if not settings.pgchroma_command:
        return
    command = [
        settings.pgchroma_command,
        "backup",
        "record-drill",
        "--database-url",
        backup.database_url(settings),
    ]
    command += [
        "--state-dir",
        settings.state_dir,
        "--repository",
        str(receipt["repository"]),
        "--result",
        receipt["result"],
        "--duration",
        str(receipt["seconds"]),
    ]
    command += ["--started", receipt["started"].replace("Z", "+00:00"), "--message", receipt["detail"][:1000]]
    for option, key in (("--backup-label", "backup_label"), ("--point", "point")):
        if receipt.get(key):
            command += [option, receipt[key]]
    done = engine.run(command, timeout=120)
    if done.status != 0:
        sys.stderr.write(f"the drill was not noted: {engine.readable(done.output.strip())}\n")
