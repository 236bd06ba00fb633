"""What moving an application's SQLite tables costs, as ratios to a raw COPY BINARY of the same rows in the same run.

PYTHONPATH=tests python -m bench.sqlite_tables [--messages 200000]
"""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import psycopg
from psycopg import sql

from pgchroma.migrate.progress import display
from pgchroma.migrate.second import second_process
from pgchroma.migrate.tables import ddl, runner, status
from pgchroma.migrate.tables.inspect_rows import inspect
from pgchroma.migrate.tables.load import load
from pgchroma.migrate.tables.mapping import Mapping
from pgchroma.migrate.tables.source import open_database
from pgchroma.migrate.tables.suggest import suggest
from pgchroma.server.embedded import temporary_postgres
from support import application

MESSAGES = 200_000


@dataclass(frozen=True, slots=True)
class Moved:
    """Seconds of each part, and of a raw COPY of the same rows."""

    rows: int
    snapshot: float
    inspection: float
    load: float
    keys: float
    proof: float
    raw_copy: float

    @property
    def ratio(self) -> float:
        """Raw COPY's time to that of loading the rows, both without indexes."""
        return self.raw_copy / self.load

    @property
    def whole_ratio(self) -> float:
        """Raw COPY's time to that of everything before the keys: private copy, inspection of every value, load."""
        return self.raw_copy / (self.snapshot + self.inspection + self.load)


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def _raw_copy(
    connection: psycopg.Connection[Any], mapping: Mapping, scratch: Path, timed: Callable[..., Any]
) -> None:
    """Copy every table, as binary, into another without indexes; only the way in is timed."""
    for plan in mapping.moved:
        name, prepared = ddl.table_name(mapping, plan), scratch / "rows"
        out = sql.SQL("COPY {} TO STDOUT (FORMAT BINARY)").format(name)
        with prepared.open("wb") as file, connection.cursor() as cursor, cursor.copy(out) as copy:
            for chunk in copy:
                file.write(chunk)
        connection.execute(sql.SQL("CREATE TABLE raw_copy (LIKE {})").format(name))
        with (
            timed("raw_copy"),
            prepared.open("rb") as file,
            connection.cursor() as cursor,
            cursor.copy("COPY raw_copy FROM STDIN (FORMAT BINARY)") as copy,
        ):
            while chunk := file.read(1 << 18):
                copy.write(chunk)
        connection.execute("DROP TABLE raw_copy")


def measure(url: str, messages: int, schema: str = "app") -> Moved:
    """Move a generated application's tables into a schema of their own and time each part."""
    clock = _Clock()
    with tempfile.TemporaryDirectory() as name:
        source = application.make(Path(name) / "app.db", messages=messages)
        started = time.monotonic()
        with (
            second_process() as second,
            open_database(source) as database,
            runner.connect(url, None) as connection,
            display() as shown,
        ):
            clock.seconds["snapshot"] = time.monotonic() - started
            with clock.part("inspection"):
                mapping = suggest(database, schema).mapping
                findings = inspect(database, mapping)
            run_id = runner.start(connection, database, mapping, findings)
            states = status.tables(connection, run_id)
            have = {table.name: table for table in database.tables}
            with clock.part("load"):
                for plan in mapping.moved:
                    load(
                        connection, database, have[plan.source], mapping, plan, findings,
                        states[plan.source], lambda _: None, second,
                    )  # fmt: skip
            _raw_copy(connection, mapping, Path(name), clock.part)
            with clock.part("keys"):
                runner.finish(connection, database, mapping)
            with clock.part("proof"):
                proofs = runner.prove(connection, database, mapping, findings, states, run_id, shown)
            if not all(item.equal for item in proofs):
                raise click.ClickException("the moved tables differ")
            return Moved(sum(table.rows for table in database.tables), **clock.seconds)


@click.command(help=__doc__)
@click.option("--messages", default=MESSAGES, show_default=True, help="Rows of the largest table.")
@click.option(
    "--repeat", default=3, show_default=True, help="How often; the middle one by its ratio is shown."
)
def main(messages: int, repeat: int) -> None:
    """Run the measurement alone."""
    with temporary_postgres() as postgres:
        runs = [measure(postgres.url(), messages, f"app{n}") for n in range(repeat)]
    found = sorted(runs, key=lambda run: run.ratio)[repeat // 2]
    for name in ("snapshot", "inspection", "load", "keys", "proof", "raw_copy"):
        click.echo(f"{name:<12} {getattr(found, name):6.2f} s")
    click.echo(
        f"{found.rows:,} rows; load {found.ratio:.2f} x raw COPY, with private copy and inspection {found.whole_ratio:.2f} x"
    )


if __name__ == "__main__":
    main()
