"""How fresh and sound backups are said to be, from what pgBackRest 2.55 really wrote (tests/fixtures/pgbackrest)."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgchroma.backup import pgbackrest, writers
from pgchroma.backup.pgbackrest import Repository
from pgchroma.backup.status import Facts, Limits, Thresholds, age, judge
from pgchroma.errors import ConfigurationError
from pgchroma.exit_codes import NagiosCode
from pgchroma.store import failures
from pgchroma.store.backups import Archiver, StoredPoint

FIXTURES = Path(__file__).parents[1] / "fixtures/pgbackrest"
# When the newest backup of the recorded answer ended.
LAST = 1795246939
HOUR, DAY = 3600, 86400


def recorded(name: str = "info") -> list[Repository]:
    return pgbackrest.parse((FIXTURES / f"{name}.json").read_text(), "main")


def drill(started: float, repository: int = 1, result: str = "ok", message: str = "") -> dict[str, Any]:
    return {
        "repository": repository,
        "started_at": datetime.fromtimestamp(started, UTC).isoformat(),
        "duration_seconds": 12.5,
        "result": result,
        "message": message,
    }


def facts(seconds_later: float = 60, **changes: object) -> Facts:
    """A cluster in perfect order some time after its last backup."""
    found = Facts(
        "main",
        LAST + seconds_later,
        repositories=recorded(),
        archiver=Archiver(True, 0, 0.0, 100, 0, 30.0, False, 0),
        point=StoredPoint(
            "point", datetime.fromtimestamp(LAST + 5, UTC), None, None, 10, "x", datetime.now(UTC)
        ),
        drills=[drill(LAST + seconds_later - DAY)],
    )
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def test_the_remedy_of_a_refused_login_is_another_user() -> None:
    refused = failures.unreachable(
        psycopg.OperationalError('FATAL:  Peer authentication failed for user "postgres"')
    )
    found = facts(archiver=None, database_error=refused.message, database_remedy=refused.hint)
    (told,) = (item for item in judge(found, Thresholds()) if item.id == "database")
    assert "refuses the login" in told.detail
    assert "pgchroma-postgres" in told.hint
    assert "start PostgreSQL" not in told.hint


def failed(found: Facts, thresholds: Thresholds | None = None) -> dict[str, str]:
    return {
        item.id: item.severity for item in judge(found, thresholds or Thresholds()) if item.status == "failed"
    }


def archiver(**changes: object) -> Archiver:
    current = facts().archiver
    assert current is not None
    return replace(current, **changes)  # type: ignore[arg-type]


def test_the_recorded_answer_is_understood() -> None:
    (repository,) = recorded()
    assert (repository.key, repository.code, repository.message) == (1, 0, "ok")
    assert [item.type for item in repository.backups] == ["full", "diff", "incr"]
    newest = repository.newest()
    assert newest is not None
    assert (newest.label, newest.stopped, newest.damaged) == (
        "20261121-074208F_20261121-074217I",
        LAST,
        False,
    )
    assert (newest.cluster_bytes, newest.repository_bytes) == (23431686, 440)
    assert repository.newest("full") == repository.backups[0]


@pytest.mark.parametrize(
    "text",
    ["", "[", "{1}", "[{}]", '[{"name": "main"}]', '[{"name": "main", "backup": [], "repo": [{}]}]', "7"],
)
def test_another_answer_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="not what"):
        pgbackrest.parse(text, "main")


def test_an_unknown_stanza_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no stanza other \(it knows: main\)"):
        pgbackrest.parse((FIXTURES / "info.json").read_text(), "other")


@pytest.mark.parametrize(
    ("noise", "quoted"),
    [(b"\x1b\x01", False), (b"\x9d\xff\x1b", False), (b'\x1b\x01"', True)],
    ids=["control characters", "no UTF-8", "not even JSON"],
)
def test_a_wrong_passphrase_is_named_whatever_bytes_the_answer_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: bytes, quoted: bool
) -> None:
    """pgBackRest 2.55 puts a part of what it decrypted to nonsense into its JSON as it is."""
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    message = b"[FormatError] key/value found outside of section at line 1: " + noise
    status = b'{"code":99,"message":"%s"}' % message
    (tmp_path / "answer").write_bytes(
        b'[{"name":"main","backup":[],"repo":[{"key":1,"status":%s}]}]\n' % status
    )
    answering = program(tmp_path, [f"cat {tmp_path}/answer"])
    if quoted:
        with pytest.raises(ConfigurationError, match="another passphrase") as caught:
            pgbackrest.info("main", answering)
        assert "\x1b" not in str(caught.value)
        return
    found = facts(repositories=pgbackrest.info("main", answering))
    (told,) = (item for item in judge(found, Thresholds()) if item.id == "repository-1")
    assert told.is_critical_failure
    assert "the passphrase is wrong" in told.detail
    assert "passphrase" in told.hint
    assert told.detail.isprintable()
    assert writers.nagios(found, judge(found, Thresholds()), Thresholds()).isprintable()
    assert metrics(found)["pgchroma_backup_repository_status,repo=1,stanza=main"] == 99


def test_a_cluster_in_order_fails_nothing() -> None:
    assert failed(facts()) == {}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (facts(repositories=recorded("info-missing")), {"repository-1": "critical", "repository-1-full": "critical", "repository-1-newest": "critical"}),
        (facts(repositories=recorded("info-empty")), {"repository-1": "critical", "repository-1-full": "critical", "repository-1-newest": "critical"}),
        (facts(27 * HOUR), {"repository-1-newest": "warning"}),
        (facts(51 * HOUR), {"repository-1-newest": "critical"}),
        (facts(9 * DAY), {"repository-1-full": "warning", "repository-1-newest": "critical"}),
        (facts(16 * DAY), {"repository-1-full": "critical", "repository-1-newest": "critical"}),
        (facts(repositories=[], repositories_error="no such program"), {"repositories": "critical"}),
        (facts(archiver=None, database_error="refused"), {"database": "critical"}),
        (facts(archiver=archiver(archiving=False)), {"archiving": "critical"}),
        (facts(archiver=archiver(ready_files=3, oldest_ready_seconds=100.0)), {}),
        (facts(archiver=archiver(ready_files=3, oldest_ready_seconds=200.0)), {"wal-waiting": "warning"}),
        (facts(archiver=archiver(ready_files=70, oldest_ready_seconds=900.0)), {"wal-waiting": "critical", "wal-files": "critical"}),
        (facts(archiver=archiver(ready_files=None)), {"wal-waiting": "warning"}),
        (facts(archiver=archiver(failing=True)), {"archive-command": "warning"}),
        (facts(archiver=archiver(checksum_failures=1)), {"page-checksums": "critical"}),
        (facts(point=None), {"digests": "warning"}),
        (facts(point=replace(facts().point, completed_at=None)), {"digests": "warning"}),  # type: ignore[type-var]
        (facts(point=replace(facts().point, created_at=datetime.fromtimestamp(LAST - 2 * HOUR, UTC))), {"digests": "warning"}),  # type: ignore[type-var]
        (facts(drills=[]), {"repository-1-drill": "warning"}),
        (facts(drills=[drill(LAST, result="failed", message="no space")]), {"repository-1-drill": "critical"}),
        (facts(drills=[drill(LAST - 10 * DAY)]), {"repository-1-drill-age": "warning"}),
        (facts(drills=[], drill_error="damaged"), {"drill": "warning", "repository-1-drill": "warning"}),
        (facts(drills=[drill(LAST - 10 * DAY, 0)]), {"drill-age": "warning"}),
        (facts(drills=[drill(LAST - 30 * DAY, 7), drill(LAST)]), {}),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(found: Facts, expected: dict[str, str]) -> None:
    assert failed(found) == expected


def test_every_repository_is_looked_at() -> None:
    (first,) = recorded()
    stale = replace(
        first, key=2, backups=tuple(replace(item, stopped=item.stopped - 30 * DAY) for item in first.backups)
    )
    assert failed(facts(repositories=[first, stale])) == {
        "repository-2-full": "critical",
        "repository-2-newest": "critical",
        "repository-2-drill": "warning",
    }


def test_repositories_take_turns_at_being_drilled() -> None:
    """Each may be as much older as there are others, and none is covered by another's drill."""
    (first,) = recorded()
    both = [first, replace(first, key=2)]
    assert failed(facts(repositories=both, drills=[drill(LAST), drill(LAST - 17 * DAY, 2)])) == {}
    assert failed(facts(repositories=both, drills=[drill(LAST), drill(LAST - 18 * DAY, 2)])) == {
        "repository-2-drill-age": "warning"
    }
    assert failed(facts(repositories=both, drills=[drill(LAST), drill(LAST, 2, "failed")])) == {
        "repository-2-drill": "critical"
    }


