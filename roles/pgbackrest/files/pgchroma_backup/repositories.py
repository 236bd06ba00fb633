"""Preparing repositories: the stanza, created once before WAL is archived, and the configuration that pgBackRest must accept."""

from __future__ import annotations

import re
from typing import Any

from . import engine
from .errors import CONFIGURATION, BackupError
from .settings import Settings

CONFIGURATION_ERRORS = range(27, 38)


def create(settings: Settings) -> dict[str, Any]:
    """Create the stanza in every repository that does not hold it; the cluster need not run.

    Raises:
        BackupError: a repository cannot be reached, is encrypted with another passphrase, or belongs to another cluster.
    """
    info = engine.information(settings)
    faults = []
    for repository in settings.repositories:
        fault = next(
            (
                e
                for e in info["repo"]
                if e["key"] == repository.number and e["status"]["code"] not in (0, 1, 2, 3)
            ),
            None,
        )
        if fault is not None:
            faults.append(engine.explained(f"reading {repository}", fault["status"]["message"]))
    if faults:
        raise faults[0]
    missing = [r.number for r in settings.repositories if r.number not in {e["repo-key"] for e in info["db"]}]
    # Run even when nothing is missing: it refuses a repository that belongs to another cluster.
    engine.pgbackrest(settings, f"creating the stanza {settings.stanza}", "stanza-create", "--no-online")
    return {"kind": "stanza", "created": missing}


def check_configuration(settings: Settings, path: str) -> dict[str, Any]:
    """Have pgBackRest read a configuration file, with every repository turned into a folder that does not exist.

    Raises:
        BackupError: an option is unknown or has a value that it may not have.
    """
    command = [
        "pgbackrest",
        f"--config={path}",
        f"--stanza={settings.stanza}",
        "--log-level-file=off",
        "--dry-run",
    ]
    command += ["--log-level-console=warn", "--lock-path=/tmp"]
    for repository in settings.repositories:
        command += [
            f"--repo{repository.number}-type=posix",
            f"--repo{repository.number}-path=/nonexistent/{repository.number}",
        ]
        # Without its host it is a folder like any other.
        command += [f"--reset-repo{repository.number}-host"] if repository.kind == "tls" else []
    done = engine.run_as_root([*command, "expire"])
    unknown = re.findall(r"WARN: (configuration file contains .*)", done.output)
    if unknown or done.status in CONFIGURATION_ERRORS:
        detail = "; ".join(unknown) or engine.readable(done.output).strip()
        raise BackupError(
            f"pgBackRest does not accept the configuration: {detail}",
            "correct pgbackrest_repositories or pgbackrest_options",
            CONFIGURATION,
        )
    return {"kind": "check-config", "ok": True}
