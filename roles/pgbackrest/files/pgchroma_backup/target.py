"""Where a restore is to end: reading the operator's dictionary; ways.py chooses how that is reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .errors import USAGE, BackupError

KINDS = ("latest", "time", "name", "lsn", "xid", "immediate")
KEYS = {
    *KINDS,
    "set",
    "timeline",
    "repository",
    "exclusive",
    "again",
    "directory",
    "port",
    "overwrite",
    "replicas_left",
    "unarchived_lost",
}
TRUE, FALSE = (True, "true", "True", "yes"), (None, False, "", "false", "False", "no")
# What stands in configuration files and in a command that PostgreSQL runs.
PLAIN_PATH = re.compile(r"/[\w@+=:,./-]*", re.ASCII)
PORTS = range(1, 65536)


@dataclass(frozen=True)
class Target:
    """What was asked for. ``moment`` is seconds since 1970 where the target is a time; ``repository`` is its number or name, or empty."""

    kind: str
    value: str
    moment: float
    set: str
    timeline: str
    repository: str
    exclusive: bool
    again: bool
    directory: str
    port: int
    overwrite: bool
    replicas_left: bool
    unarchived_lost: bool

    @property
    def side(self) -> bool:
        """Whether it goes to another directory and leaves the cluster alone."""
        return bool(self.directory)

    def __str__(self) -> str:
        if self.kind in ("latest", "immediate"):
            return {"latest": "the end of the archive", "immediate": "the end of the backup itself"}[
                self.kind
            ]
        return f"{self.kind} {self.value}" + (", just before it" if self.exclusive else "")


def usage(message: str, hint: str) -> BackupError:
    """Return the error of a dictionary that cannot be read."""
    return BackupError(message, hint, USAGE)


def moment_of(text: str) -> float:
    """Return the seconds since 1970 of a time with its zone.

    Raises:
        BackupError: it is no time, or does not say its zone.
    """
    example = 'such as "2026-11-21 08:00:00Z" or "2026-11-21 09:00:00+01:00"'
    # Python 3.9 and 3.10 read neither Z nor +01.
    plain = re.sub(r"([+-]\d{2})$", r"\1:00", text.strip().replace("Z", "+00:00").replace(" UTC", "+00:00"))
    try:
        moment = datetime.fromisoformat(plain)
    except ValueError as error:
        raise usage(f"{text!r} is not a time", f"give it {example}") from error
    if moment.tzinfo is None:
        raise usage(
            f"the time {text!r} does not say its time zone", f"add Z for UTC, or the offset, {example}"
        )
    return moment.timestamp()


def flag(wanted: dict[str, Any], key: str) -> bool:
    """Return a key that is true or false; what is neither is refused."""
    value = wanted.get(key)
    if value in TRUE:
        return True
    if value in FALSE:
        return False
    raise usage(f"{key} is {value!r}", "give true or false")


def words(wanted: dict[str, Any], key: str) -> str:
    """Return a key that is text or a number, as text; empty where it is not given."""
    value = wanted.get(key)
    if value in (None, ""):
        return ""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise usage(f"{key} is {value!r}", "give text or a number")
    return str(value).strip()


def is_number(text: str) -> bool:
    """Whether a text is a number in ASCII's digits; there are others that int() does not read, or PostgreSQL."""
    return text.isascii() and text.isdigit()


def kind_of(wanted: object) -> tuple[dict[str, Any], str]:
    """Return the dictionary, and which of the targets it gives.

    Raises:
        BackupError: it is no dictionary, has a key that is unknown, or gives none or several.
    """
    if not isinstance(wanted, dict):
        raise usage(f"restore is {wanted!r}, which is no dictionary", 'for example {"latest": true}')
    unknown = sorted(str(key) for key in set(wanted) - KEYS)
    if unknown:
        raise usage(f"restore has unknown keys: {', '.join(unknown)}", f"known are {', '.join(sorted(KEYS))}")
    given = [kind for kind in KINDS if wanted.get(kind) not in (None, False, "")]
    if len(given) != 1:
        shown = ", ".join(given) or "none"
        raise usage(
            f"restore must have exactly one of {', '.join(KINDS)}; it has {shown}",
            'for example {"latest": true}',
        )
    return wanted, given[0]


def value_of(wanted: dict[str, Any], kind: str) -> str:
    """Return the value of the target; empty where it needs none.

    Raises:
        BackupError: it is not of its form.
    """
    if kind in ("latest", "immediate"):
        if not flag(wanted, kind):
            raise usage(f"{kind} is {wanted[kind]!r}", "give true, or another target")
        return ""
    value = words(wanted, kind)
    if kind == "lsn" and not re.fullmatch(r"[0-9A-Fa-f]{1,8}/[0-9A-Fa-f]{1,8}", value):
        raise usage(
            f"{value!r} is not an LSN",
            "it looks like 0/3000028; pg_current_wal_lsn() and restore_point.yml print one",
        )
    if kind == "xid" and not is_number(value):
        raise usage(f"{value!r} is not a transaction id", "it is a number; pg_current_xact_id() prints one")
    return value


def side_of(wanted: dict[str, Any]) -> tuple[str, int]:
    """Return the directory and the port of a side restore, or nothing and 0.

    Raises:
        BackupError: one of them is missing, or is not of its form.
    """
    directory, port = words(wanted, "directory"), words(wanted, "port")
    if bool(directory) != bool(port):
        raise usage(
            "a side restore needs both directory and port",
            'for example {"directory": "/srv/side", "port": 5440}',
        )
    if not directory:
        return "", 0
    if not directory.strip("/"):
        raise usage(f"{directory} is no directory for a copy", "name one of its own, such as /srv/side")
    if not directory.startswith("/"):
        raise usage(f"{directory} is not an absolute path", "begin it with /")
    if not PLAIN_PATH.fullmatch(directory):
        raise usage(
            f"{directory!r} has characters that may not stand in it", "letters, digits and @+=:,./_- may"
        )
    if not is_number(port) or int(port) not in PORTS:
        raise usage(f"{port!r} is not a port", f"give a number from {PORTS[0]} to {PORTS[-1]}")
    return directory.rstrip("/"), int(port)


def read(given: object) -> Target:
    """Return the target that a dictionary describes.

    Raises:
        BackupError: it is none, a key is unknown, none or several of the targets are given, or a value is not of its form.
    """
    wanted, kind = kind_of(given)
    value = value_of(wanted, kind)
    exclusive = flag(wanted, "exclusive")
    if exclusive and kind not in ("time", "lsn", "xid"):
        raise usage(f"exclusive says nothing about {kind}", "it goes with time, lsn or xid; leave it out")
    timeline = words(wanted, "timeline")
    if timeline and timeline not in ("latest", "current") and not is_number(timeline):
        raise usage(f"{timeline!r} is not a timeline", "give latest, current or its number")
    if kind == "immediate" and timeline not in ("", "current"):
        raise usage("the end of a backup lies on the backup's own timeline", "leave timeline out")
    directory, port = side_of(wanted)
    return Target(
        kind=kind,
        value=value,
        moment=moment_of(value) if kind == "time" else 0.0,
        set=words(wanted, "set"),
        timeline=timeline,
        repository=words(wanted, "repository"),
        exclusive=exclusive,
        again=flag(wanted, "again"),
        directory=directory,
        port=port,
        overwrite=flag(wanted, "overwrite"),
        replicas_left=flag(wanted, "replicas_left"),
        unarchived_lost=flag(wanted, "unarchived_lost"),
    )
