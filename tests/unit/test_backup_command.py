"""The command that backed-up hosts run: reading targets, choosing backups, understanding pgBackRest; without a host."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.backed_up import described, module
from support.waiting import wait_for

(
    alert,
    backup,
    check,
    drill,
    engine,
    errors,
    gaps,
    marker,
    planning,
    processes,
    proof,
    receipts,
    recovery,
    restore,
    settings,
    side,
    target,
    timelines,
    verification,
    wal,
    ways,
) = map(
    module,
    (
        "alert",
        "backup",
        "check",
        "drill",
        "engine",
        "errors",
        "gaps",
        "marker",
        "planning",
        "processes",
        "proof",
        "receipts",
        "recovery",
        "restore",
        "settings",
        "side",
        "target",
        "timelines",
        "verification",
        "wal",
        "ways",
    ),
)


@pytest.fixture
def host(tmp_path: Path) -> Any:
    return described(tmp_path)


def entry(
    label: str, stop: float, lsn: str, *, error: bool = False, repository: int = 1, timeline: int = 1
) -> dict[str, Any]:
    return {
        "label": label,
        "error": error,
        "timestamp": {"start": stop - 10, "stop": stop},
        "lsn": {"start": lsn, "stop": lsn},
        "database": {"id": 1, "repo-key": repository},
        "archive": {
            "start": f"{timeline:08X}0000000000000002",
            "stop": f"{timeline:08X}0000000000000003",
        },
    }


INFO = {
    "backup": [
        entry("A", 1000, "0/3000000"),
        entry("B", 2000, "0/5000000"),
        entry("C", 3000, "1/0", error=True),
        entry("D", 2500, "0/6000000", repository=2),
    ],
    "archive": [{"id": "17-1", "database": {"id": 1, "repo-key": 1}}],
    "repo": [
        {"key": 1, "status": {"code": 0, "message": "ok"}},
        {"key": 2, "status": {"code": 0, "message": "ok"}},
    ],
}


@pytest.fixture
def archived(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have the archive hold these: what is in each folder, and the text of each history file."""

    def hold(**files: str) -> None:
        answers = {"archive/main/17-1" + name.replace("at_", "/"): text for name, text in files.items()}
        answers = {name.replace("_history", ".history"): text for name, text in answers.items()}
        answers["archive/main/17-1"] = answers.pop("archive/main/17-1names", "0000000100000000")
        monkeypatch.setattr(timelines, "stored", lambda host, number, verb, path: answers[path])

    return hold


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1970-01-01 00:33:20Z", 2000),
        ("1970-01-01T01:33:20+01:00", 2000),
        ("1970-01-01 01:33:20+01", 2000),
        ("1970-01-01 00:33:20.5 UTC", 2000.5),
    ],
)
def test_a_time_is_read_with_its_zone(text: str, seconds: float) -> None:
    assert target.read({"time": text}).moment == seconds


SIDE = {"latest": True, "directory": "/srv/side", "port": 5440}


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("latest", "no dictionary"),
        (["latest"], "no dictionary"),
        (None, "no dictionary"),
        ({"latest": "false"}, "latest is 'false'"),
        ({"latest": "soon"}, "latest is 'soon'"),
        ({"latest": ["true"]}, "latest is"),
        ({"name": True}, "name is True"),
        ({"time": {"a": 1}}, "time is"),
        ({"latest": True, "exclusive": True}, "exclusive says nothing about latest"),
        ({"name": "p", "exclusive": True}, "exclusive says nothing about name"),
        ({"latest": True, "overwrite": "perhaps"}, "overwrite is 'perhaps'"),
        ({"latest": True, "timeline": True}, "timeline is True"),
        ({"latest": True, "timeline": "new"}, "not a timeline"),
        ({"latest": True, "set": ["A"]}, "set is"),
        ({"latest": True, "repository": 1.5}, "repository is 1.5"),
        ({**SIDE, "port": "abc"}, "'abc' is not a port"),
        ({**SIDE, "port": 99999}, "'99999' is not a port"),
        ({**SIDE, "port": "0"}, "'0' is not a port"),
        ({**SIDE, "port": -1}, "'-1' is not a port"),
        ({**SIDE, "directory": "side"}, "not an absolute path"),
        ({**SIDE, "directory": "/srv/it's"}, "may not stand in it"),
        ({**SIDE, "directory": "/srv/$(x)"}, "may not stand in it"),
        ({**SIDE, "directory": "/srv/%p"}, "may not stand in it"),
        ({**SIDE, "directory": "/srv/a\nb"}, "may not stand in it"),
    ],
    ids=str,
)
def test_what_is_no_target_is_told_so(wanted: object, says: str) -> None:
    with pytest.raises(errors.BackupError, match=re.escape(says)) as caught:
        target.read(wanted)
    assert caught.value.code == errors.USAGE
    assert caught.value.hint


def test_yes_and_no_are_read_as_ansible_hands_them_on() -> None:
    read = target.read({"latest": "true", "overwrite": "yes", "replicas_left": "no", "exclusive": "False"})
    assert (read.kind, read.overwrite, read.replicas_left, read.exclusive) == ("latest", True, False, False)


def test_a_repository_goes_by_number_or_name(host: Any) -> None:
    assert [
        ways.choose_repository(host, target.read({"latest": True, "repository": one}), lambda number: INFO)[0]
        for one in (2, "2", "offsite", 0)
    ] == [2, 2, 2, 1]
    with pytest.raises(errors.BackupError, match="no repository s3"):
        ways.choose_repository(host, target.read({"latest": True, "repository": "s3"}), lambda number: INFO)


@pytest.mark.parametrize(
    ("wanted", "label"),
    [
        ({"time": "1970-01-01 00:33:21Z"}, "B"),
        ({"time": "1970-01-01 00:33:20Z"}, "A"),  # B had not ended yet
        ({"lsn": "0/5000000"}, "B"),
        ({"lsn": "0/4FFFFFF"}, "A"),
        ({"latest": True}, "B"),  # C is damaged
        ({"latest": True, "set": "C"}, "C"),
        ({"immediate": True, "set": "A"}, "A"),
    ],
    ids=str,
)
def test_the_newest_good_backup_before_the_target_is_chosen(
    host: Any, wanted: dict[str, Any], label: str, archived: Callable[..., None]
) -> None:
    archived()
    assert ways.choose(host, INFO, target.read(wanted), 1).backup["label"] == label


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ({"time": "1970-01-01 00:33:20Z", "set": "B"}, "lies before the end of B"),
        ({"lsn": "0/4FFFFFF", "set": "B"}, "lies before the end of B"),
        ({"time": "2999-01-01 00:00:00Z", "set": "B"}, "has not come yet"),
    ],
    ids=str,
)
def test_a_named_set_that_cannot_end_where_it_is_to_is_refused(
    host: Any, wanted: dict[str, Any], says: str, archived: Callable[..., None]
) -> None:
    """Recovery would stop after the moment, and say that it had come there."""
    archived()
    with pytest.raises(errors.RefusedError, match=says):
        ways.choose(host, INFO, target.read(wanted), 1)


