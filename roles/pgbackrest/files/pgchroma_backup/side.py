"""A restored copy beside the cluster: another directory and port, socket only, and nothing it writes reaches an archive."""

from __future__ import annotations

import re
import shutil
import time
from pathlib import Path
from typing import Any

from . import engine, processes, proof, receipts, recovery
from .errors import UNEXPECTED, BackupError, RefusedError
from .settings import Settings
from .target import Target

# These must not be smaller than on the server the WAL comes from, or the copy refuses to replay it.
FLOORS = {
    "max_connections": "max_connections",
    "max_worker_processes": "max_worker_processes",
    "max_wal_senders": "max_wal_senders",
    "max_prepared_xacts": "max_prepared_transactions",
    "max_locks_per_xact": "max_locks_per_transaction",
}
MARKER = ".pgchroma-side"


def refuse(settings: Settings, goal: Target) -> None:
    """Refuse a directory or port that is not free.

    Raises:
        RefusedError: the directory is the cluster's or a repository's, lies in one, or holds something that no side restore made.
    """
    place = Path(goal.directory).resolve()
    taken = {f"the cluster's own {settings.data_dir}": settings.data}
    # Where drills are held the role was told, and nobody asks at 3 a.m.
    if goal.directory != settings.drill_directory:
        taken |= {str(one): Path(one.where) for one in settings.repositories if one.kind == "posix"}
    for what, path in taken.items():
        other = path.resolve()
        if place == other or other in place.parents or place in other.parents:
            raise RefusedError(
                f"{goal.directory} is, holds or lies in {what}", "choose a directory apart from it"
            )
    there = next(path for path in (place, *place.parents) if path.exists())
    if not there.is_dir():
        raise RefusedError(f"{goal.directory} cannot be made: {there} is no directory", "choose another one")
    if goal.port == settings.port:
        raise RefusedError(f"port {goal.port} is the cluster's own", "choose another port")
    if place.exists() and any(place.iterdir()) and not (place / MARKER).exists():
        raise RefusedError(
            f"{goal.directory} is not empty and was not made by a side restore",
            "choose an empty or a new directory",
        )
    if is_running(settings, Path(goal.directory)):
        raise RefusedError(
            f"a side restore runs in {goal.directory}",
            f"look at it, then: {stop_line(settings, goal.directory)}",
        )


def options(settings: Settings, goal: Target) -> list[str]:
    """Return what keeps the copy apart: its own directory, tablespaces within it, archiving off, locks and a spool of its own.

    With those of the cluster its fetching of WAL and the cluster's sending would wait for each other, and a drill for a restore.
    """
    place = goal.directory
    apart = [f"--pg1-path={place}/data", f"--lock-path={place}/lock"]
    fetch = ["pgbackrest", f"--config={settings.config}", f"--stanza={settings.stanza}", *apart]
    # A spool is an option of fetching ahead only, which the configuration may not ask for.
    fetch += ["--archive-async", f"--spool-path={place}/spool", "archive-get", "%f", '"%p"']
    return [
        *apart,
        f"--tablespace-map-all={place}/tablespaces",
        "--archive-mode=off",
        f"--recovery-option=restore_command={' '.join(fetch)}",
    ]


def start_line(settings: Settings, goal: Target) -> str:
    """Return how the copy is started, for the plan."""
    return f"  {settings.bin_dir}/pg_ctl -D {goal.directory}/data -o '-c config_file={goal.directory}/postgresql.conf' start"


def stop_line(settings: Settings, directory: str) -> str:
    """Return how the copy is stopped and removed, for people."""
    return f"pgchroma-backup side-remove --directory {directory}"


def is_running(settings: Settings, place: Path) -> bool:
    """Whether a server runs on the copy."""
    return engine.pg_ctl(settings, place / "data", "status").status == 0


def empty(place: Path) -> None:
    """Remove all that a copy's directory holds but what tells whose it is: an interrupted removal can be repeated."""
    for entry in place.iterdir():
        if entry.name != MARKER:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def make_room(place: Path) -> None:
    """Make the directory anew; what an interrupted side restore left goes first, processes and files."""
    processes.end_orphans()
    if place.exists():
        empty(place)
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    (place / MARKER).touch()
    for name in ("data", "lock", "socket", "spool", "tablespaces"):
        (place / name).mkdir(mode=0o700)
    for path in (place, *place.iterdir()):
        own(path)


def own(path: Path) -> None:
    """Give a path to postgres when root made it."""
    if path.owner() == "root":
        shutil.chown(path, "postgres", "postgres")


