"""The Ansible modules that the roles bring along: what they compute, without a host."""

import importlib.util
import json
import os
import stat
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def load(path: str, name: str) -> ModuleType:
    """Import a file as Ansible would."""
    specification = importlib.util.spec_from_file_location(name, ROOT / path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    specification.loader.exec_module(module)
    return module


bundle = load("roles/pgchroma/library/pgchroma_bundle.py", "pgchroma_bundle")
report, system, postgresql, server = (
    load(f"roles/verify/module_utils/{name}.py", f"ansible.module_utils.{name}")
    for name in ("verify_report", "verify_system", "verify_postgresql", "verify_server")
)

LOCK = """\
anyio==4.16.0 \\
    --hash=sha256:aa
exceptiongroup==1.3.0 ; python_full_version < '3.12' \\
    --hash=sha256:bb \\
    --hash=sha256:cc
tzdata==2026.6 ; sys_platform == 'win32' \\
    --hash=sha256:dd
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with no more than what a release is made of."""
    package = tmp_path / "src/pgchroma"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('__version__ = "1.2.3"\n')
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/runtime.txt").write_text("")
    (tmp_path / "README.md").write_text("text\n")
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        '[project]\nname = "pgchroma"\nversion = "1.2.3"\nreadme = "README.md"\n'
        '[tool.setuptools.packages.find]\nwhere = ["src"]\n'
    )
    return tmp_path


def builder(checkout: Path, cache: Path) -> Any:
    return bundle.Builder(checkout, cache, sys.executable, "3.13", "x86_64", "2.41")


class TestReleaseName:
    def test_is_version_and_content(self, checkout: Path) -> None:
        name = bundle.release_name(checkout)
        assert name.startswith("1.2.3+")
        assert name == bundle.release_name(checkout)

    def test_ignores_documentation_and_compiled_files(self, checkout: Path) -> None:
        before = bundle.release_name(checkout)
        (checkout / "README.md").write_text("other\n")
        (checkout / "src/pgchroma/__pycache__").mkdir()
        (checkout / "src/pgchroma/__pycache__/x.pyc").write_bytes(b"x")
        assert bundle.release_name(checkout) == before

    @pytest.mark.parametrize(
        "change",
        [
            lambda root: (root / "src/pgchroma/new.py").write_text(""),
            lambda root: (root / "requirements/runtime.txt").write_text(LOCK),
            lambda root: (root / "src/pgchroma/__init__.py").write_text('__version__ = "1.2.3"\n# more\n'),
        ],
        ids=["another file", "other dependencies", "other content"],
    )
    def test_changes_with_the_sources(self, checkout: Path, change: Callable[[Path], Any]) -> None:
        before = bundle.release_name(checkout)
        change(checkout)
        assert bundle.release_name(checkout) != before

    def test_wrong_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(bundle.BundleError, match="pgchroma_checkout_dir must be a checkout"):
            bundle.release_name(tmp_path)


class TestRequirements:
    def test_markers_are_judged_for_the_host(self) -> None:
        assert "exceptiongroup==1.3.0 \\\n" in bundle.requirements_for(LOCK, "3.11", "x86_64")
        assert "exceptiongroup" not in bundle.requirements_for(LOCK, "3.13", "x86_64")
        assert "tzdata" not in bundle.requirements_for(LOCK, "3.13", "x86_64")

    def test_every_hash_is_kept(self) -> None:
        text = bundle.requirements_for(LOCK, "3.11", "aarch64")
        assert [line.split(":")[1].split()[0] for line in text.splitlines() if "sha256" in line] == [
            "aa",
            "bb",
            "cc",
        ]
        assert ";" not in text

    def test_locked_list_of_this_checkout_is_understood(self) -> None:
        text = bundle.requirements_for((ROOT / "requirements/runtime.txt").read_text(), "3.13", "x86_64")
        assert "psycopg-binary==" in text
        assert text.count("==") == len(
            [line for line in text.splitlines() if "==" in line and "--hash" not in line]
        )

    def test_platforms_go_back_from_the_hosts_c_library(self) -> None:
        names = bundle.platforms("aarch64", "2.36")
        assert names[0] == "manylinux_2_36_aarch64"
        assert "manylinux2014_aarch64" in names
        assert "manylinux_2_37_aarch64" not in names

    def test_other_c_libraries_are_refused(self) -> None:
        with pytest.raises(bundle.BundleError, match="glibc"):
            bundle.platforms("x86_64", "musl 1.2")


class TestBundle:
    def test_holds_what_a_host_needs_and_is_made_once(self, checkout: Path, tmp_path: Path) -> None:
        made = builder(checkout, tmp_path / "cache")
        path, changed = made.build()
        assert changed
        assert builder(checkout, tmp_path / "cache").build() == (path, False)
        with tarfile.open(path) as archive:
            assert sorted(archive.getnames()) == [
                "manifest.json",
                "release.txt",
                "requirements.txt",
                "wheels/pgchroma-1.2.3-py3-none-any.whl",
            ]
            manifest = json.load(archive.extractfile("manifest.json"))  # type: ignore[arg-type]
            release = archive.extractfile("release.txt").read().decode()  # type: ignore[union-attr]
        assert manifest["release"] == bundle.release_name(checkout)
        assert manifest["wheels"]["pgchroma-1.2.3-py3-none-any.whl"] in release
        assert not (checkout / "build").exists(), "the checkout stays as it is"

    def test_failure_leaves_nothing_half_made(self, tmp_path: Path) -> None:
        def fail(folder: Path) -> None:
            (folder / "half").write_text("")
            raise bundle.BundleError("no")

        with pytest.raises(bundle.BundleError):
            bundle.complete_or_absent(tmp_path / "wheels/x", fail)
        assert list((tmp_path / "wheels").iterdir()) == []

    def test_a_python_without_pip_is_named(self, checkout: Path, tmp_path: Path) -> None:
        made = bundle.Builder(checkout, tmp_path / "cache", "/bin/false", "3.13", "x86_64", "2.41")
        with pytest.raises(bundle.BundleError, match="failed"):
            made.build()


