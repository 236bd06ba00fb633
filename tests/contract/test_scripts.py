"""Every script runs by its own name: from a checkout, on a host with pgchroma installed, and without either it says what to do."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgchroma.cli.validate import verifier
from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.receipt import FORMAT
from support.command import pgchroma

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {
    "migrate_chroma_sqlite_to_postgres.py": "SOURCE",
    "backup_chroma_sqlite.py": "COMMAND [ARGS]...",
    "export_chromadb.py": "[SOURCE] TARGET",
    "reimport_to_chromadb.py": "SOURCE",
    "validate_migration.py": "[SOURCE]",
    "migrate_sqlite_to_postgres.py": "COMMAND [ARGS]...",
    "backup.py": "FOLDER",
    "restore.py": "FOLDER",
}


def ran(script: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    # The system's own Python, which has none of pgchroma's packages.
    return subprocess.run(
        [script, "--help"],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
    )


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """The scripts beside no virtual environment, for a host whose installation is in tmp_path/current."""
    folder = shutil.copytree(ROOT / "scripts", tmp_path / "scripts", ignore=shutil.ignore_patterns("_*"))
    entry = folder / "entry.py"
    entry.write_text(entry.read_text().replace("/opt/pgchroma/current", str(tmp_path / "current")))
    return folder


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_from_a_checkout(name: str, tmp_path: Path) -> None:
    done = ran(ROOT / "scripts" / name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"Usage: {name} [OPTIONS] {SCRIPTS[name]}"


def test_a_script_runs_where_pgchroma_is_installed(elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "current").symlink_to(sys.prefix)
    for name in ("migrate_sqlite_to_postgres.py", "validate_migration.py"):
        done = ran(elsewhere / name, tmp_path)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", ["export_chromadb.py", "validate_migration.py"])
def test_a_script_without_pgchroma_says_what_to_do(name: str, elsewhere: Path, tmp_path: Path) -> None:
    done = ran(elsewhere / name, tmp_path)
    assert done.returncode == ExitCode.CONFIGURATION
    assert "pgchroma is not installed" in done.stderr
    assert f"run `make venv` in {tmp_path}" in done.stderr
    assert "Traceback" not in done.stderr


# Ctrl-C while modules are imported, which takes most of the first second.
INTERRUPTED = """
import builtins, runpy, sys
real = builtins.__import__
def interrupted(name, *rest, **named):
    if name == {module!r}:
        raise KeyboardInterrupt
    return real(name, *rest, **named)
builtins.__import__ = interrupted
sys.path.insert(0, {folder!r})
sys.argv = ["it", "--help"]
{start}
"""


@pytest.mark.parametrize("module", ["pgchroma.cli.main", "click"])
@pytest.mark.parametrize(
    "start",
    [
        "runpy.run_path('backup.py', run_name='__main__')",
        "runpy.run_path('validate_migration.py', run_name='__main__')",
        "runpy.run_module('pgchroma', run_name='__main__')",
    ],
)
def test_an_interruption_of_the_imports_ends_quietly(start: str, module: str) -> None:
    program = INTERRUPTED.format(module=module, folder=str(ROOT / "scripts"), start=start)
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT / "scripts", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.STOPPED, "", "")


def test_an_interrupted_command_ends_as_a_shell_expects(tmp_path: Path) -> None:
    prelude = (
        "from pgchroma.backup import container\n"
        "def read_manifest(folder):\n    raise KeyboardInterrupt\n"
        "container.read_manifest = read_manifest\n"
    )
    outcome = pgchroma("backup", "verify-dump", tmp_path, prelude=prelude)
    assert (outcome.code, outcome.stderr.strip()) == (ExitCode.STOPPED, "interrupted")


@pytest.mark.parametrize(("kind", "path"), [("tables", "tables"), (None, "migrate")])
def test_a_receipt_is_handed_to_what_verifies_its_kind(kind: str | None, path: str, tmp_path: Path) -> None:
    receipt = tmp_path / "receipt.json"
    receipt.write_text(json.dumps({"format": FORMAT, **({"kind": kind} if kind else {})}))
    for given in (["--receipt", str(receipt)], [str(receipt)], ["--log-file", "x.json", str(receipt)]):
        command, arguments = verifier(given)
        assert (command.callback or verifier).__module__.startswith(f"pgchroma.cli.{path}")
        assert arguments[-2:] == ["--receipt", str(receipt)]
    # Two places are compared without any.
    command, arguments = verifier(["a.jsonl", "--to", "b.jsonl"])
    assert (command.name, arguments) == ("verify", ["a.jsonl", "--to", "b.jsonl"])
