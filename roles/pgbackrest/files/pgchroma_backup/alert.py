"""What happens when a unit fails: it is written down, logged, and handed to the operator's own command."""

from __future__ import annotations

import json
import platform
import subprocess
from typing import Any

from . import engine, receipts
from .errors import BackupError, joined
from .settings import Settings


def name_of(unit: str) -> str:
    """Return the name of the file that holds a unit's alert for as long as it stands."""
    return f"alert-{unit}.json"


def clear(settings: Settings, unit: str) -> dict[str, Any]:
    """Take the alert of a unit back, because it has ended well since; the journal still tells of it."""
    path = settings.state / name_of(unit)
    stood = path.exists()
    path.unlink(missing_ok=True)
    return {"kind": "alert-cleared", "unit": unit, "stood": stood}


def run(settings: Settings, unit: str) -> dict[str, Any]:
    """Write the alert of a failed unit, and give it as JSON to the alert command's standard input.

    Nothing that goes wrong on the way, a full disk least of all, keeps the command from being called.

    Raises:
        BackupError: the alert command failed, or the alert could not be written; the other of the two was done all the same.
    """
    journal = said(["journalctl", f"--unit={unit}", "--lines=30", "--no-pager", "--output=cat"])
    shown = said(["systemctl", "show", unit, "--property=Result,ExecMainStatus"])
    alert = {
        "kind": "alert",
        "host": platform.node(),
        "stanza": settings.stanza,
        "unit": unit,
        "time": receipts.now(),
        "state": dict(line.partition("=")[::2] for line in shown),
        "journal": journal,
    }
    errors = []
    try:
        receipts.write(settings, name_of(unit), alert)
    except OSError as error:
        errors.append(
            BackupError(f"the alert of {unit} was not written: {error}", f"see to {settings.state_dir}")
        )
    try:
        hand_over(settings, alert)
    except BackupError as error:
        errors.append(error)
    if errors:
        raise joined(errors)
    return alert


def said(command: list[str]) -> list[str]:
    """Return the lines that a command prints, or why there are none."""
    try:
        return engine.run(command, timeout=60).output.splitlines()
    except BackupError as error:
        return [f"unknown={error.message}"]


def hand_over(settings: Settings, alert: dict[str, Any]) -> None:
    """Give an alert to the operator's command, where there is one.

    Raises:
        BackupError: it failed.
    """
    if not settings.alert_command:
        return
    command = list(settings.alert_command)
    hint = "correct pgbackrest_alert_command"
    try:
        done = subprocess.run(  # noqa: S603
            command, input=json.dumps(alert), text=True, capture_output=True, timeout=120, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BackupError(f"{' '.join(command)}: {error}", hint) from error
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).strip()[-300:]
        raise BackupError(f"{' '.join(command)} ended with {done.returncode}: {tail}", hint)