@pytest.mark.parametrize("directory", ["/", "//"])
def test_the_root_is_no_directory_for_a_copy(directory: str) -> None:
    """Without its slash it would be none, and a copy a restore in place."""
    with pytest.raises(errors.BackupError, match="is no directory for a copy"):
        target.read({"latest": True, "directory": directory, "port": 5440})


# Two backups, a restore to between them (timeline 2), two backups there, a restore to between those (timeline 3), one backup there.
FORKED = {
    **INFO,
    "backup": [
        entry("A", 1000, "0/3000000"),
        entry("B", 2000, "0/5000000"),
        entry("C", 3000, "0/6000000", timeline=2),
        entry("D", 4000, "0/8000000", timeline=2),
        entry("E", 5000, "0/9000000", timeline=3),
    ],
}
FORKS = {
    "names": "0000000100000000 0000000200000000 00000002.history 00000003.history",
    "at_00000002_history": "1\t0/4000000\tbefore 1970-01-01 00:25:00+00\n",
    "at_00000003_history": "1\t0/4000000\tbefore\n\n2\t0/7000000\tbefore\n",
}


@pytest.mark.parametrize(
    ("backups", "wanted", "label", "option"),
    [
        ("ABCDE", {"latest": True}, "E", "latest"),
        ("ABCD", {"latest": True}, "C", "latest"),  # D ended after timeline 3 had left 2
        ("AB", {"latest": True}, "A", "latest"),
        ("ABCDE", {"latest": True, "timeline": 2}, "D", "2"),
        ("AB", {"latest": True, "timeline": 2}, "A", "2"),
        ("ABCDE", {"latest": True, "timeline": "1"}, "B", "1"),
        ("ABCDE", {"lsn": "0/9000000", "timeline": "1"}, "B", "1"),
        ("ABCDE", {"time": "1970-01-01 01:20:00Z", "timeline": 2}, "D", "2"),
        ("ABCDE", {"time": "1970-01-01 01:20:00Z", "timeline": "latest"}, "C", "latest"),
        ("ABCDE", {"time": "1970-01-01 02:00:00Z"}, "E", "latest"),
        ("ABCDE", {"latest": True, "set": "C"}, "C", "latest"),
        ("ABCDE", {"immediate": True, "set": "B"}, "B", "1"),
        ("ABCDE", {"latest": True, "timeline": "current"}, "E", "latest"),
        ("ABCDE", {"xid": "7", "set": "A", "timeline": 3}, "A", "latest"),
    ],
    ids=str,
)
def test_only_a_backup_that_leads_to_the_timeline_is_chosen(
    host: Any, archived: Callable[..., None], backups: str, wanted: dict[str, Any], label: str, option: str
) -> None:
    archived(**FORKS)
    info = {**FORKED, "backup": [one for one in FORKED["backup"] if one["label"] in backups]}
    way = ways.choose(host, info, target.read(wanted), 1)
    assert (way.backup["label"], way.option) == (label, option)


@pytest.mark.parametrize(
    ("backups", "wanted", "says"),
    [
        (
            "B",
            {"latest": True},
            "leads to the end of the archive on timeline 3: it left timeline 1 at 0/4000000, and B ended at 0/5000000",
        ),
        ("ABCDE", {"latest": True, "set": "D"}, "it left timeline 2 at 0/7000000"),
        ("ABCDE", {"latest": True, "set": "E", "timeline": 2}, "it never was timeline 3"),
        ("ABCDE", {"latest": True, "timeline": 99}, "no timeline 99"),
        ("ABCDE", {"time": "1970-01-01 01:20:00Z"}, "holds timelines 2, 3"),
        ("ABCDE", {"xid": "7", "set": "A"}, "holds timelines 1, 2, 3"),
    ],
    ids=str,
)
def test_what_no_backup_leads_to_is_refused(
    host: Any, archived: Callable[..., None], backups: str, wanted: dict[str, Any], says: str
) -> None:
    archived(**FORKS)
    info = {**FORKED, "backup": [one for one in FORKED["backup"] if one["label"] in backups]}
    with pytest.raises(errors.RefusedError, match=says):
        ways.choose(host, info, target.read(wanted), 1)


def test_a_restore_point_is_placed_by_its_receipt(
    host: Any, tmp_path: Path, archived: Callable[..., None]
) -> None:
    """On its own timeline too: what a playbook prints as the way back to a point must not ask for more."""
    archived(**FORKS)
    points = [
        {"name": "p", "lsn": "0/4800000", "timeline": 1},
        {"name": "r", "lsn": "0/6800000", "timeline": 2},
    ]
    (tmp_path / "restore-points.json").write_text(json.dumps({"points": points}), encoding="utf-8")
    (tmp_path / "digests").mkdir()
    digests = {"lsn": "0/5000001", "wal_file": "000000010000000000000005"}
    (tmp_path / "digests/q.json").write_text(json.dumps(digests), encoding="utf-8")
    chosen = {}
    for name in "prq":
        way = ways.choose(host, FORKED, target.read({"name": name}), 1)
        chosen[name] = (way.backup["label"], way.line.number)
    assert chosen == {"p": ("A", 1), "r": ("C", 2), "q": ("B", 1)}
    named = target.read({"name": "made elsewhere", "set": "E"})
    assert ways.choose(host, FORKED, named, 1).line.number == 3


def test_a_repository_that_cannot_be_read_is_passed_over_unless_named(host: Any) -> None:
    away = {"key": 1, "status": {"code": 99, "message": "[HostConnectError] timeout"}}
    info = {**INFO, "repo": [away, INFO["repo"][1]]}
    assert ways.choose_repository(host, target.read({"latest": True}), lambda number: info) == (2, info)
    with pytest.raises(errors.BackupError, match="cannot be reached") as caught:
        ways.choose_repository(host, target.read({"latest": True, "repository": 1}), lambda number: info)
    assert caught.value.code == errors.UNREACHABLE


