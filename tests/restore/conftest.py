"""What the tests of backups and restores share: the command, the database, the other hosts, playbooks."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host, get_hosts

from support.host import rendered_inventory
from support.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = ROOT / "molecule/backup_restore"
DATA = "/var/lib/postgresql/17/main"
STATE = "/var/lib/pgchroma-backup"
UNIT = "postgresql@17-main"
WRITTEN = pytest.StashKey[str]()


def pytest_configure(config: pytest.Config) -> None:
    """Give testinfra an inventory without expressions: it takes the variables of connections as they are written."""
    inventory = config.getoption("ansible_inventory")
    if inventory:
        config.stash[WRITTEN] = str(inventory)
        file = Path(tempfile.mkdtemp(prefix="pgchroma-testinfra-")) / "hosts.json"
        file.write_text(json.dumps(rendered_inventory(inventory)), encoding="utf-8")
        config.option.ansible_inventory = str(file)
        # The hosts have different parts to play: each test names the one it needs.
        config.option.hosts = "ansible://postgresql"


@dataclass
class Answer:
    """How a command on a host ended."""

    status: int
    text: str
    result: Any


class Cluster:
    """A host with the cluster, as the operator and the timers use it."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def __call__(self, *words: str, settings: str = "") -> Answer:
        """Run pgchroma-backup; ``result`` is its JSON when it succeeded."""
        options = f"--settings {settings} " if settings else ""
        done = self.host.run(f"pgchroma-backup {options}{shlex.join(words)} --json")
        result = json.loads(done.stdout) if done.rc == 0 else None
        return Answer(int(done.rc), f"{done.stdout}{done.stderr}", result)

    def restore(self, *words: str, **target: object) -> Answer:
        """Restore to a target; the server is stopped if it runs."""
        return self("restore", "--stop", "--target", json.dumps(target), *words)

    def plan(self, **target: object) -> Answer:
        """Plan a restore."""
        return self("restore-plan", "--target", json.dumps(target))

    def sql(self, statement: str, *, socket: str = "/var/run/postgresql", port: int = 5432) -> str:
        """Run SQL as the superuser in the database of pgchroma and return its answer."""
        words = [
            "psql",
            "-XAtq",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            socket,
            "-p",
            str(port),
            "-d",
            "pgchroma",
            "-c",
            statement,
        ]
        return str(self.host.check_output(f"cd / && runuser -u postgres -- {shlex.join(words)}"))

    def rows(self) -> int:
        """Return how many rows the table of these tests holds."""
        return int(self.sql("SELECT count(*) FROM kept"))

    def add(self, number: int) -> None:
        """Add rows to it."""
        text = "repeat(md5(random()::text), 20)"
        self.sql(f"INSERT INTO kept SELECT g, {text} FROM generate_series(1, {number}) AS g")  # noqa: S608

    def is_running(self) -> bool:
        """Whether the server runs."""
        return bool(self.host.service(UNIT).is_running)

    def newest(self, number: int) -> str:
        """Return the label of the newest backup in a repository."""
        return str(self("info").result["repositories"][number - 1]["backups"][-1]["label"])

    def run(self, command: str) -> str:
        """Run a command that must succeed."""
        return str(self.host.check_output(command))

    def receipt(self, name: str) -> Any:
        """Return a receipt of the state directory."""
        return json.loads(self.host.file(f"{STATE}/{name}").content_string)


@pytest.fixture(scope="session")
def inventory(request: pytest.FixtureRequest) -> str:
    return str(request.config.option.ansible_inventory)


@pytest.fixture
def cluster(host: Host) -> Cluster:
    """The cluster, with the table of these tests in it."""
    found = Cluster(host)
    found.sql("CREATE TABLE IF NOT EXISTS kept (i int, t text)")
    return found


def host_of(inventory: str, group: str) -> Host:
    """Return the first host of a group."""
    found: Host = get_hosts([f"ansible://{group}"], ansible_inventory=inventory)[0]
    return found


@pytest.fixture
def s3(inventory: str) -> Host:
    """The host that speaks S3."""
    return host_of(inventory, "s3")


@pytest.fixture
def repository(inventory: str) -> Host:
    """The host that keeps a repository and serves it over TLS."""
    return host_of(inventory, "repository")


@contextmanager
def away(s3: Host, cluster: Cluster) -> Iterator[None]:
    """S3 does not answer."""
    s3.check_output("systemctl stop haproxy")
    try:
        yield
    finally:
        s3.check_output("systemctl start haproxy")
        wait_for("S3 answers", lambda: s3.socket("tcp://0.0.0.0:9443").is_listening)
        wait_for("WAL is archived again", lambda: waiting(cluster) == 0, seconds=120)


@pytest.fixture
def s3_away(s3: Host, cluster: Cluster) -> Iterator[None]:
    """S3 does not answer."""
    with away(s3, cluster):
        yield


def waiting(cluster: Cluster) -> int:
    """Return how many segments wait to be archived."""
    return int(cluster.sql("SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready'"))


Playbook = Callable[..., subprocess.CompletedProcess[str]]


def playbook_command(
    inventory: str, name: str, *options: str, **variables: object
) -> tuple[list[str], dict[str, str]]:
    """Return how a playbook is run as an operator does, and in which environment; variables are handed on as JSON."""
    tools = Path(sys.executable).parent
    command = [str(tools / "ansible-playbook"), "-i", inventory, *options, str(ROOT / "playbooks" / name)]
    command += ["-e", json.dumps(variables)]
    environment = {
        # Where molecule.yml has the passphrases of the scenario.
        "PGCHROMA_SECRETS": str(ROOT / "build/secrets"),
        **os.environ,
        "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
        "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
        "ANSIBLE_NOCOLOR": "1",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    return command, environment


def run_playbook(
    inventory: str, name: str, *options: str, **variables: object
) -> subprocess.CompletedProcess[str]:
    """Run a playbook to its end, with options such as --check."""
    command, environment = playbook_command(inventory, name, *options, **variables)
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def playbook_inventory(request: pytest.FixtureRequest) -> str:
    """The inventory as it was written, for playbooks."""
    return request.config.stash[WRITTEN]


@pytest.fixture
def playbook(playbook_inventory: str, tmp_path: Path) -> Playbook:
    """Run a playbook against the scenario's hosts, receipts into the test's own folder."""

    def run(
        name: str, *options: str, on: str = playbook_inventory, **variables: object
    ) -> subprocess.CompletedProcess[str]:
        receipts = {"backup_receipts_directory": str(tmp_path), "verify_receipts_directory": str(tmp_path)}
        return run_playbook(on, name, *options, **receipts, **variables)

    return run