def configure(settings: Settings, place: Path, port: int) -> None:
    """Write the copy's own configuration: nothing of the cluster's is used, so nothing of it is opened to the network."""
    control = engine.run([f"{settings.bin_dir}/pg_controldata", "-D", str(place / "data")]).output
    floors = {
        FLOORS[name]: value
        for name, value in re.findall(r"^(\w+) setting:\s+(\d+)", control, re.MULTILINE)
        if name in FLOORS
    }
    values = {
        **floors,
        "port": port,
        "listen_addresses": "''",
        "unix_socket_directories": f"'{place}/socket'",
        "unix_socket_permissions": "0700",
        "hba_file": f"'{place}/pg_hba.conf'",
        "ident_file": f"'{place}/pg_ident.conf'",
        "archive_mode": "off",
        "autovacuum": "off",
        "shared_buffers": "128MB",
        "max_wal_size": "4GB",
        "jit": "off",
        "logging_collector": "off",
        "cluster_name": "'pgchroma-side'",
    }
    files = {
        "postgresql.conf": "".join(f"{name} = {value}\n" for name, value in values.items()),
        "pg_hba.conf": "local all postgres peer\n",
        "pg_ident.conf": "",
    }
    for name, text in files.items():
        (place / name).write_text(text, encoding="utf-8")
        own(place / name)


def server(place: Path, port: int) -> recovery.Server:
    """Return the copy's server."""

    def log() -> str:
        try:
            return (place / "server.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    return recovery.Server(f"{place}/socket", port, place / "data", log)


def start(settings: Settings, place: Path, port: int, end: str) -> None:
    """Start the copy and wait until recovery has ended.

    Raises:
        BackupError: it did not start, or recovery did not end in time; the end of its log is in the message.
    """
    log = place / "server.log"
    words = ("-l", str(log), "-s", "-w", "-t", "60", "-o", f"-c config_file={place}/postgresql.conf", "start")
    done = engine.pg_ctl(settings, place / "data", *words, timeout=settings.recovery_seconds + 30)
    copy_server = server(place, port)
    try:
        if done.status != 0 and not is_running(settings, place):
            raise BackupError(done.output.strip(), "")
        recovery.wait(settings, copy_server, lambda: is_running(settings, place), end)
    except BackupError as error:
        if error.code != UNEXPECTED:
            stop(settings, place)
            raise
        tail = "\n".join(copy_server.log().strip().splitlines()[-12:])
        raise BackupError(
            f"the restored copy does not come up: {tail or error.message}", f"{log} holds the rest"
        ) from error


def stop(settings: Settings, place: Path) -> None:
    """Stop the copy, if it runs, with a checkpoint, so that its pages can be checked offline."""
    if is_running(settings, place):
        done = engine.pg_ctl(settings, place / "data", "-s", "-w", "-t", "300", "-m", "fast", "stop")
        if done.status != 0:
            raise BackupError(
                f"the copy in {place} does not stop: {done.output.strip()}", "stop its processes by hand"
            )


def remove(settings: Settings, directory: str) -> None:
    """Stop a copy and delete it.

    Raises:
        RefusedError: no side restore made this directory.
    """
    place = Path(directory)
    if not (place / MARKER).exists():
        raise RefusedError(f"{directory} was not made by a side restore", "remove it by hand, if it is to go")
    stop(settings, place)
    empty(place)
    (place / MARKER).unlink()
    place.rmdir()


def copy(settings: Settings, place: Path, port: int, found: dict[str, Any]) -> None:
    """Fill the directory from the repository as planned, and start the server on it.

    Raises:
        BackupError: pgBackRest or the server failed.
    """
    make_room(place)
    done = processes.run_restore(found["command"])
    if done.status != 0:
        raise engine.explained("restoring", done.output)
    configure(settings, place, port)
    start(settings, place, port, found["until"])


def run(settings: Settings, goal: Target, found: dict[str, Any]) -> dict[str, Any]:
    """Restore beside the cluster, prove the copy and leave it running; returns the receipt with how to reach and to remove it.

    Raises:
        BackupError: the restore failed, or the copy is not what was backed up.
    """
    started = time.time()
    place = Path(goal.directory)
    copy(settings, place, goal.port, found)
    receipt = {
        **found,
        "kind": "restore",
        "started": receipts.stamp(started),
        "seconds": round(time.time() - started, 1),
        "reach": f"psql -h {place}/socket -p {goal.port} -U postgres {settings.database}",
        "remove": stop_line(settings, goal.directory),
    }
    return proof.keep(settings, receipt, lambda: proof.side(settings, goal, place))
