"""The server on a host: what runs, as whom, how sandboxed, where it listens, and that data goes in and comes out."""

import json
import re
import uuid

import pytest
from testinfra.host import Host

from support.host import COLLECTIONS, SERVER, TOKEN_FILE, Api
from support.waiting import wait_for

EXPOSURE_AT_MOST = 2.0


def test_runs_now_and_after_the_next_boot(host: Host) -> None:
    service = host.service("pgchroma")
    assert service.is_running
    assert service.is_enabled


def test_unit_is_sandboxed(host: Host) -> None:
    output = host.check_output("systemd-analyze security --no-pager pgchroma.service")
    found = re.search(r"Overall exposure level for pgchroma\.service: ([0-9.]+)", output)
    assert found is not None
    assert float(found.group(1)) <= EXPOSURE_AT_MOST


def test_unit_is_correct_in_systemds_own_judgement(host: Host) -> None:
    result = host.run("systemd-analyze verify --man=no /etc/systemd/system/pgchroma.service")
    assert result.rc == 0
    assert "pgchroma.service" not in result.stderr


def test_every_process_is_the_service_users_and_has_no_capability(host: Host) -> None:
    processes = host.check_output("systemctl show pgchroma -p ControlGroup --value")
    pids = host.check_output(f"cat /sys/fs/cgroup{processes}/cgroup.procs").split()
    assert len(pids) >= 3, "one supervisor and two workers"
    for pid in pids:
        status = dict(
            line.split(":", 1) for line in host.check_output(f"cat /proc/{pid}/status").splitlines()
        )
        assert int(status["CapEff"], 16) == 0
        assert int(status["CapBnd"], 16) == 0
        assert int(status["NoNewPrivs"]) == 1
        assert host.file(f"/proc/{pid}").user == "pgchroma"


def test_listens_on_loopback_only(host: Host) -> None:
    listening = host.check_output("ss -Hltn").splitlines()
    addresses = {line.split()[3].rsplit(":", 1)[0] for line in listening if line.split()[3].endswith(":8000")}
    assert addresses == {"127.0.0.1"}


def test_user_cannot_log_in(host: Host) -> None:
    user = host.user("pgchroma")
    assert user.shell == "/usr/sbin/nologin"
    assert user.password in ("!", "*", "!*")
    assert user.groups == ["pgchroma"]


def test_settings_are_readable_by_the_server_only_and_hold_no_secret(host: Host) -> None:
    settings = host.file("/etc/pgchroma/server.env")
    assert (settings.user, settings.group, settings.mode) == ("root", "pgchroma", 0o640)
    assert "password" not in settings.content_string.replace("no secrets", "").lower()
    credentials = host.file("/etc/pgchroma/credentials")
    assert (credentials.user, credentials.group, credentials.mode) == ("root", "root", 0o700)


def test_release_is_complete_and_consistent(host: Host) -> None:
    current = host.file("/opt/pgchroma/current")
    assert current.is_symlink
    manifest = json.loads(host.file("/opt/pgchroma/current/.complete").content_string)
    assert current.linked_to == f"/opt/pgchroma/releases/{manifest['release']}"
    assert host.run("/opt/pgchroma/current/bin/pip check").rc == 0
    assert manifest["version"] in host.check_output("/opt/pgchroma/current/bin/pgchroma --version")
    assert not host.file("/opt/pgchroma/current/bundle").exists, (
        "the wheels are removed after the installation"
    )


def test_releases_belong_to_root(host: Host) -> None:
    strangers = host.check_output(
        r"find /opt/pgchroma \( -not -user root -o -perm -o+w -not -type l \) -print"
    )
    assert strangers == ""


@pytest.mark.parametrize("path", ["/etc", "/usr", "/opt", "/var/lib", "/usr/bin"])
def test_folders_of_the_system_are_left_alone(host: Host, path: str) -> None:
    folder = host.file(path)
    assert (folder.user, folder.group, folder.mode) == ("root", "root", 0o755)


def test_log_is_one_json_object_a_line_in_the_journal(host: Host, api: Api) -> None:
    api("GET", f"{COLLECTIONS}?limit=1")
    lines = host.check_output("journalctl -u pgchroma -t pgchroma -n 5 -o cat --no-pager").splitlines()
    assert lines
    assert {"time", "level", "message"} <= set(json.loads(lines[-1]))


def test_mitigations_are_on_where_pgvector_is_old(host: Host) -> None:
    version = host.check_output(
        "runuser -u postgres -- psql -Atqd pgchroma -c \"SELECT extversion FROM pg_extension WHERE extname = 'vector'\""
    )
    old = tuple(map(int, version.split("."))) < (0, 8, 4)
    settings = host.file("/etc/pgchroma/server.env").content_string
    assert f'PGCHROMA_PARALLEL_INDEX_BUILDS="{"false" if old else "true"}"' in settings


