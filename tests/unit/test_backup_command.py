"""The command that backed-up hosts run: reading targets, choosing backups, understanding pgBackRest; without a host."""

import importlib
import json
import re
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "roles/pgbackrest/files"))
NAMES = (
    "alert", "backup", "check", "drill", "engine", "errors", "receipts", "recovery", "restore", "settings", "target", "verification",
)  # fmt: skip
alert, backup, check, drill, engine, errors, receipts, recovery, restore, settings, target, verification = (
    importlib.import_module(f"pgchroma_backup.{name}") for name in NAMES
)


@pytest.fixture
def host(tmp_path: Path) -> Any:
    content = {
        "stanza": "main",
        "config": "/etc/pgbackrest/pgbackrest.conf",
        "bin_dir": "/bin",
        "data_dir": str(tmp_path / "data"),
        "port": 5432,
        "socket_dir": "/run",
        "service": "postgresql@17-main.service",
        "database": "pgchroma",
        "state_dir": str(tmp_path),
        "pgchroma_command": "",
        "repositories": [
            {"number": 1, "name": "local", "kind": "posix", "where": "/r"},
            {"number": 2, "name": "offsite", "kind": "s3", "where": "h/b"},
        ],
        "archive_wait_seconds": 1,
        "recovery_seconds": 1,
        "backup_age_hours_maximum": 26,
        "drill_age_days_maximum": 9,
        "ready_files_maximum": 8,
        "drill_directory": "/d",
        "drill_port": 5499,
        "drill_repository": 0,
        "alert_command": [],
    }
    file = tmp_path / "settings.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    return settings.read(file)


def entry(label: str, stop: float, lsn: str, *, error: bool = False, repository: int = 1) -> dict[str, Any]:
    return {
        "label": label,
        "error": error,
        "timestamp": {"start": stop - 10, "stop": stop},
        "lsn": {"start": lsn, "stop": lsn},
        "database": {"id": 1, "repo-key": repository},
        "archive": {"start": "000000010000000000000002", "stop": "000000010000000000000003"},
    }


INFO = {
    "backup": [
        entry("A", 1000, "0/3000000"),
        entry("B", 2000, "0/5000000"),
        entry("C", 3000, "1/0", error=True),
        entry("D", 2500, "0/6000000", repository=2),
    ],
    "repo": [
        {"key": 1, "status": {"code": 0, "message": "ok"}},
        {"key": 2, "status": {"code": 0, "message": "ok"}},
    ],
}


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
    host: Any, wanted: dict[str, Any], label: str
) -> None:
    assert target.choose_set(host, INFO, target.read(wanted), 1)["label"] == label


def test_a_restore_point_is_placed_by_its_receipt(host: Any, tmp_path: Path) -> None:
    points = {"points": [{"name": "p", "lsn": "0/4000000"}]}
    (tmp_path / "restore-points.json").write_text(json.dumps(points), encoding="utf-8")
    assert target.choose_set(host, INFO, target.read({"name": "p"}), 1)["label"] == "A"
    (tmp_path / "digests").mkdir()
    (tmp_path / "digests/q.json").write_text(json.dumps({"lsn": "0/5000001"}), encoding="utf-8")
    assert target.choose_set(host, INFO, target.read({"name": "q"}), 1)["label"] == "B"


def test_a_repository_that_cannot_be_read_is_passed_over_unless_named(host: Any) -> None:
    away = {"key": 1, "status": {"code": 99, "message": "[HostConnectError] timeout"}}
    info = {**INFO, "repo": [away, INFO["repo"][1]]}
    assert target.choose_repository(host, target.read({"latest": True}), lambda number: info) == (2, info)
    with pytest.raises(errors.BackupError, match="cannot be reached") as caught:
        target.choose_repository(host, target.read({"latest": True, "repository": 1}), lambda number: info)
    assert caught.value.code == errors.UNREACHABLE


def test_set_repository_and_timeline_are_always_named(host: Any) -> None:
    wanted = target.read({"time": "1970-01-01 00:33:20.25Z", "exclusive": True})
    assert restore.options_of(wanted, INFO["backup"][0], 1, "3") == [
        "--repo=1",
        "--set=A",
        "--type=time",
        "--target-action=promote",
        "--target=1970-01-01 00:33:20.250000+00",
        "--target-exclusive",
        "--target-timeline=3",
    ]


