"""The command that backed-up hosts run, which is no package of this one, and the settings of a host that there is not."""

import importlib
import json
import sys
from pathlib import Path
from typing import Any

# Where the command lies.
COMMAND = Path(__file__).resolve().parents[2] / "roles/pgbackrest/files"
sys.path.insert(0, str(COMMAND))


def module(name: str) -> Any:
    """Return a module of the command."""
    return importlib.import_module(f"pgchroma_backup.{name}")


def described(folder: Path) -> Any:
    """Return the settings of a host with two repositories, whose cluster and state are in a folder."""
    content = {
        "stanza": "main",
        "config": "/etc/pgbackrest/pgbackrest.conf",
        "bin_dir": "/bin",
        "data_dir": str(folder / "data"),
        "port": 5432,
        "socket_dir": "/run",
        "service": "postgresql@17-main.service",
        "database": "pgchroma",
        "state_dir": str(folder),
        "pgchroma_command": "",
        "repositories": [
            {"number": 1, "name": "local", "kind": "posix", "where": "/r"},
            {"number": 2, "name": "offsite", "kind": "s3", "where": "h/b"},
        ],
        "archive_wait_seconds": 1,
        "recovery_seconds": 1,
        "backup_age_hours_maximum": 26,
        "drill_age_days_maximum": 9,
        "ready_files_maximum": 8,
        "drill_directory": "/d",
        "drill_port": 5499,
        "drill_repository": 0,
        "alert_command": [],
    }
    file = folder / "settings.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return module("settings").read(file)