def way(timeline: int) -> Any:
    archive = timelines.Archive(None, 1, "", ("0000000100000000", "00000002.history", "00000003.history"))
    return ways.Way(INFO["backup"][0], timelines.Line(timeline, {}), archive)


def test_set_repository_and_timeline_are_always_named(host: Any) -> None:
    wanted = target.read({"time": "1970-01-01 00:33:20.25Z", "exclusive": True})
    assert planning.options_of(wanted, way(2), 1) == [
        "--repo=1",
        "--set=A",
        "--type=time",
        "--target-action=promote",
        "--target=1970-01-01 00:33:20.250000+00",
        "--target-exclusive",
        "--target-timeline=2",
    ]


def test_the_end_of_a_backup_names_no_timeline(host: Any) -> None:
    """pgBackRest refuses one with --type=immediate, and follows the backup's own."""
    wanted = target.read({"immediate": True, "set": "A", "timeline": "current"})
    options = ["--repo=1", "--set=A", "--type=immediate", "--target-action=promote"]
    assert planning.options_of(wanted, way(1), 1) == options
    with pytest.raises(errors.BackupError, match="backup's own timeline"):
        target.read({"immediate": True, "timeline": 3})


def test_the_end_of_the_archive_is_not_left_to_postgresql(host: Any) -> None:
    """As a standby it goes on asking for WAL, where it would otherwise take what it cannot read for the end."""
    wanted = target.read({"latest": True})
    options = ["--repo=1", "--set=A", "--type=standby", "--target-timeline=latest"]
    assert planning.options_of(wanted, way(3), 1) == options


@pytest.mark.parametrize(
    ("timeline", "files", "end"),
    [
        (1, {"names": "0000000100000000 00000001.x", "at_0000000100000000": "{1:5} {1:6}"}, "{1:6}"),
        (
            2,
            {"names": "0000000100000000 00000002.history", "at_00000002_history": "1\t0/5000060\tx"},
            "0/5000060",
        ),
        (
            2,
            {
                "names": "0000000100000000 0000000200000000 00000002.history",
                "at_00000002_history": "1\t0/5000060\tx",
                "at_0000000200000000": "{2:7}",
            },
            "{2:7}",
        ),
        (
            1,
            {"names": "0000000100000000 0000000200000000 00000002.history", "at_0000000100000000": "{1:6}"},
            "{1:6}",
        ),
        (1, {"names": "00000002.history"}, "000000010000000000000003"),
    ],
    ids=[
        "one timeline",
        "a timeline without a segment",
        "the youngest",
        "an older one",
        "nothing but the backup's own",
    ],
)
def test_the_end_of_the_archive_is_found(
    host: Any, archived: Callable[..., None], timeline: int, files: dict[str, str], end: str
) -> None:
    def segment(text: str, rest: str) -> str:
        return re.sub(r"\{(\d):(\d)\}", lambda one: f"{int(one[1]):08X}{0:08X}{int(one[2]):08X}{rest}", text)

    archived(**{name: segment(text, f"-{'a' * 40}.zst") for name, text in files.items()})
    archive = timelines.archive(host, INFO, 1, 1)
    found = archive.end(INFO["backup"][0], archive.line(timeline))
    assert found == segment(end, "")


def stored_wal(timeline: int, *numbers: int) -> str:
    """Return the names of segments as a repository lists them."""
    return " ".join(f"{timeline:08X}{number:016X}-{'a' * 40}.zst" for number in numbers)


