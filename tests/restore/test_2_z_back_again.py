"""A restore that was the wrong one is taken back by the playbook: the former data serves again, and what was restored lies aside."""

import json
from pathlib import Path

from testinfra.host import Host

from restore.conftest import Cluster, Playbook


def test_playbook_puts_the_former_data_back(
    host: Host, cluster: Cluster, playbook: Playbook, tmp_path: Path
) -> None:
    assert cluster("backup", "--type=full", "--repository=1").status == 0
    before = cluster.rows()
    assert cluster("restore-point", "--name=taken-back").status == 0
    cluster.add(50)
    timeline = int(cluster.sql("SELECT timeline_id FROM pg_control_checkpoint()"))
    answer = cluster.restore(name="taken-back", timeline=timeline)
    assert answer.status == 0, answer.text
    assert cluster.rows() == before
    done = playbook("restore_finish.yml", keep="former")
    assert done.returncode != 0
    assert "Nothing was changed" in done.stdout
    assert cluster.rows() == before
    name = cluster.run("hostname")
    done = playbook("restore_finish.yml", keep="former", confirm=name)
    assert done.returncode == 0, done.stdout
    assert cluster.rows() == before + 50
    assert host.service("pgchroma").is_running
    receipt = json.loads(next(tmp_path.glob("restore-finish-*.json")).read_text(encoding="utf-8"))
    assert host.file(receipt["rejected"]).is_directory
    host.check_output(f"rm -r {receipt['rejected']}")
