"""The command that backed-up hosts run, killed half-way, beside another run of itself, or on a disk that is full; without a host."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from support.backed_up import described, module
from support.waiting import wait_for

(
    alert,
    backup,
    condition,
    drill,
    engine,
    errors,
    marker,
    planning,
    point,
    processes,
    proof,
    receipts,
    restore,
    side,
    verification,
) = map(
    module,
    (
        "alert",
        "backup",
        "condition",
        "drill",
        "engine",
        "errors",
        "marker",
        "planning",
        "point",
        "processes",
        "proof",
        "receipts",
        "restore",
        "side",
        "verification",
    ),
)
FULL = OSError(28, "No space left on device")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(engine, "as_postgres", lambda command: command)
    monkeypatch.setattr(engine, "is_running", lambda host: False)
    monkeypatch.setattr(point.shutil, "chown", lambda *words: None)
    return described(tmp_path)


def cluster(directory: Path, *files: str) -> Path:
    """Make a data directory that a server was started on."""
    (directory / "global").mkdir(parents=True)
    for name in ("postmaster.opts", "global/pg_control", "postgresql.auto.conf", *files):
        (directory / name).touch()
    return directory


def stopped(*words: Any) -> None:
    raise KeyboardInterrupt


# What a restore has left behind, and whether it is gone on with.
LEFT = [
    (marker.RECOVERING, ("standby.signal",), True),
    (marker.RECOVERING, ("recovery.signal",), True),
    (marker.RECOVERING, (), False),
    (marker.COPYING, (), False),
    (marker.MOVING, (), True),
]


@pytest.mark.parametrize(("phase", "files", "resumed"), LEFT)
def test_a_cluster_that_served_since_its_restore_is_no_half_of_one(
    host: Any, phase: str, files: tuple[str, ...], resumed: bool
) -> None:
    """Its server may be down when the next restore begins: its files are kept like any other's."""
    cluster(host.data, *files)
    plan = {"kept": "/gone", "target": "latest"}
    marker.write(host, phase, {"latest": True}, plan, "2026-11-21T08:00:00Z")
    now = condition.of(host)
    assert (now.resumed is not None) is resumed
    if not resumed:
        assert now.moves, "its files are moved away, and nothing is copied over them"
        goal = module("target").read({"latest": True})
        assert planning.in_place(host, goal, now)["kept"].startswith(f"{host.data}.before-restore-")


def test_files_that_no_server_was_started_on_are_gone_on_with(host: Any) -> None:
    (host.data / "global").mkdir(parents=True)
    marker.write(host, marker.COPYING, {"latest": True}, {"kept": "/k", "target": "latest"}, "")
    assert condition.of(host).resumed is not None


def test_a_marker_that_cannot_be_read_is_not_taken_for_none(host: Any) -> None:
    (host.state / marker.NAME).write_text('{"phase": "cop', encoding="utf-8")
    with pytest.raises(errors.BackupError, match=r"restore\.json cannot be read, or is damaged"):
        condition.of(host)


def moved_by_link(data: Path) -> None:
    cluster(data.with_name("elsewhere"))
    data.symlink_to(data.with_name("elsewhere"))


def moved_with_tablespace(data: Path) -> None:
    (cluster(data) / "pg_tblspc").mkdir()
    (data / "pg_tblspc/16500").symlink_to("/srv/space")


@pytest.mark.parametrize(
    ("make", "says"), [(moved_by_link, "it is a link to"), (moved_with_tablespace, "pg_tblspc/16500")]
)
def test_what_cannot_be_moved_away_whole_is_refused_before_anything_stops(
    host: Any, make: Callable[[Path], None], says: str
) -> None:
    make(host.data)
    read = module("target").read
    now = condition.of(host)
    with pytest.raises(errors.RefusedError, match=says) as caught:
        planning.in_place(host, read({"latest": True}), now)
    assert "overwrite: true" in caught.value.hint
    assert planning.in_place(host, read({"latest": True, "overwrite": True}), now)["kept"] == ""


def test_a_bare_data_directory_is_emptied_where_it_is(host: Any) -> None:
    """It may be a file system of its own, which cannot be removed."""
    cluster(host.data)
    (host.data / "pg_wal").symlink_to("/srv/wal")
    before = host.data.stat().st_ino
    restore.make_way(host, {"kept": ""})
    assert list(host.data.iterdir()) == []
    assert host.data.stat().st_ino == before


