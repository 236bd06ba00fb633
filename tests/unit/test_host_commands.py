"""What the roles write into /usr/local/sbin for people, run with programs that only say how they were called."""

import os
import shlex
import subprocess
from pathlib import Path

import jinja2
import pytest

ROLES = Path(__file__).resolve().parents[2] / "roles"
STAND_IN = '#!/bin/sh\necho "$0 $*"\necho "$PGCHROMA_BACKUP_STANZA $PGCHROMA_DATABASE_URL $PGCHROMA_DATABASE_PASSWORD_FILE"\npwd\n'
VARIABLES = {
    "ansible_managed": "managed",
    "pgbackrest_stanza": "a stanza",
    "__pgbackrest_superuser_url": "postgresql:///x?host=/run&user=postgres",
    "__pgbackrest_state_dir": "/state",
    "pgchroma_user": "server",
    "pgchroma_group": "server",
    "pgchroma_state_dir": "/state",
    "pgchroma_database_password": "",
    "__pgchroma_config_dir": "/etc/pgchroma",
    "__pgchroma_credentials_dir": "/etc/pgchroma/credentials",
}


def written(folder: Path, role: str, name: str, **variables: str) -> Path:
    """Write a role's command into a folder, with a pgchroma and other programs beside it that stand in for the real ones."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False, trim_blocks=True)  # noqa: S701 - a shell script
    environment.filters["quote"] = shlex.quote
    for program in ("pgchroma", "runuser", "systemd-run", "install"):
        (folder / program).write_text(STAND_IN if program != "install" else "#!/bin/sh\n")
        (folder / program).chmod(0o755)
    text = (ROLES / role / f"templates/usr/local/sbin/{name}.j2").read_text()
    cli = str(folder / "pgchroma")
    path = folder / name
    path.write_text(
        environment.from_string(text).render(
            VARIABLES, pgbackrest_pgchroma_command=cli, __pgchroma_migrate_cli=cli, **variables
        )
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def command(tmp_path: Path) -> Path:
    """The role's `pgchroma-postgres`."""
    return written(tmp_path, "pgbackrest", "pgchroma-postgres")


def called(command: Path, user: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ident = command.with_name("id")
    ident.write_text(f"#!/bin/sh\necho {user}\n")
    ident.chmod(0o755)
    return subprocess.run(
        [command, *(words or ("backup", "status", "--stanza", "it's"))],
        env={"PATH": f"{command.parent}:{os.environ['PATH']}", "HOME": "/root", **environment},
        cwd=command.parent,
        capture_output=True,
        text=True,
        check=False,
    )


def test_root_runs_pgchroma_as_postgres_with_the_hosts_settings(command: Path) -> None:
    words, settings, folder = called(command, "root").stdout.splitlines()
    assert words.endswith(f"/runuser -u postgres -- {command.parent}/pgchroma backup status --stanza it's")
    assert settings == "a stanza postgresql:///x?host=/run&user=postgres "
    assert folder == "/"


def test_postgres_needs_nobody_else(command: Path) -> None:
    words = called(command, "postgres").stdout.splitlines()[0]
    assert words == f"{command.parent}/pgchroma backup status --stanza it's"


def test_others_are_told_how(command: Path) -> None:
    done = called(command, "nobody")
    assert (done.returncode, done.stdout) == (3, "")
    assert "fix: sudo pgchroma-postgres backup status" in done.stderr


@pytest.mark.parametrize("password", ["", "secret"])
def test_root_runs_pgchroma_as_the_server_does(tmp_path: Path, password: str) -> None:
    """In a unit of systemd's, which reads the server's settings and takes a dollar sign for a variable's."""
    command = written(tmp_path, "pgchroma", "pgchroma-as-server", pgchroma_database_password=password)
    words = called(command, "root", "backup", "dump", "a b", "--tenant", "$HOME").stdout.splitlines()[0]
    assert words.endswith("/usr/local/sbin/pgchroma-as-server backup dump a b --tenant $$HOME")
    for option in (
        "User=server",
        "EnvironmentFile=/etc/pgchroma/server.env",
        "WorkingDirectory=/state/dumps",
    ):
        assert f"--property={option} " in words
    assert ("LoadCredential=database_password:" in words) is bool(password)
    assert "secret" not in words


def test_the_servers_user_finds_the_password_that_systemd_hands_it(tmp_path: Path) -> None:
    command = written(tmp_path, "pgchroma", "pgchroma-as-server")
    (tmp_path / "database_password").touch()
    words, settings, _ = called(command, "server", CREDENTIALS_DIRECTORY=str(tmp_path)).stdout.splitlines()
    assert words == f"{tmp_path}/pgchroma backup status --stanza it's"
    assert settings.endswith(f" {tmp_path}/database_password")
    done = called(command, "nobody")
    assert (done.returncode, done.stdout) == (3, "")
    assert "fix: sudo pgchroma-as-server" in done.stderr
