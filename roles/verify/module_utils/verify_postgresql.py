"""Checks of a PostgreSQL on this host, through the superuser's socket; reads only."""

from __future__ import annotations

import json
import re
from typing import Any

from ansible.module_utils.verify_report import failed, judged, output_of, passed, skipped

UNITS = {
    "kb": 1024,
    "mb": 1024**2,
    "gb": 1024**3,
    "tb": 1024**4,
    "b": 1,
    "us": 1e-3,
    "ms": 1,
    "s": 1000,
    "min": 60_000,
    "h": 3_600_000,
    "d": 86_400_000,
}
WEAK_METHODS = ("md5", "trust", "password")

# One statement, one connection: everything that the checks below look at.
QUERY = """
SET default_transaction_read_only = on;
SELECT json_build_object(
  'version', current_setting('server_version'),
  'version_num', current_setting('server_version_num')::int,
  'checksums', current_setting('data_checksums'),
  'extension', (SELECT extversion FROM pg_extension WHERE extname = 'vector'),
  'available', (SELECT default_version FROM pg_available_extensions WHERE name = 'vector'),
  'extension_owner', (SELECT r.rolsuper FROM pg_extension e JOIN pg_roles r ON r.oid = e.extowner WHERE e.extname = 'vector'),
  'settings', (SELECT json_object_agg(name, current_setting(name, true)) FROM pg_settings),
  'pending', (SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM pg_settings WHERE pending_restart),
  'file_errors', (SELECT coalesce(json_agg(sourcefile || ' line ' || sourceline || ': ' || error), '[]') FROM pg_file_settings
                  WHERE error IS NOT NULL AND name NOT IN (SELECT name FROM pg_settings WHERE pending_restart)),
  'unread', (SELECT coalesce(json_agg(DISTINCT sourcefile), '[]') FROM pg_file_settings
             WHERE (pg_stat_file(sourcefile)).modification > pg_conf_load_time()),
  'hba_errors', (SELECT coalesce(json_agg(line_number || ': ' || error), '[]') FROM pg_hba_file_rules WHERE error IS NOT NULL),
  'hba_weak', (SELECT coalesce(json_agg(line_number || ': ' || auth_method), '[]')
               FROM pg_hba_file_rules WHERE auth_method = ANY (:'methods'::text[])),
  'superusers', (SELECT json_agg(rolname ORDER BY rolname) FROM pg_roles WHERE rolsuper),
  'unscrambled', (SELECT coalesce(json_agg(rolname ORDER BY rolname), '[]')
                  FROM pg_authid WHERE rolpassword IS NOT NULL AND rolpassword NOT LIKE 'SCRAM-SHA-256$%')
);
"""


