"""The private authority by which clusters and repository hosts know each other: made once, renewed when it must be."""

import importlib.util
import subprocess
from pathlib import Path
from typing import Any

import pytest

MODULE = Path(__file__).resolve().parents[2] / "roles/pgbackrest/library/pgbackrest_certificate.py"


@pytest.fixture(scope="module")
def certificate() -> Any:
    specification = importlib.util.spec_from_file_location("pgbackrest_certificate", MODULE)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def text_of(path: Path) -> str:
    command = ["openssl", "x509", "-in", str(path), "-noout", "-text"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_is_made_once_and_only_for_its_names(certificate: Any, tmp_path: Path) -> None:
    folder = tmp_path / "main-tls"
    assert certificate.provide(folder, "db1", ["db1"], check=True) == ["authority", "db1"]
    assert not folder.exists()
    assert certificate.provide(folder, "db1", ["db1", "192.0.2.7"], check=False) == ["authority", "db1"]
    assert certificate.provide(folder, "db1", ["db1", "192.0.2.7"], check=False) == []
    shown = text_of(folder / "db1.crt")
    assert "CN = db1" in shown or "CN=db1" in shown
    assert "DNS:db1, DNS:192.0.2.7" in shown
    assert certificate.provide(folder, "db1", ["db1", "192.0.2.8"], check=False) == ["db1"]
    assert certificate.provide(folder, "vault", ["vault"], check=False) == ["vault"]
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert sorted(path.name for path in folder.iterdir()) == [
        *("authority.crt", "authority.key", "db1.crt", "db1.key", "vault.crt", "vault.key")
    ]


def test_one_of_another_authority_or_near_its_end_is_made_anew(
    certificate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "main-tls"
    certificate.provide(folder, "db1", ["db1"], check=False)
    (folder / "authority.key").unlink()
    assert certificate.provide(folder, "db1", ["db1"], check=False) == ["authority", "db1"]
    monkeypatch.setattr(certificate, "HOST_DAYS", 60)
    certificate.provide(folder, "db2", ["db2"], check=False)
    monkeypatch.undo()
    assert certificate.provide(folder, "db2", ["db2"], check=False) == ["db2"]
    assert certificate.provide(folder, "db2", ["db2"], check=False) == []


def test_without_openssl_it_says_so(
    certificate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(certificate.OpensslError, match="no program openssl"):
        certificate.provide(tmp_path / "main-tls", "db1", ["db1"], check=False)
