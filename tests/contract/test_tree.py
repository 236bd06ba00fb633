"""Rules that hold for every tracked file."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    # A link to a folder is tracked like a file, but has no text.
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def test_no_registry_host_is_named() -> None:
    hosts = [
        ".".join(parts) for parts in (("pypi", "org"), ("deb", "debian", "org"), ("registry", "npmjs", "org"))
    ]
    hosts.append("python" + "hosted.org")
    for path in tracked():
        content = text_of(path)
        assert not [host for host in hosts if host in content], path


def test_tests_wait_for_conditions_and_are_never_skipped() -> None:
    forbidden = re.compile(r"time" + r"\.sleep\(|mark" + r"\.(skip|xfail)|pytest" + r"\.skip\(")
    for path in tracked("tests/*.py", "molecule/*.py"):
        assert not forbidden.search(text_of(path)), path


def test_data_is_never_unpickled_or_evaluated() -> None:
    forbidden = re.compile(r"\bpickle\.loads?\(|\bmarshal\.|\bshelve\.|(?<![\w.])(eval|exec)\(|yaml\.load\(")
    for path in tracked("src/*.py"):
        assert not forbidden.search(text_of(path)), path


@pytest.mark.parametrize(
    "path", tracked("src/*.py", "scripts/*"), ids=lambda path: str(path.relative_to(ROOT))
)
def test_modules_stay_small(path: Path) -> None:
    assert len(text_of(path).splitlines()) <= 400


def test_only_the_output_module_prints() -> None:
    for path in tracked("src/*.py"):
        if path.name != "output.py":
            assert not re.search(r"(?<![\w.])print\(", text_of(path)), path


def test_sql_stands_in_the_store_only() -> None:
    statement = re.compile(r"[\"'](SELECT|INSERT INTO|UPDATE|DELETE FROM|CREATE TABLE|DROP|ALTER|COPY) ")
    allowed = (
        "src/pgchroma/store/",
        "src/pgchroma/migrate/chroma/",
        "src/pgchroma/migrate/tables/",
        "src/pgchroma/migrate/sqlite_",
    )
    for path in tracked("src/*.py"):
        relative = str(path.relative_to(ROOT))
        if not relative.startswith(allowed):
            assert not statement.search(text_of(path)), f"{relative}: SQL belongs into src/pgchroma/store"


def test_every_exit_code_has_a_meaning() -> None:
    from pgchroma.exit_codes import MEANINGS, ExitCode

    assert set(MEANINGS) == set(ExitCode)


def test_every_decision_has_a_number_of_its_own() -> None:
    for path in tracked("docs/adr/0*.md"):
        assert text_of(path).startswith(f"# {int(path.name[:4])}. "), path
    numbers = [path.name[:4] for path in tracked("docs/adr/0*.md")]
    assert len(numbers) == len(set(numbers))
