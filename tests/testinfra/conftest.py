"""What the tests of a host share."""

from collections.abc import Callable

import pytest
from testinfra.host import Host

from support.host import Api, api_of
from support.waiting import wait_for


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
