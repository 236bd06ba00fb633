"""What the roles write into /usr/local/sbin for people, run with programs that only say how they were called."""

import os
import shlex
import subprocess
from pathlib import Path

import jinja2
import pytest

TEMPLATES = Path(__file__).resolve().parents[2] / "roles/pgbackrest/templates/usr/local/sbin"
STAND_IN = '#!/bin/sh\necho "$0 $*"\necho "$PGCHROMA_BACKUP_STANZA $PGCHROMA_DATABASE_URL"\npwd\n'


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The role's `pgchroma-postgres`, for a pgchroma and a runuser that stand in for the real ones."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701 - a shell script
    environment.filters["quote"] = shlex.quote
    for name in ("pgchroma", "runuser"):
        (tmp_path / name).write_text(STAND_IN)
        (tmp_path / name).chmod(0o755)
    path = tmp_path / "pgchroma-postgres"
    path.write_text(
        environment.from_string((TEMPLATES / "pgchroma-postgres.j2").read_text()).render(
            ansible_managed="managed",
            pgbackrest_pgchroma_command=str(tmp_path / "pgchroma"),
            pgbackrest_stanza="a stanza",
            __pgbackrest_superuser_url="postgresql:///x?host=/run&user=postgres",
            __pgbackrest_state_dir="/state",
        )
    )
    path.chmod(0o755)
    return path


def called(command: Path, user: str) -> subprocess.CompletedProcess[str]:
    ident = command.with_name("id")
    ident.write_text(f"#!/bin/sh\necho {user}\n")
    ident.chmod(0o755)
    return subprocess.run(
        [command, "backup", "status", "--stanza", "it's"],
        env={"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": "/root"},
        cwd=command.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_root_runs_pgchroma_as_postgres_with_the_hosts_settings(command: Path) -> None:
    words, settings, folder = called(command, "root").stdout.splitlines()
    assert words.endswith(f"/runuser -u postgres -- {command.parent}/pgchroma backup status --stanza it's")
    assert settings == "a stanza postgresql:///x?host=/run&user=postgres"
    assert folder == "/"


def test_postgres_needs_nobody_else(command: Path) -> None:
    words = called(command, "postgres").stdout.splitlines()[0]
    assert words == f"{command.parent}/pgchroma backup status --stanza it's"


def test_others_are_told_how(command: Path) -> None:
    done = called(command, "nobody")
    assert (done.returncode, done.stdout) == (3, "")
    assert "fix: sudo pgchroma-postgres backup status" in done.stderr
