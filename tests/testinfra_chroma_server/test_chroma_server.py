"""The stock Chroma server on its host: what an operator and an application notice."""

import json
import re
from typing import Any

UNIT = "chroma-server.service"
URL = "http://127.0.0.1:8001/api/v2"


def ask(host: Any, path: str, data: object = None) -> Any:
    body = f" --json '{json.dumps(data)}'" if data is not None else ""
    return json.loads(host.check_output(f"curl --silent --show-error --fail-with-body{body} {URL}/{path}"))


def test_serves_the_pinned_version(host: Any) -> None:
    assert host.service(UNIT).is_running
    assert host.service(UNIT).is_enabled
    installed = host.check_output(
        "/opt/chroma-server/current/bin/python -c 'import chromadb; print(chromadb.__version__)'"
    )
    assert installed == "1.5.9"
    assert "nanosecond heartbeat" in ask(host, "heartbeat")


def test_listens_on_this_host_only(host: Any) -> None:
    sockets = [line.split()[3] for line in host.check_output("ss -H -tlnp").splitlines() if "chroma" in line]
    assert sockets == ["127.0.0.1:8001"]
    assert "IPAddressDeny=::/0 0.0.0.0/0" in host.check_output(
        f"systemctl show {UNIT} --property=IPAddressDeny"
    )


def test_is_sandboxed(host: Any) -> None:
    shown = host.check_output(f"systemd-analyze security --no-pager {UNIT}")
    found = re.search(r"Overall exposure level for \S+: ([0-9.]+)", shown)
    assert found is not None
    assert float(found[1]) <= 2.0


def test_keeps_records_over_a_crash_and_a_restart(host: Any) -> None:
    base = "tenants/default_tenant/databases/default_database/collections"
    name = "kept-" + host.check_output("cat /proc/sys/kernel/random/uuid")
    made = ask(host, base, {"name": name})
    ask(
        host,
        f"{base}/{made['id']}/add",
        {"ids": ["a", "b"], "embeddings": [[1, 2], [3, 4]], "documents": ["x", "y"]},
    )
    for command in (f"systemctl kill --signal=KILL {UNIT}", f"systemctl restart {UNIT}"):
        host.check_output(command)
        host.check_output(
            f"curl --silent --retry 60 --retry-delay 1 --retry-all-errors --fail {URL}/heartbeat"
        )
        assert ask(host, f"{base}/{made['id']}/count") == 2
        found = ask(host, f"{base}/{made['id']}/query", {"query_embeddings": [[1, 2]], "n_results": 1})
        assert found["ids"] == [["a"]]


def test_its_data_is_its_own(host: Any) -> None:
    folder = host.file("/var/lib/chroma-server")
    assert (folder.user, folder.group, folder.mode) == ("chroma-server", "chroma-server", 0o750)
    assert host.file("/var/lib/chroma-server/chroma.sqlite3").user == "chroma-server"
    assert host.file("/etc/chroma-server/config.yaml").mode == 0o640
