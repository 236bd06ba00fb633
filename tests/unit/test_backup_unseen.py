"""Restores whose end nobody saw, and what is asked of the command that backed-up hosts run in words that it cannot take; without a host."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.backed_up import COMMAND, described, module
from support.waiting import wait_for

backup, engine, errors, marker, planning, proof, receipts, restore, side, target = map(
    module,
    (
        "backup",
        "engine",
        "errors",
        "marker",
        "planning",
        "proof",
        "receipts",
        "restore",
        "side",
        "target",
    ),
)
WANTED = {"time": "2026-11-21 08:00:00Z"}
PLAN = {
    "kind": "restore-plan",
    "target": "time 2026-11-21 08:00:00Z",
    "set": "20261120-080000F",
    "set_ended": "2026-11-20T08:00:10Z",
    "timeline": 1,
    "repository": 1,
    "until": "",
    "kept": "/data.before-restore-1",
    "side": False,
    "ended": "",
    "compares": True,
    "ends": False,
    "resumes": False,
    "flushes": False,
    "running": True,
    "moves": True,
    "command": ["pgbackrest", "restore"],
}


class PlannedError(Exception):
    """A restore that would be made anew."""


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A host whose cluster serves; what asks a repository for anything plans a restore of its own."""

    def anew(*words: Any) -> None:
        raise PlannedError

    host = described(tmp_path)
    (host.data / "global").mkdir(parents=True)
    for name in ("postmaster.opts", "global/pg_control"):
        (host.data / name).touch()
    monkeypatch.setattr(engine, "is_running", lambda host: True)
    monkeypatch.setattr(engine, "is_in_recovery", lambda host: False)
    monkeypatch.setattr(engine, "query", lambda *words, **more: ["2"])
    monkeypatch.setattr(planning, "base", anew)
    monkeypatch.setattr(restore, "recover", lambda host, end: None)
    monkeypatch.setattr(restore, "fill", lambda host, wanted, found, **more: found)
    monkeypatch.setattr(restore.gaps, "even_out_later", lambda host: None)
    monkeypatch.setattr(proof, "own", lambda host, goal: {"by": "test", "digests": ""})
    return host


def restored(host: Any, monkeypatch: pytest.MonkeyPatch, *, unseen: bool) -> None:
    """Carry out a restore to WANTED."""
    with monkeypatch.context() as patch:
        patch.setattr(restore, "plan", lambda host, wanted: dict(PLAN))
        restore.run(host, WANTED, stop=True, unseen=unseen)


