"""The timelines that a repository's archive holds, and which backups lead to them, as the archive's history files tell."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from . import engine
from .settings import Settings

HISTORY = re.compile(r"^([0-9A-F]{8})\.history$")
FOLDER = re.compile(r"^([0-9A-F]{8})[0-9A-F]{8}$")
SEGMENT = re.compile(r"^([0-9A-F]{24})-[0-9a-f]{40}")


def lsn_number(text: str) -> int:
    """Return an LSN such as ``0/3000028`` as a number; ValueError if it is none."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def of(entry: dict[str, Any]) -> int:
    """Return the number of the timeline that a backup was taken on."""
    return int(entry["archive"]["start"][:8], 16)


@dataclass(frozen=True)
class Line:
    """A timeline: its number, and the LSN at which each of those it came from was left."""

    number: int
    forks: dict[int, str]

    def follows(self, entry: dict[str, Any]) -> bool:
        """Whether the timeline can be reached from a backup: it goes on with the backup's own, which it left after the backup had ended."""
        own = of(entry)
        if own == self.number:
            return True
        return own in self.forks and lsn_number(entry["lsn"]["stop"]) < lsn_number(self.forks[own])


@dataclass(frozen=True)
class Archive:
    """The WAL of one cluster in one repository; ``names`` are those in its folder."""

    settings: Settings
    repository: int
    path: str
    names: tuple[str, ...]

    @property
    def numbers(self) -> list[int]:
        """The numbers of the timelines it has anything of, oldest first."""
        found = [HISTORY.match(name) or FOLDER.match(name) for name in self.names]
        return sorted({int(match[1], 16) for match in found if match})

    def line(self, number: int) -> Line:
        """Return a timeline with those it came from; where the archive has no history of it, it came from none.

        Raises:
            BackupError: the repository cannot be read.
        """
        name = f"{number:08X}.history"
        if name not in self.names:
            return Line(number, {})
        return told(number, stored(self.settings, self.repository, "repo-get", f"{self.path}/{name}"))

    def segments(self, folder: str) -> list[str]:
        """Return the names of the WAL segments in one of its folders.

        Raises:
            BackupError: the repository cannot be read.
        """
        names = listed(self.settings, self.repository, f"{self.path}/{folder}")
        return [name[:24] for name in names if SEGMENT.match(name)]

    def end(self, chosen: dict[str, Any], line: Line) -> str:
        """Return the last segment of a timeline that it holds; where it holds none, the LSN at which the timeline began.

        Raises:
            BackupError: the repository cannot be read.
        """
        own = [name for name in self.names if FOLDER.match(name) and int(name[:8], 16) == line.number]
        for folder in sorted(own, reverse=True):
            segments = self.segments(folder)
            if segments:
                return max(segments)
        if line.number == of(chosen) or not line.forks:
            return str(chosen["archive"]["stop"])
        return line.forks[max(line.forks)]


def told(number: int, history: str) -> Line:
    """Return a timeline as its history file tells of it."""
    lines = [text.split() for text in history.splitlines()]
    return Line(number, {int(words[0]): words[1] for words in lines if len(words) > 1 and words[0].isdigit()})


def archive(settings: Settings, info: dict[str, Any], number: int, database: int) -> Archive:
    """Return the archive of a cluster in a repository; ``database`` is the number that backups of the cluster have there.

    Raises:
        BackupError: the repository cannot be read.
    """
    wanted = {"id": database, "repo-key": number}
    path = f"archive/{settings.stanza}/" + next(
        entry["id"] for entry in info["archive"] if entry["database"] == wanted
    )
    return Archive(settings, number, path, tuple(listed(settings, number, path)))


def listed(settings: Settings, number: int, path: str) -> list[str]:
    """Return the names in a folder of a repository.

    Raises:
        BackupError: the repository cannot be read.
    """
    return stored(settings, number, "repo-ls", path).split()


def stored(settings: Settings, number: int, verb: str, path: str) -> str:
    """Return what pgBackRest prints of a path in a repository: a folder's names, or a file.

    Raises:
        BackupError: the repository cannot be read.
    """
    options = (f"--repo={number}", "--log-level-console=off")
    done = engine.run([*engine.command_line(settings, verb, *options), path])
    if done.status != 0:
        raise engine.explained(f"reading the archive of {settings.repository(number)}", done.output)
    return done.output
