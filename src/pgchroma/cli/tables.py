"""`pgchroma tables`: options in, library called, result out."""

from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from pgchroma import output
from pgchroma.cli import tables_text as texts
from pgchroma.cli.logfile import conclude, log_file, logger
from pgchroma.cli.options import (
    database_options,
    format_option,
    receipt_out,
    required_url,
    run_id,
    work_folder,
)
from pgchroma.errors import ConfigurationError, InterruptedMigrationError
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.progress import display
from pgchroma.migrate.second import second_process
from pgchroma.migrate.tables import ddl, mapping, runner, status
from pgchroma.migrate.tables.inspect_rows import inspect, require_complete, require_fitting
from pgchroma.migrate.tables.source import Database, open_database
from pgchroma.migrate.tables.suggest import Suggestion, suggest

# So many of the values that decided about a type are named in a mapping file; the plan names all.
_IN_MAPPING = 5

_source = click.argument("source", type=click.Path(path_type=Path))
_mapping = click.option(
    "--mapping",
    "mapping_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The mapping file, as `plan --write-mapping` made it and you edited it. Default: the suggested mapping.",
)
_schema = click.option(
    "--schema",
    default="public",
    show_default=True,
    help="Target schema of the suggested mapping; a mapping file names its own.",
)


def _suggestion(database: Database, mapping_path: Path | None, schema: str) -> Suggestion:
    if mapping_path is None:
        return suggest(database, schema)
    try:
        text = mapping_path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"cannot read the mapping {mapping_path}: {error}",
            hint="make one by `pgchroma tables plan --write-mapping`",
        ) from error
    given = mapping.load(text, str(mapping_path))
    require_complete(database, given)
    return Suggestion(given, database.not_moved)


def _planned(database: Database, found: Suggestion) -> dict[str, Any]:
    findings = inspect(database, found.mapping)
    rows = {table.name: table.rows for table in database.tables}
    return {
        "source": {"path": str(database.path), "bytes": database.bytes, "fingerprint": database.fingerprint},
        "rows": sum(rows[table.source] for table in found.mapping.moved),
        "tables": [
            {
                "table": table.source,
                "target": f"{found.mapping.schema}.{table.target}",
                "rows": rows[table.source],
                "columns": {column.source: column.kind.sql for column in table.moved},
                "skipped": table.skip,
            }
            for table in found.mapping.tables
        ],
        "notes": list(found.notes),
        "deviations": [deviation.as_json() for deviation in found.deviations],
        "misfits": [finding.as_json() for finding in findings],
        "statements": list(ddl.script(found.mapping)),
        "runnable": all(finding.policy != "fail" for finding in findings),
    }


@click.group()
def tables() -> None:
    """Move an application's plain SQLite tables to PostgreSQL and prove every row.

    The source is read through a private copy and never written to. Stop the application that writes to it first; a source
    that changes meanwhile is detected.
    """


@tables.command()
@_source
@_mapping
@_schema
@database_options
@work_folder
@click.option(
    "--write-mapping",
    "write_mapping",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the mapping to this file, to be reviewed and edited.",
)
@log_file
@format_option
def plan(
    source: Path,
    mapping_path: Path | None,
    schema: str,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    write_mapping: Path | None,
    fmt: output.Format,
) -> None:
    """Show the tables, the types they would get, and every value that does not fit.

    Writes nothing to the source or the database. With a database named, its tables are checked as well.
    """
    with open_database(source, work_folder) as database:
        found = _suggestion(database, mapping_path, schema)
        if write_mapping:
            _write_mapping(write_mapping, source, found)
        data = _planned(database, found)
        if database_url:
            with runner.connect(database_url, database_password_file) as connection:
                runner.require_targets(connection, found.mapping)
    conclude(data, fmt, texts.plan(data))


def _write_mapping(path: Path, source: Path, found: Suggestion) -> None:
    notes = "".join(f"# note: {note}\n" for note in found.notes)
    for deviation in found.deviations:
        notes += f"# note: {deviation.note}\n"
        for value in deviation.values[:_IN_MAPPING]:
            notes += f"#   row {'/'.join(map(str, value.key))}: {value.storage} {value.value}\n"
    try:
        # Exclusive: a mapping that someone edited must not be lost.
        with path.open("x", encoding="utf-8") as file:
            file.write(
                f"# How the tables of {source.name} become PostgreSQL's. Edit, then: pgchroma tables run --mapping {path.name}\n"
            )
            file.write(notes + found.mapping.dump())
    except FileExistsError as error:
        raise ConfigurationError(
            f"{path} exists already", hint="name another file, or remove it if its edits are not needed"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"cannot write {path}: {error.strerror}") from error