@pytest.fixture
def damaged_last() -> list[Repository]:
    """The newest backup met damaged pages; the one before it is a day older."""
    (first,) = recorded()
    *others, last = first.backups
    older = tuple(replace(item, stopped=item.stopped - DAY) for item in others)
    return [replace(first, backups=(*older, replace(last, damaged=True)))]


def test_a_damaged_backup_is_no_fresh_one(damaged_last: list[Repository]) -> None:
    found = facts(3 * HOUR, repositories=damaged_last)
    assert failed(found) == {"repository-1-newest": "warning", "repository-1-sound": "critical"}
    seen = metrics(found)
    assert seen["pgchroma_backup_last_damaged,repo=1,stanza=main"] == 1
    assert not [key for key in seen if key.startswith("pgchroma_backup_last_timestamp") and "incr" in key]
    assert seen["pgchroma_backup_count,repo=1,stanza=main,type=incr"] == 0
    alone = [replace(damaged_last[0], backups=damaged_last[0].backups[-1:])]
    told = {item.id: item.detail for item in judge(facts(repositories=alone), Thresholds())}
    assert told["repository-1-newest"] == "there is none without damaged pages"


def test_a_damaged_page_is_critical_although_the_backup_ended_well() -> None:
    answer = json.loads((FIXTURES / "info.json").read_text())
    answer[0]["backup"][-1]["error"] = True
    found = facts(repositories=pgbackrest.parse(json.dumps(answer), "main"))
    assert failed(found) == {"repository-1-sound": "critical"}


