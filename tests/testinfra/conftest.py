"""What the tests of a host share."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from testinfra.host import Host

from support.host import Api, api_of, rendered_inventory
from support.waiting import wait_for


def pytest_configure(config: pytest.Config) -> None:
    """Give testinfra an inventory without expressions: it takes the variables of connections as they are written."""
    inventory = config.getoption("ansible_inventory")
    if inventory:
        file = Path(tempfile.mkdtemp(prefix="pgchroma-testinfra-")) / "hosts.json"
        file.write_text(json.dumps(rendered_inventory(inventory)), encoding="utf-8")
        config.option.ansible_inventory = str(file)


@pytest.fixture
def api(host: Host) -> Api:
    """Call the server from the host itself."""
    return api_of(host)


@pytest.fixture
def until_ready(api: Api) -> Callable[[], None]:
    """Wait until the server says that it can serve."""

    def wait() -> None:
        wait_for("the server is ready", lambda: api("GET", "/healthcheck")[0] == 200 or None, seconds=60)

    return wait
