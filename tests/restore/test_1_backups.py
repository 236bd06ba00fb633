"""Backups as they should be: taken, listed, checked, drilled; and what damages or prevents them named aloud."""

import json
import re
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
    for name in ("full", "diff", "incr", "check", "verify", "drill", "metrics"):
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


def test_metrics_are_written_for_node_exporter(host: Host, cluster: Cluster) -> None:
    """By the timer's unit, into the folder of the role's default, readable for node_exporter's own user."""
    host.check_output("systemctl start pgchroma-backup-metrics.service")
    path = "/var/lib/prometheus/node-exporter/pgchroma_backup.prom"
    assert host.file(path).mode == 0o644
    text = host.check_output(f"runuser -u nobody -- cat {path}")
    metrics = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {"pgchroma_backup_last_timestamp_seconds", "pgchroma_wal_archiving"} <= metrics
    for number in (1, 2, 3):
        assert f'pgchroma_backup_repository_status{{repo="{number}",stanza="main"}} 0.0' in text
    exposure = host.check_output(
        "systemd-analyze security --no-pager pgchroma-backup-metrics.service | tail -1"
    )
    assert float(exposure.split(":")[1].split()[0]) <= 3.0, exposure


class TestRepositoryHost:
    """Repository 3 is another host, reached by pgBackRest's own protocol over TLS."""

    def test_backup_and_wal_go_there_and_come_back(self, host: Host, cluster: Cluster) -> None:
        cluster.add(10)
        assert cluster("backup", "--type=incr", "--repository=3").status == 0
        cluster.add(10)
        answer = cluster.restore(latest=True, repository=3, directory="/srv/side", port=5440)
        assert answer.status == 0, answer.text
        cluster.sql("SELECT pg_switch_wal()")
        assert int(cluster.sql("SELECT count(*) FROM kept", socket="/srv/side/socket", port=5440)) >= 10
        assert cluster("side-remove", "--directory", "/srv/side").status == 0
        assert cluster("verify", "--repository=3").status == 0

    def test_it_holds_ciphertext_and_no_passphrase(self, host: Host, repository: Host) -> None:
        own = host.check_output("grep ^repo3-cipher-pass= /etc/pgbackrest/pgbackrest.conf | cut -d= -f2-")
        assert len(own) > 20
        assert repository.run(f"grep -rqF {own} /etc/pgbackrest /var/log/pgbackrest").rc == 1
        assert (
            repository.run("grep -rlE 'backup-standby|pgchroma' /srv/vault/backup/main/backup.info").rc == 1
        )
        found = repository.check_output("head -c 6 /srv/vault/backup/main/backup.info")
        assert found == "Salted"
        assert repository.file("/etc/pgbackrest/tls/host.key").mode == 0o600

    def test_it_lets_in_only_whom_it_knows(self, host: Host, repository: Host, cluster: Cluster) -> None:
        """No certificate, one of another authority, one of the same authority for a host that is not a client: all are refused."""
        command = "cd / && runuser -u postgres -- pgbackrest --config={} --stanza=main --repo=3 --io-timeout=2 repo-ls"
        assert host.run(command.format("/etc/pgbackrest/pgbackrest.conf")).rc == 0
        make = (
            "set -e; rm -rf /root/strangers; mkdir /root/strangers; cd /root/strangers; "
            "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=backup-restore1 -keyout key -out crt; "
            "chown -R postgres /root/strangers; mv /root/strangers /srv/strangers"
        )
        host.check_output(make)
        # The repository host's own certificate is by the right authority, and names no client.
        for name in ("host.key", "host.crt"):
            text = repository.check_output(f"cat /etc/pgbackrest/tls/{name}")
            host.check_output(
                f"install -o postgres -m 600 /dev/null /srv/strangers/{name}; printf '%s\\n' '{text}' > /srv/strangers/{name}"
            )
        try:
            for key, certificate, says in (
                ("/srv/strangers/key", "/srv/strangers/crt", "certificate|TLS error|unexpected eof"),
                ("/srv/strangers/host.key", "/srv/strangers/host.crt", "access denied"),
            ):
                host.check_output(
                    f"sed -e 's#^repo3-host-key-file=.*#repo3-host-key-file={key}#' "
                    f"-e 's#^repo3-host-cert-file=.*#repo3-host-cert-file={certificate}#' "
                    "/etc/pgbackrest/pgbackrest.conf > /srv/strangers/conf; chown postgres /srv/strangers/conf"
                )
                refused = host.run(command.format("/srv/strangers/conf"))
                assert refused.rc != 0
                assert re.search(says, refused.stdout + refused.stderr), refused.stdout + refused.stderr
            bare = "openssl s_client -connect 10.91.0.39:8432 -CAfile /etc/pgbackrest/tls/authority.crt </dev/null 2>&1"
            assert "Acceptable client certificate CA names" in host.run(bare).stdout
        finally:
            host.check_output("rm -rf /srv/strangers")

    def test_its_server_is_sandboxed_and_comes_back(self, repository: Host, cluster: Cluster) -> None:
        unit = "pgchroma-backup-server.service"
        exposure = repository.check_output(f"systemd-analyze security --no-pager {unit} | tail -1")
        assert float(exposure.split(":")[1].split()[0]) <= 3.0, exposure
        assert repository.service(unit).is_enabled
        repository.check_output(f"systemctl kill -s KILL {unit}")
        wait_for("it runs again", lambda: repository.socket("tcp://0.0.0.0:8432").is_listening)

    def test_a_repository_host_that_is_away_is_named(self, repository: Host, cluster: Cluster) -> None:
        repository.check_output("systemctl stop pgchroma-backup-server")
        try:
            answer = cluster("backup", "--type=incr", "--repository=3")
            assert answer.status == 4, answer.text
            assert "repository 3 (vault: tls" in answer.text
            assert "cannot be reached" in answer.text
        finally:
            repository.check_output("systemctl start pgchroma-backup-server")
            wait_for("WAL is archived again", lambda: waiting(cluster) == 0, seconds=120)


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


