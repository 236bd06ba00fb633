"""What happens when a unit fails: it is written down, logged, and handed to the operator's own command."""

from __future__ import annotations

import json
import platform
import subprocess
from typing import Any

from . import engine, receipts
from .errors import BackupError
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

    Raises:
        BackupError: the alert command failed; the alert itself is written all the same.
    """
    journal = engine.run(
        ["journalctl", f"--unit={unit}", "--lines=30", "--no-pager", "--output=cat"], timeout=60
    )
    shown = engine.run(["systemctl", "show", unit, "--property=Result,ExecMainStatus"], timeout=60)
    alert = {
        "kind": "alert",
        "host": platform.node(),
        "stanza": settings.stanza,
        "unit": unit,
        "time": receipts.now(),
        "state": dict(line.partition("=")[::2] for line in shown.output.splitlines()),
        "journal": journal.output.splitlines(),
    }
    receipts.write(settings, name_of(unit), alert)
    if not settings.alert_command:
        return alert
    command = list(settings.alert_command)
    done = subprocess.run(  # noqa: S603
        command, input=json.dumps(alert), text=True, capture_output=True, timeout=120, check=False
    )
    if done.returncode != 0:
        tail = (done.stdout + done.stderr).strip()[-300:]
        raise BackupError(
            f"{' '.join(command)} ended with {done.returncode}: {tail}", "correct pgbackrest_alert_command"
        )
    return alert
