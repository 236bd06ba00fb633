"""Plans, runs, resumes and verifies the move of an application's tables."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import psycopg
from psycopg import sql

import pgchroma
from pgchroma.errors import (
    ConfigurationError,
    InterruptedMigrationError,
    RefusedError,
    SourceChangedError,
    VerificationError,
)
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.progress import Display
from pgchroma.migrate.second import SecondProcess
from pgchroma.migrate.tables import ddl, mapping, proof, status
from pgchroma.migrate.tables.inspect_rows import Finding, inspect, require_fitting
from pgchroma.migrate.tables.load import load
from pgchroma.migrate.tables.mapping import Mapping
from pgchroma.migrate.tables.source import Database
from pgchroma.store.connection import StoreSettings, conninfo
from pgchroma.store.failures import unreachable

Connection = psycopg.Connection[tuple[Any, ...]]
KIND = "tables"
logger = logging.getLogger("pgchroma.migrate")


@contextmanager
def connect(database_url: str, password_file: Path | None) -> Iterator[Connection]:
    """Connect to the target, in autocommit; errors that are the server's doing leave as InterruptedMigrationError."""
    settings = StoreSettings(
        statement_timeout_seconds=0, password_file=password_file, application_name="pgchroma tables"
    )
    try:
        connection = psycopg.connect(conninfo(database_url, settings), autocommit=True)
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    with connection:
        try:
            proof.connect_settings(connection)
            yield connection
        except psycopg.OperationalError as error:
            raise ddl.lost(error) from error
        except psycopg.DataError as error:
            raise VerificationError(
                f"PostgreSQL refuses a value: {' '.join(str(error).split())}",
                hint="give the column another type in the mapping, drop the half-filled tables and begin anew",
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise ConfigurationError(
                f"the database user may not do this: {' '.join(str(error).split())}",
                hint="grant it CREATE on the database and on the target schema, or name another user in --database-url",
            ) from error


def require_targets(connection: Connection, plan: Mapping) -> dict[str, bool]:
    """Return which target tables exist already; RefusedError when one cannot be loaded into."""
    return {table.source: ddl.require_usable(connection, plan, table) for table in plan.moved}


@dataclass(frozen=True, slots=True)
class Result:
    """What a run ends with; the content of its receipt."""

    run_id: UUID
    content: dict[str, Any]

    @property
    def equal(self) -> bool:
        """Whether every table was proven equal."""
        return bool(self.content["result"] == "equal")


def start(connection: Connection, database: Database, plan: Mapping, findings: tuple[Finding, ...]) -> UUID:
    """Create the tables and note the run, in one transaction.

    Raises:
        RefusedError: a value does not fit and the mapping has no answer, or a target table cannot be loaded into.
    """
    require_fitting(findings)
    run_id = uuid4()
    with connection.transaction():
        existed = require_targets(connection, plan)
        status.create(connection)
        connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(plan.schema)))
        for table in plan.moved:
            if not existed[table.source]:
                connection.execute(ddl.create_table(plan, table))
        status.begin(connection, run_id, database, plan, existed, pgchroma.__version__)
    logger.info("run %s of %s begins", run_id, database.path)
    return run_id


def pick(connection: Connection, run_id: UUID | None) -> status.Run:
    """Return the run that is named, or the newest that has not ended; RefusedError when there is none."""
    found = [run for run in status.runs(connection, run_id) if run_id or run.completed_at is None]
    if not found:
        raise RefusedError(
            f"there is no run {run_id}" if run_id else "no interrupted run is there to be resumed",
            hint="see `pgchroma tables status`, or begin with `pgchroma tables run`",
        )
    return found[0]


def require_same_source(run: status.Run, database: Database) -> None:
    """Raise SourceChangedError when the file is not the one the run began with."""
    if database.fingerprint != run.source_fingerprint:
        raise SourceChangedError(
            f"{database.path} is not as it was when run {run.run_id} began on {run.started_at:%Y-%m-%d %H:%M:%S %Z}",
            hint="bring back the file as it was then, or drop the half-filled tables and begin anew",
        )


