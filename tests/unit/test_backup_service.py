"""Stopping the server's unit, above all while it is still starting; programs of the host are scripts here."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from support.backed_up import module

engine, errors, service = map(module, ("engine", "errors", "service"))

SYSTEMCTL = """#!/bin/sh
echo "systemctl $1" >> {log}
case "$1" in
show) cat {state} ;;
stop) while [ -e {waits} ] && [ -e {runs} ]; do sleep 0.05; done; echo inactive > {state} ;;
esac
"""
# pg_ctl's own: fast does nothing where the server is stuck.
PG_CTL = """#!/bin/sh
case "$*" in
*status) test -e {runs}; exit ;;
*fast*) echo "pg_ctl fast" >> {log}; test -e {stuck} && exit 1 ;;
*immediate*) echo "pg_ctl immediate" >> {log}; test -e {dead} && exit 1 ;;
esac
rm -f {runs}
"""


class Host:
    """What the scripts see and what they were called with."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        names = ("log", "state", "waits", "runs", "stuck", "dead")
        files = {name: folder / name for name in names}
        for name, text in (("systemctl", SYSTEMCTL), ("pg_ctl", PG_CTL)):
            script = folder / name
            script.write_text(text.format(**files))
            script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        monkeypatch.setattr(engine, "as_postgres", lambda command: command)
        monkeypatch.setattr(service, "PATIENCE_SECONDS", 0.3)
        self.settings = SimpleNamespace(
            service="postgresql@17-main.service", bin_dir=str(folder), data_dir=str(folder / "data")
        )

    def has(self, state: str, *marks: str) -> None:
        (self.folder / "state").write_text(state)
        for mark in marks:
            (self.folder / mark).touch()

    @property
    def calls(self) -> list[str]:
        lines = (self.folder / "log").read_text().splitlines()
        return [line for line in lines if line != "systemctl show"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_server_in_service_is_stopped_by_its_unit(host: Host) -> None:
    host.has("active", "runs")
    service.stop(host.settings)
    assert host.calls == ["systemctl stop"]


def test_one_that_is_still_starting_is_asked_before_its_unit(host: Host) -> None:
    host.has("activating", "runs")
    service.stop(host.settings)
    assert host.calls == ["pg_ctl fast", "systemctl stop"]
    assert not (host.folder / "runs").exists()


@pytest.mark.parametrize("state", ["activating", "deactivating"])
def test_one_that_is_stuck_is_made_to_end(host: Host, state: str) -> None:
    host.has(state, "runs", "stuck")
    service.stop(host.settings)
    assert host.calls == ["pg_ctl fast", "pg_ctl immediate", "systemctl stop"]


def test_one_that_runs_only_after_it_was_asked_is_made_to_end(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.has("activating", "waits", "runs", "stuck")
    seen: list[bool] = [False, False]
    running: Callable[[Any], bool] = engine.is_running
    # The unit has begun to start it, and it has no file yet by which it could be found.
    monkeypatch.setattr(engine, "is_running", lambda given: seen.pop() if seen else running(given))
    service.stop(host.settings)
    assert host.calls == ["systemctl stop", "pg_ctl immediate"]


def test_one_that_cannot_be_ended_is_named(host: Host) -> None:
    host.has("activating", "waits", "runs", "stuck", "dead")
    with pytest.raises(errors.BackupError, match="does not stop") as caught:
        service.stop(host.settings)
    assert "postmaster.pid" in caught.value.hint


def test_a_unit_that_is_not_there_is_an_error(host: Host) -> None:
    (host.folder / "systemctl").write_text("#!/bin/sh\necho no such unit\nexit 5\n")
    for control in (service.stop, service.start):
        with pytest.raises(errors.BackupError, match="no such unit"):
            control(host.settings)
