"""Reading every file of a repository against its checksum. pgBackRest's verify exits 0 on damage: its text tells."""

from __future__ import annotations

import re
import time
from typing import Any

from . import backup, engine, receipts
from .errors import DAMAGED, BackupError
from .settings import Repository, Settings

MEGABYTE = 1 << 20
BAD = re.compile(r"(missing|checksum invalid|size invalid|other): (\d+)")


def problems(text: str) -> list[str]:
    """Return what verify's text says is wrong: one line for each archive or backup with something missing or invalid."""
    found: list[str] = []
    subject = ""
    for raw in text.splitlines():
        line = re.sub(r"^.*?(INFO|WARN|DETAIL|ERROR):\s*", "", raw).strip()
        if line.startswith(("archiveId:", "backup:")):
            subject = line
            if re.search(r"status: (?!valid)\w", line):
                found.append(line)
        counted = [f"{name} {number}" for name, number in BAD.findall(line) if int(number)]
        if counted:
            found.append(f"{subject}: {', '.join(counted)}")
        if re.match(r"(invalid checksum|.*file missing|unable to (open|read)(?! log file))", line):
            found.append(line)
    if not re.search(r"^\s*status: ok\s*$", text, re.MULTILINE) and not found:
        found.append("no status ok: " + " ".join(text.split())[-300:])
    return found


def options_of(repository: Repository) -> tuple[str, ...]:
    """Return the options with which pgBackRest tells of every file."""
    return (f"--repo={repository.number}", "--output=text", "--verbose", "--log-level-console=warn")


def plan(settings: Settings, wanted: list[str]) -> dict[str, Any]:
    """Return what a verification would read, and a text for people; one that cannot be read is shown as such. Changes nothing."""
    chosen = settings.chosen(wanted)
    lines, total = [], 0
    for repository in chosen:
        try:
            held = backup.labels(settings, repository)
        except BackupError as error:
            lines.append(f"CANNOT BE READ: {error.message}")
            continue
        stored = sum(backup.stored_bytes(entry) for entry in held)
        total += stored
        command = engine.command_line(settings, "verify", *options_of(repository))
        lines.append(f"Read all of {repository}: {len(held)} backups, {stored // MEGABYTE} MB, and its WAL")
        lines.append(f"  {' '.join(command)}")
    return {"kind": "verify-plan", "bytes": total, "text": "\n".join(lines)}


def verify(settings: Settings, repository: Repository) -> dict[str, Any]:
    """Verify one repository and return its result, damage included.

    Raises:
        BackupError: it cannot be read, or not with this passphrase; verify itself takes that for files that are not there.
    """
    started = time.time()
    backup.labels(settings, repository)
    text = engine.pgbackrest(settings, f"verifying {repository}", "verify", *options_of(repository))
    found = problems(text)
    return {
        "repository": repository.number,
        "name": repository.name,
        "seconds": round(time.time() - started, 1),
        "ok": not found,
        "problems": found,
        "text": text.strip(),
    }


def run(settings: Settings, wanted: list[str]) -> dict[str, Any]:
    """Verify the repositories named, or all, and return the receipt.

    Raises:
        BackupError: something in a repository is missing or not what was written (DAMAGED), or a repository could not be read.
    """
    chosen = settings.chosen(wanted)
    results, errors = [], []
    for repository in chosen:
        try:
            results.append(verify(settings, repository))
        except BackupError as error:
            errors.append(error)
            results.append(
                {
                    "repository": repository.number,
                    "name": repository.name,
                    "ok": False,
                    "problems": [str(error)],
                }
            )
    receipt = {
        "kind": "verify",
        "time": receipts.now(),
        "ok": all(entry["ok"] for entry in results),
        "results": results,
    }
    receipts.write(settings, "verify.json", receipt)
    bad = [f"{settings.repository(e['repository'])}: {problem}" for e in results for problem in e["problems"]]
    hint = "Sets that need a damaged file cannot be restored: take a full backup now, and keep another repository until it is proven"
    if bad:
        # Damage is the gravest of what is told, and its remedy the first.
        damaged = any(not entry["ok"] and "text" in entry for entry in results)
        hints = ([hint] if damaged else []) + [error.hint for error in errors]
        code = DAMAGED if damaged else max(error.code for error in errors)
        told = BackupError("\n".join(bad), "; ".join(dict.fromkeys(hints)), code)
        told.receipt = receipt
        raise told
    return receipt