def carry_out(
    connection: Connection,
    database: Database,
    run: status.Run,
    display: Display,
    receipt_path: Path | None,
    findings: tuple[Finding, ...] | None = None,
    second: SecondProcess | None = None,
) -> Result:
    """Load, add keys, prove, write the receipt; each step goes on from wherever an earlier attempt ended.

    Args:
        findings: what `inspect` found, where that has been asked already.
        second: a process that reads while this one sends.

    Raises:
        SourceChangedError: the source changed meanwhile; the receipt holds what was proven of the copy, and is not green.
        VerificationError: a key cannot be made of the rows.
    """
    started = time.monotonic()
    path = receipt_path or default_receipt(run.run_id)
    receipts.require_writable(path)
    status.lock(connection, run.run_id)
    plan = mapping.from_data(run.mapping)
    findings = inspect(database, plan) if findings is None else findings
    states = status.tables(connection, run.run_id)
    have = {table.name: table for table in database.tables}
    for table in plan.moved:
        state = states[table.source]
        if state.phase not in ("planned", "copying"):
            continue
        step = display.step(f"copying {table.source}", state.source_rows, state.rows_read)
        load(connection, database, have[table.source], plan, table, findings, state, step.advance, second)
        logger.info("%s: copied", table.source)
    orphans = finish(connection, database, plan)
    proofs = prove(connection, database, plan, findings, states, run.run_id, display)
    changed = _change(database)
    equal = all(item.equal for item in proofs)
    outcome = "equal" if equal else "different"
    rows = sum(item.source_rows for item in proofs)
    content = {
        "kind": KIND,
        "run_id": str(run.run_id),
        "result": "source-changed" if changed else outcome,
        "finished": receipts.now(),
        "seconds": round(time.monotonic() - started, 3),
        "source": {"path": run.source, "fingerprint": run.source_fingerprint, "bytes": database.bytes},
        "target": _target(connection),
        "rows": rows,
        "tables": [item.as_json() for item in proofs],
        "misfits": [finding.as_json() for finding in findings],
        "orphans": orphans,
        "mapping": plan.as_data(),
        "pgchroma_version": pgchroma.__version__,
    }
    try:
        receipts.write(path, content)
    except OSError as error:
        raise InterruptedMigrationError(
            f"cannot write the receipt {path}: {error.strerror}",
            hint="the rows stand; make room, then `pgchroma tables resume` proves them once more and writes it",
        ) from error
    if changed:
        raise changed
    # Only now: a run without a receipt can be resumed for one.
    status.complete(connection, run.run_id, outcome)
    return Result(run.run_id, {**content, "receipt": str(path)})


def default_receipt(run_id: UUID) -> Path:
    """Return receipts/tables-<run>.json below the current folder."""
    return Path("receipts") / f"tables-{run_id}.json"


def read_receipt(path: Path) -> dict[str, Any]:
    """Return the receipt of a move of tables; ConfigurationError when it is none, or not whole."""
    content = receipts.read(path)
    if content.get("kind") != KIND:
        raise ConfigurationError(
            f"{path} is not the receipt of a move of tables",
            hint="for collections use `pgchroma migrate verify`",
        )
    try:
        UUID(content["run_id"])
        mapping.from_data(content["mapping"])
        whole = {"path", "fingerprint"} <= content["source"].keys() and all(
            {"table", "kept"} <= item.keys() for item in content["tables"]
        )
    except (KeyError, TypeError, ValueError, AttributeError, ConfigurationError) as error:
        raise ConfigurationError(
            f"the receipt {path} is not whole: {type(error).__name__} {error}",
            hint="name the file as `pgchroma tables run` wrote it",
        ) from error
    if not whole:
        raise ConfigurationError(
            f"the receipt {path} is not whole", hint="name the file as `pgchroma tables run` wrote it"
        )
    return content


