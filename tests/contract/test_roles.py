"""What every role promises: a specification that tells the truth, no ignored errors, honest change reports, short files."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
ROLES = sorted(path for path in (ROOT / "roles").iterdir() if path.is_dir())
PLAYBOOKS = [ROOT / "site.yml", *sorted((ROOT / "playbooks").glob("*.yml"))]
TASK_FILES = sorted(ROOT.glob("roles/*/tasks/**/*.yml")) + sorted(ROOT.glob("roles/*/handlers/*.yml"))
COMMAND_MODULES = {
    "ansible.builtin.command",
    "ansible.builtin.shell",
    "ansible.builtin.raw",
    "ansible.builtin.script",
}
CONTENTS = {f"ansible.builtin.{module}" for module in ("import_tasks", "include_tasks", "set_fact")}
# A role's own modules have no collection to be named by.
OWN_MODULES = {path.stem for path in ROOT.glob("roles/*/library/*.py")}
SECRET = re.compile(r"(^|_)(password|passphrase|secret|token|private_key|external_url)s?$")


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def tasks(content: Any) -> Iterator[dict[str, Any]]:
    """Every task in a file, those inside blocks included."""
    for item in content or []:
        yield item
        for part in ("block", "rescue", "always", "tasks", "pre_tasks", "post_tasks", "handlers"):
            yield from tasks(item.get(part))


def secret_options(options: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, option in options.items():
        if SECRET.search(name) and option.get("type", "str") == "str":
            yield name, option
        yield from secret_options(option.get("options", {}))


@pytest.mark.parametrize("role", ROLES, ids=lambda path: path.name)
class TestRole:
    def test_defaults_equal_the_specification(self, role: Path) -> None:
        specification = load(role / "meta/argument_specs.yml")["argument_specs"]
        stated: dict[str, Any] = {}
        for entry in specification.values():
            for name, option in (entry.get("options") or {}).items():
                if "default" in option:
                    stated.setdefault(name, option["default"])
                    assert stated[name] == option["default"], f"{name} has two defaults"
        assert (load(role / "defaults/main.yml") or {}) == stated

    def test_every_public_variable_carries_the_roles_prefix(self, role: Path) -> None:
        for entry in load(role / "meta/argument_specs.yml")["argument_specs"].values():
            for name in entry.get("options") or {}:
                assert name.startswith(f"{role.name}_"), name

    def test_every_option_and_entry_point_is_described(self, role: Path) -> None:
        for entry_name, entry in load(role / "meta/argument_specs.yml")["argument_specs"].items():
            assert entry.get("short_description"), entry_name
            assert (role / "tasks" / f"{entry_name}.yml").is_file(), entry_name
            for name, option in (entry.get("options") or {}).items():
                assert option.get("description"), name

    def test_secrets_are_marked(self, role: Path) -> None:
        for entry in load(role / "meta/argument_specs.yml")["argument_specs"].values():
            for name, option in secret_options(entry.get("options") or {}):
                assert option.get("no_log") is True, f"{name} is a secret without no_log"

    def test_main_is_a_table_of_contents(self, role: Path) -> None:
        lines = (role / "tasks/main.yml").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 40
        for task in tasks(load(role / "tasks/main.yml")):
            modules = {key for key in task if key.startswith("ansible.builtin.")}
            assert modules <= CONTENTS, task


@pytest.mark.parametrize("path", [*TASK_FILES, *PLAYBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
class TestTaskFile:
    def test_errors_are_not_ignored(self, path: Path) -> None:
        for task in tasks(load(path)):
            assert not task.get("ignore_errors"), task.get("name")
            assert task.get("failed_when") is not False or "changed_when" in task, task.get("name")

    def test_commands_say_when_they_change_something(self, path: Path) -> None:
        for task in tasks(load(path)):
            for module in COMMAND_MODULES & set(task):
                # `creates` is as honest: the command runs, and reports a change, only where the file is missing.
                assert "changed_when" in task or "creates" in task[module], task.get("name")

    def test_modules_are_fully_qualified(self, path: Path) -> None:
        for task in tasks(load(path)):
            if path in PLAYBOOKS and ("hosts" in task or "ansible.builtin.import_playbook" in task):
                continue
            assert "name" in task, task
            assert "block" in task or any("." in key or key in OWN_MODULES for key in task), task

    def test_is_short(self, path: Path) -> None:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 120

    def test_no_default_stands_at_a_use_site(self, path: Path) -> None:
        if path in PLAYBOOKS:
            return
        assert not re.search(r"\|\s*default\(", path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.name)
def test_playbooks_open_with_their_runbook_header(path: Path) -> None:
    header = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(True) if line.startswith("#")
    )
    for word in ("Purpose", "Inputs", "Effects", "Undo"):
        assert word in header, f"{path.name} does not say its {word}"


@pytest.mark.parametrize(
    "generator", ["generate-role-docs", "generate-cli-docs", "generate-compatibility-docs"]
)
def test_generated_reference_is_current(generator: str) -> None:
    result = subprocess.run(
        [sys.executable, ROOT / "scripts" / generator, "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
