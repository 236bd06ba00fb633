"""What a receipt is taken for: its own kind of proof, whole, and nothing else."""

import json
import shutil
from pathlib import Path

import pytest

from pgchroma.exit_codes import ExitCode
from support import application, chroma
from support.command import Outcome, here, within


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder to move."""
    return chroma.extract("1.5.9", tmp_path)


def run(source: object, target: object, receipt: Path, *more: object) -> Outcome:
    return within("migrate", "run", source, "--to", target, "--receipt", receipt, "--format", "json", *more)


def test_a_receipt_of_tables_is_proven_as_such_and_removes_nothing(database_url: str, tmp_path: Path) -> None:
    source = application.make(tmp_path / "app.db", messages=50)
    receipt = tmp_path / "tables.json"
    moved = here(
        "tables", "run", source, "--database-url", database_url, "--schema", "app", "--receipt", receipt
    )
    assert moved.code == ExitCode.OK, moved.stderr
    for named in ((receipt,), ("--receipt", receipt)):
        done = here("migrate", "verify", *named, "--database-url", database_url, "--format", "json")
        assert done.code == ExitCode.OK, done.stderr
        assert {item["table"] for item in done.json["tables"]} >= {"users", "messages"}
    for command in (
        ("cleanup", "--receipt", receipt),
        ("run", database_url, "--to", tmp_path / "x", "--since", receipt),
    ):
        refused = within("migrate", *command)
        assert refused.code == ExitCode.CONFIGURATION
        assert "receipt of a move of tables" in refused.stderr


@pytest.mark.parametrize(
    "left_out", ["source", "target", "collections", "run_id", "source.kind", "digest_source"]
)
def test_a_receipt_that_is_not_whole_is_refused_by_what_it_lacks(
    folder: Path, tmp_path: Path, left_out: str
) -> None:
    receipt = tmp_path / "r.json"
    assert run(folder, tmp_path / "x.jsonl", receipt).code == ExitCode.OK
    told = json.loads(receipt.read_text())
    for part in (told, told["source"], told["collections"][0]):
        part.pop(left_out.rpartition(".")[2], None)
    receipt.write_text(json.dumps(told))
    for command in (
        ("verify", "--receipt", receipt),
        ("cleanup", "--receipt", receipt),
        ("run", folder, "--to", tmp_path / "y", "--since", receipt),
    ):
        refused = within("migrate", *command)
        assert refused.code == ExitCode.CONFIGURATION
        assert left_out in refused.stderr


def test_a_receipt_may_be_named_as_the_argument(folder: Path, tmp_path: Path) -> None:
    receipt = tmp_path / "r.json"
    assert run(folder, tmp_path / "x.jsonl", receipt).code == ExitCode.OK
    done = within("migrate", "verify", receipt, "--format", "json")
    assert done.code == ExitCode.OK, done.stderr
    assert done.json["run_id"] == json.loads(receipt.read_text())["run_id"]
    shutil.rmtree(folder)
    assert within("migrate", "verify", receipt).code == ExitCode.SOURCE_UNREADABLE
    assert within("migrate", "verify", receipt, "--against", "receipt").code == ExitCode.OK