def test_what_is_about_to_be_done_is_said_and_a_check_leaves_it_at_that(
    cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    drilled = cluster.receipt("drill.json")
    done = playbook("restore_drill.yml", "--check")
    assert done.returncode == 0, done.stdout
    assert f"--set={cluster.newest(1)}" in done.stdout
    assert "MB free" in done.stdout
    assert cluster.receipt("drill.json") == drilled
    done = playbook("restore_point.yml", "--check", restore_point="never-made")
    assert done.returncode == 0, done.stdout
    assert "SELECT pg_create_restore_point('never-made')" in done.stdout
    assert "never-made" not in cluster("info").result["text"]
    done = playbook("backup_verify.yml", "--check", backup_verify_repository=1)
    assert done.returncode == 0, done.stdout
    assert "Read all of repository 1 (local: posix, /var/lib/pgbackrest)" in done.stdout
    assert not list(tmp_path.glob("*.json")), "nothing was done, so there is no receipt"


def test_drill_that_finds_a_difference_fails_and_tells(
    host: Host, cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
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
        done = playbook("restore_drill.yml")
        assert done.returncode != 0
        kept = json.loads(next(tmp_path.glob("drill-backup*.json")).read_text(encoding="utf-8"))
        assert (kept["result"], kept["status"], kept["host"]) == ("failed", 8, "backup-restore1")
        assert "same-cluster" in kept["error"]
        assert kept["receipt"] == cluster.receipt("drill.json")
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
        "sed -e '/^repo[23]/d' -e 's#^repo1-path=.*#repo1-path=/mnt/small#' -e 's/^.global.$/&\\narchive-check=n/' /etc/pgbackrest/pgbackrest.conf > /etc/pgbackrest/small.conf"
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

    def test_restore_from_the_other_one_needs_no_more(
        self, host: Host, cluster: Cluster, playbook: Playbook, s3_away: None
    ) -> None:
        """A point, what was written after it, and a restore of the running cluster to its end: all from the repository that answers."""
        done = playbook("restore_point.yml", restore_point="while-s3-is-away")
        assert done.returncode == 0, done.stdout
        assert "NOT in every repository" in done.stdout
        assert "repository 2 (s3: s3" in done.stdout
        cluster.add(10)
        rows = cluster.rows()
        assert cluster.plan(latest=True).result["repository"] == 1
        done = playbook("restore.yml", restore={"latest": True}, confirm="backup-restore1")
        assert done.returncode == 0, done.stdout
        assert cluster.rows() == rows
        assert host.service("pgchroma").is_running
        assert cluster("restore-finish", "--keep=restored").status == 0

    def test_nothing_stops_for_wal_that_the_repository_does_not_get(
        self, host: Host, cluster: Cluster, playbook: Playbook
    ) -> None:
        """It lets itself be read and not written to: servers run on, unless the operator says that what came last may be left."""
        service = host.check_output("systemctl show pgchroma -p ActiveEnterTimestampMonotonic --value")
        folder = "/var/lib/pgbackrest/archive/main"
        assert cluster("backup", "--type=incr", "--repository=1").status == 0
        rows = cluster.rows()
        host.check_output(f"find {folder} -type d -exec chmod u-w {{}} +")
        try:
            cluster.add(10)
            done = playbook(
                "restore.yml", restore={"latest": True, "repository": 1}, confirm="backup-restore1"
            )
            assert done.returncode != 0
            assert "what was written last could not be restored" in done.stdout, done.stdout
            assert cluster.is_running()
            shown = host.check_output("systemctl show pgchroma -p ActiveEnterTimestampMonotonic --value")
            assert shown == service, "the server was stopped"
            answer = cluster.restore(latest=True, repository=1, unarchived_lost=True)
            assert answer.status == 0, answer.text
            assert "into repository 1 (local" in answer.result["unarchived"]
            assert cluster.rows() == rows
            # They are not lost: the former data directory has them.
            assert cluster("restore-finish", "--keep=former").status == 0
            assert cluster.rows() == rows + 10
        finally:
            host.check_output(f"find {folder} -type d -exec chmod u+w {{}} +")
            wait_for("WAL is archived again", lambda: waiting(cluster) == 0, seconds=120)


def test_wrong_passphrase(host: Host, cluster: Cluster) -> None:
    program = (
        "import json; d=json.load(open('/etc/pgbackrest/pgchroma-backup.json')); d['config']='/etc/pgbackrest/wrong.conf';"
        "json.dump(d, open('/etc/pgbackrest/wrong.json', 'w'))"
    )
    host.check_output(f'python3 -c "{program}"')
    host.check_output(
        "sed 's/^repo1-cipher-pass=.*/repo1-cipher-pass=wrong/; /^repo[23]/d' /etc/pgbackrest/pgbackrest.conf > /etc/pgbackrest/wrong.conf"
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
