"""How a restore finds the cluster: whether its server runs or replays WAL, and what a restore before it has left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import engine, marker
from .errors import RefusedError
from .settings import Settings
from .target import Target


def has_data(settings: Settings) -> bool:
    """Whether the data directory holds a cluster that a server was ever started on; a fresh initdb is no loss."""
    return (settings.data / "postmaster.opts").exists()


def has_ended(settings: Settings) -> bool:
    """Whether a server was started on the files in the data directory and has ended their recovery: they were in service since.

    pgBackRest leaves no postmaster.opts in what it restores, writes pg_control last, and with it a file that makes the server replay
    WAL, which the server removes when it takes writes.
    """
    waits = any((settings.data / name).exists() for name in ("recovery.signal", "standby.signal"))
    return has_data(settings) and (settings.data / "global/pg_control").exists() and not waits


@dataclass(frozen=True)
class Condition:
    """How a restore finds the cluster: whether its server runs, whether it replays WAL, and what an interrupted restore has left.

    ``ended`` is whether its files have been in service since they were restored, whatever became of the server.
    """

    running: bool
    replaying: bool
    left: dict[str, Any] | None
    ended: bool = False

    @property
    def serving(self) -> bool:
        """Whether the server takes writes, whose WAL is to be sent away."""
        return self.running and not self.replaying

    @property
    def resumed(self) -> dict[str, Any] | None:
        """The marker of the restore that is gone on with.

        A server that serves has been started since, and so has one that served and was stopped: what it holds now is no half-copied
        directory, whatever the marker says. Before the former one was moved away there is only the former one.
        """
        served = self.ended and self.left is not None and self.left["phase"] != marker.MOVING
        return None if self.serving or served else self.left

    @property
    def ends(self) -> bool:
        """Whether only the end of the replay is missing, or was not seen."""
        return self.running and self.left is not None and self.left["phase"] == marker.RECOVERING

    def ending(self, goal: Target) -> dict[str, Any] | None:
        """Return the marker of a restore to this target that ends, or None; one that may have served since it began is that for a day."""
        if self.left is None or not self.ends or not marker.is_of(self.left, goal):
            return None
        return self.left if not self.serving or marker.is_recent(self.left["started"]) else None

    @property
    def moves(self) -> bool:
        """Whether the data directory is still the former one, or nothing was put into the new one yet."""
        return self.resumed is None or self.resumed["phase"] == marker.MOVING


def of(settings: Settings) -> Condition:
    """Look at the cluster.

    Raises:
        RefusedError: its server replays WAL, and no restore of this command began that; or two data directories are being exchanged.
    """
    running = engine.is_running(settings)
    began = marker.returning(settings)
    if began is not None and Path(began["former"]).exists():
        raise marker.half_returned(began)
    replaying = running and engine.is_in_recovery(settings)
    found = Condition(running, replaying, marker.read(settings), has_ended(settings))
    if found.replaying and not found.ends:
        raise RefusedError(
            f"PostgreSQL on {settings.data_dir} replays WAL, or takes no connections yet, and no restore of this command began that",
            f"wait until it has ended; or stop it (systemctl stop {settings.service}) and run this again: what it has not archived is "
            "left behind then",
        )
    return found
