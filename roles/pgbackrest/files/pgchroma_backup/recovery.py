"""Waiting until a restored server takes writes, and seeing that it has replayed the archive to its end before it does.

PostgreSQL takes any segment that it cannot have, and any record that it cannot read, for the end of the archive: asked for all of it, it
would begin service with a part and say nothing. So a restore to the end of the archive is started as a standby, which does not end
recovery by itself, and is promoted when it has come to the last segment that the repository holds.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import engine
from .errors import DAMAGED, INTERRUPTED, UNEXPECTED, BackupError
from .settings import Settings
from .timelines import lsn_number

SEGMENT = re.compile(r"^([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})$")
WAITING = re.compile(r"waiting for WAL to become available at ([0-9A-F]+/[0-9A-F]+)")
STARTING = "starting PostgreSQL"
# How long a standby pauses before it tries again to get what it could not have (wal_retrieve_retry_interval).
RETRY_SECONDS = 5


@dataclass(frozen=True)
class Server:
    """A restored server: where it answers, its files, and how its log is read."""

    socket: str
    port: int
    data: Path
    log: Callable[[], str]


def own_server(settings: Settings) -> Server:
    """Return the cluster's own server."""
    log = lambda: engine.server_log(settings)  # noqa: E731
    return Server(settings.socket_dir, settings.port, settings.data, log)


def must_pass(settings: Settings, server: Server, end: str) -> int:
    """Return the LSN, as a number, at which the last segment ends, or the timeline began."""
    if not end:
        return 0
    return end_of(end, segment_bytes(settings, server.data) if SEGMENT.match(end) else 0)


def end_of(name: str, size: int) -> int:
    """Return the LSN, as a number, at which a segment of ``size`` bytes ends; an LSN is its own."""
    found = SEGMENT.match(name)
    return (int(found[2], 16) << 32) + (int(found[3], 16) + 1) * size if found else lsn_number(name)


def segment_bytes(settings: Settings, data: Path, usual: int = 0) -> int:
    """Return how large a segment of a cluster's WAL is; ``usual``, where it is given, for a cluster that does not tell."""
    control = engine.run([f"{settings.bin_dir}/pg_controldata", "-D", str(data)]).output
    found = re.findall(r"^Bytes per WAL segment:\s+(\d+)", control, re.MULTILINE)
    return usual if usual and not found else int(found[0])


def since_start(log: str) -> str:
    """Return what a server has logged since it was last started."""
    return log[log.rfind(STARTING) :] if STARTING in log else log