def _change(database: Database) -> SourceChangedError | None:
    """Return what is to be raised, after the receipt is written, where the source has changed."""
    try:
        database.require_unchanged()
    except SourceChangedError as error:
        return error
    return None


def _target(connection: Connection) -> str:
    info = connection.info
    return f"{info.host or 'local'}:{info.port}/{info.dbname} as {info.user}"


def finish(connection: Connection, database: Database, plan: Mapping) -> dict[str, int]:
    """Add keys, then foreign keys, then set identities; return the rows without a parent."""
    have = {table.name: table for table in database.tables}
    for table in plan.moved:
        ddl.add_constraints(connection, plan, table)
    orphans: dict[str, int] = {}
    for table in plan.moved:
        with connection.transaction():
            orphans |= ddl.add_foreign_keys(connection, plan, table)
        ddl.set_identity(connection, plan, table, have[table.source])
        connection.execute(sql.SQL("ANALYZE {}").format(ddl.table_name(plan, table)))
    return orphans


def prove(
    connection: Connection,
    database: Database,
    plan: Mapping,
    findings: tuple[Finding, ...],
    states: dict[str, status.TableStatus],
    run_id: UUID,
    display: Display,
) -> list[proof.TableProof]:
    """Compare every row of every table and note what was found."""
    have = {table.name: table for table in database.tables}
    proofs = []
    for table in plan.moved:
        state = states[table.source]
        step = display.step(f"proving {table.source}", state.source_rows)
        item = proof.prove(
            connection,
            database.connection,
            have[table.source],
            plan,
            table,
            findings,
            existed=state.existed,
            advance=step.advance,
        )
        status.set_phase(
            connection, run_id, table.source, "verified" if item.equal else "different", errors=item.errors
        )
        log = logger.info if item.equal else logger.error
        log("%s: %d rows, %s", table.source, item.source_rows, "equal" if item.equal else "different")
        proofs.append(item)
    return proofs


def verify(
    connection: Connection, database: Database, receipt: dict[str, Any], display: Display
) -> dict[str, Any]:
    """Compare every row again, writing to neither side."""
    plan = mapping.from_data(receipt["mapping"])
    findings = inspect(database, plan)
    existed = {item["table"]: bool(item["kept"]) for item in receipt["tables"]}
    states = status.tables(connection, UUID(receipt["run_id"])) if status.runs(connection) else {}
    have = {table.name: table for table in database.tables}
    found = []
    for table in plan.moved:
        step = display.step(f"proving {table.source}", have[table.source].rows)
        there = states[table.source].existed if table.source in states else existed.get(table.source, False)
        if ddl.existing(connection, plan, table) is None:
            raise VerificationError(
                f"the table {plan.schema}.{table.target} is gone",
                hint="restore it from a backup, or move it anew",
            )
        found.append(
            proof.prove(
                connection,
                database.connection,
                have[table.source],
                plan,
                table,
                findings,
                existed=there,
                advance=step.advance,
            )
        )
    return {
        "run_id": receipt["run_id"],
        "source_changed": database.fingerprint != receipt["source"]["fingerprint"],
        "result": "equal" if all(item.equal for item in found) else "different",
        "tables": [item.as_json() for item in found],
    }


def require_equal(content: dict[str, Any]) -> None:
    """Raise VerificationError, naming tables and rows, unless every table is equal."""
    bad = [item for item in content["tables"] if not item["equal"]]
    if not bad:
        return
    lines = []
    for item in bad:
        parts = [
            f"{len(item[what])} {what}, e.g. {item[what][0]}"
            for what in ("missing", "different", "extra")
            if item[what]
        ]
        lines.append(f"{item['table']}: {'; '.join(parts) or 'digests differ'}")
    raise VerificationError(
        " | ".join(lines),
        hint="applications may have written to the target; else restore it, or move the tables anew",
    )
