"""Starting and stopping the server's unit."""

from __future__ import annotations

import subprocess

from . import engine
from .errors import UNEXPECTED, BackupError
from .settings import Settings

# How long a server that is still starting is given to stop by itself, each way, and systemd to see that it has.
PATIENCE_SECONDS = 60.0
# States in which systemd does not run the unit's command for stopping it, but sends signals to its processes.
_STARTING_OR_ENDING = ("activating", "deactivating")


def start(settings: Settings) -> None:
    """Start the server's unit.

    Raises:
        BackupError: systemd could not.
    """
    _require(settings, "start", engine.run_as_root(["systemctl", "start", settings.service]))


def stop(settings: Settings) -> None:
    """Stop the server's unit, also while it is still starting.

    A unit that is still starting, as Debian's is until the server answers, systemd ends by a signal to each of its processes. PostgreSQL 17
    was seen to wait for ever then, for the process that replays WAL, which had obeyed, and with it systemd for an hour. So the server
    itself is asked first, and made to where that does not help: whatever it has not written yet is in WAL.

    Raises:
        BackupError: systemd could not, or the server does not end.
    """
    if state(settings) not in _STARTING_OR_ENDING:
        _require(settings, "stop", engine.run_as_root(["systemctl", "stop", settings.service]))
        return
    if not _ended(settings, "fast"):
        _ended(settings, "immediate")
    command = ["systemctl", "stop", settings.service]
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, text=True
    ) as process:
        while True:
            try:
                output, _ = process.communicate(timeout=PATIENCE_SECONDS)
                break
            except subprocess.TimeoutExpired:
                # One that was only just about to run when it was asked.
                if not _ended(settings, "immediate"):
                    process.kill()
                    raise BackupError(
                        f"PostgreSQL on {settings.data_dir} does not stop",
                        f"end it by hand (kill -QUIT, the first line of {settings.data_dir}/postmaster.pid), then run this again",
                        UNEXPECTED,
                    ) from None
    _require(settings, "stop", engine.Done(process.returncode, output))


def state(settings: Settings) -> str:
    """Return systemd's ActiveState of the unit, empty where it does not say."""
    shown = engine.run_as_root(["systemctl", "show", "--property=ActiveState", "--value", settings.service])
    return shown.output.strip() if shown.status == 0 else ""


def _ended(settings: Settings, mode: str) -> bool:
    """Stop the server by itself in a mode of pg_ctl, if there is one; return whether there is none any more."""
    if not engine.is_running(settings):
        return True
    stopped = engine.pg_ctl(settings, settings.data_dir, "-m", mode, "-t", f"{PATIENCE_SECONDS:.0f}", "stop")
    return stopped.status == 0 or not engine.is_running(settings)


def _require(settings: Settings, verb: str, done: engine.Done) -> None:
    if done.status != 0:
        hint = f"journalctl -u {settings.service} and the PostgreSQL log say why"
        raise BackupError(
            f"systemctl {verb} {settings.service} failed: {done.output.strip()}", hint, UNEXPECTED
        )