SOCKETS = """\
LISTEN 0 244 127.0.0.1:5432 0.0.0.0:* users:(("postgres",pid=1,fd=7))
LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:(("sshd",pid=2,fd=3))
LISTEN 0 128 [::]:22 [::]:* users:(("sshd",pid=2,fd=4))
LISTEN 0 128 *:9100 *:* users:(("exporter",pid=3,fd=3))
LISTEN 0 128 [::1]:6060 [::]:*
"""
DATABASE = {"name": "postgresql", "port": 5432, "addresses": ["127.0.0.1", "::1"]}
SSH = {"name": "ssh", "port": 22, "addresses": []}


class TestSockets:
    def test_listing_is_read(self) -> None:
        assert ("::1", 6060, "unknown") in system.parse_sockets(SOCKETS)
        assert ("*", 9100, "exporter") in system.parse_sockets(SOCKETS)

    def test_extra_ones_are_reported_by_who_reaches_them(self) -> None:
        results = system.judge_sockets(system.parse_sockets(SOCKETS), [DATABASE], [SSH])
        assert [(item["id"], item["status"]) for item in results] == [
            ("sockets.expected", "ok"),
            ("sockets.unexpected_network", "fail"),
            ("sockets.unexpected_loopback", "warn"),
        ]
        assert "*:9100 (exporter)" in results[1]["detail"]

    def test_missing_one_fails(self) -> None:
        pgchroma = {"name": "pgchroma", "port": 8000, "addresses": ["127.0.0.1"]}
        results = system.judge_sockets(system.parse_sockets(SOCKETS), [DATABASE, pgchroma], [])
        assert results[0]["status"] == "fail"
        assert "pgchroma does not listen on 127.0.0.1:8000" in results[0]["detail"]

    def test_expected_port_on_another_address_is_an_extra_one(self) -> None:
        wide = system.parse_sockets("LISTEN 0 1 0.0.0.0:5432 0.0.0.0:*\nLISTEN 0 1 127.0.0.1:5432 0.0.0.0:*")
        results = system.judge_sockets(wide, [DATABASE], [])
        assert results[1]["status"] == "fail"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("64MB", "65536kB", True),
        ("15min", "900s", True),
        (True, "on", True),
        ("off", False, True),
        (1.1, "1.1", True),
        ("4GB", "4MB", False),
        ("localhost,10.0.0.1", "localhost, 10.0.0.1", True),
        ("replica", "logical", False),
    ],
)
def test_settings_are_compared_by_their_meaning(one: object, other: object, same: bool) -> None:
    assert (postgresql.normal(one) == postgresql.normal(other)) is same


@pytest.mark.parametrize(
    ("installed", "accepted", "status"),
    [
        ("0.8.4", "", "ok"),
        ("0.10.0", "", "ok"),
        ("0.8.0", "", "fail"),
        ("0.8.0", "0.8.0", "warn"),
        ("0.7.4", "0.8.0", "fail"),
    ],
)
def test_an_old_pgvector_has_to_be_accepted(installed: str, accepted: str, status: str) -> None:
    found = {"extension": installed, "available": installed}
    results = {item["id"]: item for item in postgresql.judge_pgvector(found, "pgchroma", "0.8.4", accepted)}
    assert results["pgvector.version"]["status"] == status
    assert ("0.8.4" in results["pgvector.version"]["hint"]) is (status != "ok")


def test_a_file_may_be_stricter_but_not_more_open(tmp_path: Path) -> None:
    file = tmp_path / "server.env"
    file.write_text("")
    owner = system.owner_of(os.stat_result(file.stat()))
    for mode, problems in ((0o600, 0), (0o640, 0), (0o644, 1)):
        file.chmod(mode)
        assert len(system.file_problems(file, owner, "0640")) == problems, stat.filemode(mode)


def test_settings_file_is_read_as_systemd_reads_it() -> None:
    text = (
        '# comment\nPGCHROMA_DATABASE_URL="postgresql:///pgchroma?host=/run&user=app"\nPGCHROMA_PORT="8000"\n'
    )
    assert server.read_settings(text) == {
        "PGCHROMA_DATABASE_URL": "postgresql:///pgchroma?host=/run&user=app",
        "PGCHROMA_PORT": "8000",
    }


def test_table_has_every_check_and_the_remedy_of_what_is_wrong() -> None:
    checks = [
        report.passed("a", "critical", "fine"),
        report.failed("long.id", "critical", "broken " * 40, "mend it"),
        report.failed("c", "warning", "odd", "look"),
        report.skipped("d", "critical", "not here"),
    ]
    table = report.table("db1", checks)
    assert "-> mend it" in table
    assert table.splitlines()[-1] == "db1: 1 ok, 1 warnings, 1 failed, 1 skipped"
    assert max(map(len, table.splitlines())) <= report.TABLE_WIDTH
