"""What there is to restore from: backups and the range of WAL in each repository, for people and as JSON."""

from __future__ import annotations

from typing import Any

from . import backup, drill, engine, receipts
from .settings import Settings

MEGABYTE = 1 << 20


def row(entry: dict[str, Any]) -> dict[str, Any]:
    """Return one backup as it is shown."""
    return {
        "label": entry["label"],
        "type": entry["type"],
        "started": receipts.stamp(entry["timestamp"]["start"]),
        "ended": receipts.stamp(entry["timestamp"]["stop"]),
        "cluster_bytes": entry["info"]["size"],
        "stored_bytes": backup.stored_bytes(entry),
        "lsn_stop": entry["lsn"]["stop"],
        "wal_start": entry["archive"]["start"],
        "wal_stop": entry["archive"]["stop"],
        "damaged": entry["error"],
    }


def run(settings: Settings) -> dict[str, Any]:
    """Return every repository with its backups, oldest first, and the text that shows them."""
    info = engine.information(settings)
    found, lines = [], []
    for repository in settings.repositories:
        fault = engine.repository_fault(info, settings, repository.number)
        ranges = [
            {"id": entry["id"], "first": entry["min"], "last": entry["max"]}
            for entry in info["archive"]
            if entry["database"]["repo-key"] == repository.number
        ]
        last = receipts.read(settings, drill.last_of(repository))
        rows = [row(entry) for entry in backup.backups_of(info, repository.number)]
        found.append(
            {
                "number": repository.number,
                "name": repository.name,
                "type": repository.kind,
                "where": repository.where,
                "fault": fault.message if fault else "",
                "hint": fault.hint if fault else "",
                "backups": rows,
                "archive": ranges,
                "drill": last,
            }
        )
        lines.append(str(repository)[0].upper() + str(repository)[1:])
        if fault is not None:
            lines += [f"  CANNOT BE READ: {fault.message}", f"  {fault.hint}"]
        elif not rows:
            lines.append("  no backup yet")
        for shown in rows:
            mark = "  DAMAGED PAGES" if shown["damaged"] else ""
            lines.append(
                f"  {shown['label']:<34} {shown['type']:<5} ended {shown['ended']}  {shown['cluster_bytes'] // MEGABYTE:>7} MB,"
                f" {shown['stored_bytes'] / MEGABYTE:.1f} MB stored{mark}"
            )
        lines += [
            f"  WAL {entry['first']} to {entry['last']} ({entry['id']})" for entry in ranges if entry["first"]
        ]
        lines.append(
            f"  last drill: {last['result']}, {last['finished']}, {last['seconds']} s"
            if last
            else "  last drill: none yet"
        )
    points = receipts.read(settings, receipts.POINTS) or {"points": []}
    lines += [f"Restore point {entry['name']}: {entry['time']}, {entry['lsn']}" for entry in points["points"]]
    return {
        "kind": "info",
        "stanza": settings.stanza,
        "repositories": found,
        "drill": receipts.read(settings, drill.LAST),
        **points,
        "text": "\n".join(lines),
    }