def version_tuple(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, so that 0.10 is more than 0.9."""
    return tuple(int(part) for part in re.findall(r"\d+", version))


def normal(value: object) -> object:
    """Return a setting's value in one form: on/off, a number in bytes, milliseconds or plain, or text in lower case."""
    text = str(value).strip().lower()
    if text in ("true", "yes", "on"):
        return "on"
    if text in ("false", "no", "off"):
        return "off"
    found = re.fullmatch(r"(-?\d+(?:\.\d+)?)\s*([a-z]*)", text)
    if found and found.group(2) in ("", *UNITS):
        return float(found.group(1)) * UNITS.get(found.group(2), 1)
    return re.sub(r"\s*,\s*", ", ", text)


def wrong_settings(expected: dict[str, object], found: dict[str, str]) -> list[str]:
    """Return each setting that is not in force as expected."""
    problems = []
    for name, value in sorted(expected.items()):
        if name not in found:
            problems.append(f"{name} is unknown to this PostgreSQL")
        elif normal(found[name]) != normal(value):
            problems.append(f"{name} is {found[name]}, expected {value}")
    return problems


def judge_pgvector(found: dict[str, Any], database: str, minimum: str, accepted: str) -> list[dict[str, str]]:
    """Check presence and version of the extension in the database, and whether an older one was accepted."""
    installed = found["extension"]
    if installed is None:
        hint = "run site.yml; by hand, as the superuser: CREATE EXTENSION vector"
        return [failed("pgvector.extension", "critical", f"is not in database {database}", hint)]
    results = [passed("pgvector.extension", "critical", f"vector {installed} in database {database}")]
    newer = found["available"] and version_tuple(found["available"]) > version_tuple(installed)
    if newer:
        detail = f"{installed}, while the installed package brings {found['available']}"
        hint = "run site.yml; by hand, as the superuser: ALTER EXTENSION vector UPDATE"
        results.append(failed("pgvector.update", "warning", detail, hint))
    if version_tuple(installed) >= version_tuple(minimum):
        results.append(passed("pgvector.version", "critical", f"{installed} (at least {minimum})"))
    else:
        detail = f"{installed} is older than {minimum}: an HNSW index can be corrupted by parallel builds and by vacuum"
        remedy = f"get pgvector {minimum} or newer from PGDG (pgvector_source: pgdg)"
        if accepted and version_tuple(installed) >= version_tuple(accepted):
            detail += "; accepted in the inventory, so indexes are built by one process and never written to"
            results.append(failed("pgvector.version", "warning", detail, remedy))
        else:
            hint = f'{remedy}, or accept it with pgvector_accepted_version: "{installed}"'
            results.append(failed("pgvector.version", "critical", detail, hint))
    return results


def judge(found: dict[str, Any], wanted: dict[str, Any]) -> list[dict[str, str]]:
    """Check what the query returned against what is wanted (the options of the module)."""
    major = found["version_num"] // 10000
    extra = sorted(set(found["superusers"]) - set(wanted["superusers"]))
    return [
        judged(
            "postgresql.version",
            "critical",
            [] if major == wanted["version"] else [f"{found['version']}, expected {wanted['version']}"],
            found["version"],
            "another cluster answers on this port, or the inventory names another version",
        ),
        *judge_pgvector(found, wanted["database"], wanted["pgvector_minimum"], wanted["pgvector_accepted"]),
        judged(
            "postgresql.settings",
            "critical",
            [
                *wrong_settings(wanted["settings"], found["settings"]),
                *found["file_errors"],
                *(f"{name} is newer than the last reload" for name in found["unread"]),
            ],
            f"the files are read without error; {len(wanted['settings'])} settings compared, in force as expected",
            "run site.yml with --tags configure",
        ),
        judged(
            "postgresql.pending_restart",
            "warning",
            found["pending"],
            "no setting waits for a restart",
            "these take effect with the next restart: run site.yml -e postgresql_restart_allowed=true",
        ),
        judged(
            "postgresql.checksums",
            "critical",
            [] if found["checksums"] == "on" else ["are off: damage on disk would go unnoticed"],
            "on",
            "stop the cluster and run pg_checksums --enable",
        ),
        judged(
            "postgresql.hba",
            "critical",
            [f"line {line}" for line in [*found["hba_errors"], *found["hba_weak"]]],
            "no error, no line with md5, trust or password",
            "use peer on the socket and scram-sha-256 over TCP",
        ),
        judged(
            "postgresql.passwords",
            "critical",
            [f"{role}'s is not stored as SCRAM-SHA-256" for role in found["unscrambled"]],
            "none stored but as SCRAM-SHA-256",
            "set them again with password_encryption = scram-sha-256",
        ),
        judged(
            "postgresql.superusers",
            "critical",
            [f"{role} is a superuser too" for role in extra],
            ", ".join(found["superusers"]),
            "ALTER ROLE ... NOSUPERUSER",
        ),
    ]


def check_postgresql(wanted: dict[str, Any]) -> list[dict[str, str]]:
    """Ask PostgreSQL as its superuser over the socket and judge the answer."""
    if not wanted["enabled"]:
        reason = "PostgreSQL is not on this host; readiness and round trip go through it"
        return [skipped("postgresql.host", "critical", reason)]
    command = [
        "runuser",
        "-u",
        "postgres",
        "--",
        "psql",
        "--no-psqlrc",
        "--quiet",
        "--tuples-only",
        "--no-align",
    ]
    command += ["--set=ON_ERROR_STOP=1", f"--set=methods={{{','.join(WEAK_METHODS)}}}"]
    command += [f"--port={wanted['port']}", f"--dbname={wanted['database']}", "--file=-"]
    status, output, error = output_of(command, QUERY)
    if status != 0:
        hint = "see service.postgresql and its journal; the database is made by site.yml"
        return [failed("postgresql.answers", "critical", error.strip() or "no answer", hint)]
    return judge(json.loads(output), wanted)