def test_liveness_and_readiness_need_no_token(api: Api) -> None:
    assert api("GET", "/heartbeat", token_file="")[0] == 200
    assert api("GET", "/healthcheck", token_file="")[0] == 200


def test_nobody_gets_in_without_a_token(api: Api) -> None:
    refused = (403, {"error": "AuthError", "message": "Forbidden"})
    for path in (COLLECTIONS, "/auth/identity", "/tenants/default_tenant"):
        assert api("GET", path, token_file="") == refused
    assert api("POST", COLLECTIONS, {"name": "intruder"}, token_file="") == refused
    assert api("GET", "/metrics", base=SERVER, token_file="") == refused


def test_the_hosts_own_token_is_roots_and_reaches_its_database_only(host: Host, api: Api) -> None:
    file = host.file(TOKEN_FILE)
    assert (file.user, file.group, file.mode) == ("root", "root", 0o600)
    status, identity = api("GET", "/auth/identity")
    assert (status, identity["tenant"], identity["databases"]) == (
        200, "default_tenant", ["default_database"],
    )  # fmt: skip
    assert api("GET", "/tenants/other/databases")[0] == 403
    assert api("POST", "/reset")[0] == 403
    assert api("GET", "/metrics", base=SERVER)[0] == 403


def test_an_operator_on_the_host_makes_and_revokes_a_token(host: Host, api: Api) -> None:
    name = f"testinfra-{uuid.uuid4().hex}"
    file = f"/run/{name}"
    host.check_output(f"pgchroma-admin token create {name} --scope monitor --output {file}")
    try:
        status, text = api("GET", "/metrics", base=SERVER, token_file=file)
        assert status == 200
        assert "pgchroma_database_up 1.0" in text
        assert "pgchroma_workers 2.0" in text
        assert name in host.check_output("pgchroma-admin token list --format json")
        host.check_output(f"pgchroma-admin token revoke {name}")
        refused = lambda: api("GET", "/metrics", base=SERVER, token_file=file)[0] == 403 or None  # noqa: E731
        wait_for("it is refused", refused)
    finally:
        host.check_output(f"rm -f {file}")


def test_records_go_in_and_come_out(api: Api) -> None:
    status, collection = api("POST", COLLECTIONS, {"name": f"testinfra-{uuid.uuid4().hex}"})
    assert status == 200
    records = f"{COLLECTIONS}/{collection['id']}"
    try:
        added = {
            "ids": ["a", "b"],
            "embeddings": [[1.0, 0.0], [0.0, 1.0]],
            "documents": ["one", "100 % zwei äöü"],
        }
        assert api("POST", f"{records}/add", added)[0] == 201
        assert api("GET", f"{records}/count") == (200, 2)
        query = {"query_embeddings": [[0.2, 0.9]], "n_results": 1, "include": ["documents"]}
        status, found = api("POST", f"{records}/query", query)
        assert (status, found["ids"], found["documents"]) == (200, [["b"]], [["100 % zwei äöü"]])
    finally:
        assert api("DELETE", f"{COLLECTIONS}/{collection['name']}")[0] == 200


def test_an_operator_on_the_host_dumps_a_collection_and_loads_it_beside(host: Host, api: Api) -> None:
    name, folder = f"testinfra-{uuid.uuid4().hex}", uuid.uuid4().hex
    status, collection = api("POST", COLLECTIONS, {"name": name})
    assert status == 200
    records = {"ids": ["a"], "embeddings": [[0.5, -1.0]], "documents": ["worth keeping"]}
    try:
        assert api("POST", f"{COLLECTIONS}/{collection['id']}/add", records)[0] == 201
        scope = f"--tenant default_tenant --database default_database --collection {name}"
        host.check_output(f"pgchroma-as-server backup dump {folder} {scope}")
        host.check_output(f"pgchroma-as-server backup load {folder} --as {name}-back")
        status, loaded = api("GET", f"{COLLECTIONS}/{name}-back")
        assert status == 200
        wanted = {"include": ["embeddings", "documents"]}
        status, found = api("POST", f"{COLLECTIONS}/{loaded['id']}/get", wanted)
        assert (status, {key: found[key] for key in records}) == (200, records)
    finally:
        host.check_output(f"rm -rf /var/lib/pgchroma/dumps/{folder}")
        for made in (name, f"{name}-back"):
            api("DELETE", f"{COLLECTIONS}/{made}")