@tables.command()
@_source
@_mapping
@_schema
@database_options
@work_folder
@receipt_out("tables")
@click.option(
    "--dry-run", is_flag=True, help="Make every check of a run, show the statements, and write nothing."
)
@log_file
@format_option
def run(
    source: Path,
    mapping_path: Path | None,
    schema: str,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    receipt_path: Path | None,
    dry_run: bool,
    fmt: output.Format,
) -> None:
    """Create the tables, copy every row, add keys and indexes, prove every row, write a receipt.

    Each batch is committed with its checkpoint, so that an interrupted run loses and doubles nothing when it is resumed.
    """
    url = required_url(database_url)
    try:
        with second_process() as second, open_database(source, work_folder) as database, display() as shown:
            found = _suggestion(database, mapping_path, schema)
            with runner.connect(url, database_password_file) as connection:
                if dry_run:
                    runner.require_targets(connection, found.mapping)
                    data = {**_planned(database, found), "dry_run": True}
                    require_fitting(inspect(database, found.mapping))
                    conclude(data, fmt, texts.plan(data))
                    return
                # Asked before the tables are made; of the default it is a folder that counts.
                receipts.require_writable(receipt_path or runner.default_receipt(UUID(int=0)))
                findings = inspect(database, found.mapping)
                for told in (*found.notes, *(deviation.note for deviation in found.deviations)):
                    logger.info("%s", told)
                run_id = runner.start(connection, database, found.mapping, findings)
                begun = runner.pick(connection, run_id)
                result = runner.carry_out(connection, database, begun, shown, receipt_path, findings, second)
    except KeyboardInterrupt as error:
        raise _interrupted() from error
    conclude(result.content, fmt, texts.result(result.content))
    runner.require_equal(result.content)


def _interrupted() -> InterruptedMigrationError:
    return InterruptedMigrationError(
        "stopped before the end", hint="what was committed stands; continue with `pgchroma tables resume`"
    )


@tables.command()
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Where the file is now, if it is elsewhere than when the run began.",
)
@run_id
@database_options
@work_folder
@receipt_out("tables")
@log_file
@format_option
def resume(
    source: Path | None,
    run_id: UUID | None,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    receipt_path: Path | None,
    fmt: output.Format,
) -> None:
    """Continue the newest interrupted run, or the one named by --run.

    Refused when the source has changed since the run began.
    """
    try:
        with (
            second_process() as second,
            runner.connect(required_url(database_url), database_password_file) as connection,
            display() as shown,
        ):
            begun = runner.pick(connection, run_id)
            with open_database(source or Path(begun.source), work_folder) as database:
                runner.require_same_source(begun, database)
                result = runner.carry_out(connection, database, begun, shown, receipt_path, second=second)
    except KeyboardInterrupt as error:
        raise _interrupted() from error
    conclude(result.content, fmt, texts.result(result.content))
    runner.require_equal(result.content)


@tables.command("status")
@run_id
@database_options
@format_option
def show_status(
    run_id: UUID | None, database_url: str | None, database_password_file: Path | None, fmt: output.Format
) -> None:
    """Show the runs into a database and how far each table is."""
    with runner.connect(required_url(database_url), database_password_file) as connection:
        data = [
            {
                "run_id": str(item.run_id),
                "source": item.source,
                "started_at": item.started_at,
                "completed_at": item.completed_at,
                "result": item.result or "interrupted",
                "tables": [
                    {key: value for key, value in asdict(row).items() if key != "run_id"}
                    for row in status.tables(connection, item.run_id).values()
                ],
            }
            for item in status.runs(connection, run_id)
        ]
    output.emit(data, fmt, texts.status(data))


@tables.command()
@click.argument(
    "receipt_path",
    metavar="RECEIPT",
    required=False,
    type=click.Path(path_type=Path, dir_okay=False),
)
@click.option(
    "--receipt",
    "receipt_option",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The same as RECEIPT.",
)
@click.option(
    "--source", type=click.Path(path_type=Path), help="Where the SQLite file is now, if it was moved."
)
@database_options
@work_folder
@log_file
@format_option
def verify(
    receipt_path: Path | None,
    receipt_option: Path | None,
    source: Path | None,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    fmt: output.Format,
) -> None:
    """Compare every row of both sides again, writing to neither."""
    named = receipt_path or receipt_option
    if named is None:
        raise ConfigurationError("no receipt is named", hint="name the one that `pgchroma tables run` wrote")
    receipt = runner.read_receipt(named)
    with (
        open_database(source or Path(receipt["source"]["path"]), work_folder) as database,
        runner.connect(required_url(database_url), database_password_file) as connection,
        display() as shown,
    ):
        found = runner.verify(connection, database, receipt, shown)
    conclude(found, fmt, texts.comparison(found))
    runner.require_equal(found)