def stalled_at(settings: Settings, asked: list[str]) -> str:
    """Return the LSN that a standby has asked for in vain for as long as the settings allow, or the empty string."""
    tries = max(3, settings.archive_wait_seconds // RETRY_SECONDS)
    return asked[-1] if len(asked) >= tries and set(asked[-tries:]) == {asked[-1]} else ""


def wait(settings: Settings, server: Server, is_running: Callable[[], bool], end: str) -> None:
    """Wait until a server that was started has ended recovery and takes writes; ``end`` is "" where it does so by itself.

    Raises:
        BackupError: it stopped, cannot come to the end of the archive, or did not do so in time. It is not in service then, but it may
            run: the caller stops it.
    """
    deadline = time.monotonic() + settings.recovery_seconds
    last, moment = must_pass(settings, server, end), ""
    while True:
        state = progress(settings, server)
        if state is not None and state[2]:
            moment = state[2]
        if state is None and not is_running():
            raise reason(server, BackupError("the server has stopped", "its log says why", UNEXPECTED))
        if state is not None and not state[0]:
            return
        if end:
            asked = WAITING.findall(since_start(server.log()))
            # The last record may go on in a segment that was never archived: then that one is asked for, and nothing ends at its begin.
            behind = bool(asked) and lsn_number(asked[-1]) >= last
            if state is not None and (state[1] >= last or behind):
                # Whatever came to the archive since is replayed before promotion.
                promote = "SELECT pg_promote(true, 300)"
                engine.query(settings, promote, socket=server.socket, port=server.port)
                # Until then pg_control names the timeline before, and pgBackRest refuses to back up.
                # It takes as long as the disk needs for what was replayed, and the server is in service meanwhile.
                engine.query(settings, "CHECKPOINT", socket=server.socket, port=server.port, timeout=None)
                end = ""
            elif stalled := "" if behind else stalled_at(settings, asked):
                raise short(server, stalled, end, moment)
        if time.monotonic() > deadline:
            hint = "it goes on by itself; the PostgreSQL log shows how far it is. Run the same playbook again to see its end: nothing is stopped "
            hint += "or copied anew. pgbackrest_recovery_seconds is how long is waited"
            raise BackupError(
                f"recovery has not ended within {settings.recovery_seconds} s", hint, INTERRUPTED
            )
        time.sleep(0.2)


def progress(settings: Settings, server: Server) -> tuple[bool, int, str] | None:
    """Return whether a server is in recovery, to which LSN it has replayed, as a number, and when the last transaction in that was.

    None when it takes no connection.
    """
    statement = "SELECT pg_is_in_recovery(), coalesce(pg_last_wal_replay_lsn(), '0/0'), pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC'"
    try:
        answer = engine.query(settings, statement, socket=server.socket, port=server.port)
    except BackupError:
        return None
    recovering, lsn, moment = answer[0].split("\t")
    return recovering != "f", lsn_number(lsn), f"{moment}Z" if moment else ""


def short(server: Server, stalled: str, end: str, moment: str) -> BackupError:
    """Return the error of a recovery that cannot come to the end of the archive: why, and what can be had."""
    log = since_start(server.log())
    read = re.findall(r'restored log file "([0-9A-F]{24})" from archive', log)
    what = f"recovery cannot get past {stalled}" + (
        f", the last segment it got is {read[-1]}" if read else ""
    )
    what += f", and the repository holds WAL up to {end}: the server was stopped before it served a part of the data"
    # Its own message, if pgBackRest could not hand a segment out; else a record in it was damaged.
    error = engine.explained(what, log) if engine.ERROR_LINE.search(log) else None
    hint = error.hint if error else "the segment is damaged: backup_verify.yml shows which"
    hint += ". The same restore goes on from here once it can be read, or with another repository"
    hint += f"; or restore to a time before {moment}, the last transaction it could replay" if moment else ""
    return BackupError(error.message if error else what, hint, error.code if error else DAMAGED)


def reason(server: Server, error: BackupError) -> BackupError:
    """Return why a restored server did not start, as its log tells."""
    log = since_start(server.log())
    reached = re.findall(r"last completed transaction was at log time (\S+ \S+)", log)
    if "recovery ended before configured recovery target was reached" in log:
        if engine.ERROR_LINE.search(log):
            return engine.explained("recovery did not come to the target", log)
        if "data checksum in record" in log:
            what = f"the target lies behind WAL that is damaged, after {reached[-1] if reached else 'the backup'}"
            hint = "backup_verify.yml shows which segment; take another repository, or a target before it"
            return BackupError(what, hint, DAMAGED)
        found = (
            f"the archive ends at {reached[-1]}"
            if reached
            else "the archive holds no transaction after the backup"
        )
        hint = "choose a target before that, or latest, and run the playbook again: it resumes with the files that are there"
        return BackupError(
            f"the target lies after the last WAL that was archived: {found}", hint, INTERRUPTED
        )
    fatal = [
        line
        for line in log.splitlines()
        if re.search("FATAL|PANIC", line) and "the database system is" not in line
    ]
    detail = fatal[-1] if fatal else error.message
    return BackupError(
        f"the restored server does not start: {detail}",
        "run the playbook again when that is mended; it resumes",
        INTERRUPTED,
    )
