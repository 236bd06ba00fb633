"""Fixtures of the integration tests."""

from collections.abc import Iterator

import pytest

from pgchroma.server.embedded import EmbeddedPostgres, temporary_postgres
from support.postgres import Databases


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
