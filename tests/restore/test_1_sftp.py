"""A repository on a host that is reached over SSH and has no pgBackRest: beside the others, with a configuration of its own."""

import json
from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from restore.conftest import Cluster, Playbook, host_of, waiting
from support.waiting import wait_for

FOLDER = "/srv/sftp"
USER = "drop"
SSH = "/var/lib/postgresql/.ssh"
SETTINGS = "/etc/pgbackrest/sftp.json"
CONFIGURATION = "/etc/pgbackrest/sftp.conf"


@pytest.fixture(scope="module")
def there(inventory: str) -> Iterator[Host]:
    """The host that is reached over SSH, with an account for the repository."""
    host = host_of(inventory, "repository")
    host.check_output(f"useradd -m {USER} && install -d -o {USER} -m 700 {FOLDER} /home/{USER}/.ssh")
    yield host
    host.check_output(f"userdel -r {USER} 2>/dev/null; rm -rf {FOLDER}")


@pytest.fixture(scope="module")
def address(inventory: str) -> str:
    """The address by which the cluster's host knows it."""
    told = "grep ^repo3-host= /etc/pgbackrest/pgbackrest.conf | cut -d= -f2"
    return str(host_of(inventory, "postgresql").check_output(told))


@pytest.fixture(scope="module")
def sftp(inventory: str, there: Host, address: str) -> Iterator[Callable[..., None]]:
    """Keys exchanged, WAL going there too, and a configuration with this repository alone; yields what writes that anew."""
    host = host_of(inventory, "postgresql")
    own = Cluster(host)
    host.check_output(f"install -d -o postgres -g postgres -m 700 {SSH}")
    host.check_output(f"runuser -u postgres -- ssh-keygen -q -t ed25519 -N '' -f {SSH}/drop")
    key = host.check_output(f"cat {SSH}/drop.pub")
    there.check_output(
        f"printf '%s\\n' '{key}' > /home/{USER}/.ssh/authorized_keys && chown -R {USER} /home/{USER}/.ssh"
    )
    know(host, there, address)

    def write(**options: object) -> None:
        repository = {
            "type": "sftp",
            "path": FOLDER,
            "cipher-type": "aes-256-cbc",
            "cipher-pass": "of-the-test",
            "sftp-host": address,
            "sftp-host-user": USER,
            "sftp-private-key-file": f"{SSH}/drop",
            "sftp-host-key-hash-type": "sha256",
            "sftp-host-key-check-type": "strict",
            "bundle": "y",
            "block": "y",
            "retention-full": 2,
            **options,
        }
        lines = "".join(f"repo1-{name}={value}\\n" for name, value in repository.items())
        # What comes before and after the repositories is the role's; spool and locks are its own.
        host.check_output(
            f"sed -e '/^repo/d' -e 's#^.global.$#&\\n{lines}#' -e 's/^archive-async=.*/archive-async=n/' "
            f"-e 's#^lock-path=.*#lock-path=/tmp/sftp-locks#' /etc/pgbackrest/pgbackrest.conf > {CONFIGURATION} && "
            f"chgrp postgres {CONFIGURATION} && chmod 640 {CONFIGURATION}"
        )

    write()
    program = (
        "import json; d=json.load(open('/etc/pgbackrest/pgchroma-backup.json'));"
        f"d['config']='{CONFIGURATION}'; d['repositories']=[dict(number=1, name='sftp', kind='sftp', where='{address}:{FOLDER}')];"
        f"json.dump(d, open('{SETTINGS}', 'w'))"
    )
    host.check_output(f'python3 -c "{program}" && chgrp postgres {SETTINGS} && chmod 640 {SETTINGS}')
    usual = own.sql("SHOW archive_command")
    also = f'pgbackrest --config={CONFIGURATION} --stanza=main archive-push "%p"'
    created = own("stanza", settings=SETTINGS)
    assert created.status == 0, created.text
    own.sql(f"ALTER SYSTEM SET archive_command = '{usual} && {also}'")
    own.sql("SELECT pg_reload_conf()")
    yield write
    own.sql("ALTER SYSTEM RESET archive_command")
    own.sql("SELECT pg_reload_conf()")
    wait_for("WAL is archived again", lambda: waiting(own) == 0, seconds=120)
    host.check_output(f"rm -rf {SSH}/drop* {SSH}/known_hosts {SETTINGS} {CONFIGURATION}")


