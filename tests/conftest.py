"""What holds for every test: generated examples are the same in every run, and none fails for being slow on a busy machine.

And the databases, for every folder of tests that needs one.
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.host import rendered_inventory
from support.postgres import Databases

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


def pytest_configure(config: pytest.Config) -> None:
    """Give testinfra an inventory without expressions: it takes the variables of connections as they are written."""
    inventory = config.getoption("ansible_inventory")
    if inventory:
        file = Path(tempfile.mkdtemp(prefix="pgchroma-testinfra-")) / "hosts.json"
        file.write_text(json.dumps(rendered_inventory(inventory)), encoding="utf-8")
        config.option.ansible_inventory = str(file)


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    """A running cluster, shared by all tests of the session; whoever stops it starts it again."""
    with temporary_postgres() as server:
        yield server


@pytest.fixture(scope="session")
def databases(postgres: EmbeddedPostgres) -> Databases:
    """Makes fresh databases where one per test is not what is wanted."""
    return Databases(postgres)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A fresh database with the current schema, for this test alone."""
    with databases.fresh() as url:
        yield url


@pytest.fixture(scope="module")
def module_database_url(databases: Databases) -> Iterator[str]:
    """A fresh database with the current schema, shared by the tests of a module."""
    with databases.fresh() as url:
        yield url
