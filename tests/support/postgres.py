"""Databases for tests: one embedded cluster, one migrated template in it, and a quick copy of that for whoever asks."""

import asyncio
import itertools
from collections.abc import Iterator
from contextlib import contextmanager

from pgchroma.server.embedded import EmbeddedPostgres
from pgchroma.store import bootstrap, migrations

_TEMPLATE = "pgchroma_template"


class Databases:
    """Makes fresh databases in one cluster."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self.postgres = postgres
        self._numbers = itertools.count(1)
        self._has_template = False

    @contextmanager
    def fresh(self, *, migrated: bool = True) -> Iterator[str]:
        """Lend the URL of a new database, with pgvector and, unless told otherwise, the current schema."""
        name = f"test_{next(self._numbers)}"
        if migrated:
            self._prepare_template()
            bootstrap.create_database(self.postgres.url(), name, template=_TEMPLATE)
        else:
            bootstrap.create_database(self.postgres.url(), name)
            bootstrap.create_extension(self.postgres.url(name))
        try:
            yield self.postgres.url(name)
        finally:
            self.postgres.start()
            bootstrap.drop_database(self.postgres.url(), name)

    def _prepare_template(self) -> None:
        if self._has_template:
            return
        bootstrap.create_database(self.postgres.url(), _TEMPLATE)
        bootstrap.create_extension(self.postgres.url(_TEMPLATE))
        asyncio.run(migrations.upgrade(self.postgres.url(_TEMPLATE)))
        self._has_template = True