def know(host: Host, there: Host, address: str) -> None:
    """Enter every key of the host, read on it and not from the network."""
    keys = there.check_output("cat /etc/ssh/ssh_host_*_key.pub")
    lines = "".join(f"{address} {' '.join(key.split()[:2])}\n" for key in keys.splitlines())
    host.check_output(f"printf '%s' '{lines}' > {SSH}/known_hosts && chown postgres {SSH}/known_hosts")


def test_backup_and_wal_go_there_and_come_back(
    host: Host, cluster: Cluster, there: Host, sftp: object
) -> None:
    taken = cluster("backup", "--type=full", settings=SETTINGS)
    assert taken.status == 0, taken.text
    assert "Repository 1 (sftp: sftp, " in cluster("info", settings=SETTINGS).result["text"]
    cluster.add(10)
    rows = cluster.rows()
    cluster.sql("SELECT pg_switch_wal()")
    wait_for("all is archived", lambda: waiting(cluster) == 0, seconds=60)
    target = json.dumps({"latest": True, "directory": "/srv/side", "port": 5440})
    restored = cluster("restore", "--target", target, settings=SETTINGS)
    assert restored.status == 0, restored.text
    assert cluster.sql("SELECT count(*) FROM kept", socket="/srv/side/socket", port=5440) == str(rows)
    assert cluster("side-remove", "--directory", "/srv/side").status == 0
    verified = cluster("verify", settings=SETTINGS)
    assert verified.status == 0, verified.text
    assert there.check_output(f"head -c 8 {FOLDER}/backup/main/backup.info") == "Salted__"


def test_another_host_in_its_place_is_not_trusted(
    host: Host, cluster: Cluster, there: Host, address: str, sftp: object
) -> None:
    host.check_output("rm -f /root/other*; ssh-keygen -q -t ed25519 -N '' -f /root/other")
    host.check_output(f"printf '{address} %s\\n' \"$(cut -d' ' -f1,2 /root/other.pub)\" > {SSH}/known_hosts")
    try:
        answer = cluster("backup", "--type=incr", settings=SETTINGS)
        assert answer.status == 3, answer.text
        assert "another key than the known one" in answer.text
    finally:
        know(host, there, address)
        host.check_output("rm -f /root/other*")


def test_a_key_that_is_not_let_in_is_named(cluster: Cluster, there: Host, sftp: object) -> None:
    there.check_output(f"mv /home/{USER}/.ssh/authorized_keys /home/{USER}/.ssh/kept")
    try:
        answer = cluster("restore-plan", "--target", '{"latest": true}', settings=SETTINGS)
        assert answer.status == 3, answer.text
        assert "does not let this one in over SSH" in answer.text
    finally:
        there.check_output(f"mv /home/{USER}/.ssh/kept /home/{USER}/.ssh/authorized_keys")


def test_one_that_is_away_is_named(cluster: Cluster, sftp: Callable[..., None]) -> None:
    sftp(**{"sftp-host-port": 2222})
    try:
        answer = cluster("backup", "--type=incr", settings=SETTINGS)
        assert answer.status == 4, answer.text
        assert "cannot be reached" in answer.text
    finally:
        sftp()


def test_playbook_refuses_a_host_that_nobody_vouched_for(
    host: Host, cluster: Cluster, playbook: Playbook, address: str, sftp: object
) -> None:
    """Before anything is written; the secrets of the entry are not printed."""
    before = host.check_output("sha256sum /etc/pgbackrest/pgbackrest.conf")
    entry = {
        "name": "more",
        "type": "sftp",
        "host": f"{address}.invalid",
        "private_key_file": f"{SSH}/none",
        "cipher_passphrase": "never-to-be-shown",
    }
    done = playbook("postgresql.yml", pgbackrest_repositories=[{"name": "local"}, entry])
    assert done.returncode != 0
    assert "Repository more on" in done.stdout
    assert f"There is no key {SSH}/none" in done.stdout
    assert "ssh-keyscan" in done.stdout
    assert "never-to-be-shown" not in done.stdout + done.stderr
    assert host.check_output("sha256sum /etc/pgbackrest/pgbackrest.conf") == before