# A run of the command that says the number of pgBackRest's process and is killed then.
KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pgchroma_backup import __main__, engine, processes
engine.as_postgres = lambda command: command
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, __main__.end)
code = "import os, signal; print(os.getpid(), file=open({told!r}, 'w'), flush=True); signal.pause()"
processes.run_restore(["bash", "-c", 'exec -a pgbackrest {python} -c "$0" restore', code])
"""


@pytest.mark.parametrize("number", [9, 15, 1], ids=["SIGKILL", "SIGTERM", "SIGHUP"])
def test_no_restore_goes_on_when_the_run_that_began_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It writes to the path of the data directory, where the former one may be in service again."""
    told = tmp_path / "told"
    script = KILLED.format(path=sys.path, told=str(told), python=sys.executable)
    monkeypatch.setattr(engine, "as_postgres", lambda command: command)
    with subprocess.Popen([sys.executable, "-c", script]) as run:
        wait_for("its number", lambda: told.exists() and told.read_text(encoding="utf-8").endswith("\n"))
        left = int(told.read_text(encoding="utf-8"))
        assert left not in processes.orphans(), "somebody waits for it"
        run.send_signal(number)
        run.wait(10)
    if number == 9:
        assert left in processes.orphans()
    processes.end_orphans()
    wait_for("it is gone", lambda: not processes.arguments(Path(f"/proc/{left}")), seconds=5)


def test_what_runs_in_a_container_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its processes are seen from the host, but the ids it gives them are others."""
    monkeypatch.setenv(processes.OWNER, "999999999:1:pid:[1]")
    script = "import signal, sys; print(flush=True); signal.pause()"
    words = ["pgbackrest", "-c", script, "restore"]
    with subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert other.pid not in processes.orphans()
        other.kill()
    monkeypatch.setenv(processes.OWNER, f"999999999:1:{processes.numbering()}")
    with subprocess.Popen(words, executable=sys.executable, stdout=subprocess.PIPE) as left:
        assert left.stdout is not None
        left.stdout.readline()
        assert left.pid in processes.orphans()
        left.kill()


def test_a_process_that_is_hidden_is_not_taken_for_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = processes.own_mark().split(":")[1]
    this = Path(f"/proc/{os.getpid()}")
    assert not processes.is_gone(this, mark)
    assert processes.is_gone(this, "1"), "another process of that number"
    monkeypatch.setattr(processes, "status_of", lambda process: [])
    assert not processes.is_gone(this, mark)


@pytest.fixture
def kept(host: Any) -> Path:
    """A restored cluster, and the former one of two that restores have kept."""
    cluster(host.data, "restored")
    cluster(host.data.with_name("data.before-restore-20261120T080000Z"), "oldest")
    return cluster(host.data.with_name("data.before-restore-20261121T080000Z"), "former")


# Where the return is interrupted: before a function is called that often.
STOPS = [
    ("begin_timeline", 0),
    ("rename", 0),
    ("rename", 1),
    ("recover", 0),
    ("close", 0),
]


@pytest.mark.parametrize(("where", "after"), STOPS, ids=lambda value: str(value))
def test_a_return_to_the_former_data_is_gone_on_with(
    host: Any, kept: Path, monkeypatch: pytest.MonkeyPatch, where: str, after: int
) -> None:
    """The former cluster comes into service, whichever step was the last; never an older one, and never none."""
    monkeypatch.setattr(restore, "recover", lambda host: None)
    with monkeypatch.context() as patch:
        owner, name = {
            "begin_timeline": (point, "begin_timeline"),
            "rename": (Path, "rename"),
            "recover": (restore, "recover"),
            "close": (marker, "close"),
        }[where]
        usual, calls = getattr(owner, name), [0]

        def stop(*words: Any) -> Any:
            calls[0] += 1
            return stopped() if calls[0] > after else usual(*words)

        patch.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            point.finish(host, "former")
    if kept.exists():
        with pytest.raises(errors.RefusedError, match="was interrupted"):
            condition.of(host)
    with pytest.raises(errors.RefusedError, match="was interrupted"):
        point.finish(host, "restored")
    point.finish(host, "former")
    assert (host.data / "former").exists()
    assert (host.data / "recovery.signal").exists(), "on a timeline of its own"
    (rejected,) = host.data.parent.glob("data.rejected-*")
    assert (rejected / "restored").exists()
    assert [path.name for path in point.kept(host)] == ["data.before-restore-20261120T080000Z"]
    assert marker.returning(host) is None


def test_a_kept_directory_that_is_half_removed_is_not_put_back(
    host: Any, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "is_running", lambda host: True)
    monkeypatch.setattr(engine, "is_in_recovery", lambda host: False)
    marker.write(host, marker.RECOVERING, {}, {"kept": str(kept), "target": "latest"}, "")
    with monkeypatch.context() as patch:
        patch.setattr(point.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            point.finish(host, "restored")
    assert [path.name for path in point.kept(host)] == [kept.name], "the one it had not come to"
    done = point.finish(host, "restored")
    assert len(done["directories"]) == 2
    assert not list(host.data.parent.glob("data.*"))
    assert marker.read(host) is None, "no restore is under way"
    with pytest.raises(errors.RefusedError, match="kept a data directory"):
        point.finish(host, "restored")


def test_a_copy_that_is_half_removed_can_be_removed(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "side"
    (place / "data").mkdir(parents=True)
    (place / side.MARKER).touch()
    monkeypatch.setattr(side, "is_running", lambda host, place: False)
    with monkeypatch.context() as patch:
        patch.setattr(side.shutil, "rmtree", stopped)
        with pytest.raises(KeyboardInterrupt):
            side.remove(host, str(place))
    side.remove(host, str(place))
    assert not place.exists()


def test_a_receipt_that_cannot_be_written_leaves_nothing(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts.write(host, "r.json", {"old": True})

    def full(*words: Any) -> None:
        raise FULL

    monkeypatch.setattr(receipts.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        receipts.write(host, "r.json", {"old": False})
    assert receipts.read(host, "r.json") == {"old": True}
    assert sorted(path.name for path in host.state.iterdir()) == ["r.json", "settings.json"]


def test_an_alert_reaches_the_operator_from_a_full_disk(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a journal that does not answer keep it back."""

    def full(*words: Any) -> None:
        raise FULL

    def slow(command: list[str], timeout: float) -> Any:
        raise errors.BackupError(f"{command[0]} did not end within {timeout:g} s", "")

    monkeypatch.setattr(receipts, "write", full)
    monkeypatch.setattr(engine, "run", slow)
    told = tmp_path / "told"
    here = replace(host, alert_command=("tee", str(told)))
    with pytest.raises(errors.BackupError, match=r"was not written: .*No space left"):
        alert.run(here, "u.service")
    assert json.loads(told.read_text(encoding="utf-8"))["unit"] == "u.service"
    with pytest.raises(errors.BackupError, match="2 things went wrong") as caught:
        alert.run(replace(host, alert_command=("/not/there",)), "u.service")
    assert "pgbackrest_alert_command" in str(caught.value)