def test_a_restore_whose_end_nobody_saw_is_told_of_and_not_made_a_second_time(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored(host, monkeypatch, unseen=True)
    found = planning.plan(host, WANTED)
    assert "HAS ENDED" in found["text"]
    assert PLAN["kept"] in found["text"]
    assert restore.send(host, WANTED)["ended"] == found["ended"] != ""
    again = restore.run(host, WANTED, stop=True, unseen=True)
    assert (again["result"], again["checks"]["by"], again["kept"]) == ("ok", "test", PLAN["kept"])
    assert planning.plan(host, WANTED)["ended"] == found["ended"], "it ended when it did"
    restore.seen(host)
    with pytest.raises(PlannedError):
        planning.plan(host, WANTED)


@pytest.mark.parametrize(
    "other",
    [{**WANTED, "again": True}, {"latest": True}, {"time": "2026-11-21 08:00:01Z"}, {**WANTED, "set": "B"}],
    ids=str,
)
def test_another_restore_is_made_all_the_same(
    host: Any, monkeypatch: pytest.MonkeyPatch, other: dict[str, Any]
) -> None:
    restored(host, monkeypatch, unseen=True)
    with pytest.raises(PlannedError):
        planning.plan(host, other)


def test_who_waits_for_the_end_has_seen_it(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(host, monkeypatch, unseen=False)
    with pytest.raises(PlannedError):
        planning.plan(host, WANTED)


def test_an_end_that_was_not_seen_for_a_day_is_no_answer(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks for the end of the archive then means another end."""
    restored(host, monkeypatch, unseen=True)
    left = receipts.read(host, marker.NAME)
    receipts.write(host, marker.NAME, {**left, "ended": receipts.stamp(time.time() - 25 * 3600)})
    with pytest.raises(PlannedError):
        planning.plan(host, WANTED)


def test_files_that_were_not_in_service_are_not_taken_for_its_end(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored(host, monkeypatch, unseen=True)
    (host.data / "postmaster.opts").unlink()
    with pytest.raises(PlannedError):
        planning.plan(host, WANTED)


def test_a_server_that_was_stopped_since_is_started(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(host, monkeypatch, unseen=True)
    monkeypatch.setattr(engine, "is_running", lambda host: False)
    assert f"systemctl start {host.service}; nothing is stopped" in planning.plan(host, WANTED)["text"]


def damaged(*words: Any) -> None:
    raise errors.DamagedError("not what was backed up", "")


def test_what_was_found_damaged_stays_so_and_is_not_made_again_unasked(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(proof, "own", damaged)
        with pytest.raises(errors.DamagedError):
            restored(host, patch, unseen=True)
    assert "DAMAGED    not what was backed up" in planning.plan(host, WANTED)["text"]
    with pytest.raises(errors.DamagedError, match="not what was backed up") as caught:
        restore.run(host, WANTED, stop=True, unseen=True)
    assert caught.value.receipt["result"] == "damaged"
    with pytest.raises(PlannedError):
        planning.plan(host, {**WANTED, "set": "older"})


def test_records_are_not_compared_once_they_may_have_been_written_to(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a run that was killed before its proof, nor one that failed, is told of as damage hours later."""
    unproven = errors.BackupError("no pgchroma", "")
    with monkeypatch.context() as patch:
        patch.setattr(proof, "own", lambda *words: (_ for _ in ()).throw(unproven))
        with pytest.raises(errors.BackupError):
            restored(host, patch, unseen=True)
    monkeypatch.setattr(proof, "own", damaged)
    assert restore.run(host, WANTED, stop=True, unseen=True)["checks"] == {"by": "", "digests": ""}


def test_one_made_again_that_was_cut_off_is_not_made_a_third_time(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = {**WANTED, "again": True}
    with monkeypatch.context() as patch:
        patch.setattr(restore, "plan", lambda host, wanted: dict(PLAN))
        restore.run(host, again, stop=True, unseen=True)
    for wanted, remedy in ((again, "run pgchroma-backup restore-seen"), (WANTED, 'add "again": true')):
        text = planning.plan(host, wanted)["text"]
        assert "HAS ENDED" in text
        assert remedy in text


def test_what_is_not_as_was_shown_is_refused(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers run on where it had ended, and a restore anew would take the database away under them."""
    restored(host, monkeypatch, unseen=True)
    ended = planning.plan(host, WANTED)["ended"]
    with pytest.raises(errors.RefusedError, match="not what the plan said"):
        restore.run(host, WANTED, stop=True, unseen=True, ended="")
    assert restore.run(host, WANTED, stop=True, unseen=True, ended=ended)["kind"] == "restore-ended"


def test_a_marker_of_an_older_release_is_seen_to_its_end_too(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a one knows nothing of an end that nobody saw."""
    plan = {key: value for key, value in PLAN.items() if key not in ("ended", "compares")}
    marker.write(host, marker.RECOVERING, WANTED, plan, receipts.now())
    (host.data / "standby.signal").touch()
    monkeypatch.setattr(engine, "is_in_recovery", lambda host: True)
    assert restore.run(host, WANTED, stop=True, unseen=True, ended="")["kind"] == "restore"
    assert marker.unseen(host)["plan"]["kept"] == PLAN["kept"]


def test_repositories_are_named_by_number_or_name(host: Any) -> None:
    every = list(host.repositories)
    for given in ([], ["0"], [""]):
        assert host.chosen(given) == every
    assert host.chosen(["2", "offsite", " local "]) == [every[1], every[0]]
    crossed = replace(host, repositories=(replace(every[0], name="2"), every[1]))
    assert crossed.repository(2).name == "offsite", "a number is a number first"
    for wrong in ("nonsense", "9", "-1"):
        with pytest.raises(errors.BackupError, match=f"no repository {wrong}") as caught:
            host.chosen([wrong])
        assert "local" in caught.value.hint


def test_what_a_backup_would_do_is_told(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [{"label": "20261120-080000F", "timestamp": {"stop": 1000}}]

    def labels(host: Any, repository: Any) -> Any:
        if repository.number == 2:
            raise errors.BackupError("it is away", "")
        return held

    monkeypatch.setattr(backup, "labels", labels)
    text = backup.plan(host, "incr", [])["text"]
    assert "Take an incr backup into repository 1 (local" in text
    assert "the newest is 20261120-080000F, ended 1970-01-01T00:16:40Z" in text
    assert "--repo=1 --type=incr --no-expire-auto backup" in text
    assert "CANNOT BE READ: it is away" in text
    held.clear()
    assert "it will be a full one" in backup.plan(host, "incr", ["local"])["text"]


@pytest.mark.parametrize(
    "wanted",
    [
        {"latest": True, "timeline": "²"},
        {"latest": True, "timeline": "٣"},
        {"xid": "²"},
        {"latest": True, "directory": "/srv/side", "port": "5440²"},
        {"latest": True, "again": "maybe"},
    ],
    ids=str,
)
def test_numbers_in_other_digits_are_refused(wanted: dict[str, Any]) -> None:
    with pytest.raises(errors.BackupError) as caught:
        target.read(wanted)
    assert caught.value.code == errors.USAGE


@pytest.mark.parametrize(
    ("directory", "says"),
    [
        ("repository", "holds or lies in repository 1"),
        ("repository/side", "holds or lies in repository 1"),
        ("file/side", "file is no directory"),
    ],
)
def test_a_copy_is_not_made_where_it_cannot_be(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, directory: str, says: str
) -> None:
    monkeypatch.setattr(side, "is_running", lambda host, place: False)
    (tmp_path / "file").touch()
    kept = replace(host.repositories[0], where=str(tmp_path / "repository"))
    there = replace(host, repositories=(kept,))
    goal = target.read({"latest": True, "directory": str(tmp_path / directory), "port": 5440})
    with pytest.raises(errors.RefusedError, match=says):
        side.refuse(there, goal)
    goal = target.read({"latest": True, "directory": str(tmp_path / "free/side"), "port": 5440})
    side.refuse(there, goal)


def test_a_copy_that_has_no_room_is_told_of_other_places(host: Any) -> None:
    found = {"directory": "/srv/side/data", "free_bytes": 0, "side": True}
    with pytest.raises(errors.RefusedError) as caught:
        planning.refuse_full(found, 1)
    assert "another file system" in caught.value.hint
    assert "overwrite" not in caught.value.hint
    with pytest.raises(errors.RefusedError) as caught:
        planning.refuse_full({**found, "side": False}, 1)
    assert "overwrite: true" in caught.value.hint


def test_an_interrupt_from_the_keyboard_ends_it_without_a_traceback(tmp_path: Path) -> None:
    """pgBackRest is at work; what it is doing is ended with the command."""
    tools = tmp_path / "bin"
    tools.mkdir()
    stub = tools / "pgbackrest"
    stub.write_text(f"#!/bin/sh\ntouch {tmp_path}/begun\nexec sleep 60\n", encoding="utf-8")
    stub.chmod(0o755)
    described(tmp_path)
    run = "import sys; from pgchroma_backup import __main__, engine; engine.as_postgres = lambda command: command; sys.exit(__main__.main())"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(COMMAND)}
    with subprocess.Popen(
        [sys.executable, "-c", run, "--settings", str(tmp_path / "settings.json"), "info", "--json"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for("it runs", lambda: (tmp_path / "begun").exists() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGINT, said
    assert "Traceback" not in said
