"""Coming back: to a moment, a name, a place; what cannot be reached is refused before anything stops; what stops half-way resumes."""

import json
import os
import shlex
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from testinfra.host import Host

from restore.conftest import (
    DATA,
    ROOT,
    STATE,
    UNIT,
    Cluster,
    Playbook,
    host_of,
    playbook_command,
    waiting,
)
from support.waiting import wait_for


def now(cluster: Cluster) -> datetime:
    return datetime.fromisoformat(
        cluster.sql("SELECT clock_timestamp()::timestamptz(3)::text").replace("+00", "+00:00")
    )


@pytest.mark.parametrize(
    ("target", "status", "says"),
    [
        ({"time": "2020-01-01 00:00:00Z"}, 9, "before the first backup"),
        ({"time": "2099-01-01 00:00:00Z"}, 9, "has not come yet"),
        ({"time": "2026-11-21 08:00:00"}, 2, "time zone"),
        ({"time": "yesterday"}, 2, "not a time"),
        ({"lsn": "0/1"}, 9, "before the first backup"),
        ({"lsn": "here"}, 2, "not an LSN"),
        ({"xid": "12"}, 9, "add set"),
        ({"name": "nobody-made-this"}, 9, "does not know the restore point"),
        ({"latest": True, "set": "20200101-000000F"}, 9, "no repository holds the set 20200101-000000F"),
        ({"latest": True, "repository": 7}, 3, "no repository 7"),
        ({"latest": True, "repository": "elsewhere"}, 3, "no repository elsewhere"),
        ({"lsn": "FFFFFFFF/0"}, 9, "lies after the end of timeline"),
        ({"latest": True, "timeline": 99}, 9, "no timeline 99"),
        ({"latest": True, "time": "2026-11-21 08:00:00Z"}, 2, "exactly one"),
        ({}, 2, "exactly one"),
        ({"latest": True, "tyme": "x"}, 2, "unknown keys: tyme"),
        ({"latest": True, "directory": DATA, "port": 5440}, 9, "cluster's own"),
        ({"latest": True, "directory": "/etc", "port": 5440}, 9, "not empty"),
        ({"latest": True, "directory": "/srv/side", "port": 5432}, 9, "cluster's own"),
        ({"latest": True, "directory": "/srv/side"}, 2, "both directory and port"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused_before_anything_stops(
    cluster: Cluster, target: dict[str, object], status: int, says: str
) -> None:
    before = cluster.sql("SELECT pg_postmaster_start_time()")
    answer = cluster.restore(**target)
    assert answer.status == status, answer.text
    assert says in answer.text
    assert cluster.sql("SELECT pg_postmaster_start_time()") == before


def test_running_cluster_is_not_restored_over(cluster: Cluster) -> None:
    answer = cluster("restore", "--target", '{"latest": true}')
    assert answer.status == 9
    assert "PostgreSQL runs on" in answer.text
    assert cluster.is_running()


def test_playbook_shows_the_commands_and_asks(cluster: Cluster, playbook: Playbook) -> None:
    before = cluster.sql("SELECT pg_postmaster_start_time()")
    for variables in ({}, {"confirm": "another-host"}):
        done = playbook("restore.yml", restore={"latest": True}, **variables)
        assert done.returncode != 0
        assert "Nothing was changed" in done.stdout
        assert f"mv {DATA} {DATA}.before-restore-" in done.stdout
        assert (
            "pgbackrest --config=/etc/pgbackrest/pgbackrest.conf --stanza=main --repo=1 --set=" in done.stdout
        )
    assert cluster.sql("SELECT pg_postmaster_start_time()") == before


def test_replicas_are_named_and_not_left_behind_silently(host: Host, cluster: Cluster) -> None:
    """A replica would hold what is no longer true: a restore that is not told so is refused while everything runs."""
    before = cluster.sql("SELECT pg_postmaster_start_time()")
    hba = "/etc/postgresql/17/main/pg_hba.conf"
    host.check_output(
        f"cp -p {hba} /root/hba && sed -i '1i local replication postgres peer' {hba} && systemctl reload {UNIT}"
    )
    host.check_output("install -d -o postgres /srv/stream")
    try:
        host.check_output(
            "systemd-run --unit=stream --uid=postgres --working-directory=/ "
            "/usr/lib/postgresql/17/bin/pg_receivewal -D /srv/stream -h /var/run/postgresql"
        )
        streaming = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'"
        wait_for("it streams", lambda: cluster.sql(streaming) == "1")
        answer = cluster.restore(latest=True)
        assert answer.status == 9, answer.text
        assert "pg_receivewal at the socket, streaming" in answer.text
        assert "replicas_left" in answer.text
        planned = cluster.plan(latest=True, replicas_left=True)
        assert planned.status == 0, planned.text
        assert "left behind pg_receivewal at the socket" in planned.result["text"]
    finally:
        host.check_output(
            f"systemctl stop stream; rm -rf /srv/stream; cp -p /root/hba {hba}; systemctl reload {UNIT}"
        )
    cluster.sql("SELECT pg_create_physical_replication_slot('away')")
    try:
        assert "slot away, whose replica is not connected" in cluster.restore(latest=True).text
    finally:
        cluster.sql("SELECT pg_drop_replication_slot('away')")
    assert cluster.sql("SELECT pg_postmaster_start_time()") == before


def test_a_standby_that_is_left_behind_cannot_follow(host: Host, cluster: Cluster) -> None:
    """A real one: refused and named; told to leave it, the restore goes its way, and the standby holds what is no longer true."""
    assert cluster("backup", "--type=full", "--repository=1").status == 0
    rows, moment = cluster.rows(), now(cluster).isoformat()
    cluster.add(50)
    hba, tools = (
        "/etc/postgresql/17/main/pg_hba.conf",
        "cd / && runuser -u postgres -- /usr/lib/postgresql/17/bin",
    )
    host.check_output(
        f"cp -p {hba} /root/hba && sed -i '1i local replication postgres peer' {hba} && systemctl reload {UNIT} && "
        "install -d -o postgres -m 700 /srv/standby /srv/standby/run"
    )
    options = (
        "-c config_file=/etc/postgresql/17/main/postgresql.conf -c data_directory=/srv/standby/data -c external_pid_file= -c port=5441 "
        "-c unix_socket_directories=/srv/standby/run -c listen_addresses= -c archive_mode=off"
    )

    def there() -> int:
        return int(cluster.sql("SELECT count(*) FROM kept", socket="/srv/standby/run", port=5441))

    try:
        host.check_output(
            f"{tools}/pg_basebackup -D /srv/standby/data -R -c fast -h /var/run/postgresql && "
            # What earlier restores left there.
            "sed -i '/^recovery_target/d; /^restore_command/d' /srv/standby/data/postgresql.auto.conf"
        )
        host.check_output(
            f"{tools}/pg_ctl -D /srv/standby/data -l /srv/standby/log -o {shlex.quote(options)} -s -w start"
        )
        wait_for("it has come along", lambda: there() == rows + 50)
        answer = cluster.restore(time=moment)
        assert answer.status == 9, answer.text
        assert "at the socket, streaming" in answer.text
        answer = cluster.restore(time=moment, replicas_left=True)
        assert answer.status == 0, answer.text
        assert [entry for entry in answer.result["replicas_left"] if "at the socket, streaming" in entry]
        assert cluster.rows() == rows
        forked = "grep -q 'forked off current database system timeline .* before current recovery point' /srv/standby/log"
        wait_for("it says that it cannot follow", lambda: host.run(forked).rc == 0, seconds=60)
        assert there() == rows + 50
    finally:
        host.check_output(
            f"{tools}/pg_ctl -D /srv/standby/data -s -m immediate stop; rm -rf /srv/standby; cp -p /root/hba {hba}; systemctl reload {UNIT}"
        )
    assert cluster("restore-finish", "--keep=restored").status == 0


def test_side_restore_leaves_the_cluster_alone(host: Host, cluster: Cluster) -> None:
    rows = cluster.rows()
    answer = cluster.restore(latest=True, directory="/srv/side", port=5440)
    assert answer.status == 0, answer.text
    assert cluster.sql("SELECT count(*) FROM kept", socket="/srv/side/socket", port=5440) == str(rows)
    assert cluster.sql("SHOW archive_mode", socket="/srv/side/socket", port=5440) == "off"
    assert host.run("ss -Hltn | grep -q :5440").rc != 0, "it listens on its socket only"
    own = cluster.sql("SHOW restore_command", socket="/srv/side/socket", port=5440)
    assert "--lock-path=/srv/side/lock --archive-async --spool-path=/srv/side/spool archive-get" in own
    assert host.file("/srv/side/spool/archive/main/in").is_directory, (
        "it does not fetch into the cluster's spool"
    )
    assert cluster("side-remove", "--directory", "/srv/side").status == 0
    assert not host.file("/srv/side").exists


def test_side_restore_through_the_playbook_ends_in_a_proof_of_the_copy(
    host: Host, cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    """Of its records too, where digests of the target were recorded; and digests of something else are not found in it."""
    assert cluster("backup", "--type=incr", "--repository=1").status == 0
    point = cluster.receipt("digests/latest.json")["point"]
    wanted = {"name": point, "directory": "/srv/side", "port": 5440}
    done = playbook("restore.yml", restore=wanted, confirm="backup-restore1")
    assert done.returncode == 0, done.stdout
    assert f"records as recorded at {point}" in done.stdout
    assert "Show the result" not in done.stdout, (
        "the service was not touched, so it is not what is to be proven"
    )
    receipt = json.loads(next(tmp_path.glob("restore-backup*.json")).read_text(encoding="utf-8"))
    assert receipt["checks"]["digests"] == point
    assert {"pages", "indexes", "digests"} <= {check["id"] for check in receipt["checks"]["checks"]}
    assert cluster("side-remove", "--directory", "/srv/side").status == 0
    file = f"{STATE}/digests/{point}.json"
    host.check_output(f'cp -p {file} /root/digests && sed -i \'s/"system_identifier": "/&9/\' {file}')
    try:
        answer = cluster.restore(**wanted)
        assert answer.status == 8, answer.text
        assert "same-cluster" in answer.text
    finally:
        host.check_output(f"cp -p /root/digests {file}")
        assert cluster("side-remove", "--directory", "/srv/side").status == 0


def test_copy_on_another_host(
    host: Host, cluster: Cluster, inventory: str, playbook: Playbook, tmp_path: Path
) -> None:
    """Out of the repository host, which lets the other one in; sealed off, checked, and taken away again as the runbook says."""
    spare = host_of(inventory, "spare")
    rows = cluster.rows()
    assert cluster("restore-point", "--name=for-a-copy").status == 0
    before = cluster.sql("SELECT pg_postmaster_start_time()")
    wanted = {"latest": True, "repository": "vault", "directory": "/srv/copy", "port": 5440}
    for name, says in (("backup-restore1", "outside the group postgresql"), ("nowhere", "it is nowhere")):
        done = playbook("restore_elsewhere.yml", restore_host=name, restore=wanted, confirm=name)
        assert done.returncode != 0
        assert says in done.stdout
    done = playbook("restore_elsewhere.yml", restore_host="backup-restore2", restore=wanted)
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout
    assert "Put a copy of main on backup-restore2" in done.stdout
    assert not spare.file("/etc/pgbackrest/pgbackrest.conf").exists
    try:
        done = playbook(
            "restore_elsewhere.yml", restore_host="backup-restore2", restore=wanted, confirm="backup-restore2"
        )
        assert done.returncode == 0, done.stdout
        copy = Cluster(spare)
        assert copy.sql("SELECT count(*) FROM kept", socket="/srv/copy/socket", port=5440) == str(rows)
        assert copy.sql("SHOW archive_mode", socket="/srv/copy/socket", port=5440) == "off"
        assert spare.run("ss -Hltn | grep -q :5440").rc != 0, "it listens on its socket only"
        assert spare.run("ls /etc/systemd/system/pgchroma-backup*").rc != 0, "no timers"
        assert not spare.file(f"{DATA}/PG_VERSION").exists, "no cluster that a boot would start"
        receipt = json.loads(next(tmp_path.glob("restore-elsewhere-*.json")).read_text(encoding="utf-8"))
        assert (receipt["result"], receipt["checks"]["by"]) == ("ok", "pg_amcheck")
        assert cluster.sql("SELECT pg_postmaster_start_time()") == before
        assert copy("side-remove", "--directory", "/srv/copy").status == 0
    finally:
        spare.check_output(
            "DEBIAN_FRONTEND=noninteractive apt-get purge -q -y --auto-remove pgbackrest 'postgresql*' && "
            "rm -rf /srv/copy /etc/pgbackrest /var/lib/pgchroma-backup /var/lib/pgchroma-drill /var/spool/pgbackrest"
        )
    done = playbook("backup_repository.yml")
    assert done.returncode == 0, done.stdout
    vault = host_of(inventory, "repository").file("/etc/pgbackrest/repository-host.conf")
    assert not vault.contains("tls-server-auth=backup-restore2"), "it is let in no longer"


def test_restore_to_a_recorded_point_compares_every_collection(cluster: Cluster) -> None:
    assert cluster("backup", "--type=incr", "--repository=1").status == 0
    point = cluster.receipt("digests/latest.json")["point"]
    answer = cluster.restore(name=point)
    assert answer.status == 0, answer.text
    assert answer.result["checks"]["digests"] == point
    assert cluster("restore-finish", "--keep=restored").status == 0


def test_playbook_restores_to_before_a_dropped_table(
    host: Host, cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    """Every row that was there, none that came later; servers stopped and ready again; the old data kept, then removed."""
    rows = cluster.rows()
    done = playbook("restore_point.yml", restore_point="before-the-mistake")
    assert done.returncode == 0, done.stdout
    cluster.add(500)
    cluster.sql("DROP TABLE kept")
    done = playbook("restore.yml", restore={"name": "before-the-mistake"}, confirm="backup-restore1")
    assert done.returncode == 0, done.stdout
    assert cluster.rows() == rows
    assert host.service("pgchroma").is_running
    receipt = json.loads(next(tmp_path.glob("restore-backup*.json")).read_text(encoding="utf-8"))
    assert receipt["target"] == "name before-the-mistake"
    assert host.file(receipt["kept"]).is_directory
    done = playbook("restore_finish.yml", keep="restored", confirm="backup-restore1")
    assert done.returncode == 0, done.stdout
    assert not host.file(receipt["kept"]).exists


class TestMoments:
    """Restores by time, one after the other: each begins a timeline, and which one is meant must be said."""

    def test_to_a_moment_and_back_again(self, cluster: Cluster) -> None:
        assert cluster("backup", "--type=full", "--repository=1").status == 0
        rows = cluster.rows()
        moment = now(cluster)
        cluster.add(100)
        cluster.sql("SELECT pg_switch_wal()")
        answer = cluster.restore(time=moment.isoformat())
        assert answer.status == 0, answer.text
        assert cluster.rows() == rows
        assert cluster("restore-finish", "--keep=former").status == 0
        assert cluster.rows() == rows + 100

    def test_several_timelines_want_one_named(self, cluster: Cluster) -> None:
        cluster.add(1)
        answer = cluster.plan(time=now(cluster).isoformat())
        assert answer.status == 9
        assert "timelines" in answer.text

    def test_end_of_the_archive_is_what_came_last(self, cluster: Cluster) -> None:
        rows = cluster.rows()
        assert cluster.restore(latest=True).status == 0
        assert cluster.rows() == rows

    def test_between_two_backups_and_then_to_the_end(self, cluster: Cluster) -> None:
        """The newest backup is on the timeline that was left: until there is a new one, an older one leads to the end of the archive."""
        assert cluster("restore-finish", "--keep=restored").status == 0
        assert cluster("backup", "--type=full", "--repository=1").status == 0
        first, rows, moment = cluster.newest(1), cluster.rows(), now(cluster)
        cluster.add(50)
        assert cluster("backup", "--type=incr", "--repository=1").status == 0
        second = cluster.newest(1)
        answer = cluster.restore(time=moment.isoformat())
        assert answer.status == 0, answer.text
        left = answer.result["timeline"]
        cluster.add(7)
        assert cluster("restore-point", "--name=after-going-back").status == 0
        named = cluster.plan(name="after-going-back")
        assert named.result["set"] == first, named.text
        answer = cluster.restore(latest=True)
        assert answer.status == 0, answer.text
        assert answer.result["set"] == first
        assert cluster.rows() == rows + 7
        # What was left behind can be had too, from the backup that is on it.
        side = cluster.restore(latest=True, timeline=left, directory="/srv/side", port=5440)
        assert side.status == 0, side.text
        assert side.result["set"] == second
        assert cluster.sql("SELECT count(*) FROM kept", socket="/srv/side/socket", port=5440) == str(
            rows + 50
        )
        assert cluster("side-remove", "--directory", "/srv/side").status == 0
        assert cluster("restore-finish", "--keep=restored").status == 0

    def test_after_the_last_wal(self, host: Host, cluster: Cluster) -> None:
        """The cluster is lost with WAL that was never archived: what was asked for is not there, and what is there can be had."""
        assert cluster("backup", "--type=full", "--repository=1").status == 0
        rows = cluster.rows()
        cluster.sql("SELECT pg_switch_wal()")
        wait_for("all is archived", lambda: waiting(cluster) == 0)
        host.check_output(f"systemctl kill -s KILL {UNIT}; systemctl stop {UNIT}")
        later = (datetime.now(UTC) - timedelta(seconds=0.5)).isoformat()
        answer = cluster.restore(time=later)
        assert answer.status == 10, answer.text
        assert "after the last WAL" in answer.text
        assert not cluster.is_running()
        resumed = cluster.restore(latest=True)
        assert resumed.status == 0, resumed.text
        assert cluster.rows() == rows


def test_interrupted_restore_cannot_be_started_and_resumes(host: Host, cluster: Cluster) -> None:
    cluster.add(200_000)
    assert cluster("backup", "--type=full", "--repository=1").status == 0
    rows = cluster.rows()
    script = (
        "pgchroma-backup restore --stop --target '{\"latest\": true}' >/root/restore.log 2>&1 & "
        f"until [ -e {DATA}/backup.manifest ]; do :; done; pkill -KILL -x -u postgres pgbackrest; wait; test ! -e {DATA}/global/pg_control"
    )
    host.check_output(f"bash -c {json.dumps(script)}")
    assert host.run(f"systemctl start {UNIT}").rc != 0, "half a cluster must not start"
    planned = cluster.plan(latest=True)
    assert planned.result["resumes"]
    assert host.file(planned.result["kept"]).is_directory
    answer = cluster.restore(latest=True)
    assert answer.status == 0, answer.text
    assert cluster.rows() == rows
    assert cluster("restore-finish", "--keep=restored").status == 0


def interrupt(host: Host, **target: object) -> None:
    """Begin a restore and kill its command when the server has been started and replays WAL."""
    wanted = shlex.quote(json.dumps(target))
    # The command alone: systemd looks after the server.
    script = (
        f"pgchroma-backup restore --stop --target {wanted} >/root/restore.log 2>&1 & "
        f"until grep -q recovering {STATE}/restore.json && [ -e {DATA}/postmaster.pid ]; do :; done; "
        "pkill -KILL -f 'pgchroma_backup restor[e]'; wait"
    )
    host.check_output(f"bash -c {shlex.quote(script)}")


def is_in_recovery(host: Host) -> bool:
    """Whether the server answers that it replays WAL; not while the host boots."""
    try:
        answer = host.run("cd / && runuser -u postgres -- psql -XAtqc 'SELECT pg_is_in_recovery()'")
    except RuntimeError:
        return False
    return bool(answer.stdout.strip() == "t")


def reboot(host: Host) -> None:
    """Boot the host anew and wait until it is another boot: the connection may be gone before the command has answered."""
    which = "systemctl show --property=UserspaceTimestamp"
    before = host.check_output(which)
    host.check_output("systemd-run --on-active=1s systemctl reboot")

    def is_another() -> bool:
        try:
            return bool(host.check_output(which) != before)
        except (RuntimeError, AssertionError):
            return False

    wait_for("it has booted", is_another, seconds=120)


class TestInterruptedRecovery:
    """The command is gone while the server replays WAL: the same command again sees it to its end, another target takes its files."""

    def test_the_same_command_sees_it_to_its_end(
        self, host: Host, cluster: Cluster, playbook: Playbook
    ) -> None:
        cluster.add(10)
        rows = cluster.rows()
        interrupt(host, latest=True)
        kept = cluster.receipt("restore.json")["kept"]
        # What only the command promotes waits for it, through a boot as well.
        reboot(host)
        wait_for("it replays again", lambda: is_in_recovery(host), seconds=120)
        done = playbook("restore.yml", restore={"latest": True}, confirm="backup-restore1")
        assert done.returncode == 0, done.stdout
        assert "nothing is stopped, moved or copied" in done.stdout
        assert cluster.rows() == rows
        assert host.service("pgchroma").is_running
        assert cluster.receipt("restore.json")["phase"] == "done"
        assert host.file(kept).is_directory
        assert cluster("restore-finish", "--keep=restored").result["directories"] == [kept]

    def test_another_target_takes_its_files(self, host: Host, cluster: Cluster) -> None:
        assert cluster("backup", "--type=full", "--repository=1").status == 0
        rows = cluster.rows()
        cluster.add(10)
        interrupt(host, latest=True)
        kept = cluster.receipt("restore.json")["kept"]
        answer = cluster.restore(immediate=True)
        assert answer.status == 0, answer.text
        assert answer.result["resumes"]
        assert answer.result["kept"] == kept
        assert cluster.rows() == rows
        assert cluster("restore-finish", "--keep=restored").status == 0

    def test_a_server_that_is_still_starting_is_stopped(self, host: Host, cluster: Cluster) -> None:
        """Seen before: systemd ended a unit that was starting process by process, and PostgreSQL waited for ever."""
        rows = cluster.rows()
        stop = (
            "PYTHONPATH=/usr/local/lib/pgchroma-backup timeout 180 python3 -s -c 'from pgchroma_backup import service, settings; "
            "given = settings.read(); print(service.state(given)); service.stop(given)'"
        )
        # As while it replays WAL: it answers, and takes no writes.
        again = (
            f"systemctl stop {UNIT}; systemctl reset-failed {UNIT}; install -o postgres -g postgres /dev/null {DATA}/standby.signal; systemctl start --no-block {UNIT}; "
            f"until [ -e {DATA}/postmaster.pid ]; do :; done; sleep 0.%d; {stop} && ! test -e {DATA}/postmaster.pid"
        )
        seen = {host.check_output(f"bash -c {shlex.quote(again % tenths)}") for tenths in range(5)}
        assert "activating" in seen
        host.check_output(f"rm {DATA}/standby.signal; systemctl start {UNIT}")
        assert cluster.rows() == rows


class TestUnseenEnd:
    """Whoever ran the playbook is gone, by Ctrl-C here; the host goes on with the restore, and comes to its end alone."""

    @staticmethod
    def begin_and_leave(inventory: str, cluster: Cluster, folder: Path, **target: object) -> None:
        """Begin a restore as an operator does, and leave it when files are copied."""
        places = {"backup_receipts_directory": str(folder), "verify_receipts_directory": str(folder)}
        command, environment = playbook_command(
            inventory, "restore.yml", restore=target, confirm="backup-restore1", **places
        )

        def phase() -> str:
            return str(cluster.receipt("restore.json")["phase"])

        with (
            (folder / "left.log").open("w", encoding="utf-8") as log,
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            ) as run,
        ):
            wait_for("it is at work", lambda: phase() in ("copying", "recovering"), seconds=300)
            os.killpg(run.pid, signal.SIGINT)
            run.wait(60)
        wait_for("the host has come to its end", lambda: phase() == "ended", seconds=300)

    def test_the_same_command_starts_the_servers_and_restores_nothing_again(
        self, host: Host, cluster: Cluster, playbook: Playbook, playbook_inventory: str, tmp_path: Path
    ) -> None:
        assert cluster("backup", "--type=full", "--repository=1").status == 0
        rows = cluster.rows()
        moment = {"time": now(cluster).isoformat()}
        cluster.add(25)
        self.begin_and_leave(playbook_inventory, cluster, tmp_path, **moment)
        assert not host.service("pgchroma").is_running, "nobody was there to start it"
        began = cluster.sql("SELECT pg_postmaster_start_time()")
        (kept,) = host.check_output(f"ls -d {DATA}.before-restore-*").split()

        checked = playbook("restore.yml", "--check", restore=moment)
        assert checked.returncode == 0, checked.stdout
        assert "HAS ENDED" in checked.stdout
        done = playbook("restore.yml", restore=moment, confirm="backup-restore1")
        assert done.returncode == 0, done.stdout
        assert cluster.sql("SELECT pg_postmaster_start_time()") == began
        assert cluster.rows() == rows
        assert host.service("pgchroma").is_running
        assert host.check_output(f"ls -d {DATA}.before-restore-*") == kept
        assert cluster.receipt("restore.json")["phase"] == "done"
        again = cluster.plan(**moment)
        assert "HAS ENDED" not in again.text, "what is asked for now is another restore"

    def test_what_was_kept_is_removed_only_when_what_stays_is_proven(
        self, host: Host, cluster: Cluster, playbook: Playbook
    ) -> None:
        """Goes on with what the test before has left."""
        (kept,) = host.check_output(f"ls -d {DATA}.before-restore-*").split()
        missing = playbook("restore_finish.yml", confirm="backup-restore1")
        assert missing.returncode != 0
        assert "keep is missing" in missing.stdout
        # It serves; a file that others may read is what verify.yml finds.
        host.check_output("systemctl stop pgchroma; chmod 0644 /etc/pgchroma/server.env")
        try:
            checked = playbook("restore_finish.yml", "--check", keep="restored")
            assert checked.returncode == 0, checked.stdout
            done = playbook("restore_finish.yml", keep="restored", confirm="backup-restore1")
            assert done.returncode != 0, done.stdout
            assert "Fail if a critical check failed" in done.stdout
            assert host.service("pgchroma").is_running
            assert host.file(kept).is_directory, "what stays is not in order"
        finally:
            host.check_output("chmod 0640 /etc/pgchroma/server.env; systemctl stop pgchroma")
        done = playbook("restore_finish.yml", keep="restored", confirm="backup-restore1")
        assert done.returncode == 0, done.stdout
        assert not host.file(kept).exists
        assert host.service("pgchroma").is_running


class TestArchiveEnd:
    """PostgreSQL takes WAL that it cannot have or read for the end of the archive; a restore to its end must not."""

    def test_damaged_wal_does_not_pass_for_it(self, host: Host, cluster: Cluster) -> None:
        assert cluster("backup", "--type=full", "--repository=1").status == 0
        for _ in range(4):
            cluster.add(10)
            cluster.sql("SELECT pg_switch_wal()")
        wait_for("all is archived", lambda: waiting(cluster) == 0, seconds=60)
        # S3 was away while the cluster was restored: the hourly check sends it what it lacks.
        assert cluster("check").status == 0
        rows = cluster.rows()
        file = cluster.run("ls -1 /var/lib/pgbackrest/archive/main/17-1/*/*-*.zst | tail -n 2 | head -n 1")
        host.check_output(f"cp -p {file} /root/segment")
        host.check_output(f"printf 'DAMAGED' | dd of={file} bs=1 seek=500 conv=notrunc status=none")
        try:
            answer = cluster.restore(latest=True, repository=1)
            assert answer.status == 8, answer.text
            assert "cannot get past" in answer.text
            assert not cluster.is_running(), "half of the rows must not be served"
            kept = cluster.plan(latest=True, repository=2).result["kept"]
            assert host.file(kept).is_directory
            resumed = cluster.restore(latest=True, repository=2)
            assert resumed.status == 0, resumed.text
            assert cluster.rows() == rows
        finally:
            host.check_output(f"cp -p /root/segment {file}")
        assert cluster("restore-finish", "--keep=restored").status == 0

    def test_repository_that_goes_away_half_way(self, host: Host, s3: Host, cluster: Cluster) -> None:
        cluster.add(10)
        rows = cluster.rows()
        # Held while its files are on the way, until the repository is gone.
        script = (
            'pgchroma-backup restore --stop --target \'{"latest": true, "repository": 2}\' >/root/restore.log 2>&1 & '
            f"until [ -e {DATA}/backup.manifest ]; do :; done; pkill -STOP -x -u postgres pgbackrest"
        )
        host.check_output(f"bash -c {shlex.quote(script)}")
        s3.check_output("systemctl stop haproxy")
        try:
            # runuser has stopped with its child.
            host.check_output("pkill -CONT -x 'pgbackrest|runuser'")
            ended = "! pgrep -f 'pgchroma-backup restor[e]|pgchroma_backup restor[e]'"
            wait_for("the restore has given up", lambda: host.run(ended).rc == 0, seconds=240)
            told = host.file("/root/restore.log").content_string
            assert "cannot be reached" in told, told
            assert "run the same playbook again to resume" in told
            left = host.run("pgrep -af 'restore:loca[l]'").stdout
            assert not left, "nothing of it may go on when S3 answers again"
            assert not host.file(f"{DATA}/global/pg_control").exists
        finally:
            s3.check_output("systemctl start haproxy")
            wait_for("S3 answers", lambda: s3.socket("tcp://0.0.0.0:9443").is_listening)
        answer = cluster.restore(latest=True, repository=2)
        assert answer.status == 0, answer.text
        assert cluster.rows() == rows
        assert not cluster.run(f"find {DATA} -name '*.pgbackrest.tmp'")
        assert cluster("restore-finish", "--keep=restored").status == 0


def test_full_wal_disk_loses_nothing(host: Host, cluster: Cluster, s3_away: None) -> None:
    """WAL that cannot be archived fills pg_wal: the server refuses, stops, and comes back whole with more room."""
    host.check_output(
        f"systemctl stop pgchroma {UNIT} && mv {DATA}/pg_wal /root/wal && mkdir {DATA}/pg_wal && "
        # Room for a few segments more than are there, recycled ones included.
        f"mount -t tmpfs -o size=$(($(du -sm /root/wal | cut -f1) + 100))m,mode=0700,uid=postgres,gid=postgres tmpfs {DATA}/pg_wal && "
        f"cp -a /root/wal/. {DATA}/pg_wal/ && systemctl start {UNIT}"
    )
    try:
        cluster.sql("CREATE TABLE full_disk (i int, t text)")
        cluster.sql("ALTER TABLE full_disk ALTER COLUMN t SET STORAGE EXTERNAL")
        acknowledged = 0
        insert = "INSERT INTO full_disk SELECT g, repeat(md5(random()::text), 200) FROM generate_series(1, 1000) AS g"
        while (
            host.run(
                f'cd / && runuser -u postgres -- psql -XAtq -v ON_ERROR_STOP=1 -d pgchroma -c "{insert}"'
            ).rc
            == 0
        ):
            acknowledged += 1000
            assert acknowledged < 500_000, "the disk never filled"
        host.check_output(f"mount -o remount,size=3g {DATA}/pg_wal")
        # It comes back by itself, or stopped for good and is started; never stopped while it recovers.
        answers = "cd / && runuser -u postgres -- psql -XAtqc 'SELECT 1'"
        wait_for(
            "the server is back", lambda: host.run(f"systemctl start {UNIT}; {answers}").rc == 0, seconds=180
        )
        assert int(cluster.sql("SELECT count(*) FROM full_disk")) == acknowledged
    finally:
        host.check_output(
            f"systemctl stop {UNIT}; rm -rf /root/wal && cp -a {DATA}/pg_wal /root/wal && umount {DATA}/pg_wal && "
            f"cp -a /root/wal/. {DATA}/pg_wal/ && rm -rf /root/wal && systemctl start {UNIT} pgchroma"
        )
    cluster.sql("DROP TABLE full_disk")
