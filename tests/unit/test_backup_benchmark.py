"""How the benchmark of backups judges what it measured; the measuring itself needs machines."""

import importlib.util
import sys
from pathlib import Path

from click.testing import CliRunner

FILE = Path(__file__).resolve().parents[1] / "bench/backup.py"
_specification = importlib.util.spec_from_file_location("backup_benchmark", FILE)
assert _specification is not None
assert _specification.loader is not None
bench = importlib.util.module_from_spec(_specification)
sys.modules["backup_benchmark"] = bench
_specification.loader.exec_module(bench)

RATIOS = [figure for measure, figure, *_ in bench.BOUNDS if measure == "throughput"]


def test_one_slow_run_decides_nothing() -> None:
    runs = [dict.fromkeys(RATIOS, value) for value in (0.3, 0.9, 0.8)]
    found = bench.medians(runs)
    assert found["runs"] == 3
    assert found["local_backup_to_cp"] == 0.8
    assert (found["local_backup_to_cp_from"], found["local_backup_to_cp_up_to"]) == (0.3, 0.9)
    assert all(holds for holds, _ in bench.judged({"throughput": found}))
    found["local_restore_to_cp"] = 0.6
    assert [text for holds, text in bench.judged({"throughput": found}) if not holds] == [
        "throughput: local_restore_to_cp is 0.60, wanted >= 0.7"
    ]


def test_what_was_not_measured_is_not_judged() -> None:
    killed = {"seconds": 156.0, "lost_span_s": 19.0}
    assert [(holds, text.rpartition(", ")[2]) for holds, text in bench.judged({bench.KILLED: killed})] == [
        (False, "wanted <= 120"),
        (True, "promised <= 300"),
        (True, "promised <= 75"),
    ]


def test_a_judgement_needs_three_runs() -> None:
    refused = CliRunner().invoke(bench.main, ["--check", "--runs", "2"])
    assert refused.exit_code == 2
    assert "fewer than three runs" in refused.output
