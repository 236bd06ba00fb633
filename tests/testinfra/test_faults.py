"""What breaks on a host, and that the server comes back by itself."""

from collections.abc import Callable, Iterator

import pytest
from testinfra.host import Host

from support.host import Api
from support.waiting import wait_for


@pytest.fixture
def stopped_database(host: Host) -> Iterator[None]:
    host.check_output("systemctl stop postgresql@17-main")
    try:
        yield
    finally:
        host.check_output("systemctl start postgresql@17-main")


def main_pid(host: Host) -> str:
    return str(host.check_output("systemctl show pgchroma -p MainPID --value"))


class TestDatabaseAway:
    def test_server_stays_and_says_what_is_missing(
        self, host: Host, api: Api, until_ready: Callable[[], None], stopped_database: None
    ) -> None:
        until_503 = lambda: answer if (answer := api("GET", "/healthcheck"))[0] == 503 else None  # noqa: E731
        _, body = wait_for("the server says 503", until_503)
        assert "PostgreSQL" in str(body)
        assert api("GET", "/heartbeat")[0] == 200
        assert host.service("pgchroma").is_running

    def test_server_is_ready_again_by_itself(self, host: Host, until_ready: Callable[[], None]) -> None:
        before = main_pid(host)
        host.check_output("systemctl restart postgresql@17-main")
        until_ready()
        assert main_pid(host) == before, "without a restart"


def test_a_killed_server_is_started_again(host: Host, until_ready: Callable[[], None]) -> None:
    before = main_pid(host)
    host.check_output("systemctl kill --kill-whom=all --signal=KILL pgchroma")
    wait_for("systemd starts it again", lambda: main_pid(host) not in ("0", before) or None)
    until_ready()


def test_a_killed_worker_is_replaced(host: Host, until_ready: Callable[[], None]) -> None:
    before = main_pid(host)
    worker = host.check_output(f"pgrep -P {before} -f spawn_main | head -n 1")
    host.check_output(f"kill -KILL {worker}")
    wait_for(
        "another worker runs",
        lambda: len(host.check_output(f"pgrep -P {before} -f spawn_main").split()) == 2 or None,
    )
    assert worker not in host.check_output(f"pgrep -P {before} -f spawn_main").split()
    until_ready()
    assert main_pid(host) == before


def test_stops_in_time_and_without_an_error(host: Host, until_ready: Callable[[], None]) -> None:
    host.check_output("systemctl stop pgchroma")
    try:
        assert host.check_output("systemctl show pgchroma -p Result --value") == "success"
    finally:
        host.check_output("systemctl start pgchroma")
        until_ready()
