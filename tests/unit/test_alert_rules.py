"""The alerting rules do what they say: promtool runs tests/alerts, and every metric they name exists."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = sorted((ROOT / "templates/alerts").glob("*.yml"))
_METRIC = re.compile(r"\bpgchroma_\w+")


def rules(path: Path) -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "rules", *map(str, RULES)],
        ["test", "rules", "tests/alerts/backup.yml", "tests/alerts/ages.yml", "tests/alerts/server.yml"],
    ],
    ids=["syntax", "behaviour"],
)
def test_promtool_accepts_the_rules(arguments: list[str]) -> None:
    done = subprocess.run(
        [ROOT / "scripts/promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_every_alert_is_documented_and_says_what_to_do(path: Path) -> None:
    page = (ROOT / "docs/MONITORING.md").read_text()
    for rule in rules(path):
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"], rule["alert"]
        assert rule["annotations"]["action"], rule["alert"]
        assert f"`{rule['alert']}`" in page, rule["alert"]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_every_metric_that_a_rule_names_exists(path: Path) -> None:
    source = "".join(
        (ROOT / name).read_text()
        for name in (
            "src/pgchroma/backup/writers.py",
            "src/pgchroma/store/gauges.py",
            "src/pgchroma/server/metrics.py",
        )
    )
    for rule in rules(path):
        for name in _METRIC.findall(rule["expr"]):
            # prometheus_client adds these to the name of a counter or a histogram.
            metric = re.sub(r"_(total|bucket)$", "", name)
            known = f'"{metric}"' in source or f'gauge("{metric.removeprefix("pgchroma_")}"' in re.sub(
                r"\(\s+", "(", source
            )
            assert known, metric
    assert any(_METRIC.search(rule["expr"]) for rule in rules(path))
