"""`pgchroma backup status` and `record-drill` as a timer, a monitoring plugin and a person run them."""

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgchroma.backup import record
from pgchroma.exit_codes import ExitCode
from pgchroma.store import Store, backups, gauges
from support.command import Outcome, pgchroma
from support.postgres import Databases

RECORDED = Path(__file__).parents[1] / "fixtures/pgbackrest/info.json"


def info_of_now(folder: Path) -> Path:
    """What pgBackRest wrote, as if it had been a minute ago."""
    content: list[dict[str, Any]] = json.loads(RECORDED.read_text())
    later = int(datetime.now(UTC).timestamp()) - 60 - content[0]["backup"][-1]["timestamp"]["stop"]
    for backup in content[0]["backup"]:
        for key in ("start", "stop"):
            backup["timestamp"][key] += later
    path = folder / "info.json"
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def status(database_url: str, tmp_path: Path) -> Any:
    def run(*arguments: object, url: str = database_url) -> Outcome:
        return pgchroma(
            "backup", "status", "--database-url", url, "--state-dir", tmp_path / "state",
            "--info-file", info_of_now(tmp_path), *arguments,
        )  # fmt: skip

    return run


def drill(database_url: str, folder: Path, result: str, *more: object) -> Outcome:
    started = datetime.now(UTC).replace(microsecond=0).isoformat()
    return pgchroma(
        "backup", "record-drill", "--database-url", database_url, "--state-dir", folder / "state",
        "--result", result, "--started", started, "--duration", "12.5", "--format", "json", *more,
    )  # fmt: skip


def test_each_format_says_the_same(status: Any, database_url: str, tmp_path: Path) -> None:
    # This cluster does not archive: critical.
    outcome = status("--format", "json")
    assert outcome.code == 8
    assert {item["id"] for item in outcome.json["checks"] if item["status"] == "failed"} == {
        "archiving",
        "digests",
        "repository-1-drill",
    }
    assert outcome.json["facts"]["repositories"][0]["backups"][0]["type"] == "full"
    assert "critical checks failed: archiving" in outcome.stderr
    outcome = status()
    assert outcome.code == 8
    assert "archive_mode is off" in outcome.stdout
    outcome = status("--format", "nagios")
    assert outcome.code == 2
    assert outcome.stdout.startswith("PGCHROMA BACKUP CRITICAL - archiving: archive_mode is off; ")
    target = tmp_path / "pgchroma.prom"
    outcome = status("--format", "prometheus", "--output", target)
    assert (outcome.code, outcome.stdout) == (0, "")
    assert target.stat().st_mode & 0o777 == 0o644
    samples = {family.name: family.samples for family in text_string_to_metric_families(target.read_text())}
    assert samples["pgchroma_wal_archiving"][0].value == 0
    assert samples["pgchroma_backup_critical_checks_failed"][0].value == 1


def test_a_database_that_is_down_is_critical_but_the_rest_is_told(status: Any, tmp_path: Path) -> None:
    outcome = status("--format", "nagios", url=f"postgresql:///x?host={tmp_path}")
    assert outcome.code == 2
    assert "database: PostgreSQL does not answer" in outcome.stdout
    assert "repo1_full_age=" in outcome.stdout


def test_a_database_that_refuses_something_is_told_with_its_remedy(
    status: Any, database_url: str, databases: Databases
) -> None:
    with databases.fresh(migrated=False) as url:
        found = {item["id"]: item for item in status("--format", "json", url=url).json["checks"]}
    assert "the database is not prepared" in found["database"]["detail"]
    assert "pgchroma db upgrade" in found["database"]["hint"]


def test_a_mistyped_folder_of_the_output_is_not_made(status: Any, tmp_path: Path) -> None:
    target = tmp_path / "typo/pgchroma.prom"
    outcome = status("--format", "prometheus", "--output", target)
    assert outcome.code == ExitCode.CONFIGURATION
    assert f"there is no folder {target.parent}" in outcome.stderr
    assert not target.parent.exists()
    outcome = status("--format", "nagios", "--output", target)
    assert (outcome.code, outcome.stdout[:24]) == (3, "PGCHROMA BACKUP UNKNOWN ")


def test_wrong_settings_are_unknown_to_nagios(tmp_path: Path) -> None:
    outcome = pgchroma("backup", "status", "--format", "nagios", "--state-dir", tmp_path)
    assert outcome.code == 3
    assert outcome.stdout.startswith("PGCHROMA BACKUP UNKNOWN - no database is named")


@pytest.mark.parametrize("value", ["1", "5h:3h", "a:b", "1h:2h:3h", "-1h:2h"])
def test_a_threshold_that_makes_no_sense_is_refused(status: Any, value: str) -> None:
    outcome = status(f"--backup-age={value}")
    assert outcome.code == 2
    assert "--backup-age" in outcome.stderr


