"""Backups as they should be: taken, listed, checked, drilled; and what damages or prevents them named aloud."""

import json
import os
import re
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from testinfra.host import Host

from restore.conftest import DATA, ROOT, STATE, Cluster, Playbook, away, waiting
from support.host import COLLECTIONS, api_of
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


# The first bytes of a file, as base64: "Salted__" is what pgBackRest begins an encrypted one with. Into bundles it puts files without that,
# so that they begin with salt; one that was not encrypted would begin with the first file's zstd frame.
SALTED, ZSTD = "U2FsdGVkX18=", "KLUv/"
OBJECTS = """
import base64, boto3
client = boto3.client("s3", endpoint_url="http://127.0.0.1:9000", region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
for page in client.get_paginator("list_objects_v2").paginate(Bucket="pgchroma"):
    for entry in page["Contents"]:
        body = client.get_object(Bucket="pgchroma", Key=entry["Key"], Range="bytes=0-7")["Body"].read()
        print(base64.b64encode(body).decode(), entry["Key"])
"""


def test_repositories_are_encrypted(host: Host, repository: Host, s3: Host, cluster: Cluster) -> None:
    """Every file of every one: lists, manifests, bundles, WAL."""
    files = 'find {} -type f | while read -r name; do echo "$(head -c 8 "$name" | base64) $name"; done'
    found = {
        "local": host.check_output(files.format(REPOSITORY)),
        "s3": s3.check_output(f"python3 -c {shlex.quote(OBJECTS)}"),
        "vault": repository.check_output(files.format("/srv/vault")),
    }
    for name, listed in found.items():
        lines = listed.splitlines()
        bundles = [line for line in lines if "/bundle/" in line]
        assert bundles
        assert not [line for line in bundles if line.startswith(ZSTD)], name
        assert not [line for line in set(lines) - set(bundles) if not line.startswith(f"{SALTED} ")], name
        for part in ("backup.info", "backup.manifest", "archive.info"):
            assert [line for line in lines if part in line], f"{name} holds no {part}"
        assert [line for line in lines if re.search(r"/[0-9A-F]{24}-[0-9a-f]{40}", line)], (
            f"{name} holds no WAL"
        )


def test_passphrases_are_for_their_owners_alone(host: Host, cluster: Cluster) -> None:
    folder = Path(os.environ.get("PGCHROMA_SECRETS", ROOT / "build/secrets"))
    assert folder.stat().st_mode & 0o777 == 0o700
    kept = {name: folder / f"main-{name}.passphrase" for name in ("local", "s3", "vault")}
    assert {path.stat().st_mode & 0o777 for path in kept.values()} == {0o600}
    assert len({path.read_text(encoding="utf-8") for path in kept.values()}) == 3, "each has its own"
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
        "pgchroma-backup-even-out",
    ):
        alert = host.check_output(f"systemctl show {unit} -p OnFailure --value")
        assert ("pgchroma-backup-alert@" in alert) == (unit != "pgchroma-backup-even-out")
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


def test_root_asks_for_the_state_of_backups_as_the_documents_say(host: Host, cluster: Cluster) -> None:
    """docs/MONITORING.md and the runbook of backups: pgchroma itself is in nobody's path, and root is nobody to PostgreSQL."""
    shown = host.run("pgchroma-postgres backup status")
    assert shown.rc == 0, shown.stdout + shown.stderr
    assert "repository-1-newest" in shown.stdout
    told = host.run("pgchroma-postgres backup status --format nagios")
    assert told.rc in (0, 1), told.stdout + told.stderr
    assert told.stdout.startswith("PGCHROMA BACKUP "), told.stdout
    checks = {
        item["id"]: item["status"]
        for item in json.loads(host.check_output("pgchroma-postgres backup status --format json"))["checks"]
    }
    assert "database" not in checks
    assert [checks[f"repository-{number}"] for number in (1, 2, 3)] == ["ok"] * 3
    recorded = json.loads(host.check_output("pgchroma-postgres backup record-digests --format json"))
    assert recorded["archived"] is True
    assert host.file(f"{STATE}/digests/{recorded['point']}.json").user == "postgres"
    refused = host.run("runuser -u nobody -- /usr/local/sbin/pgchroma-postgres backup status")
    assert refused.rc == 3
    assert "sudo pgchroma-postgres backup status" in refused.stderr