def test_thresholds_can_be_chosen() -> None:
    assert failed(facts(60), Thresholds(backup_age=Limits(10, 30))) == {"repository-1-newest": "critical"}


def test_nagios_gets_one_line_with_the_worst_first() -> None:
    good = facts()
    line = writers.nagios(good, judge(good, Thresholds()), Thresholds())
    assert line.startswith("PGCHROMA BACKUP OK - ")
    assert (
        " | repo1_full_age=66s;691200;1296000;0 repo1_newest_age=60s;93600;180000;0 repo1_size=3042344B;;;0 "
        in line
    )
    assert "drill_duration=12.5s;;;0" in line
    bad = facts(27 * HOUR, archiver=archiver(checksum_failures=2))
    checks = judge(bad, Thresholds())
    line = writers.nagios(bad, checks, Thresholds())
    assert line.startswith(
        "PGCHROMA BACKUP CRITICAL - page-checksums: 2 pages with a wrong checksum were read; repository-1-newest: "
    )
    assert "\n" not in line
    assert writers.nagios_code(checks) == NagiosCode.CRITICAL
    assert writers.nagios_code(judge(facts(27 * HOUR), Thresholds())) == NagiosCode.WARNING
    assert (
        writers.nagios(
            facts(repositories=[], repositories_error="a|b"),
            judge(facts(repositories=[], repositories_error="a|b"), Thresholds()),
            Thresholds(),
        ).count("|")
        == 1
    )