def test_a_drill_is_noted_in_a_receipt_and_in_the_database(
    status: Any, database_url: str, tmp_path: Path
) -> None:
    report = tmp_path / "report.json"
    report.write_text('{"result": "ok", "records": 5}')
    outcome = drill(
        database_url, tmp_path, "ok", "--backup-label", "F1", "--point", "p", "--check-report", report
    )
    assert outcome.code == 0, outcome.stderr
    receipt = json.loads(Path(outcome.json["receipt"]).read_text())
    assert (receipt["format"], receipt["result"], receipt["report"]["records"]) == (
        "pgchroma-restore-drill/1",
        "ok",
        5,
    )
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(
            "SELECT result, duration_seconds, backup_label, point FROM pgchroma.restore_drills"
        ).fetchall()
    assert rows == [("ok", 12.5, "F1", "p")]
    found = status("--format", "json").json
    assert {item["id"] for item in found["checks"] if "drill" in item["id"]} == {"drill", "drill-age"}
    assert not [item for item in found["checks"] if "drill" in item["id"] and item["status"] == "failed"]


def test_each_repository_has_a_drill_of_its_own(status: Any, database_url: str, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    first = {"repository": {"number": 1, "name": "local"}, "time": "2026-01-31T03:00:00Z"}
    (tmp_path / "state/first-backup-local.json").write_text(json.dumps(first))
    (tmp_path / "state/first-backup-broken.json").write_text("{")
    found = status("--format", "prometheus").stdout
    assert (
        'pgchroma_restore_drill_owed_since_timestamp_seconds{repo="1",stanza="main"} 1.7698284e+09' in found
    )
    assert drill(database_url, tmp_path, "failed", "--repository", "1").code == 0
    # One of a repository that is no more, and newer: it says nothing about the others.
    assert drill(database_url, tmp_path, "ok", "--repository", "2").code == 0
    found = status("--format", "prometheus").stdout
    assert 'pgchroma_restore_drill_success{repo="1",stanza="main"} 0.0' in found
    assert 'repo="2"' not in found
    assert "owed_since_timestamp_seconds{" not in found
    told = {item["id"]: item["status"] for item in status("--format", "json").json["checks"]}
    assert (told["repository-1-drill"], told["repository-1-drill-age"]) == ("failed", "ok")


def test_a_failed_drill_is_noted_without_a_database_too(
    status: Any, database_url: str, tmp_path: Path
) -> None:
    outcome = drill(f"postgresql:///x?host={tmp_path}", tmp_path, "failed", "--message", "digests differ")
    assert outcome.code == 0
    assert "does not answer" in outcome.json["database_error"]
    found = {item["id"]: item for item in status("--format", "json").json["checks"]}
    assert found["drill"]["detail"] == "failed after 12 s: digests differ"
    assert found["drill"]["severity"] == "critical"


def test_a_time_without_a_zone_is_refused(database_url: str, tmp_path: Path) -> None:
    for text in ("2026-01-31T03:00:00", "yesterday"):
        outcome = pgchroma(
            "backup", "record-drill", "--state-dir", tmp_path, "--result", "ok", "--started", text, "--duration", "1",
            "--database-url", database_url,
        )  # fmt: skip
        assert outcome.code == 3
        assert text in outcome.stderr
    assert os.listdir(tmp_path) == []  # noqa: PTH208


@pytest.mark.anyio
async def test_waiting_wal_files_are_counted(database_url: str) -> None:
    async with await backups.connect(database_url, "test") as connection:
        seen = await backups.archiver(connection)
        assert (seen.archiving, seen.ready_files, seen.oldest_ready_seconds) == (False, 0, 0.0)
        await connection.execute("CREATE ROLE keep_nobody")
        await connection.execute("SET ROLE keep_nobody")
        seen = await backups.archiver(connection)
        await connection.execute("RESET ROLE")
        await connection.execute("DROP ROLE keep_nobody")
    assert seen.ready_files is None


@pytest.mark.anyio
async def test_the_server_shows_what_the_database_knows(database_url: str, tmp_path: Path) -> None:
    async with await Store.open(database_url) as store:
        async with store.transaction() as connection:
            before = {item.name for item in await gauges.safety(connection)}
        assert before == {"pgchroma_database_wal_archiving", "pgchroma_database_wal_archive_failing"}
        assert drill(database_url, tmp_path, "failed").code == 0
        await record.record_digests(database_url, tmp_path)
        async with store.transaction() as connection:
            found = {item.name: item.samples[0][1] for item in await gauges.safety(connection)}
    assert found["pgchroma_database_restore_drill_success"] == 0
    assert found["pgchroma_database_restore_drill_duration_seconds"] == 12.5
    assert found["pgchroma_database_backup_digests_timestamp_seconds"] > 1_700_000_000