def test_the_end_of_a_backup_names_no_timeline(host: Any) -> None:
    """pgBackRest refuses one with --type=immediate, and follows the backup's own."""
    wanted = target.read({"immediate": True, "set": "A", "timeline": "current"})
    options = ["--repo=1", "--set=A", "--type=immediate", "--target-action=promote"]
    assert restore.options_of(wanted, INFO["backup"][0], 1, "current") == options
    with pytest.raises(errors.BackupError, match="backup's own timeline"):
        target.read({"immediate": True, "timeline": 3})


def test_the_end_of_the_archive_is_not_left_to_postgresql(host: Any) -> None:
    """As a standby it goes on asking for WAL, where it would otherwise take what it cannot read for the end."""
    wanted = target.read({"latest": True})
    options = ["--repo=1", "--set=A", "--type=standby", "--target-timeline=latest"]
    assert restore.options_of(wanted, INFO["backup"][0], 1, "latest") == options


@pytest.mark.parametrize(
    ("timeline", "names", "end"),
    [
        ("latest", {"": "0000000100000000 00000001.x", "/0000000100000000": "{1:5} {1:6}"}, "{1:6}"),
        (
            "latest",
            {"": "0000000100000000 00000002.history", "/00000002.history": "1\t0/5000060\tx"},
            "0/5000060",
        ),
        (
            "latest",
            {"": "0000000100000000 0000000200000000 00000002.history", "/0000000200000000": "{2:7}"},
            "{2:7}",
        ),
        (
            "1",
            {"": "0000000100000000 0000000200000000 00000002.history", "/0000000100000000": "{1:6}"},
            "{1:6}",
        ),
        ("current", {"": "00000002.history"}, "000000010000000000000003"),
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
    host: Any, monkeypatch: pytest.MonkeyPatch, timeline: str, names: dict[str, str], end: str
) -> None:
    def segment(text: str, rest: str) -> str:
        return re.sub(r"\{(\d):(\d)\}", lambda one: f"{int(one[1]):08X}{0:08X}{int(one[2]):08X}{rest}", text)

    info = {**INFO, "archive": [{"id": "17-1", "database": {"id": 1, "repo-key": 1}}]}
    answers = {f"archive/main/17-1{path}": segment(text, f"-{'a' * 40}.zst") for path, text in names.items()}
    monkeypatch.setattr(target, "stored", lambda host, number, verb, path: answers[path])
    found = target.archive_end(host, info, INFO["backup"][0], 1, timeline)
    assert found == segment(end, "")


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
        verification.run(host, [1])
    assert caught.value.code == errors.CONFIGURATION
    assert receipts.read(host, "verify.json")["ok"] is False
    assert verification.run(host, [2])["ok"] is True


def test_settings_that_are_not_ours_are_refused(tmp_path: Path) -> None:
    for text in ("", "{}", '{"stanza": "main"}'):
        (tmp_path / "s.json").write_text(text, encoding="utf-8")
        with pytest.raises(errors.BackupError, match="does not describe this host"):
            settings.read(tmp_path / "s.json")


def test_several_errors_keep_the_gravest_status() -> None:
    both = backup.joined([errors.BackupError("a", "b", 4), errors.DamagedError("c", "d")])
    assert both.code == errors.DAMAGED
    assert all(part in str(both) for part in "abcd")


def drilled(host: Any, name: str, days_ago: float, result: str = "ok") -> None:
    ended = receipts.stamp(time.time() - days_ago * 86400)
    receipt = {"finished": ended, "result": result, "seconds": 9.5, "backup_label": "B", "detail": "told"}
    receipts.write(host, f"drill-{name}.json", receipt)


def test_repositories_take_turns_at_being_drilled(host: Any) -> None:
    """A drill that failed was a turn too: one repository that is away keeps no other from its own."""
    assert drill.turn(host, 0).name == "local"
    drilled(host, "local", 1)
    assert drill.turn(host, 0).name == "offsite"
    drilled(host, "offsite", 0, "failed")
    assert drill.turn(host, 0).name == "local"
    assert drill.turn(host, 2).name == "offsite"
    assert drill.turn(replace(host, drill_repository=2), 0).name == "offsite"
    with pytest.raises(errors.BackupError, match="no repository 3"):
        drill.turn(host, 3)


def test_a_backup_that_ends_during_a_drill_does_not_change_what_is_compared(
    host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It records digests of its own, of a later moment than the one that was restored to."""
    asked: list[list[str]] = []

    def checked(command: list[str], timeout: float) -> Any:
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
