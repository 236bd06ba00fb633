"""Checks of the pgchroma server: the installed release here, data path and database by the release's own `pgchroma verify`."""

from __future__ import annotations

import json
import os
import ssl
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

from ansible.module_utils.verify_report import failed, passed, skipped
from ansible.module_utils.verify_system import unit_properties

SETTINGS = Path("/etc/pgchroma/server.env")
PASSWORD = Path("/etc/pgchroma/credentials/database_password")
JOURNAL = "journalctl -u pgchroma -n 50; the body of /api/v2/healthcheck names what is missing"
# What verify_postgresql checks too, knowing the inventory.
CHECKED_ON_THE_HOST = {"postgresql-version", "data-checksums", "pgvector-version", "pgvector-updated"}


def check_release(install_dir: str, unit: str) -> list[dict[str, str]]:
    """Check that the current release is complete and is the one that runs."""
    current = Path(install_dir) / "current"
    if not (current / ".complete").exists():
        hint = "run site.yml; it installs the release again"
        return [failed("pgchroma.release", "critical", f"{current} is not a complete release", hint)]
    name = current.resolve().name
    pid = unit_properties(unit).get("MainPID", "0")
    if pid == "0":
        return [
            failed(
                "pgchroma.release",
                "critical",
                f"{name} is installed, but not running",
                f"journalctl -u {unit}",
            )
        ]
    # A program in a virtual environment is started by the interpreter in it, so its command line tells the release.
    line = (Path("/proc") / pid / "cmdline").read_bytes().decode().replace("\0", " ")
    if f"/{name}/" not in line:
        hint = f"systemctl restart {unit}"
        return [failed("pgchroma.release", "critical", f"{name} is current, but {line.strip()} runs", hint)]
    return [passed("pgchroma.release", "critical", f"{name} is installed, current and running")]


def read_settings(text: str) -> dict[str, str]:
    """Return the settings of /etc/pgchroma/server.env, whose values stand in double quotes."""
    lines = [line.partition("=") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: value.strip().strip('"').replace('\\"', '"') for name, _, value in lines}


def translated(prefix: str, text: str) -> list[dict[str, str]]:
    """Return the checks of `pgchroma verify ... --format json`, their ids under a prefix; ValueError or KeyError if it is none."""
    results = []
    for item in json.loads(text)["checks"]:
        check_id = f"{prefix}.{item['id'].removeprefix(prefix + '-')}"
        if item["status"] == "ok":
            results.append(passed(check_id, item["severity"], item["detail"]))
        else:
            results.append(failed(check_id, item["severity"], item["detail"], item["hint"]))
    return results


def run_verify(install_dir: str, prefix: str, *options: str) -> list[dict[str, str]]:
    """Run `pgchroma verify <prefix>` of the current release with the server's settings and return its checks."""
    command = [f"{install_dir}/current/bin/pgchroma", "verify", prefix, "--format", "json", *options]
    settings = read_settings(SETTINGS.read_text(encoding="utf-8")) if SETTINGS.exists() else {}
    if PASSWORD.exists():
        settings["PGCHROMA_DATABASE_PASSWORD_FILE"] = str(PASSWORD)
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, check=False, timeout=120, env=os.environ | settings
        )
        return translated(prefix, done.stdout)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [failed(f"{prefix}.checks", "critical", str(error), "run site.yml; it installs the release")]
    except (ValueError, KeyError):
        return [
            failed(f"{prefix}.checks", "critical", done.stderr.strip(), f"run by hand: {' '.join(command)}")
        ]


def check_ready(url: str, ca_file: str) -> dict[str, str]:
    """Check readiness through the front door, writing nothing."""
    if not url.startswith(("http://", "https://")):
        hint = "verify_url must be of the form http://host:port or https://host:port"
        return failed("server.ready", "critical", f"{url!r} is not a URL of a server", hint)
    context = ssl.create_default_context(cafile=ca_file or None) if url.startswith("https://") else None
    try:
        with urllib.request.urlopen(  # noqa: S310 - the scheme was checked
            f"{url.rstrip('/')}/api/v2/healthcheck", timeout=10, context=context
        ) as answer:
            return passed("server.ready", "critical", f"{url} answers {answer.status}")
    except urllib.error.HTTPError as error:
        detail = f"{url} answers {error.code}: {error.read().decode('utf-8', 'replace')}"
        return failed("server.ready", "critical", detail, JOURNAL)
    except OSError as error:
        return failed("server.ready", "critical", f"{url} does not answer: {error}", JOURNAL)


def check_server(
    install_dir: str, url: str, ca_file: str, token_file: str, write: bool, reason: str
) -> list[dict[str, str]]:
    """Check the front door and, when ``write``, that data goes in and comes out; else say the reason why not."""
    if not write:
        return [check_ready(url, ca_file), skipped("server.round-trip", "critical", reason)]
    options = [
        *(["--ca-file", ca_file] if ca_file else []),
        *(["--token-file", token_file] if token_file else []),
    ]
    return run_verify(install_dir, "server", "--url", url, *options)


def check_database(install_dir: str, postgresql_here: bool) -> list[dict[str, str]]:
    """Check the database as the server sees it: versions, schema, catalog, left-over indexes and migrations."""
    known = {f"database.{check_id}" for check_id in CHECKED_ON_THE_HOST} if postgresql_here else set()
    return [item for item in run_verify(install_dir, "database") if item["id"] not in known]