def restored_beside(cluster: Cluster, number: int) -> int:
    """Restore the end of a repository's archive beside the cluster; return how many rows came back."""
    cluster.sql("SELECT pg_switch_wal()")
    wait_for("all is archived", lambda: waiting(cluster) == 0, seconds=60)
    answer = cluster.restore(latest=True, repository=number, directory="/srv/side", port=5440)
    assert answer.status == 0, answer.text
    found = int(cluster.sql("SELECT count(*) FROM kept", socket="/srv/side/socket", port=5440))
    assert cluster("side-remove", "--directory", "/srv/side").status == 0
    return found


class TestRepositoryHost:
    """Repository 3 is another host, reached by pgBackRest's own protocol over TLS."""

    def test_backup_and_wal_go_there_and_come_back(self, host: Host, cluster: Cluster) -> None:
        cluster.add(10)
        assert cluster("backup", "--type=incr", "--repository=3").status == 0
        cluster.add(10)
        rows = cluster.rows()
        assert restored_beside(cluster, 3) == rows
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


class TestPlaybooks:
    """What an operator runs, as it is run."""

    def test_info_lists_what_there_is(self, cluster: Cluster, playbook: Playbook) -> None:
        done = playbook("backup_info.yml", backup_info_json=True)
        assert done.returncode == 0, done.stdout
        for number in (1, 2, 3):
            assert cluster.newest(number) in done.stdout
        assert '"kind": "info"' in done.stdout.replace('\\"', '"')

    def test_verify_reads_one_repository_and_keeps_a_receipt(
        self, cluster: Cluster, playbook: Playbook, tmp_path: Path
    ) -> None:
        done = playbook("backup_verify.yml", backup_verify_repository="local")
        assert done.returncode == 0, done.stdout
        receipt = json.loads(next(tmp_path.glob("backup-verify-*.json")).read_text(encoding="utf-8"))
        assert receipt["ok"]
        assert [entry["name"] for entry in receipt["results"]] == ["local"]
        assert "Repository 1 (local) is whole" in done.stdout

    def test_backup_in_the_background_goes_into_all(
        self, host: Host, cluster: Cluster, playbook: Playbook, tmp_path: Path
    ) -> None:
        before = [cluster.newest(number) for number in (1, 2, 3)]
        done = playbook("backup.yml", backup_type="incr", backup_wait=False)
        assert done.returncode == 0, done.stdout
        assert "journalctl -fu pgchroma-backup@incr" in done.stdout
        ended = "systemctl show pgchroma-backup@incr -p ActiveState --value | grep -qx inactive"
        wait_for("it has ended well", lambda: host.run(ended).rc == 0, seconds=120)
        after = [cluster.newest(number) for number in (1, 2, 3)]
        assert not set(before) & set(after)
        assert host.file(f"{STATE}/backup-{after[1]}-s3.json").exists
        assert not list(tmp_path.glob("backup-*.json")), "the receipts stay on the host"

    @pytest.mark.parametrize(
        "variables",
        [
            {"backup_type": "fulll"},
            {"backup_wait": False, "backup_repository": 2},
            {"backup_wait": "maybe"},
        ],
        ids=str,
    )
    def test_backup_that_cannot_be_as_asked_is_refused(
        self, cluster: Cluster, playbook: Playbook, variables: dict[str, object]
    ) -> None:
        before = [cluster.newest(number) for number in (1, 2, 3)]
        done = playbook("backup.yml", **variables)
        assert done.returncode != 0
        assert "Nothing was done" in done.stdout
        assert [cluster.newest(number) for number in (1, 2, 3)] == before

    @pytest.mark.parametrize(("wrong", "option"), [("nonsense", "--diff"), (9, "--check")])
    @pytest.mark.parametrize(
        ("name", "variable"),
        [
            ("backup.yml", "backup_repository"),
            ("backup_verify.yml", "backup_verify_repository"),
            ("restore_drill.yml", "restore_drill_repository"),
        ],
    )
    def test_repository_that_there_is_not_is_refused(
        self, playbook: Playbook, name: str, variable: str, wrong: object, option: str
    ) -> None:
        done = playbook(name, option, **{variable: wrong})
        assert done.returncode != 0, done.stdout
        assert f"there is no repository {wrong}" in done.stdout
        assert "choose one of repository 1 (local" in done.stdout

    @pytest.mark.parametrize(
        ("name", "variables"),
        [
            ("backup.yml", {"backup_type": "full"}),
            ("backup.yml", {"backup_repository": "s3"}),
            ("backup.yml", {"backup_wait": False}),
            ("backup_info.yml", {}),
        ],
        ids=str,
    )
    def test_a_check_changes_nothing(
        self, cluster: Cluster, playbook: Playbook, name: str, variables: dict[str, object]
    ) -> None:
        state = f"find {STATE} -type f -not -name '.*' -printf '%p %T@\\n' | sort"
        before = ([cluster.newest(number) for number in (1, 2, 3)], cluster.run(state))
        done = playbook(name, "--check", **variables)
        assert done.returncode == 0, done.stdout
        assert ([cluster.newest(number) for number in (1, 2, 3)], cluster.run(state)) == before


