"""What `pgbackrest info --output=json` says, which is the truth about backups: `pgbackrest backup` ends with 0 on a damaged page."""

import json
import os
import pwd
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pgchroma.errors import ConfigurationError

TYPES: Final = ("full", "diff", "incr")
_ACCOUNT: Final = "postgres"
_PATIENCE_SECONDS: Final = 120
# What it says of a file that another passphrase decrypts: nonsense, some of which stands in the message.
_WRONG_PASSPHRASE: Final = re.compile(
    "key/value found outside of section|cipher header invalid|unable to flush|bad decrypt|wrong final block"
)
_REMEDY: Final = "run playbooks/backup.yml; if the repository cannot be reached, see docs/runbooks/"
_REMEDY_KEY: Final = "put the right passphrase into the repository's cipher_passphrase, or into the file in pgbackrest_secrets_dir"


@dataclass(frozen=True, slots=True)
class Backup:
    """One backup in one repository.

    Attributes:
        started, stopped: seconds since 1970.
        damaged: a page had a wrong checksum when it was copied.
        cluster_bytes: size of what was backed up.
        repository_bytes: what this backup alone takes in the repository.
    """

    label: str
    type: str
    repository: int
    started: int
    stopped: int
    damaged: bool
    cluster_bytes: int
    repository_bytes: int


@dataclass(frozen=True, slots=True)
class Repository:
    """One repository and its backups, oldest first."""

    key: int
    code: int
    message: str
    backups: tuple[Backup, ...]

    @property
    def remedy(self) -> str:
        """What to do about a status that is not good."""
        return _REMEDY_KEY if _WRONG_PASSPHRASE.search(self.message) else _REMEDY

    @property
    def last(self) -> Backup | None:
        """The newest backup, damaged or not."""
        return max(self.backups, key=lambda item: item.stopped, default=None)

    @property
    def sound(self) -> tuple[Backup, ...]:
        """The backups without damaged pages, the only ones that a restore uses unless it is told to."""
        return tuple(item for item in self.backups if not item.damaged)

    def newest(self, *types: str) -> Backup | None:
        """Return the newest sound backup of one of the types, or of any."""
        found = [item for item in self.sound if not types or item.type in types]
        return max(found, key=lambda item: item.stopped, default=None)


def parse(text: str, stanza: str) -> list[Repository]:
    """Return the repositories of a stanza; ConfigurationError when the text is not what pgBackRest writes or lacks the stanza."""
    try:
        # Not strict: where a passphrase is wrong, control characters stand in its strings as they are.
        stanzas = list(json.loads(text, strict=False))
        for entry in stanzas:
            if entry["name"] == stanza:
                return [_repository(item, entry["backup"]) for item in entry["repo"]]
        names = ", ".join(str(entry["name"]) for entry in stanzas) or "none"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if _WRONG_PASSPHRASE.search(text):
            raise ConfigurationError(
                "a repository was encrypted with another passphrase, or its files are damaged: pgBackRest's answer has ciphertext in it",
                hint=_REMEDY_KEY,
            ) from error
        raise ConfigurationError(
            f"this is not what `pgbackrest info --output=json` writes: {error!r}",
            hint="pgBackRest 2.32 or newer is needed",
        ) from error
    raise ConfigurationError(
        f"pgBackRest knows no stanza {stanza} (it knows: {names})", hint="name it by --stanza"
    )


def _readable(text: str) -> str:
    """Return text for people, in one line and without the control characters that ciphertext has."""
    return "".join(character if character.isprintable() else "." for character in text)


def _message(text: str) -> str:
    told = _readable(text)
    return (
        f"the passphrase is wrong, or files are damaged: {told}" if _WRONG_PASSPHRASE.search(told) else told
    )


def _repository(entry: dict[str, Any], backups: list[dict[str, Any]]) -> Repository:
    key = int(entry["key"])
    found = [_backup(item) for item in backups if int(item["database"]["repo-key"]) == key]
    status = entry["status"]
    return Repository(
        key,
        int(status["code"]),
        _message(str(status["message"])),
        tuple(sorted(found, key=lambda item: item.stopped)),
    )


def _backup(entry: dict[str, Any]) -> Backup:
    sizes = entry["info"]
    return Backup(
        str(entry["label"]),
        str(entry["type"]),
        int(entry["database"]["repo-key"]),
        int(entry["timestamp"]["start"]),
        int(entry["timestamp"]["stop"]),
        bool(entry.get("error", False)),
        int(sizes["size"]),
        int(sizes["repository"]["delta"]),
    )


def info(stanza: str, program: str, recorded: Path | None = None) -> list[Repository]:
    """Ask pgBackRest about a stanza, as postgres where we are root; `recorded` is a file with its answer instead.

    Raises:
        ConfigurationError: it cannot be run or fails, or the answer lacks the stanza.
    """
    if recorded is not None:
        try:
            return parse(recorded.read_text(encoding="utf-8", errors="replace"), stanza)
        except OSError as error:
            raise ConfigurationError(
                f"cannot read {recorded}: {error.strerror}", hint="name another file by --info-file"
            ) from error
    command = [program, f"--stanza={stanza}", "--log-level-file=off", "info", "--output=json"]
    try:
        # As root it would leave files behind that postgres cannot use.
        account = pwd.getpwnam(_ACCOUNT) if os.geteuid() == 0 else None
        options: dict[str, Any] = (
            {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
        )
        done = subprocess.run(  # noqa: S603 - the operator names the program
            command,
            capture_output=True,
            # The ciphertext in some of its messages is no text.
            encoding="utf-8",
            errors="replace",
            check=False,
            timeout=_PATIENCE_SECONDS,
            cwd="/",
            **options,
        )
    except (OSError, KeyError, subprocess.TimeoutExpired) as error:
        raise ConfigurationError(
            f"cannot run {program}: {error}",
            hint="run it where pgBackRest is installed, or name the program by --pgbackrest",
        ) from error
    if done.returncode != 0:
        reason = (done.stderr or done.stdout).strip().splitlines()
        raise ConfigurationError(
            f"`{' '.join(command)}` ended with {done.returncode}: {_readable(reason[-1]) if reason else ''}",
            hint="run the command yourself to see all it says",
        )
    return parse(done.stdout, stanza)
