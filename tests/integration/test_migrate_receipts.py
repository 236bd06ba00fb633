"""What a receipt is taken for: its own kind of proof, whole, and nothing else."""

import asyncio
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest

from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.model import SourceCollection
from pgchroma.migrate.questions import Questions
from pgchroma.store import Store
from pgchroma.types import Record, Rows
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


def _answering(wrong: int) -> Callable[..., Awaitable[list[Rows]]]:
    """Return Store.query with so many of the ten answers wrong, as from an index that misses them."""
    query = Store.query

    async def worse(store: Store, *arguments: Any, **options: Any) -> list[Rows]:
        found = await query(store, *arguments, **options)
        for item in found:
            item.ids[:wrong] = [f"wrong-{n}" for n in range(wrong)]
        return found

    return worse


@pytest.mark.parametrize(
    ("wrong", "code"), [(1, ExitCode.OK), (10, ExitCode.VERIFICATION_FAILED)], ids=["low", "absurd"]
)
def test_wrong_answers_are_noticed_and_absurd_ones_are_a_difference(
    folder: Path,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wrong: int,
    code: ExitCode,
) -> None:
    good = run(folder, database_url, tmp_path / "good.json")
    assert good.code == ExitCode.OK
    assert [item["code"] for item in good.json["notices"] if item["code"] == "recall-low"] == []
    verify = ("migrate", "verify", tmp_path / "good.json", "--to", database_url, "--format", "json")
    asked = within(*verify).json
    # One collection has vectors near the end of float32, between which PostgreSQL's distances overflow.
    assert min(item["answers"]["recall"] for item in asked["collections"] if item["answers"]) >= 0.95
    assert asked["notices"] == []

    monkeypatch.setattr(Store, "query", _answering(wrong))
    scope = ("--scope", "south/live", "--rename", "south/live/notes=again")
    done = run(folder, database_url, tmp_path / "r.json", *scope)
    again = within(*verify)
    assert (done.code, again.code) == (code, code), done.stderr
    if code == ExitCode.OK:
        for told in (done.json["notices"], again.json["notices"]):
            assert "90.0%" in next(item["message"] for item in told if item["code"] == "recall-low")
        assert "90.0%" in (tmp_path / "r.html").read_text()
    else:
        assert json.loads((tmp_path / "r.json").read_text())["result"] == "different"
        assert "0.0% of the nearest" in json.dumps(again.json["collections"])


def test_questions_that_nobody_can_judge_are_left_out() -> None:
    collection = SourceCollection(uuid4(), "t", "d", "n", None, {"hnsw": {"space": "l2"}}, None, 4, 100)
    questions = Questions(collection)
    questions.see([Record(n, str(n), np.ones(4, np.float32)) for n in range(100)])

    async def last_ones(*_: object) -> list[list[str]]:
        return [[str(n) for n in range(90, 100)]] * len(questions.vectors)

    assert asyncio.run(questions.put_to(last_ones)) is None
