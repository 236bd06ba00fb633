"""The host is gone for good: the whole service comes back on a bare one from S3 alone."""

import json
from functools import partial
from pathlib import Path

from restore.conftest import SCENARIO, STATE, Cluster, Playbook, host_of, waiting
from support.host import api_of
from support.waiting import wait_for

RECOVERY = str(SCENARIO / "recovery/hosts.yml")
COLLECTIONS = "/tenants/default_tenant/databases/default_database/collections"


def test_bare_host_with_a_cluster_in_service_is_refused(playbook: Playbook) -> None:
    done = playbook("disaster_recovery.yml", confirm="backup-restore1")
    assert done.returncode != 0
    assert "a cluster that was in service" in done.stdout


def test_service_comes_back_from_s3_alone(
    cluster: Cluster, inventory: str, playbook: Playbook, tmp_path: Path
) -> None:
    # The inventory has authentication off: what tokens need is tested elsewhere.
    api = partial(api_of(cluster.host), token_file="")
    wait_for("the server is ready", lambda: api("GET", "/healthcheck")[0] == 200, seconds=60)
    status, made = api("POST", COLLECTIONS, {"name": "survivor", "get_or_create": True})
    assert status == 200, made
    records = {"ids": ["kept"], "embeddings": [[1, 2, 3]], "documents": ["written before the disaster"]}
    assert api("POST", f"{COLLECTIONS}/{made['id']}/upsert", records)[0] in (200, 201)
    assert cluster("backup", "--type=full", "--repository=2").status == 0
    cluster.add(77)
    rows = cluster.rows()
    cluster.sql("SELECT pg_switch_wal()")
    wait_for("all is archived", lambda: waiting(cluster) == 0, seconds=60)
    cluster.host.check_output(
        "systemctl kill -s KILL postgresql@17-main pgchroma; systemctl mask --now postgresql@17-main && "
        # Its unit lies where the link of a mask would.
        "systemctl disable --now pgchroma"
    )

    done = playbook("disaster_recovery.yml", on=RECOVERY)
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout
    done = playbook("disaster_recovery.yml", on=RECOVERY, confirm="backup-restore2")
    assert done.returncode == 0, done.stdout
    assert (
        json.loads(next(tmp_path.glob("disaster-recovery-*.json")).read_text(encoding="utf-8"))["result"]
        == "ok"
    )

    spare = host_of(inventory, "spare")
    recovered = Cluster(spare)
    assert recovered.rows() == rows
    api = partial(api_of(spare), token_file="")
    status, found = api("POST", f"{COLLECTIONS}/{made['id']}/get", {"ids": ["kept"]})
    assert status == 200
    assert found["documents"] == ["written before the disaster"]
    assert recovered("check").status == 0, "it archives to the same repository, on a timeline of its own"
    assert recovered("backup", "--type=incr").status == 0
    assert spare.file(f"{STATE}/restore.json").exists
