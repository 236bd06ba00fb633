"""What the role pgbackrest decides before it touches a host: its task files, run by Ansible on this computer, in a folder of the test's."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[..., subprocess.CompletedProcess[str]]
Shown = Callable[..., Any]
PASSPHRASES = "__pgbackrest_passphrases"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a task file of the role on this computer; ``show`` is an expression whose value goes to shown.json at the end."""

    def run(
        tasks_from: str, *options: str, show: str = "", **variables: object
    ) -> subprocess.CompletedProcess[str]:
        tasks: list[dict[str, Any]] = [
            {"ansible.builtin.include_role": {"name": "pgbackrest", "tasks_from": tasks_from, "public": True}}
        ]
        if show:
            written = {"content": f"{{{{ ({show}) | to_json }}}}", "dest": str(tmp_path / "shown.json")}
            tasks.append({"ansible.builtin.copy": written, "check_mode": False})
        play = [{"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}]
        (tmp_path / "play.yml").write_text(json.dumps(play), encoding="utf-8")
        given = {
            "ansible_python_interpreter": sys.executable,
            "ansible_facts": {"os_family": "Debian"},
            "pgbackrest_secrets_dir": str(tmp_path / "secrets"),
            "pgbackrest_repositories": [{"name": "local"}, {"name": "off.site", "path": "/elsewhere"}],
            "__pgbackrest_config": str(tmp_path / "pgbackrest.conf"),
            **variables,
        }
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", *options]
        command += ["-e", json.dumps(given), str(tmp_path / "play.yml")]
        environment = {
            **os.environ,
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_ROLES_PATH": str(ROOT / "roles"),
            "ANSIBLE_NOCOLOR": "1",
        }
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    return run


@pytest.fixture
def shown(run: Run, tmp_path: Path) -> Shown:
    """Run a task file, which must succeed, and return the value of an expression."""

    def shown(expression: str, tasks_from: str, *options: str, **variables: object) -> Any:
        done = run(tasks_from, *options, show=expression, **variables)
        assert done.returncode == 0, done.stdout
        return json.loads((tmp_path / "shown.json").read_text(encoding="utf-8"))

    return shown


class TestPassphrases:
    """Made once, never put in the place of one that a repository may have been encrypted with."""

    def test_one_is_made_for_each_and_kept_to_its_owner(self, shown: Shown, tmp_path: Path) -> None:
        found = shown(PASSPHRASES, "secrets")
        folder = tmp_path / "secrets"
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {path.name for path in folder.iterdir()} == {
            "main-local.passphrase",
            "main-off.site.passphrase",
        }
        assert all(path.stat().st_mode & 0o777 == 0o600 for path in folder.iterdir())
        assert {len(text) for text in found.values()} == {48}
        assert found["local"] != found["off.site"]
        assert shown(PASSPHRASES, "secrets") == found
        assert shown(PASSPHRASES, "secrets", "--check") == found

    def test_the_hosts_own_is_kept_where_the_controller_has_none(self, shown: Shown, tmp_path: Path) -> None:
        (tmp_path / "pgbackrest.conf").write_text(configuration("from-the-host"), encoding="utf-8")
        found = shown(PASSPHRASES, "secrets")
        assert found["off.site"] == "from-the-host"
        assert (tmp_path / "secrets/main-off.site.passphrase").read_text(encoding="utf-8") == "from-the-host"
        assert found["local"] != "from-the-host"

    @pytest.mark.parametrize("options", [[], ["--check"]], ids=["run", "check"])
    def test_two_that_differ_are_refused(self, run: Run, tmp_path: Path, options: list[str]) -> None:
        (tmp_path / "pgbackrest.conf").write_text(configuration("from-the-host"), encoding="utf-8")
        kept = tmp_path / "secrets/main-off.site.passphrase"
        kept.parent.mkdir(0o700)
        kept.write_text("another", encoding="utf-8")
        done = run("secrets", *options)
        assert done.returncode != 0
        assert "uses another passphrase for off.site" in done.stdout
        assert kept.read_text(encoding="utf-8") == "another"
        assert [path.name for path in kept.parent.iterdir()] == [kept.name], "nothing was made"
        assert "from-the-host" not in done.stdout


class TestSchedules:
    def test_one_that_is_named_leaves_the_others_as_they_are(self, shown: Shown) -> None:
        named = {"drill": "Wed *-*-* 02:00:00", "verify": ""}
        wanted = shown("__pgbackrest_timers_wanted", "secrets", pgbackrest_schedules=named)
        found = {entry["key"]: entry["value"] for entry in wanted}
        assert found["drill"] == "Wed *-*-* 02:00:00"
        assert "verify" not in found
        assert found["check"] == "hourly"
        assert set(found) == {"full", "diff", "incr", "check", "drill", "metrics"}


@pytest.mark.parametrize(
    ("option", "variable"),
    [
        ("pgbackrest_repositories", "__pgbackrest_repository_defaults"),
        ("pgbackrest_schedules", "__pgbackrest_schedule_defaults"),
    ],
)
def test_what_is_filled_in_is_what_the_specification_says(option: str, variable: str) -> None:
    specification = yaml.safe_load((ROOT / "roles/pgbackrest/meta/argument_specs.yml").read_text())
    options = specification["argument_specs"]["main"]["options"][option]["options"]
    stated = {name: entry["default"] for name, entry in options.items() if "default" in entry}
    assert yaml.safe_load((ROOT / "roles/pgbackrest/vars/main.yml").read_text())[variable] == stated


def configuration(passphrase: str) -> str:
    """Return a host's configuration of pgBackRest, of which the second repository alone is encrypted."""
    return (
        "[global]\n# Repository local\nrepo1-type=posix\nrepo1-path=/r\n"
        f"# Repository off.site\nrepo2-type=posix\nrepo2-cipher-type=aes-256-cbc\nrepo2-cipher-pass={passphrase}\nrepo2-bundle=y\n"
    )


WANTED = {"latest": True}
HOUR = 3600.0


@pytest.mark.parametrize(
    ("phase", "hours", "wanted", "says"),
    [
        ("done", 0, WANTED, "has a cluster that was in service"),
        ("copying", 30, WANTED, "a recovery that stopped half-way and is resumed"),
        ("ended", 1, WANTED, "a recovery that has ended and is not done again"),
        ("ended", 25, WANTED, "has a cluster that was in service"),
        ("ended", 1, {"immediate": True}, "has a cluster that was in service"),
    ],
)
def test_a_host_in_service_is_recovered_only_to_go_on_with_what_was_begun(
    run: Run, tmp_path: Path, phase: str, hours: float, wanted: dict[str, bool], says: str
) -> None:
    """Its server runs, or did until the power failed; the recovery of an hour ago may not have come to its own end."""
    for name in ("postmaster.opts", "postmaster.pid"):
        (tmp_path / name).touch()
    ended = datetime.fromtimestamp(time.time() - hours * HOUR, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    marker = {"phase": phase, "wanted": wanted, "ended": ended}
    (tmp_path / "restore.json").write_text(json.dumps(marker), encoding="utf-8")
    refused = says.startswith("has a cluster")
    if not refused:
        run("secrets")
    done = run(
        "recovery_plan",
        show="pgbackrest_recovery.text",
        pgbackrest_recovery_target=WANTED,
        __pgbackrest_data_dir=str(tmp_path),
        __pgbackrest_state_dir=str(tmp_path),
    )
    assert (done.returncode != 0) is refused, done.stdout
    told = done.stdout if refused else (tmp_path / "shown.json").read_text(encoding="utf-8")
    assert says in " ".join(told.split())
