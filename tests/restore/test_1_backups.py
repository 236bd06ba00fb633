"""Backups as they should be: taken, listed, checked, drilled; and what damages or prevents them named aloud."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from testinfra.host import Host

from restore.conftest import DATA, STATE, Cluster, Playbook, waiting
from support.waiting import wait_for

REPOSITORY = "/var/lib/pgbackrest"


def test_site_took_a_first_backup_into_each_repository(cluster: Cluster) -> None:
    for repository in cluster("info").result["repositories"]:
        assert repository["fault"] == ""
        assert [entry["type"] for entry in repository["backups"]] == ["full"]


def test_stanza_came_before_the_first_segment(cluster: Cluster) -> None:
    for repository in cluster("info").result["repositories"]:
        assert all(archive["first"].endswith("01") for archive in repository["archive"]), (
            "the first segment is archived"
        )
    assert cluster.sql("SELECT failed_count FROM pg_stat_archiver") == "0"


def test_repositories_are_encrypted(host: Host, cluster: Cluster) -> None:
    assert host.run(f"grep -rl 'pgchroma' {REPOSITORY}/backup/main/backup.info").rc == 1
    assert host.file("/etc/pgbackrest/pgbackrest.conf").mode == 0o640
    assert host.run("runuser -u nobody -- cat /etc/pgbackrest/pgbackrest.conf").rc != 0


def test_timers_run_at_boot_and_failures_raise_the_alert(host: Host, cluster: Cluster) -> None:
    for name in ("full", "diff", "incr", "check", "verify", "drill"):
        shown = host.check_output(
            f"systemctl show pgchroma-backup-{name}.timer -p ActiveState,UnitFileState,Persistent"
        )
        assert sorted(shown.split()) == ["ActiveState=active", "Persistent=yes", "UnitFileState=enabled"]
    for unit in (
        "pgchroma-backup@full",
        "pgchroma-backup-check",
        "pgchroma-backup-drill",
        "pgchroma-backup-verify",
    ):
        assert "pgchroma-backup-alert@" in host.check_output(f"systemctl show {unit} -p OnFailure --value")
        exposure = host.check_output(f"systemd-analyze security --no-pager {unit}.service | tail -1")
        assert float(exposure.split(":")[1].split()[0]) <= 3.0, exposure


def test_playbook_takes_a_backup_and_keeps_receipts(
    cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    cluster.add(1000)
    done = playbook("backup.yml", backup_type="full", backup_repository=1)
    assert done.returncode == 0, done.stdout
    receipt = json.loads(next(tmp_path.glob("backup-*.json")).read_text(encoding="utf-8"))["backups"][0]
    assert receipt["label"] == cluster.newest(1)
    assert receipt["label"] in done.stdout
    assert receipt["result"] == "ok"
    assert receipt["digests"]["recorded"]


def test_unit_takes_an_incremental_one(host: Host, cluster: Cluster) -> None:
    host.check_output("systemctl start pgchroma-backup@incr.service")
    for repository in cluster("info").result["repositories"]:
        assert repository["backups"][-1]["type"] == "incr"


def test_hourly_check_is_content(cluster: Cluster) -> None:
    answer = cluster("check")
    assert answer.status == 0, answer.text


def test_drill_proves_the_newest_backup(host: Host, cluster: Cluster) -> None:
    host.check_output("systemctl start pgchroma-backup-drill.service")
    receipt = cluster.receipt("drill.json")
    assert receipt["result"] == "ok"
    assert receipt["backup_label"] == cluster.newest(1)
    assert not host.file("/var/lib/pgchroma-drill/copy").exists
    assert cluster.is_running()


def test_drill_that_finds_a_difference_fails_and_tells(host: Host, cluster: Cluster) -> None:
    """The negative control: digests of something else must not be found in the copy."""
    digests = f"{STATE}/digests/latest.json"
    host.check_output(f"cp -p {digests} {digests}.kept")
    program = "import json,sys; p=sys.argv[1]; d=json.load(open(p)); d['system_identifier']='1'; json.dump(d, open(p, 'w'))"
    host.check_output(f'python3 -c "{program}" {digests}')
    try:
        assert host.run("systemctl start pgchroma-backup-drill.service").rc != 0
        assert cluster.receipt("drill.json")["result"] == "failed"
        told = wait_for("the alert command was called", lambda: _told(host, "drill"))
        assert told["unit"] == "pgchroma-backup-drill.service"
        assert cluster("check").status == 8
    finally:
        host.check_output(f"mv {digests}.kept {digests}")
    assert cluster("drill").status == 0


def _told(host: Host, what: str) -> dict[str, str] | None:
    file = host.file(f"{STATE}/told.json")
    try:
        content: dict[str, str] = json.loads(file.content_string) if file.exists else {}
    except ValueError:
        return None
    return content if what in content.get("unit", "") else None


def test_two_at_once_are_refused(host: Host, cluster: Cluster) -> None:
    host.check_output("systemctl start --no-block pgchroma-backup@full.service")
    wait_for(
        "the first one has begun", lambda: host.run("pgrep -u postgres -f 'pgbackrest.* backup$'").rc == 0
    )
    second = cluster("backup", "--type=incr", "--repository=1")
    assert second.status == 9, second.text
    assert "another pgBackRest process is at work" in second.text
    ended = "systemctl show pgchroma-backup@full -p ActiveState --value | grep -qx inactive"
    wait_for("the first one has ended well", lambda: host.run(ended).rc == 0, seconds=120)
    assert cluster("info").result["repositories"][0]["backups"][-1]["type"] == "full"


@pytest.fixture
def damaged_page(host: Host, cluster: Cluster) -> Iterator[str]:
    """A table with one byte wrong in its third page."""
    cluster.sql("CREATE TABLE damaged AS SELECT g, repeat('x', 500) AS t FROM generate_series(1, 200) AS g")
    cluster.sql("CHECKPOINT")
    file = cluster.sql("SELECT pg_relation_filepath('damaged')")
    path = f"{DATA}/{file}"
    host.check_output("systemctl stop postgresql@17-main")
    host.check_output(f"printf '\\xff' | dd of={path} bs=1 seek=18000 conv=notrunc status=none")
    host.check_output("systemctl start postgresql@17-main")
    yield path
    cluster.sql("DROP TABLE damaged")
    cluster.sql("SELECT pg_stat_reset()")
    assert cluster("backup", "--type=full", "--repository=1").status == 0


def test_corrupted_page_fails_the_backup_loudly(cluster: Cluster, damaged_page: str) -> None:
    before = [entry["label"] for entry in cluster("info").result["repositories"][0]["backups"]]
    answer = cluster("backup", "--type=full", "--repository=1")
    assert answer.status == 8, answer.text
    assert "damaged pages" in answer.text
    after = cluster("info").result["repositories"][0]["backups"]
    assert after[-1]["damaged"]
    assert before == [entry["label"] for entry in after[:-1]], (
        "no good backup may be pushed out by a damaged one"
    )
    planned = cluster.plan(latest=True)
    assert planned.result["set"] == before[-1], "a damaged set is restored only when it is named"


def test_disk_full_in_the_repository(host: Host, cluster: Cluster) -> None:
    """A repository of its own on a small file system, full but for a little."""
    host.check_output("mkdir -p /mnt/small && mount -t tmpfs -o size=6m,mode=0777 tmpfs /mnt/small")
    program = (
        "import json; d=json.load(open('/etc/pgbackrest/pgchroma-backup.json'));"
        "d['config']='/etc/pgbackrest/small.conf'; d['repositories']=[dict(number=1, name='small', kind='posix', where='/mnt/small')];"
        "json.dump(d, open('/etc/pgbackrest/small.json', 'w'))"
    )
    host.check_output(f'python3 -c "{program}"')
    host.check_output(
        "sed -e '/^repo2/d' -e 's#^repo1-path=.*#repo1-path=/mnt/small#' -e 's/^.global.$/&\\narchive-check=n/' /etc/pgbackrest/pgbackrest.conf > /etc/pgbackrest/small.conf"
    )
    host.check_output("chgrp postgres /etc/pgbackrest/small.*; chmod 640 /etc/pgbackrest/small.*")
    try:
        assert cluster("stanza", settings="/etc/pgbackrest/small.json").status == 0
        host.check_output("dd if=/dev/zero of=/mnt/small/ballast bs=1M count=5 status=none")
        answer = cluster("backup", "--type=full", settings="/etc/pgbackrest/small.json")
        assert answer.status == 1, answer.text
        assert "the disk is full" in answer.text
        assert (
            cluster("info", settings="/etc/pgbackrest/small.json").result["repositories"][0]["backups"] == []
        )
        assert cluster.is_running()
    finally:
        host.check_output("umount /mnt/small; rm -f /etc/pgbackrest/small.*")


class TestRepositoryAway:
    def test_backup_names_it_and_the_other_gets_its_own(self, cluster: Cluster, s3_away: None) -> None:
        before = cluster.newest(1)
        answer = cluster("backup", "--type=incr")
        assert answer.status in (1, 4), answer.text
        assert "repository 2 (s3: s3" in answer.text
        assert "cannot be reached" in answer.text
        assert before != cluster.newest(1)

    def test_wal_waits_the_check_says_so_and_nothing_is_lost(self, cluster: Cluster, s3_away: None) -> None:
        for _ in range(10):
            cluster.add(10)
            cluster.sql("SELECT pg_switch_wal()")
        wait_for("segments wait", lambda: waiting(cluster) > 8, seconds=60)
        answer = cluster("check")
        assert answer.status == 8
        assert "segments wait" in answer.text

    def test_restore_from_it_is_refused_before_anything_stops(self, cluster: Cluster, s3_away: None) -> None:
        answer = cluster.restore(latest=True, repository=2)
        assert answer.status == 4, answer.text
        assert cluster.is_running()

    def test_restore_takes_the_other_one(self, cluster: Cluster, s3_away: None) -> None:
        assert cluster.plan(latest=True).result["repository"] == 1


def test_wrong_passphrase(host: Host, cluster: Cluster) -> None:
    program = (
        "import json; d=json.load(open('/etc/pgbackrest/pgchroma-backup.json')); d['config']='/etc/pgbackrest/wrong.conf';"
        "json.dump(d, open('/etc/pgbackrest/wrong.json', 'w'))"
    )
    host.check_output(f'python3 -c "{program}"')
    host.check_output(
        "sed 's/^repo1-cipher-pass=.*/repo1-cipher-pass=wrong/; /^repo2/d' /etc/pgbackrest/pgbackrest.conf > /etc/pgbackrest/wrong.conf"
    )
    host.check_output("chgrp postgres /etc/pgbackrest/wrong.*; chmod 640 /etc/pgbackrest/wrong.*")
    try:
        for words in (
            ("backup", "--repository=1"),
            ("restore-plan", "--target", '{"latest": true, "repository": 1}'),
            ("stanza",),
        ):
            answer = cluster(*words, settings="/etc/pgbackrest/wrong.json")
            assert answer.status == 3, answer.text
            assert "passphrase" in answer.text
            assert answer.text.isprintable() or "\x00" not in answer.text
    finally:
        host.check_output("rm -f /etc/pgbackrest/wrong.*")


def test_corrupted_file_in_the_repository(host: Host, cluster: Cluster) -> None:
    assert cluster("backup", "--type=full", "--repository=1").status == 0
    label = cluster.newest(1)
    bundle = f"{REPOSITORY}/backup/main/{label}/bundle/1"
    host.check_output(f"cp -p {bundle} /root/bundle")
    host.check_output(f"printf 'DAMAGED' | dd of={bundle} bs=1 seek=200000 conv=notrunc status=none")
    try:
        assert cluster("verify", "--repository=2").status == 0
        verified = cluster("verify")
        assert verified.status == 8, verified.text
        assert label in verified.text
        assert not cluster.receipt("verify.json")["ok"]
        side = cluster.restore(immediate=True, set=label, directory="/srv/side", port=5440)
        assert side.status != 0
        assert "damaged" in side.text or "checksum" in side.text.lower(), side.text
        assert not host.file("/srv/side/data/global/pg_control").exists, (
            "an incomplete copy must not be startable"
        )
    finally:
        host.check_output(f"cp -p /root/bundle {bundle}; rm -rf /srv/side")
    assert cluster("verify").status == 0
