"""What the role wrote about this host: /etc/pgbackrest/pgchroma-backup.json."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import CONFIGURATION, BackupError

FILE = Path("/etc/pgbackrest/pgchroma-backup.json")
# How playbooks say that no repository is named.
NONE_GIVEN = ("", "0")


@dataclass(frozen=True)
class Repository:
    """One repository: its number for pgBackRest, the operator's name for it, what it is and where."""

    number: int
    name: str
    kind: str
    where: str

    def __str__(self) -> str:
        return f"repository {self.number} ({self.name}: {self.kind}, {self.where})"


@dataclass(frozen=True)
class Settings:
    """Everything that is fixed when the role runs; times are seconds unless the name says otherwise."""

    stanza: str
    config: str
    bin_dir: str
    data_dir: str
    port: int
    socket_dir: str
    service: str
    database: str
    state_dir: str
    pgchroma_command: str
    repositories: tuple[Repository, ...]
    archive_wait_seconds: int
    recovery_seconds: int
    backup_age_hours_maximum: int
    drill_age_days_maximum: int
    ready_files_maximum: int
    drill_directory: str
    drill_port: int
    drill_repository: int
    alert_command: tuple[str, ...]

    @property
    def state(self) -> Path:
        """Where receipts are kept."""
        return Path(self.state_dir)

    @property
    def data(self) -> Path:
        """The cluster's data directory."""
        return Path(self.data_dir)

    def named(self, wanted: str) -> Repository:
        """Return a repository by its number or name.

        Raises:
            BackupError: there is none.
        """
        by_name = {one.name: one for one in self.repositories}
        by_number = {str(one.number): one for one in self.repositories}
        found = by_number.get(wanted) or by_name.get(wanted)
        if found is not None:
            return found
        known = ", ".join(str(repository) for repository in self.repositories)
        raise BackupError(f"there is no repository {wanted}", f"choose one of {known}", CONFIGURATION)

    def repository(self, number: int) -> Repository:
        """Return a repository by its number.

        Raises:
            BackupError: there is none of that number.
        """
        return self.named(str(number))

    def given(self, *wanted: str) -> list[Repository]:
        """Return the repositories of these numbers or names, each once; 0 and the empty string name none.

        Raises:
            BackupError: there is none of that number or name.
        """
        return list(dict.fromkeys(self.named(one) for one in wanted if one not in NONE_GIVEN))

    def chosen(self, wanted: Iterable[str]) -> list[Repository]:
        """Return what given() does, or all repositories where none is given.

        Raises:
            BackupError: there is none of that number or name.
        """
        return self.given(*(one.strip() for one in wanted)) or list(self.repositories)


def read(path: Path = FILE) -> Settings:
    """Return the settings of this host.

    Raises:
        BackupError: the file is missing, unreadable, or not of the form the role writes.
    """
    remedy = "run site.yml with --tags configure; it writes the file anew"
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        content["repositories"] = tuple(Repository(**entry) for entry in content["repositories"])
        content["alert_command"] = tuple(content["alert_command"])
        return Settings(**content)
    except PermissionError as error:
        raise BackupError(f"{path} cannot be read", "run this as root or postgres", CONFIGURATION) from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BackupError(f"{path} does not describe this host: {error}", remedy, CONFIGURATION) from error