def test_hourly_check_is_content(cluster: Cluster) -> None:
    answer = cluster("check")
    assert answer.status == 0, answer.text


def test_drill_proves_the_newest_backup(host: Host, cluster: Cluster) -> None:
    host.check_output("systemctl start pgchroma-backup-drill.service")
    receipt = cluster.receipt("drill.json")
    assert receipt["result"] == "ok"
    assert receipt["backup_label"] == cluster.newest(receipt["repository"])
    assert not host.file("/var/lib/pgchroma-drill/copy").exists
    assert cluster.is_running()


def test_what_is_about_to_be_done_is_said_and_a_check_leaves_it_at_that(
    cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    drilled = cluster.receipt("drill.json")
    done = playbook("restore_drill.yml", "--check", restore_drill_repository=1)
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


def test_repositories_take_turns_and_each_proves_its_own(
    cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    drilled = {cluster.receipt("drill.json")["repository"]}
    every = {entry["number"] for entry in cluster("info").result["repositories"]}
    while drilled != every:
        answer = cluster("drill")
        assert answer.status == 0, answer.text
        assert answer.result["repository"] not in drilled, "the one that was drilled longest ago comes first"
        drilled.add(answer.result["repository"])
    for entry in cluster("info").result["repositories"]:
        assert entry["drill"]["backup_label"] == cluster.newest(entry["number"])
    done = playbook("restore_drill.yml", restore_drill_repository="s3")
    assert done.returncode == 0, done.stdout
    receipt = json.loads(next(tmp_path.glob("drill-*.json")).read_text(encoding="utf-8"))
    assert (receipt["result"], receipt["repository"]) == ("ok", 2)
    assert f"{receipt['backup_label']} from repository 2" in done.stdout
    cluster.run("systemctl start pgchroma-backup-metrics.service")
    text = cluster.run("cat /var/lib/prometheus/node-exporter/pgchroma_backup.prom")
    for number in every:
        assert f'pgchroma_restore_drill_success{{repo="{number}",stanza="main"}} 1.0' in text


@pytest.fixture
def digests(host: Host) -> Iterator[str]:
    """The file with the digests that the next drill compares with, put back afterwards."""
    path = f"{STATE}/digests/latest.json"
    host.check_output(f"cp -p {path} /root/digests")
    yield path
    host.check_output(f"cp -p /root/digests {path}")


class TestDrillThatFindsADifference:
    """Negative controls: digests of something else must not be found in the copy."""

    def test_it_fails_and_tells(
        self, host: Host, cluster: Cluster, playbook: Playbook, digests: str, tmp_path: Path
    ) -> None:
        program = "import json,sys; p=sys.argv[1]; d=json.load(open(p)); d['system_identifier']='1'; json.dump(d, open(p, 'w'))"
        host.check_output(f'python3 -c "{program}" {digests}')
        host.check_output(f"rm -f {STATE}/told.json")
        assert host.run("systemctl start pgchroma-backup-drill.service").rc != 0
        receipt = cluster.receipt("drill.json")
        assert receipt["result"] == "failed"
        told = wait_for("the alert command was called", lambda: _told(host, "drill"))
        assert told["unit"] == "pgchroma-backup-drill.service"
        alert = f"{STATE}/alert-pgchroma-backup-drill.service.json"
        assert host.file(alert).exists
        checked = cluster("check")
        assert checked.status == 8
        assert f"drill.{receipt['repository_name']}" in checked.text
        done = playbook("restore_drill.yml", restore_drill_repository=receipt["repository"])
        assert done.returncode != 0
        kept = json.loads(next(tmp_path.glob("drill-backup*.json")).read_text(encoding="utf-8"))
        assert (kept["result"], kept["status"], kept["host"]) == ("failed", 8, "backup-restore1")
        assert "same-cluster" in kept["error"]
        assert kept["receipt"] == cluster.receipt("drill.json")
        host.check_output(f"cp -p /root/digests {digests}")
        assert cluster("drill", f"--repository={receipt['repository']}").status == 0
        host.check_output("systemctl start pgchroma-backup-drill.service")
        assert not host.file(alert).exists, "an alert that is over must not stand"
        assert cluster("check").status == 0

    def test_a_record_too_many_is_named(self, host: Host, cluster: Cluster, digests: str) -> None:
        """What was recorded before a record came, held against the copy that has it."""
        api = partial(api_of(host), token_file="")
        status, made = api("POST", COLLECTIONS, {"name": "drilled", "get_or_create": True})
        assert status == 200, made
        upsert = f"{COLLECTIONS}/{made['id']}/upsert"
        assert api("POST", upsert, {"ids": ["a"], "embeddings": [[1, 2, 3]]})[0] in (200, 201)
        assert cluster("backup", "--type=incr", "--repository=1").status == 0
        before = json.loads(host.file(digests).content_string)
        assert api("POST", upsert, {"ids": ["b"], "embeddings": [[3, 2, 1]]})[0] in (200, 201)
        assert cluster("backup", "--type=incr", "--repository=1").status == 0
        after = json.loads(host.file(digests).content_string)
        forged = {**before, **{key: after[key] for key in ("point", "lsn", "wal_file", "created_at")}}
        host.check_output(f"cp -p {digests} /root/digests")
        host.check_output(f"printf '%s' {shlex.quote(json.dumps(forged))} > {digests}")
        answer = cluster("drill", "--repository=1")
        assert answer.status == 8, answer.text
        assert "drilled" in answer.text
        host.check_output(f"cp -p /root/digests {digests}")
        assert cluster("drill", "--repository=1").status == 0


@pytest.fixture
def no_patience(host: Host) -> Iterator[None]:
    """Backups and drills are too old as soon as they are made."""
    path = "/etc/pgbackrest/pgchroma-backup.json"
    host.check_output(f"cp -p {path} /root/settings")
    host.check_output(f"sed -i -E 's/(_(hours|days)_maximum\": )[0-9]+/\\10/' {path}")
    yield
    host.check_output(f"cp -p /root/settings {path}")


def test_what_is_too_old_raises_the_alert_until_it_is_not(
    host: Host, cluster: Cluster, no_patience: None
) -> None:
    unit = "pgchroma-backup-check.service"
    host.check_output(f"rm -f {STATE}/told.json")
    assert host.run(f"systemctl start {unit}").rc != 0
    told = wait_for("the alert command was called", lambda: _told(host, "check"))
    said = "\n".join(told["journal"])
    for number, name in enumerate(("local", "s3", "vault"), 1):
        assert f"backup.{name}: {cluster.newest(number)} is 0." in said
        assert f"drill.{name}: ok, 0.0 days ago (at most 0)" in said
    assert host.file(f"{STATE}/alert-{unit}.json").exists
    host.check_output("cp -p /root/settings /etc/pgbackrest/pgchroma-backup.json")
    host.check_output(f"systemctl start {unit}")
    assert not host.file(f"{STATE}/alert-{unit}.json").exists


def _told(host: Host, what: str) -> dict[str, Any] | None:
    file = host.file(f"{STATE}/told.json")
    try:
        content: dict[str, Any] = json.loads(file.content_string) if file.exists else {}
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


def test_next_good_full_backup_takes_the_damaged_one_away_first(cluster: Cluster) -> None:
    """It is the one that mended the page's cluster; three full ones are kept here, and all of them must be good."""
    held = cluster("info").result["repositories"][0]["backups"]
    assert not [entry["label"] for entry in held if entry["damaged"]]
    assert sum(entry["type"] == "full" for entry in held) == 3


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


def is_whole(cluster: Cluster, number: int) -> bool:
    """Whether WAL leads from a repository's newest backup to the running cluster."""
    plan = cluster.plan(latest=True, repository=number)
    return plan.status == 0 and plan.result["lacks"] == []


class TestRepositoryAway:
    def test_backup_names_it_and_the_other_gets_its_own(self, cluster: Cluster, s3_away: None) -> None:
        before = cluster.newest(1)
        answer = cluster("backup", "--type=incr")
        assert answer.status == 4, answer.text
        assert "repository 2 (s3: s3" in answer.text
        assert "cannot be reached" in answer.text
        assert before != cluster.newest(1)

    def test_wal_waits_the_check_says_so_and_nothing_is_lost(self, s3: Host, cluster: Cluster) -> None:
        with away(s3, cluster):
            for _ in range(10):
                cluster.add(10)
                cluster.sql("SELECT pg_switch_wal()")
            rows = cluster.rows()
            wait_for("segments wait", lambda: waiting(cluster) > 8, seconds=60)
            answer = cluster("check")
            assert answer.status == 8
            assert re.search(r"^archive.ready: \d+ segments wait", answer.text, re.MULTILINE), answer.text
        assert restored_beside(cluster, 2) == rows, "what waited has come to the repository that was away"

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
        wait_for("the other one that answers has all of it, too", lambda: is_whole(cluster, 3), seconds=120)

    def test_it_gets_what_it_lacks_when_it_is_back(self, cluster: Cluster) -> None:
        """Without waiting for the hourly check: until then nothing written since the restore could be restored from it."""
        wait_for("S3 has it, too", lambda: is_whole(cluster, 2), seconds=240)

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


@pytest.fixture
def wrong(host: Host, cluster: Cluster) -> Iterator[str]:
    """Settings whose passphrases are wrong for every repository."""
    program = (
        "import json; d=json.load(open('/etc/pgbackrest/pgchroma-backup.json')); d['config']='/etc/pgbackrest/wrong.conf';"
        "json.dump(d, open('/etc/pgbackrest/wrong.json', 'w'))"
    )
    host.check_output(f'python3 -c "{program}"')
    host.check_output(
        "sed 's/^\\(repo.-cipher-pass\\)=.*/\\1=wrong/' /etc/pgbackrest/pgbackrest.conf > /etc/pgbackrest/wrong.conf && "
        "chgrp postgres /etc/pgbackrest/wrong.* && chmod 640 /etc/pgbackrest/wrong.*"
    )
    yield "/etc/pgbackrest/wrong.json"
    host.check_output("rm -f /etc/pgbackrest/wrong.*")


def names_the_passphrase(text: str) -> bool:
    """Whether a text is about the passphrase, and none of the ciphertext goes to a terminal with it."""
    return "passphrase" in text and all(character.isprintable() or character == "\n" for character in text)


class TestWrongPassphrase:
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_nothing_is_done_with_it(self, cluster: Cluster, wrong: str, number: int) -> None:
        for words in (
            ("backup", f"--repository={number}"),
            ("restore-plan", "--target", json.dumps({"latest": True, "repository": number})),
            ("verify", f"--repository={number}"),
            ("drill", f"--repository={number}"),
            ("stanza",),
        ):
            answer = cluster(*words, settings=wrong)
            assert answer.status == 3, (words, answer.text)
            assert names_the_passphrase(answer.text), (words, answer.text)
        assert cluster("drill", f"--repository={number}").status == 0

    def test_overview_status_and_metrics_say_so(self, host: Host, cluster: Cluster, wrong: str) -> None:
        listed = cluster("info", settings=wrong)
        assert listed.status == 0, listed.text
        assert all(names_the_passphrase(entry["fault"]) for entry in listed.result["repositories"])
        host.check_output(
            "printf '#!/bin/sh\\nexec pgbackrest --config=/etc/pgbackrest/wrong.conf \"$@\"\\n' > /srv/wrong && chmod 755 /srv/wrong"
        )
        status = "cd / && runuser -u postgres -- /opt/pgchroma/current/bin/pgchroma backup status --pgbackrest /srv/wrong"
        status += " --database-url 'postgresql:///pgchroma?host=/var/run/postgresql&user=postgres' --format "
        try:
            shown = host.run(status + "nagios")
            assert shown.rc == 2
            assert names_the_passphrase(shown.stdout), shown.stdout
            told = host.run(status + "prometheus")
            assert told.rc == 0
            answered = re.findall(
                r'^pgchroma_backup_repository_status{repo="\d",stanza="main"} (.*)$',
                told.stdout,
                re.MULTILINE,
            )
            # Its answer is no JSON at all where a quotation mark is among the ciphertext.
            assert answered == ["99.0"] * 3 or "pgchroma_backup_repositories_answer 0.0" in told.stdout
        finally:
            host.check_output("rm -f /srv/wrong")


def test_corrupted_file_in_the_repository(host: Host, cluster: Cluster, playbook: Playbook) -> None:
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
        done = playbook("backup_verify.yml", backup_verify_repository=1)
        assert done.returncode != 0
        assert label in done.stdout
        side = cluster.restore(immediate=True, set=label, directory="/srv/side", port=5440)
        assert side.status != 0
        assert "damaged" in side.text or "checksum" in side.text.lower(), side.text
        assert not host.file("/srv/side/data/global/pg_control").exists, (
            "an incomplete copy must not be startable"
        )
    finally:
        host.check_output(f"cp -p /root/bundle {bundle}; rm -rf /srv/side")
    assert cluster("verify").status == 0
