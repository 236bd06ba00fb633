"""The command pgchroma-backup; timers, playbooks and people call it. `pgchroma-backup VERB --help` explains each verb."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from . import (
    alert,
    backup,
    check,
    drill,
    engine,
    gaps,
    overview,
    planning,
    point,
    repositories,
    restore,
    settings,
    side,
    verification,
)
from .errors import DAMAGED, OK, USAGE, BackupError

Result = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """Return the parser of every verb."""
    top = argparse.ArgumentParser(prog="pgchroma-backup", description=__doc__)
    top.add_argument(
        "--settings", type=Path, default=settings.FILE, help="the file the role wrote about this host"
    )
    verbs = top.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, help=text, description=text)
        added.add_argument("--json", action="store_true", help="print the result as JSON")
        return added

    added = verb("backup", "take a backup and judge it by what the repository then holds")
    added.add_argument("--type", choices=("full", "diff", "incr"), default="incr")
    added.add_argument(
        "--repository", action="append", default=[], help="its number or name; without it all of them"
    )
    added.add_argument(
        "--only-if-none", action="store_true", help="pass over repositories that hold a backup already"
    )
    only_told(added)
    verb("info", "list backups and the range of WAL in each repository")
    verb("check", "send WAL through every repository and judge the age of backups and of the last drill")
    verb("even-out", "send every repository the WAL that it lacks and another one holds")
    added = verb("verify", "read every file of a repository against its checksum")
    added.add_argument(
        "--repository", action="append", default=[], help="its number or name; without it all of them"
    )
    only_told(added)
    for name, text in (
        ("restore-plan", "say what a restore would do, changing nothing"),
        ("restore-flush", "have the repository of a restore hold everything until now; nothing stops"),
        ("restore", "restore the cluster, or a copy beside it"),
    ):
        added = verb(name, text)
        added.add_argument(
            "--target",
            type=json.loads,
            required=True,
            help='a dictionary such as {"time": "2026-11-21 08:00:00Z"}',
        )
        if name == "restore":
            added.add_argument(
                "--stop",
                action="store_true",
                help="stop a running server; without it a running one is refused",
            )
            added.add_argument(
                "--unseen",
                action="store_true",
                help="asked for again, only tell that it has ended, until restore-seen was run",
            )
            added.add_argument("--ended", help="refuse unless the plan still says this of its end")
    verb("restore-seen", "say that all that the last restore was for is done")
    added = verb("side-remove", "stop and delete a copy that a side restore made")
    added.add_argument("--directory", required=True)
    added = verb("restore-finish", "remove the data directory that a restore kept, or put it back")
    added.add_argument("--keep", choices=("restored", "former"), required=True)
    only_told(added)
    added = verb("restore-point", "make a named restore point and archive it")
    added.add_argument("--name", required=True)
    only_told(added)
    added = verb("drill", "restore the newest backup apart from the cluster, prove it, time it, remove it")
    added.add_argument(
        "--repository", default="", help="its number or name; without it the one drilled longest ago"
    )
    only_told(added)
    verb("stanza", "create the stanza in repositories that do not hold it")
    added = verb("check-config", "have pgBackRest read a configuration file")
    added.add_argument("--file", required=True)
    added = verb("alert", "hand the failure of a unit to the operator's command")
    added.add_argument("--unit", required=True)
    added.add_argument("--clear", action="store_true", help="take its alert back: it has ended well")
    return top


def only_told(verb: argparse.ArgumentParser) -> None:
    """Let a verb say what it would do."""
    verb.add_argument("--dry-run", action="store_true", help="say what it would do, changing nothing")


def checked(host: settings.Settings) -> Result:
    """Run the hourly check; its findings are printed before it fails."""
    found = check.run(host)
    failed = [entry for entry in found if entry["status"] != "ok"]
    if failed:
        text = "\n".join(f"{entry['id']}: {entry['detail']}" for entry in failed)
        raise BackupError(
            text, "; ".join(sorted({entry["hint"] for entry in failed if entry["hint"]})), DAMAGED
        )
    return {"kind": "check", "ok": True, "checks": found}


def backups(host: settings.Settings, words: argparse.Namespace) -> Result:
    """Take backups, or say which would be taken."""
    if words.dry_run:
        return backup.plan(host, words.type, words.repository)
    done = backup.run(host, words.type, words.repository, only_if_none=words.only_if_none)
    return {"kind": "backups", "backups": done}


def finished(host: settings.Settings, directory: str) -> Result:
    """Remove a side copy."""
    side.remove(host, directory)
    return {"kind": "side-remove", "directory": directory}


def dispatch(words: argparse.Namespace, host: settings.Settings) -> Result:
    """Run the verb and return its result."""
    verbs: dict[str, Callable[[], Result]] = {
        "backup": lambda: backups(host, words),
        "info": lambda: overview.run(host),
        "check": lambda: checked(host),
        "even-out": lambda: gaps.even_out(host),
        "verify": lambda: (verification.plan if words.dry_run else verification.run)(host, words.repository),
        "restore-plan": lambda: planning.plan(host, words.target),
        "restore-flush": lambda: restore.send(host, words.target),
        "restore": lambda: restore.run(
            host, words.target, stop=words.stop, unseen=words.unseen, ended=words.ended
        ),
        "restore-seen": lambda: restore.seen(host),
        "side-remove": lambda: finished(host, words.directory),
        "restore-finish": lambda: (point.finish_plan if words.dry_run else point.finish)(host, words.keep),
        "restore-point": lambda: (point.plan if words.dry_run else point.create)(host, words.name),
        "drill": lambda: (drill.plan if words.dry_run else drill.run)(host, words.repository),
        "stanza": lambda: repositories.create(host),
        "check-config": lambda: repositories.check_configuration(host, words.file),
        "alert": lambda: (alert.clear if words.clear else alert.run)(host, words.unit),
    }
    return verbs[words.verb]()


def text_of(result: Result) -> str:
    """Return a result for people."""
    if "text" in result:
        return str(result["text"])
    return json.dumps(result, indent=2)


def main() -> int:
    """Run one verb and return its exit status."""
    words = parser().parse_args()
    engine.yield_to_queries()
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, end)
    try:
        result = dispatch(words, settings.read(words.settings))
    except BackupError as error:
        return failed(words, error)
    except PermissionError as error:
        return failed(words, BackupError(str(error), "run this as root", USAGE))
    except OSError as error:
        return failed(words, engine.on_this_host("working on this host's files", error))
    sys.stdout.write((json.dumps(result) if words.json else text_of(result)) + "\n")
    return OK


def end(number: int, _frame: FrameType | None) -> None:
    """End this process on a signal as it ends on an error: with what it has begun, pgBackRest above all."""
    sys.exit(128 + number)


def failed(words: argparse.Namespace, error: BackupError) -> int:
    """Say what went wrong, with --json as the verb's result too, and return the exit status."""
    sys.stderr.write(f"{error}\n")
    if words.json:
        sys.stdout.write(json.dumps(error.as_json(words.verb)) + "\n")
    return error.code


if __name__ == "__main__":
    sys.exit(main())