def metrics(found: Facts) -> dict[str, float]:
    text = writers.prometheus(found, judge(found, Thresholds()))
    return {
        sample.name + "".join(f",{key}={value}" for key, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_prometheus_gets_every_figure() -> None:
    found = metrics(facts(100))
    assert found["pgchroma_backup_last_timestamp_seconds,repo=1,stanza=main,type=incr"] == LAST
    assert found["pgchroma_backup_last_duration_seconds,repo=1,stanza=main,type=full"] == 5
    assert found["pgchroma_backup_repository_bytes,repo=1,stanza=main"] == 3042344
    assert found["pgchroma_backup_count,repo=1,stanza=main,type=diff"] == 1
    assert found["pgchroma_wal_ready_files"] == 0
    assert found["pgchroma_wal_last_archived_timestamp_seconds"] == LAST + 70
    name = "pgchroma_restore_drill_{},repo=1,stanza=main".format
    assert found[name("timestamp_seconds")] == LAST + 100 - DAY
    assert (found[name("duration_seconds")], found[name("success")]) == (12.5, 1)
    assert not [key for key in found if "owed" in key]
    assert found["pgchroma_backup_critical_checks_failed"] == 0
    assert (found["pgchroma_backup_repositories_answer"], found["pgchroma_backup_database_answers"]) == (1, 1)
    assert found["pgchroma_backup_status_timestamp_seconds"] == LAST + 100


def test_what_is_not_known_is_no_metric() -> None:
    found = metrics(
        facts(repositories=recorded("info-empty"), archiver=None, database_error="x", drills=[], point=None)
    )
    for name in (
        "pgchroma_backup_last_timestamp_seconds",
        "pgchroma_wal_ready_files",
        "pgchroma_restore_drill_success",
    ):
        assert not [key for key in found if key.startswith(name)]
    assert found["pgchroma_backup_repository_status,repo=1,stanza=main"] == 2
    assert found["pgchroma_backup_critical_checks_failed"] > 0
    assert found["pgchroma_backup_database_answers"] == 0


def test_a_repository_that_was_never_drilled_says_since_when() -> None:
    """Not how long somebody has been looking: Prometheus may have been away."""
    found = metrics(facts(drills=[], first_backups={1: LAST - DAY, 2: LAST}))
    assert [(key, value) for key, value in found.items() if "drill" in key] == [
        ("pgchroma_restore_drill_owed_since_timestamp_seconds,repo=1,stanza=main", LAST - DAY)
    ]


def test_that_pgbackrest_does_not_answer_is_a_metric() -> None:
    found = metrics(facts(repositories=[], repositories_error="no such program"))
    assert found["pgchroma_backup_repositories_answer"] == 0
    assert not [key for key in found if key.startswith("pgchroma_backup_repository_status")]
    assert found["pgchroma_backup_critical_checks_failed"] == 1


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (7199, "119 min"),
        (7200, "2 h 0 min"),
        (2 * DAY + HOUR, "2 d 1 h"),
    ],
)
def test_ages_are_readable(seconds: float, text: str) -> None:
    assert age(seconds) == text


def program(folder: Path, script: Sequence[str]) -> str:
    path = folder / "pgbackrest"
    path.write_text("\n".join(["#!/bin/sh", *script]))
    path.chmod(0o755)
    # Whoever it is run as must reach it.
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(parent.stat().st_mode | 0o011)
    return str(path)


def test_a_program_that_fails_or_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ConfigurationError, match="cannot run"):
        pgbackrest.info("main", str(tmp_path / "nothing"))
    failing = program(tmp_path, ["echo 'ERROR: [037]: no config' >&2", "exit 37"])
    with pytest.raises(ConfigurationError, match=r"ended with 37: ERROR: \[037\]: no config"):
        pgbackrest.info("main", failing)
    good = program(tmp_path, [f'test "$1" = --stanza=main && cat {FIXTURES}/info.json'])
    assert pgbackrest.info("main", good) == recorded()
    with pytest.raises(ConfigurationError, match="cannot read"):
        pgbackrest.info("main", good, tmp_path / "none.json")
