"""A server with a private PostgreSQL in a temporary folder: nothing to install, nothing left behind."""

import asyncio
import signal
from collections.abc import Callable, Mapping

from pgchroma.server.embedded import temporary_postgres
from pgchroma.server.listening import listen
from pgchroma.server.settings import environment_settings
from pgchroma.server.supervisor import serve
from pgchroma.store import bootstrap, migrations

DATABASE = "pgchroma"


def serve_standalone(options: Mapping[str, object], on_ready: Callable[[str, str], None]) -> None:
    """Serve until SIGTERM or SIGINT, then stop PostgreSQL and remove its folder.

    Args:
        options: settings that go before those of the environment.
        on_ready: called with the server's URL and the database's when requests are answered.

    Raises:
        ConfigurationError: a setting is wrong, the port is taken, the package with PostgreSQL is missing.
    """
    # A signal while PostgreSQL starts must tidy up, too; later the supervisor takes signals over.
    signal.signal(signal.SIGTERM, _leave)
    # Checked before anything is started; the URL is only known afterwards.
    settings = environment_settings({**options, "database_url": "postgresql://"})
    sockets = listen(settings.host, settings.port)
    with temporary_postgres() as postgres:
        database_url = postgres.url(DATABASE)
        bootstrap.create_database(postgres.url(), DATABASE)
        bootstrap.create_extension(database_url)
        asyncio.run(migrations.upgrade(database_url))
        serve(
            environment_settings({**options, "database_url": database_url}),
            sockets=sockets,
            on_ready=lambda server_url: on_ready(server_url, database_url),
        )


def _leave(_signal: int, _frame: object) -> None:
    raise SystemExit(0)
