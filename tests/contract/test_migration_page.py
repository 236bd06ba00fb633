"""docs/MIGRATION.md names every danger with its actions, and only tests that exist."""

import re
from pathlib import Path

from pgchroma.migrate.policies import DANGERS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/MIGRATION.md").read_text(encoding="utf-8")


def test_every_danger_is_explained_with_its_actions() -> None:
    for danger in DANGERS.values():
        assert f"`{danger.code}" in PAGE, danger.code
        options = re.findall(rf"{danger.code}=([a-z|\\]+)`", PAGE)
        for option in options:
            assert tuple(option.replace("\\", "").split("|")) == danger.actions, danger.code


def test_the_tests_it_names_exist() -> None:
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"def (test_\w+)", path.read_text(encoding="utf-8"))
    }
    assert len(named) > 15
    assert named <= defined, named - defined