def test_a_drill_that_has_no_room_says_so(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*words: Any) -> None:
        raise FULL

    noted: list[dict[str, Any]] = []
    monkeypatch.setattr(drill, "recorded", full)
    monkeypatch.setattr(drill, "note", lambda host, receipt: noted.append(receipt))
    with pytest.raises(OSError, match="No space left"):
        drill.run(host, "1")
    assert "No space left" in noted[0]["detail"]
    assert "No space left" in module("check").drills(host)[0]["detail"]


def taken(host: Any, monkeypatch: pytest.MonkeyPatch, **fails: Any) -> list[str]:
    """Take a backup into each repository with some step failing for the first; return what was done."""
    done: list[str] = []

    def step(name: str, result: Any = None) -> Callable[..., Any]:
        def call(host: Any, *words: Any) -> Any:
            repository = next((word for word in words if hasattr(word, "number")), host.repositories[0])
            done.append(f"{name} {repository.name}")
            if repository.number == 1 and name in fails:
                raise fails[name]
            return {"label": f"L{repository.number}", "type": "full"} if name == "take" else result

        return call

    def digests(host: Any, last: dict[str, Any]) -> dict[str, Any]:
        done.append(f"digests {last['label']}")
        return {}

    for name in ("take", "drop_damaged", "forget", "note_first"):
        monkeypatch.setattr(backup, name, step(name))
    monkeypatch.setattr(backup, "keep", lambda host, receipt: done.append(f"keep {receipt['label']}"))
    monkeypatch.setattr(backup.engine, "pgbackrest", lambda *words: "")
    monkeypatch.setattr(backup, "checksum_failures", lambda host: 0)
    monkeypatch.setattr(backup, "record_digests", digests)
    with pytest.raises(errors.BackupError) as caught:
        backup.run(host, "full", [])
    return [*done, str(caught.value)]


