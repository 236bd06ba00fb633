"""The result of a check, and the table that a person reads. Runs on the host with its own Python, without pgchroma's packages."""

from __future__ import annotations

import subprocess
import textwrap

MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL", "skipped": "-   "}
TABLE_WIDTH = 118


def passed(check_id: str, severity: str, detail: str) -> dict[str, str]:
    """Return the result of a check that holds."""
    return {"id": check_id, "severity": severity, "status": "ok", "detail": detail, "hint": ""}


def failed(check_id: str, severity: str, detail: str, hint: str) -> dict[str, str]:
    """Return the result of a check that does not hold; only a critical one makes the whole fail."""
    status = "fail" if severity == "critical" else "warn"
    return {"id": check_id, "severity": severity, "status": status, "detail": detail, "hint": hint}


def skipped(check_id: str, severity: str, detail: str) -> dict[str, str]:
    """Return the result of a check that does not apply here, with the reason as its detail."""
    return {"id": check_id, "severity": severity, "status": "skipped", "detail": detail, "hint": ""}


def judged(check_id: str, severity: str, problems: list[str], fine: str, hint: str) -> dict[str, str]:
    """Return a failed check naming every problem, or a passed one when there is none."""
    return (
        failed(check_id, severity, "; ".join(problems), hint)
        if problems
        else passed(check_id, severity, fine)
    )


def counts(checks: list[dict[str, str]]) -> dict[str, int]:
    """Return how many checks came to each status."""
    return {status: sum(check["status"] == status for check in checks) for status in MARKS}


def table(host: str, checks: list[dict[str, str]]) -> str:
    """Return the checks as a table of status, id and detail, with the hint below what is not ok."""
    width = max([len(check["id"]) for check in checks], default=0)
    indent = " " * (len(MARKS["ok"]) + width + 4)
    lines = []
    for check in checks:
        head = f"{MARKS[check['status']]}  {check['id']:<{width}}  "
        texts = [check["detail"]] + ([f"-> {check['hint']}"] if check["hint"] else [])
        wrapped = [line for text in texts for line in textwrap.wrap(text, TABLE_WIDTH - len(indent)) or [""]]
        lines.append(head + wrapped[0])
        lines.extend(indent + line for line in wrapped[1:])
    number = counts(checks)
    lines.append(
        f"{host}: {number['ok']} ok, {number['warn']} warnings, {number['fail']} failed, {number['skipped']} skipped"
    )
    return "\n".join(lines)


def output_of(command: list[str], stdin: str = "") -> tuple[int, str, str]:
    """Run a command that only reads; return its status, output and error output. 127 when there is no such command."""
    try:
        done = subprocess.run(  # noqa: S603
            command, input=stdin, capture_output=True, text=True, check=False, timeout=60
        )
    except FileNotFoundError as error:
        return 127, "", str(error)
    except subprocess.TimeoutExpired:
        return 124, "", f"{command[0]} did not end within 60 s"
    return done.returncode, done.stdout, done.stderr
