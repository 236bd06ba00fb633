"""The stock Chroma server on its host: what an operator and an application notice."""

import re
from functools import partial

import pytest
from testinfra.host import Host

from support.host import COLLECTIONS, Api, api_of
from support.waiting import wait_for

UNIT = "chroma-server.service"


@pytest.fixture
def api(host: Host) -> Api:
    """Call the server from its host, the only place from which it answers."""
    return partial(api_of(host), base="http://127.0.0.1:8001/api/v2", token_file="")


def test_serves_the_pinned_version(host: Host, api: Api) -> None:
    assert host.service(UNIT).is_running
    assert host.service(UNIT).is_enabled
    installed = host.check_output(
        "/opt/chroma-server/current/bin/python -c 'import chromadb; print(chromadb.__version__)'"
    )
    assert installed == "1.5.9"
    assert api("GET", "/heartbeat")[0] == 200


def test_listens_on_this_host_only(host: Host) -> None:
    sockets = [line.split()[3] for line in host.check_output("ss -H -tlnp").splitlines() if "chroma" in line]
    assert sockets == ["127.0.0.1:8001"]
    shown = host.check_output(f"systemctl show {UNIT} --property=IPAddressDeny --value")
    # A set: systemd writes it in any order.
    assert set(shown.split()) == {"::/0", "0.0.0.0/0"}


def test_is_sandboxed(host: Host) -> None:
    shown = host.check_output(f"systemd-analyze security --no-pager {UNIT}")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert found is not None
    assert float(found[1]) <= 2.0


def test_keeps_records_over_a_crash_and_a_restart(host: Host, api: Api) -> None:
    _, made = api("POST", COLLECTIONS, {"name": "kept", "get_or_create": True})
    path = f"{COLLECTIONS}/{made['id']}"
    records = {"ids": ["a", "b"], "embeddings": [[1, 2], [3, 4]], "documents": ["x", "y"]}
    assert api("POST", f"{path}/upsert", records)[0] == 200
    for command in (f"systemctl kill --signal=KILL {UNIT}", f"systemctl restart {UNIT}"):
        host.check_output(command)
        wait_for("the server answers", lambda: api("GET", "/heartbeat")[0] == 200 or None, seconds=60)
        assert api("GET", f"{path}/count") == (200, 2)
        status, found = api("POST", f"{path}/query", {"query_embeddings": [[1, 2]], "n_results": 1})
        assert (status, found["ids"]) == (200, [["a"]])


def test_its_data_is_its_own(host: Host) -> None:
    folder = host.file("/var/lib/chroma-server")
    assert (folder.user, folder.group, folder.mode) == ("chroma-server", "chroma-server", 0o750)
    assert host.file("/var/lib/chroma-server/chroma.sqlite3").user == "chroma-server"
    assert host.file("/etc/chroma-server/config.yaml").mode == 0o640