def test_what_fails_for_one_repository_keeps_no_other_from_its_backup(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = taken(host, monkeypatch, take=FULL)
    assert "take offsite" in done
    assert "digests L2" in done
    assert "full backup into repository 1 (local: posix, /r): the disk is full" in done[-1]


def test_a_backup_counts_where_old_ones_cannot_be_expired(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = errors.BackupError("removing the damaged A", "look", errors.UNREACHABLE)
    done = taken(host, monkeypatch, drop_damaged=gone)
    assert {"keep L1", "keep L2", "note_first local", "digests L2"} <= set(done)
    assert "the new backup is there and good" in done[-1]


def test_a_server_that_does_not_tell_of_damage_hides_nothing_else(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(host: Any) -> int:
        raise errors.BackupError("PostgreSQL says: no", "start it", errors.NOT_READY)

    monkeypatch.setattr(backup, "checksum_failures", silent)
    assert [error.message for error in backup.met(host)] == ["PostgreSQL says: no"]
    monkeypatch.setattr(backup, "checksum_failures", lambda host: 3)
    assert "3 pages with a wrong checksum" in backup.met(host)[0].message


def test_receipts_of_another_repository_are_not_forgotten(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One may be named as another ends."""
    names = [
        f"backup-{label}-{name}.json"
        for label in ("20261120-080000F", "20261120-080000F_20261121-080000I")
        for name in ("local", "off-local")
    ]
    for name in names:
        (host.state / name).touch()
    monkeypatch.setattr(backup, "labels", lambda host, repository: [{"label": "20261120-080000F"}])
    backup.forget(host, host.repositories[0])
    assert [name for name in names if not (host.state / name).exists()] == [names[2]]


def test_damage_is_told_before_what_only_does_not_answer(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def verify(host: Any, repository: Any) -> dict[str, Any]:
        if repository.number == 1:
            raise errors.BackupError("it is away", "see that it answers", errors.UNREACHABLE)
        return {"repository": 2, "name": "offsite", "ok": False, "problems": ["checksum invalid"], "text": ""}

    monkeypatch.setattr(verification, "verify", verify)
    with pytest.raises(errors.BackupError) as caught:
        verification.run(host, [])
    assert caught.value.code == errors.DAMAGED
    assert "take a full backup now" in caught.value.hint
    assert "see that it answers" in caught.value.hint


@pytest.mark.parametrize(("status", "result"), [(8, "damaged"), (4, "unproven"), (1, "unproven")])
def test_a_proof_that_could_not_be_made_is_no_damage(
    host: Any, monkeypatch: pytest.MonkeyPatch, status: int, result: str
) -> None:
    monkeypatch.setattr(engine, "run", lambda command, **_: engine.Done(status, "", "why\n"))
    with pytest.raises(errors.BackupError, match="why") as caught:
        proof.keep(host, {"kind": "restore"}, lambda: proof.check(host, "url", None))
    assert caught.value.code == status
    receipt = json.loads(next(host.state.glob("restore-*.json")).read_text(encoding="utf-8"))
    assert receipt["result"] == result


def test_what_the_server_warns_of_is_no_part_of_its_answer(host: Any, tmp_path: Path) -> None:
    """A database warns at every connection when the system's collations have changed."""
    psql = tmp_path / "psql"
    psql.write_text('#!/bin/sh\necho "WARNING:  collation version mismatch" >&2; cat >/dev/null; echo f\n')
    psql.chmod(0o755)
    here = replace(host, bin_dir=str(tmp_path))
    assert engine.query(here, "SELECT pg_is_in_recovery()") == ["f"]
    assert not engine.is_in_recovery(here)


def test_of_two_restore_points_at_once_none_is_forgotten(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "query", lambda host, statement, **_: ["0/1\t1"])
    with (
        receipts.alone(host, "restore-point"),
        pytest.raises(errors.RefusedError, match="another restore-point is at work"),
    ):
        point.create(host, "a")
    monkeypatch.setattr(point.wal, "switch", lambda host: "S")
    monkeypatch.setattr(point.wal, "missing", lambda host, name: {})
    assert point.create(host, "a")["repositories"] == [1, 2]
    with pytest.raises(errors.RefusedError, match="there is a restore point 'a' already"):
        point.create(host, "a")
    (host.state / receipts.POINTS).write_text("", encoding="utf-8")
    with pytest.raises(errors.BackupError, match="is damaged"):
        point.create(host, "b")


def test_a_drill_takes_the_backup_before_one_whose_digests_are_still_to_come(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digests are recorded when the last of several repositories has its backup, which may take hours."""
    held = [
        {"label": label, "error": False, "lsn": {"stop": lsn}, "database": {"repo-key": 1}}
        for label, lsn in (("A", "0/3000000"), ("B", "0/5000000"))
    ]
    found = (1, {"backup": held})
    monkeypatch.setattr(drill.ways, "choose_repository", lambda *words: found)
    recorded = {"point": "p", "lsn": "0/4000000", "wal_file": "000000010000000000000004"}
    with pytest.raises(errors.BackupError, match="no digests were recorded after B"):
        drill.wanted(host, host.repositories[0], recorded)
    with receipts.at_work(host, backup.AT_WORK):
        assert drill.wanted(host, host.repositories[0], recorded)["set"] == "A"
    assert not receipts.is_held(host, backup.AT_WORK)
