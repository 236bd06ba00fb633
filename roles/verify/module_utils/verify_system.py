"""Checks of the host: units, listening sockets, exposure of units, modes of files."""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
import re
import stat
from pathlib import Path
from typing import Any

from ansible.module_utils.verify_report import failed, judged, output_of, passed, skipped

Socket = tuple[str, int, str]


def unit_properties(unit: str) -> dict[str, str]:
    """Return what systemd says of a unit."""
    wanted = "LoadState,ActiveState,SubState,UnitFileState,NRestarts,MainPID"
    _, output, _ = output_of(["systemctl", "show", unit, f"--property={wanted}"])
    return dict(line.partition("=")[::2] for line in output.splitlines())


def check_service(unit: str) -> dict[str, str]:
    """Check that a unit runs now and will run after the next boot."""
    shown = unit_properties(unit)
    problems = []
    if shown.get("ActiveState") != "active":
        problems.append(f"is {shown.get('ActiveState')} ({shown.get('SubState')})")
    # An instance of a template is enabled at run time by a generator of its package, and a static one by what wants it.
    if shown.get("UnitFileState") not in ("enabled", "enabled-runtime", "static", "generated"):
        problems.append(f"is {shown.get('UnitFileState') or 'unknown to systemd'}, not enabled")
    fine = f"active, {shown.get('UnitFileState')}, restarted {shown.get('NRestarts', '0')} times by systemd"
    hint = f"journalctl -u {unit} -n 50; systemctl enable --now {unit}"
    return judged(f"service.{unit.removesuffix('.service')}", "critical", problems, fine, hint)


def parse_sockets(listing: str) -> list[Socket]:
    """Return (address, port, process) of each line of ``ss -Hltnp``."""
    found = []
    for line in listing.splitlines():
        fields = line.split()
        if len(fields) < 4:
            continue
        address, _, port = fields[3].rpartition(":")
        address = address.strip("[]").partition("%")[0]
        process = re.search(r'\(\("([^"]+)"', line)
        found.append((address.removeprefix("::ffff:"), int(port), process.group(1) if process else "unknown"))
    return sorted(set(found))


def is_loopback(address: str) -> bool:
    """Return whether only this host reaches an address."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def matches(socket: Socket, entry: dict[str, Any]) -> bool:
    """Return whether an entry allows a socket; no addresses in it means any."""
    return socket[1] == entry["port"] and (not entry["addresses"] or socket[0] in entry["addresses"])


def judge_sockets(
    listening: list[Socket], expected: list[dict[str, Any]], other: list[dict[str, Any]]
) -> list[dict[str, str]]:
    """Check that every expected socket listens, and that nothing listens that is neither expected nor listed as other."""
    missing = [
        f"{entry['name']} does not listen on {'/'.join(entry['addresses']) or 'any address'}:{entry['port']}"
        for entry in expected
        if not any(matches(socket, entry) for socket in listening)
    ]
    known = [*expected, *other]
    extra = [socket for socket in listening if not any(matches(socket, entry) for entry in known)]
    shown = ", ".join(f"{address}:{port} ({process})" for address, port, process in listening)
    results = [
        judged(
            "sockets.expected",
            "critical",
            missing,
            shown,
            "see the unit that should listen; systemctl status",
        )
    ]
    for check_id, severity, local in (
        ("sockets.unexpected_network", "critical", False),
        ("sockets.unexpected_loopback", "warning", True),
    ):
        problems = [f"{a}:{p} ({name})" for a, p, name in extra if is_loopback(a) == local]
        hint = "stop what listens there, or list it in verify_sockets_other"
        results.append(judged(check_id, severity, problems, "none", hint))
    return results


def check_sockets(expected: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Check the TCP sockets that listen on this host."""
    status, output, error = output_of(["ss", "-H", "-l", "-t", "-n", "-p"])
    if status != 0:
        return [failed("sockets.expected", "critical", f"ss failed: {error.strip()}", "install iproute2")]
    return judge_sockets(parse_sockets(output), expected, other)


def check_exposure(unit: str, most: float) -> dict[str, str]:
    """Check a unit's exposure (0 to 10, as systemd-analyze rates its sandbox)."""
    check_id = f"exposure.{unit.removesuffix('.service')}"
    status, output, error = output_of(["systemd-analyze", "security", "--no-pager", unit])
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", output)
    if status != 0 or found is None:
        return failed(
            check_id, "warning", f"cannot be rated: {error.strip()}", f"systemd-analyze security {unit}"
        )
    if float(found.group(1)) > most:
        detail = f"{found.group(1)}, more than {most}"
        return failed(
            check_id, "warning", detail, f"systemctl cat {unit}: a drop-in may have opened the sandbox"
        )
    return passed(check_id, "warning", f"{found.group(1)} (at most {most})")


def owner_of(found: os.stat_result) -> str:
    """Return ``user:group`` of a stat result, numbers where there is no name."""
    try:
        user = pwd.getpwuid(found.st_uid).pw_name
    except KeyError:
        user = str(found.st_uid)
    try:
        group = grp.getgrgid(found.st_gid).gr_name
    except KeyError:
        group = str(found.st_gid)
    return f"{user}:{group}"


def file_problems(path: Path, owner: str, mode: str) -> list[str]:
    """Return what is wrong with owner or mode of a file; bits fewer than ``mode`` are fine, bits beyond it are not."""
    found = path.lstat()
    problems = []
    bits = stat.S_IMODE(found.st_mode)
    if bits & ~int(mode, 8):
        problems.append(f"{path} has mode {bits:04o}, more than {mode}")
    if owner_of(found) != owner:
        problems.append(f"{path} belongs to {owner_of(found)}, not {owner}")
    return problems


def check_files(files: list[dict[str, str]]) -> dict[str, str]:
    """Check owner and mode of files that hold settings or secrets; a folder's own files are checked as 0600."""
    problems, number = [], 0
    for entry in files:
        path = Path(entry["path"])
        if not path.exists():
            problems.append(f"{path} does not exist")
            continue
        problems.extend(file_problems(path, entry["owner"], entry["mode"]))
        number += 1
        for inner in sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else []:
            problems.extend(file_problems(inner, entry["owner"], "0600"))
            number += 1
    hint = "run site.yml with --tags configure"
    if not files:
        return skipped("files.modes", "critical", "no files listed in verify_files")
    return judged(
        "files.modes", "critical", problems, f"{number} files and folders as strict as they must be", hint
    )