@pytest.fixture
def planned(
    host: Any, tmp_path: Path, archived: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Plan a restore of a host whose server is in this state, after a run that came this far."""
    archived(at_0000000100000000=stored_wal(1, 2, 3))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/postmaster.opts").touch()
    info = {**INFO, "backup": [{**one, "info": {"size": 1}} for one in INFO["backup"]]}
    monkeypatch.setattr(engine, "information", lambda host, number: info)
    monkeypatch.setattr(planning.replicas, "refuse", lambda host, left: [])

    def plan(
        wanted: dict[str, Any], *, phase: str = "", running: bool, replaying: bool = False, hours: float = 0
    ) -> Any:
        monkeypatch.setattr(engine, "is_running", lambda host: False)
        if phase:
            earlier = {**planning.plan(host, {"immediate": True}), "kept": str(tmp_path / "kept")}
            began = receipts.stamp(time.time() - hours * 3600)
            marker.write(host, phase, {"immediate": True}, earlier, began)
        monkeypatch.setattr(engine, "is_running", lambda host: running)
        monkeypatch.setattr(engine, "is_in_recovery", lambda host: replaying)
        return planning.plan(host, wanted)

    return plan


def test_a_timeline_that_is_not_archived_yet_is_sent_before_the_set_is_chosen(
    host: Any, planned: Callable[..., Any], archived: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right after a restore the archive may not know of it: what was left behind must not pass for what came last."""
    known = [1]
    archived(names="0000000100000000 00000002.history", at_0000000100000000=stored_wal(1, 2, 3))
    monkeypatch.setattr(wal, "timeline", lambda host: 2)
    monkeypatch.setattr(wal, "flush", lambda host, number: known.append(2))
    monkeypatch.setattr(ways, "choose_timeline", lambda *words: known[-1])
    monkeypatch.setattr(
        timelines.Archive, "line", lambda archive, number: timelines.Line(number, {1: "0/4000000"})
    )
    found = planned({"latest": True}, running=True)
    assert (found["set"], found["timeline"]) == ("B", 1)
    assert "the cluster is on timeline 2 since it was last restored" in found["text"]
    sent = restore.send(host, {"latest": True})
    assert (sent["set"], sent["timeline"], sent["unarchived"]) == ("A", 2, "")


@pytest.mark.parametrize(
    ("first", "forks", "number", "last", "files"),
    [
        ("1:2", {}, 1, "1:3", ["1:2", "1:3"]),
        ("1:2", {}, 1, "1:2", ["1:2"]),
        # The segment in which it was left is on the next timeline, whole.
        ("1:2", {1: "0/4000100"}, 2, "2:5", ["1:2", "1:3", "2.", "2:4", "2:5"]),
        ("1:2", {1: "0/4000000"}, 2, "2:4", ["1:2", "1:3", "2.", "2:4"]),
        ("1:2", {1: "0/4000100"}, 2, "0/4000100", ["1:2", "1:3", "2."]),
        ("1:2", {1: "0/4000100", 2: "0/4000200"}, 3, "3:4", ["1:2", "1:3", "2.", "3.", "3:4"]),
        # A backup of timeline 2 needs nothing of 1, and its history as little as that of 1.
        ("2:5", {1: "0/4000100", 2: "0/7000000"}, 4, "4:7", ["2:5", "2:6", "4.", "4:7"]),
        ("2:7", {1: "0/4000100", 2: "0/7000000"}, 4, "4:7", ["4.", "4:7"]),
        # 256 segments of 16 MB have a name in common.
        ("1:FE", {}, 1, "1:101", ["1:FE", "1:FF", "1:100", "1:101"]),
    ],
    ids=str,
)
def test_the_way_from_a_backup_leads_through_timelines(
    first: str, forks: dict[int, str], number: int, last: str, files: list[str]
) -> None:
    def name(text: str) -> str:
        if text.endswith("."):
            return f"{int(text[:-1]):08X}.history"
        line, found, count = text.partition(":")
        at = int(count, 16) if found else 0
        return f"{int(line):08X}{at // 256:08X}{at % 256:08X}" if found else text

    line = timelines.Line(number, forks)
    assert gaps.between(name(first), line, name(last), 16 << 20) == [name(file) for file in files]


@pytest.fixture
def torn(
    host: Any, archived: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Two repositories: the first was away while the cluster was restored at segment 5, and lacks what was sent by hand; the second is whole.

    Returns the settings, and what was sent, as (name, configuration).
    """
    (tmp_path / "pgbackrest.conf").write_text("[global]\nrepo1-path=/r\nrepo2-s3-key=k\n", encoding="utf-8")
    (tmp_path / "data/pg_wal").mkdir(parents=True)
    here = dataclasses.replace(host, config=str(tmp_path / "pgbackrest.conf"))
    sent: list[tuple[str, str]] = []

    def tear(*, late: tuple[str, ...] = (), elsewhere: bool = True, backup: str = "A") -> Any:
        archived(
            names="0000000100000000 0000000200000000 00000002.history",
            at_0000000100000000=stored_wal(1, 2, 3),
            at_0000000200000000=stored_wal(2, 5, 6, 8),
            at_00000002_history="1\t0/5000100\tbefore\n",
        )
        info = {**INFO, "backup": [one for one in INFO["backup"] if one["label"] == backup]}
        monkeypatch.setattr(engine, "information", lambda host, number: info)
        answers = {
            "pg_ls_archive_statusdir": [f"{name}.ready" for name in late],
            "pg_walfile_name": ["000000020000000000000009"],
        }
        monkeypatch.setattr(
            engine, "query", lambda host, statement: next(answers[a] for a in answers if a in statement)
        )
        monkeypatch.setattr(wal, "PLACE", tmp_path)
        monkeypatch.setattr(receipts, "give", lambda path: None)

        def run(command: list[str]) -> Any:
            if "archive-get" in command:
                assert "--repo=2" in command
                if elsewhere:
                    Path(command[-1]).write_text("WAL", encoding="utf-8")
                return engine.Done(0 if elsewhere else 1, "")
            if "archive-push" in command:
                assert Path(command[-1]).read_text(encoding="utf-8") == "WAL"
                known = next(word for word in command if word.startswith("--config="))
                text = Path(known.removeprefix("--config=")).read_text(encoding="utf-8")
                sent.append((Path(command[-1]).name, text))
                return engine.Done(0, "")
            return engine.Done(0, "Bytes per WAL segment:  16777216\n")

        monkeypatch.setattr(engine, "run", run)
        return here, sent

    return tear


LOST, UNSENT = "000000010000000000000004", "000000020000000000000007"


def test_a_repository_gets_what_it_lacks_from_another_one(torn: Callable[..., Any]) -> None:
    here, sent = torn(late=("000000020000000000000009",))
    assert gaps.of(here, 1) == [LOST, UNSENT]
    first = check.whole(here)[0]
    assert (first["id"], first["status"]) == ("wal.local", "ok")
    assert f"{LOST} to {UNSENT} (2 files) was sent from another one" in first["detail"]
    assert [name for name, _ in sent] == [LOST, UNSENT]
    assert all(text == "[global]\nrepo1-path=/r\n" for _, text in sent), "into the one alone"


def test_what_is_late_is_not_lacking(torn: Callable[..., Any]) -> None:
    here, _ = torn(late=(UNSENT,))
    assert gaps.of(here, 1) == [LOST]


def test_what_no_repository_holds_asks_for_a_backup(torn: Callable[..., Any]) -> None:
    here, sent = torn(elsewhere=False)
    first = check.whole(here)[0]
    assert first["status"] == "failed"
    assert f"repository 1 (local: posix, /r) lacks {LOST} to {UNSENT} (2 files)" in first["detail"]
    assert first["hint"].startswith("run backup.yml with -e backup_repository=1")
    assert not sent


def test_a_cluster_restored_to_before_every_backup_asks_for_one(torn: Callable[..., Any]) -> None:
    """Backup B ended at 0/5000000 and leads on; one that ended after the cluster had left its timeline does not."""
    here, _ = torn(backup="B")
    assert gaps.of(here, 1) == [LOST, UNSENT]
    here, _ = torn(backup="C")
    assert gaps.of(here, 1) == [], "a damaged backup is none"
    late = {**INFO, "backup": [entry("L", 2000, "0/6000000")]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "information", lambda host, number: late)
        first = check.whole(here)[0]
    assert "no backup in repository 1 (local: posix, /r) leads to the cluster as it is" in first["detail"]


def test_every_repository_is_given_what_it_lacks_once_it_answers(
    torn: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, sent = torn()
    of, faults = gaps.of, [errors.BackupError("repository 2 does not answer", "look", errors.UNREACHABLE)]

    def asked(host: Any, number: int) -> list[str]:
        if number == 2 and faults:
            raise faults[0]
        return of(host, number) if number == 1 else []

    monkeypatch.setattr(gaps, "of", asked)
    with pytest.raises(errors.BackupError, match="repository 2 does not answer") as caught:
        gaps.even_out(here)
    assert caught.value.code == errors.UNREACHABLE
    assert [name for name, _ in sent] == [LOST, UNSENT], "the others get theirs"
    faults[0] = errors.RefusedError("no backup leads to the cluster", "run backup.yml")
    assert gaps.even_out(here) == {
        "kind": "even-out",
        "sent": {"local": [LOST, UNSENT]},
        "lost": {"local": []},
    }
    faults.clear()
    assert gaps.even_out(here)["lost"] == {"local": [], "offsite": []}


@pytest.mark.parametrize("elsewhere", [True, False], ids=["another one has it", "none has"])
def test_no_restore_to_the_end_goes_by_a_repository_that_lacks_wal(
    planned: Callable[..., Any],
    archived: Callable[..., None],
    host: Any,
    monkeypatch: pytest.MonkeyPatch,
    *,
    elsewhere: bool,
) -> None:
    """Where the cluster runs it is sent before anything stops; where it does not, or nobody has it, the restore is refused."""
    gone = f"{1:08X}{3:016X}"
    archived(at_0000000100000000=stored_wal(1, 2, 4))
    with pytest.raises(errors.RefusedError, match=f"lacks {gone}: from B no restore") as caught:
        planned({"latest": True}, running=False)
    assert "restore with repository: 2" in caught.value.hint
    monkeypatch.setattr(wal, "timeline", lambda host: 1)
    monkeypatch.setattr(wal, "flush", lambda host, number: None)

    def mend(host: Any, number: int, files: list[str]) -> None:
        assert files == [gone]
        if elsewhere:
            archived(at_0000000100000000=stored_wal(1, 2, 3, 4))

    monkeypatch.setattr(gaps, "mend", mend)
    found = planned({"latest": True}, running=True)
    assert f"lacks      {gone}: what another repository holds" in found["text"]
    if elsewhere:
        assert restore.send(host, {"latest": True})["lacks"] == []
    else:
        with pytest.raises(errors.RefusedError, match=f"lacks {gone}"):
            restore.send(host, {"latest": True})


@pytest.mark.parametrize("replaying", [True, False], ids=["still replaying", "done with it"])
def test_a_restore_interrupted_while_wal_was_replayed_is_seen_to_its_end(
    planned: Callable[..., Any], tmp_path: Path, replaying: bool
) -> None:
    found = planned({"immediate": True}, phase=marker.RECOVERING, running=True, replaying=replaying)
    assert (found["ends"], found["flushes"], found["moves"]) == (True, False, False)
    assert found["kept"] == str(tmp_path / "kept")
    assert "nothing is stopped, moved or copied" in found["text"]
    assert found["compares"] is replaying, "what may have been written to since says nothing of the restore"


@pytest.mark.parametrize(
    ("wanted", "hours"), [({"immediate": True, "again": True}, 0), ({"immediate": True}, 25)]
)
@pytest.mark.parametrize("replaying", [True, False], ids=["replaying", "serving"])
def test_a_restore_that_is_meant_anew_is_not_taken_for_the_one_before(
    planned: Callable[..., Any], wanted: dict[str, Any], hours: float, *, replaying: bool
) -> None:
    found = planned(wanted, phase=marker.RECOVERING, running=True, replaying=replaying, hours=hours)
    waits = replaying and not wanted.get("again")
    assert found["ends"] is waits, "one that replays for a day still is the one before"
    assert ("--set=B" in found["command"]) or waits


def test_another_target_takes_the_files_that_an_interrupted_restore_left(
    planned: Callable[..., Any], tmp_path: Path
) -> None:
    found = planned({"latest": True, "set": "A"}, phase=marker.RECOVERING, running=True, replaying=True)
    assert (found["ends"], found["flushes"], found["moves"], found["resumes"]) == (False, False, False, True)
    assert "--delta" in found["command"]
    assert found["kept"] == str(tmp_path / "kept")


@pytest.mark.parametrize(
    ("timeline", "end", "says"),
    [
        ("", "0/6000000", "lies after the end of timeline 1, which has come to 0/6000000"),
        ("", "0/7000000", ""),
        ("1", "0/7000000", "has come to 000000010000000000000005"),
    ],
    ids=["beyond what the server wrote", "in it", "beyond what is left of another timeline"],
)
def test_an_lsn_that_was_never_written_is_refused(
    planned: Callable[..., Any],
    archived: Callable[..., None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    timeline: str,
    end: str,
    says: str,
) -> None:
    archived(at_0000000100000000=f"000000010000000000000005-{'a' * 40}.zst")
    now = "00000002" if timeline else "00000001"
    monkeypatch.setattr(engine, "query", lambda host, statement: [f"{end}\t{now}0000000000000006"])
    monkeypatch.setattr(engine, "run", lambda command: engine.Done(0, "Bytes per WAL segment:  16777216\n"))
    (tmp_path / "data/global").mkdir()
    (tmp_path / "data/global/pg_control").touch()
    wanted = {"lsn": "0/6800000", "timeline": timeline}
    if says:
        with pytest.raises(errors.RefusedError, match=says):
            planned(wanted, running=True)
    else:
        assert planned(wanted, running=True)["set"] == "B"


def test_a_server_that_replays_for_another_reason_is_not_restored_over(planned: Callable[..., Any]) -> None:
    with pytest.raises(errors.RefusedError, match="no restore of this command began that"):
        planned({"immediate": True}, running=True, replaying=True)


def test_a_run_killed_while_it_moved_directories_goes_on_there(
    host: Any, planned: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is copied over the former data directory, and none of it is lost, whichever half of the move was done."""
    monkeypatch.setattr(restore.shutil, "chown", lambda *words: None)
    found = planned({"immediate": True}, phase=marker.MOVING, running=False)
    assert (found["resumes"], found["moves"]) == (True, True)
    assert "--delta" not in found["command"]
    for _ in range(2):
        restore.make_way(host, found)
        assert [path.name for path in (tmp_path / "kept").iterdir()] == ["postmaster.opts"]
        assert list((tmp_path / "data").iterdir()) == []


@pytest.mark.parametrize("fails", [False, True], ids=["it takes them", "it does not"])
def test_wal_is_sent_by_hand_where_another_repository_is_in_the_way(
    host: Any, archived: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Into the one repository alone, only what it does not hold, nothing beyond the segment; PostgreSQL itself archives nothing now."""
    (tmp_path / "pgbackrest.conf").write_text(
        "[global]\nrepo1-path=/r\nrepo2-s3-key=k\nio-timeout=2\n[main]\npg1-path=/d\n", encoding="utf-8"
    )
    here = dataclasses.replace(host, config=str(tmp_path / "pgbackrest.conf"))
    ready = ["00000002.history", *(f"00000001{number:016X}" for number in (4, 5, 6))]
    archived(
        names="0000000100000000 00000002.history",
        at_0000000100000000=f"000000010000000000000004-{'a' * 40}.zst",
    )
    answers = {
        "last_archived_wal": ["f"],
        "pg_switch_wal": ["000000010000000000000005"],
        "pg_ls_archive_statusdir": [f"{name}.ready" for name in ready],
    }
    monkeypatch.setattr(
        engine,
        "query",
        lambda host, statement, **values: next((answers[a] for a in answers if a in statement), [""]),
    )
    monkeypatch.setattr(engine, "information", lambda host, number: {**INFO, "db": [{"id": 1}]})
    monkeypatch.setattr(wal, "USUAL_SECONDS", -1)
    monkeypatch.setattr(wal, "PLACE", tmp_path)
    monkeypatch.setattr(wal.receipts, "give", lambda path: None)
    sent = []

    def run(command: list[str]) -> Any:
        configuration = next(word for word in command if word.startswith("--config=")).removeprefix(
            "--config="
        )
        sent.append((Path(command[-1]).name, Path(configuration).read_text(encoding="utf-8")))
        return (
            engine.Done(50, "ERROR: [041]: unable to write '/r': [28] No space left on device")
            if fails
            else engine.Done(0, "")
        )

    monkeypatch.setattr(engine, "run", run)
    if fails:
        with pytest.raises(
            errors.BackupError, match=r"could not be restored: sending .* the disk is full"
        ) as caught:
            wal.flush(here, 1)
        assert "unarchived_lost" in caught.value.hint
    else:
        wal.flush(here, 1)
    assert sent == [
        ("000000010000000000000005", "[global]\nrepo1-path=/r\nio-timeout=2\n[main]\npg1-path=/d\n")
    ]


SLEEP = "import signal; signal.pause()"
# A child of a process of that name, each as pgBackRest's are named; it prints its number.
NESTED = (
    "import signal, subprocess; "
    f"print(subprocess.Popen(['pgbackrest', '-c', {SLEEP!r}, 'restore:local'], executable={sys.executable!r}).pid, flush=True); "
    "signal.pause()"
)


def named(*words: str, **options: Any) -> subprocess.Popen[str]:
    """Run Python as a process that calls itself pgbackrest."""
    return subprocess.Popen(["pgbackrest", "-c", *words], executable=sys.executable, text=True, **options)


def is_there(pid: int) -> bool:
    """Whether a process lives; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_nothing_of_a_restore_goes_on_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "as_postgres", lambda command: command)
    script = "sleep 300 & echo $!; echo told >&2; exit 49"
    done = processes.run_restore(["bash", "-c", script])
    assert done.status == 49
    left, told = done.output.split()
    assert told == "told"
    wait_for("it is gone", lambda: not is_there(int(left)), seconds=5)


def test_what_an_earlier_restore_has_left_is_ended_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing else: not the processes of a restore that is at work, such as a drill's, nor those of another command."""
    monkeypatch.setattr(engine, "as_postgres", lambda command: command)
    orphan, other = named(SLEEP, "restore:local"), named(SLEEP, "archive-get:local")
    working = named(NESTED, stdout=subprocess.PIPE)
    assert working.stdout is not None
    child = int(working.stdout.readline())
    try:
        wait_for("it is seen", lambda: processes.orphans() == [orphan.pid])
        assert processes.run_restore(["true"]).status == 0
        assert orphan.wait(5) == -9
        assert other.poll() is None
        assert is_there(child)
    finally:
        for process in (orphan, other, working):
            process.kill()
            process.wait()
        os.kill(child, 9)
        working.stdout.close()


def test_a_standby_that_asks_in_vain_is_given_up(host: Any) -> None:
    """Asking once is usual where a repository is slow; asking for the same again and again is not."""
    line = "LOG:  waiting for WAL to become available at 0/{}000000\n"
    log = "LOG:  starting PostgreSQL 17\n" + line.format(2) * 9 + "LOG:  starting PostgreSQL 17\n"
    asked = recovery.WAITING.findall
    assert recovery.stalled_at(host, asked(recovery.since_start(log))) == ""
    assert recovery.stalled_at(host, asked(line.format(3) + line.format(4) * 2)) == ""
    assert recovery.stalled_at(host, asked(line.format(3) + line.format(4) * 3)) == "0/4000000"


@pytest.mark.parametrize(
    ("output", "meaning", "code"),
    [
        ("ERROR: [041]: unable to write '/x': [28] No space left on device", "the disk is full", 1),
        (
            "ERROR: [050]: unable to acquire lock on file '/run/pgbackrest/main-backup-1.lock'",
            "another pgBackRest",
            9,
        ),
        (
            "FormatError: key/value found outside of section at line 1: \x05\x1b[2J",
            "the passphrase is not",
            3,
        ),
        (
            "ERROR: [026]: error restoring base/1/2: actual checksum does not match",
            "a file in the repository is damaged",
            8,
        ),
        ("<Code>NoSuchBucket</Code>", "the bucket does not exist", 3),
        ("[CryptoError] unable to find hostname 'h' in certificate", "certificate does not fit", 3),
        (
            "[ServiceError] known hosts failure: 'h' mismatch in known hosts files: LIBSSH2_KNOWNHOST_CHECK_MISMATCH [1]: check type [strict]",
            "another key than the known one",
            3,
        ),
        (
            "[ServiceError] public key authentication failed: libssh2 error [-18]",
            "does not let this one in over SSH",
            3,
        ),
        (
            "ERROR: [047]: sftp error unable to create path '/r': libssh2 error [-31]: sftp error [3] permission denied",
            "may not write there",
            3,
        ),
        ("[HostConnectError] unable to connect to 'h:443': [111] Connection refused", "cannot be reached", 4),
        ("ERROR: [087]: archive_mode must be enabled", "does not archive its WAL yet", 5),
        (
            "ERROR: [028]: backup and archive info files exist but do not match the database",
            "another cluster",
            9,
        ),
        (
            "ERROR: [082]: WAL segment 0001 was not archived before the 60000ms timeout",
            "does not reach the repository",
            4,
        ),
        (
            "ERROR: [064]: raised from local-1 protocol: unable to write '/r/backup/main/20261121-092750F/bundle/1': "
            "[2] No such file or directory",
            "the disk is full",
            1,
        ),
        ("ERROR: [064]: unable to write '/r/bundle/1'", "the disk is full", 1),
        (
            "ERROR: [064]: unable to write '/r/bundle/1': [5] Input/output error",
            "\\[5\\] Input/output error",
            1,
        ),
        (
            "ERROR: [058]: target timeline 2 forked from backup timeline 1 at 0/4000000 which is before backup lsn of 0/5000000",
            "cannot reach the timeline",
            9,
        ),
        ("ERROR: [099]: something new", "ERROR: \\[099\\]: something new", 1),
    ],
)
def test_errors_are_told_in_plain_words(output: str, meaning: str, code: int) -> None:
    error = engine.explained("the backup", output)
    assert error.code == code
    assert error.hint
    with pytest.raises(errors.BackupError, match=meaning):
        raise error
    assert "\x1b" not in str(error), "ciphertext must not reach a terminal"


@pytest.mark.parametrize("quote", ["", '"'], ids=["control characters", "not even JSON"])
def test_ciphertext_in_the_answer_is_read_for_what_it_is(quote: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What pgBackRest 2.55 answers with a wrong passphrase: bytes of the file, decrypted to nonsense, inside its JSON."""
    message = f"[FormatError] key/value found outside of section at line 1: \x1b\x01{quote}"
    status = f'{{"code":99,"message":"{message}"}}'
    answer = f'[{{"name":"main","archive":[],"backup":[],"db":[],"repo":[{{"key":1,"status":{status}}}]}}]'
    monkeypatch.setattr(engine, "pgbackrest", lambda *words: answer)
    repository = SimpleNamespace(stanza="main", repository=lambda number: f"repository {number}")

    def read() -> None:
        fault = engine.repository_fault(engine.information(repository), repository, 1)
        assert fault is not None
        raise fault

    with pytest.raises(errors.BackupError, match="the passphrase is not") as caught:
        read()
    assert caught.value.code == 3
    assert "\x1b" not in str(caught.value)


def test_a_copy_waits_for_no_lock_of_the_cluster(host: Any) -> None:
    found = side.options(host, target.read(SIDE))
    assert "--archive-mode=off" in found
    assert "--lock-path=/srv/side/lock" in found
    assert found[-1] == (
        "--recovery-option=restore_command=pgbackrest --config=/etc/pgbackrest/pgbackrest.conf --stanza=main --pg1-path=/srv/side/data "
        '--lock-path=/srv/side/lock --archive-async --spool-path=/srv/side/spool archive-get %f "%p"'
    )


@pytest.mark.parametrize(
    ("wanted", "runs"),
    [
        ({"name": "p"}, "--digests {}/digests/p.json"),
        ({"latest": True}, "--no-digests"),
        ({"name": "q"}, "--no-digests"),
    ],
    ids=["at a recorded point", "anywhere", "at another point"],
)
def test_a_copy_is_proven_by_what_is_known_of_its_target(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: dict[str, Any], runs: str
) -> None:
    (tmp_path / "digests").mkdir()
    (tmp_path / "digests/p.json").touch()
    (tmp_path / "pgchroma").touch()
    here = dataclasses.replace(host, pgchroma_command=str(tmp_path / "pgchroma"))
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> Any:
        commands.append(command)
        return engine.Done(0, "{}")

    monkeypatch.setattr(engine, "run", run)
    goal = target.read({**wanted, "directory": "/srv/side", "port": 5440})
    assert proof.side(here, goal, Path("/srv/side"))["by"] == "pgchroma backup check-restored"
    assert runs.format(tmp_path) in " ".join(commands[0])
    assert "host=/srv/side/socket&port=5440" in " ".join(commands[0])
    assert proof.side(host, goal, Path("/srv/side"))["by"] == "pg_amcheck", "without pgchroma on the host"
    assert commands[1][0] == "/bin/pg_amcheck"


def test_a_proof_that_fails_stands_in_the_receipt(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "run", lambda command, **_: engine.Done(8, "critical checks failed: digests"))
    goal = target.read({"name": "p"})
    with pytest.raises(errors.DamagedError, match="critical checks failed"):
        proof.keep(host, {"kind": "restore"}, lambda: proof.check(host, "url", None))
    receipt = json.loads(next(tmp_path.glob("restore-*.json")).read_text(encoding="utf-8"))
    assert receipt["result"] == "damaged"
    assert "critical checks failed: digests" in receipt["detail"]
    assert proof.own(host, goal) == {"by": "", "digests": ""}, (
        "nothing was recorded there: verify.yml looks at it"
    )


def test_a_verb_that_fails_has_a_result_for_its_receipt(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = module("__main__")
    monkeypatch.setattr(
        sys, "argv", ["pgchroma-backup", "--settings", str(tmp_path / "settings.json"), "drill", "--json"]
    )
    assert command.main() == errors.UNEXPECTED
    told = capsys.readouterr()
    assert "no digests of the collections are recorded" in told.err
    result = json.loads(told.out)
    assert (result["kind"], result["result"], result["status"]) == ("drill", "failed", 1)
    assert "no digests of the collections are recorded" in result["error"]
    assert result["receipt"]["result"] == "failed"
    assert result["receipt"] == json.loads((tmp_path / "drill.json").read_text(encoding="utf-8"))


GOOD = """stanza: main
status: ok
  archiveId: 17-1, total WAL checked: 3, total valid WAL: 3
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
  backup: 20261121-074302F, status: valid, total files checked: 1291, total valid files: 1291
    missing: 0, checksum invalid: 0, size invalid: 0, other: 0
"""


def test_verify_is_judged_by_its_text() -> None:
    assert verification.problems(GOOD) == []
    bad = GOOD.replace("status: valid", "status: invalid").replace("status: ok", "status: error")
    assert any("20261121-074302F" in line for line in verification.problems(bad))
    damaged = GOOD[::-1].replace("checksum invalid: 0"[::-1], "checksum invalid: 1"[::-1], 1)[::-1]
    assert verification.problems(damaged) == [
        "backup: 20261121-074302F, status: valid, total files checked: 1291, total valid files: 1291: checksum invalid 1"
    ]
    assert verification.problems("something else altogether"), "no word of health is no health"
    # Somebody ran pgbackrest as root: its log is root's then, and no file of the repository is the worse for it.
    log = "WARN: unable to open log file '/var/log/pgbackrest/main-verify.log': Permission denied\n"
    assert verification.problems(log + GOOD) == []
    assert verification.problems("WARN: unable to open '/r/bundle/1'\n" + GOOD)


def test_a_repository_that_cannot_be_read_is_not_called_damaged(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a wrong passphrase verify ends with 0 and tells of no more than files that cannot be used."""
    wrong = {"code": 99, "message": "[FormatError] key/value found outside of section at line 1: \x1b"}
    info = {**INFO, "repo": [{"key": 1, "status": wrong}, INFO["repo"][1]]}
    monkeypatch.setattr(engine, "information", lambda host, number: info)
    monkeypatch.setattr(engine, "pgbackrest", lambda host, what, verb, *options: GOOD)
    with pytest.raises(errors.BackupError, match="the passphrase is not") as caught:
        verification.run(host, ["1"])
    assert caught.value.code == errors.CONFIGURATION
    assert receipts.read(host, "verify.json")["ok"] is False
    assert verification.run(host, ["offsite"])["ok"] is True


def test_settings_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    for text in ("", "{}", '{"stanza": "main"}'):
        (tmp_path / "s.json").write_text(text, encoding="utf-8")
        with pytest.raises(errors.BackupError, match="does not describe this host"):
            settings.read(tmp_path / "s.json")


def test_several_errors_keep_the_gravest_status() -> None:
    both = errors.joined([errors.BackupError("a", "b", 4), errors.DamagedError("c", "d")])
    assert both.code == errors.DAMAGED
    assert all(part in str(both) for part in "abcd")


def drilled(host: Any, name: str, days_ago: float, result: str = "ok") -> None:
    ended = receipts.stamp(time.time() - days_ago * 86400)
    receipt = {"finished": ended, "result": result, "seconds": 9.5, "backup_label": "B", "detail": "told"}
    receipts.write(host, f"drill-{name}.json", receipt)


def test_repositories_take_turns_at_being_drilled(host: Any) -> None:
    """A drill that failed was a turn too: one repository that is away keeps no other from its own."""
    assert drill.turn(host, "").name == "local"
    drilled(host, "local", 1)
    assert drill.turn(host, "").name == "offsite"
    drilled(host, "offsite", 0, "failed")
    assert drill.turn(host, "").name == "local"
    assert drill.turn(host, "2").name == "offsite"
    assert drill.turn(host, "offsite").name == "offsite"
    assert drill.turn(replace(host, drill_repository=2), "").name == "offsite"
    with pytest.raises(errors.BackupError, match="no repository 3"):
        drill.turn(host, "3")


def test_a_backup_that_ends_during_a_drill_does_not_change_what_is_compared(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It records digests of its own, of a later moment than the one that was restored to."""
    asked: list[list[str]] = []

    def checked(command: list[str], **_: Any) -> Any:
        asked.append(command)
        return engine.Done(0, '{"result": "ok"}')

    monkeypatch.setattr(engine, "run", checked)
    host = replace(host, pgchroma_command="pgchroma")
    (tmp_path / "digests").mkdir()
    drill.digests_file(host).write_text('{"point": "first", "lsn": "0/1"}', encoding="utf-8")
    point = drill.recorded(host)
    drill.digests_file(host).write_text('{"point": "second", "lsn": "0/2"}', encoding="utf-8")
    place = tmp_path / "copy"
    place.mkdir()
    drill.prove(host, place, point)
    compared = Path(asked[0][asked[0].index("--digests") + 1])
    assert json.loads(compared.read_text(encoding="utf-8"))["point"] == "first"


def test_each_repository_is_owed_a_drill(host: Any) -> None:
    def failed(settings: Any = host) -> list[str]:
        return [entry["id"] for entry in check.drills(settings) if entry["status"] != "ok"]

    assert failed() == [], "nothing was backed up yet"
    for repository in host.repositories:
        backup.note_first(host, repository)
    assert failed() == []
    long_ago = {"time": receipts.stamp(time.time() - 19 * 86400)}
    receipts.write(host, backup.first_into(host.repositories[1]), long_ago)
    backup.note_first(host, host.repositories[1])
    assert failed() == ["drill.offsite"], (
        "twice nine days with two repositories, counted from the first backup of all"
    )
    drilled(host, "offsite", 17)
    assert failed() == []
    drilled(host, "offsite", 19)
    assert failed() == ["drill.offsite"]
    assert failed(replace(host, drill_repository=1)) == [], "the other one is not drilled"
    drilled(host, "local", 0, "failed")
    assert failed() == ["drill.local", "drill.offsite"]
    assert "told" in check.drills(host)[0]["detail"]


def test_damaged_backups_make_no_repository_young(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    backups = [entry("A", now - 30 * 3600, "0/3"), entry("B", now, "0/5", error=True)]
    backups.append(entry("C", now, "0/5", repository=2))
    monkeypatch.setattr(engine, "information", lambda host, number=0: {**INFO, "backup": backups})
    found = {item["id"]: item for item in check.ages(host)}
    assert found["backup.local"]["status"] == "failed"
    assert found["backup.local"]["detail"].startswith("A is 30.0 h old")
    assert found["backup.offsite"]["status"] == "ok"


def test_an_alert_stands_until_its_unit_has_ended_well(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "run", lambda command, timeout: engine.Done(0, "Result=exit-code\n"))
    told = "unit of the test.service"
    assert alert.run(host, told)["state"] == {"Result": "exit-code"}
    assert receipts.read(host, alert.name_of(told))["unit"] == told
    assert alert.clear(host, "another.service")["stood"] is False
    assert receipts.read(host, alert.name_of(told)) is not None
    assert alert.clear(host, told)["stood"] is True
    assert receipts.read(host, alert.name_of(told)) is None


def test_damaged_backups_go_before_they_push_a_good_one_out(
    host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But not those that a good one is built on."""

    def of(label: str, prior: str | None, *, error: bool = False) -> dict[str, Any]:
        return {**entry(label, 0, "0/1", error=error), "prior": prior}

    backups = [
        of("F1", None),
        of("F2", None, error=True),
        of("F2I1", "F2", error=True),
        of("F3", None, error=True),
        of("F3D1", "F3", error=True),
        of("F3I2", "F3D1"),
        of("F3I3", "F3I2", error=True),
        of("F4", None),
    ]
    gone: list[str] = []
    monkeypatch.setattr(engine, "information", lambda host, number: {**INFO, "backup": backups})
    monkeypatch.setattr(
        engine, "pgbackrest", lambda host, what, verb, *options: gone.append(f"{verb} {' '.join(options)}")
    )
    backup.drop_damaged(host, host.repositories[0])
    assert gone == [f"expire --repo=1 --set={label}" for label in ("F3I3", "F2I1", "F2")]
