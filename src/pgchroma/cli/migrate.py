"""`pgchroma migrate`: options in, library called, result out."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import click

from pgchroma import output
from pgchroma.cli import migrate_text as texts
from pgchroma.cli.options import database_options, format_option, required_url
from pgchroma.errors import InterruptedMigrationError, RefusedError, SourceError, VerificationError
from pgchroma.migrate import plan as plans
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate import reverify, runner
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.progress import display
from pgchroma.migrate.sink import StoreSink
from pgchroma.store import Store, StoreSettings, migrations

Result = TypeVar("Result")

_source = click.argument("source", type=click.Path(path_type=Path))
_work_folder = click.option(
    "--work-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep the private copy of the source while it is read. Default: the system's temporary folder.",
)
_receipt_out = click.option(
    "--receipt",
    "receipt_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to write the receipt. Default: receipts/migration-<run>.json.",
)
_run_id = click.option("--run", "run_id", type=click.UUID, help="The migration's id, as `status` shows it.")


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine; an interrupt or SIGTERM ends it between two batches."""

    async def watched() -> Result:
        task = asyncio.ensure_future(work)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        return await task

    try:
        return asyncio.run(watched())
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise InterruptedMigrationError(
            "stopped before the end",
            hint="what was committed stands; if a run had begun (see `pgchroma migrate status`), continue it with "
            "`pgchroma migrate resume`",
        ) from error


@contextlib.asynccontextmanager
async def _sink(
    database_url: str | None, password_file: Path | None
) -> AsyncIterator[tuple[Store, StoreSink]]:
    url = required_url(database_url)
    settings = StoreSettings(
        pool_size=3,
        pool_timeout_seconds=10.0,
        statement_timeout_seconds=0,
        password_file=password_file,
        application_name="pgchroma migrate",
    )
    # A connection of its own says at once, and once, why there is none; the pool would try for a while.
    await migrations.schema_versions(url, settings)
    async with await Store.open(url, settings) as store:
        await store.check_ready(timeout_seconds=10.0)
        yield store, StoreSink(store, url)


@click.group()
def migrate() -> None:
    """Move a Chroma folder into pgchroma and prove it.

    The source is read through a private copy, never written to and never opened by chromadb. Stop the application that
    writes to it first; a source that changes meanwhile is detected.
    """


@migrate.command()
@_source
@database_options
@_work_folder
@format_option
def plan(
    source: Path,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    fmt: output.Format,
) -> None:
    """Show what would be moved and every problem found; writes nothing.

    SOURCE is the folder with chroma.sqlite3. With a database named, its collections are checked as well.
    """

    async def work() -> tuple[dict[str, Any], RefusedError | None]:
        refusal = None
        with open_folder(source, work_folder) as opened, display() as shown:
            total = sum(item.count for item in opened.collections())
            made = plans.make(opened, shown.step("looking through the source", total).advance)
            if database_url:
                async with _sink(database_url, database_password_file) as (_, sink):
                    try:
                        await plans.require_free_targets(opened, sink)
                    except RefusedError as error:
                        refusal = error
        return made.as_json(), refusal

    found, refusal = _run(work())
    output.emit(found, fmt, texts.plan(found))
    if refusal:
        raise refusal


@migrate.command()
@_source
@database_options
@_work_folder
@_receipt_out
@click.option(
    "--skip-unreadable",
    is_flag=True,
    help="Leave records behind whose vector is lost or cannot be stored, and list each in the receipt.",
)
@click.option("--dry-run", is_flag=True, help="Make every check of a run, show its plan, and write nothing.")
@format_option
def run(
    source: Path,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    receipt_path: Path | None,
    skip_unreadable: bool,
    dry_run: bool,
    fmt: output.Format,
) -> None:
    """Copy every collection of SOURCE, prove every record, write a receipt.

    Each batch is committed with its checkpoint, so that an interrupted run loses and doubles nothing when it is resumed.
    A collection that exists in the target and holds records is refused.
    """

    async def work() -> dict[str, Any]:
        with open_folder(source, work_folder) as opened, display() as shown:
            async with _sink(database_url, database_password_file) as (_, sink):
                if dry_run:
                    await plans.require_free_targets(opened, sink)
                    made = plans.make(opened)
                    made.require_readable(skip_unreadable=skip_unreadable)
                    return {**made.as_json(), "dry_run": True}
                if receipt_path:
                    receipts.require_writable(receipt_path)
                begun = await runner.start(opened, sink, shown, skip_unreadable=skip_unreadable)
                path = receipt_path or receipts.default_path(begun.run_id)
                done = await runner.carry_out(begun, shown, path)
                return {**done.as_json(), "receipt": str(path)}

    found = _run(work())
    output.emit(found, fmt, texts.plan(found) if dry_run else texts.result(found))


@migrate.command()
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Where the folder is now, if it is elsewhere than when the migration began.",
)
@_run_id
@database_options
@_work_folder
@_receipt_out
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
    """Continue the newest interrupted migration, or the one named by --run.

    Refused when the source has changed since the migration began.
    """

    async def work() -> dict[str, Any]:
        async with _sink(database_url, database_password_file) as (_, sink):
            rows = await sink.status(run_id)
            if run_id and not rows:
                raise RefusedError(
                    f"this database knows no migration {run_id}", hint="see `pgchroma migrate status`"
                )
            rows = rows if run_id else runner.latest_unfinished(rows)
            path = receipt_path or receipts.default_path(rows[0].run_id)
            receipts.require_writable(path)
            with open_folder(source or Path(rows[0].source), work_folder) as opened, display() as shown:
                taken_up = runner.resume(rows, opened, sink, shown)
                done = await runner.carry_out(taken_up, shown, path)
                return {**done.as_json(), "receipt": str(path)}

    found = _run(work())
    output.emit(found, fmt, texts.result(found))


@migrate.command()
@_run_id
@database_options
@format_option
def status(
    run_id: UUID | None, database_url: str | None, database_password_file: Path | None, fmt: output.Format
) -> None:
    """Show how far each migration into this database is, newest first."""

    async def work() -> list[dict[str, Any]]:
        async with _sink(database_url, database_password_file) as (_, sink):
            return [{**asdict(row), "collection": row.path} for row in await sink.status(run_id)]

    rows = _run(work())
    output.emit(rows, fmt, texts.status(rows))


@migrate.command()
@click.option(
    "--receipt",
    "receipt_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The receipt that the migration wrote.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    help="Where the folder is now, if it is elsewhere than the receipt says.",
)
@click.option(
    "--against",
    type=click.Choice(["source", "receipt"]),
    default="source",
    show_default=True,
    help="Compare every record with the source, or only the target's digests with the receipt's (needs no source).",
)
@database_options
@_work_folder
@format_option
def verify(
    receipt_path: Path,
    source: Path | None,
    against: str,
    database_url: str | None,
    database_password_file: Path | None,
    work_folder: Path | None,
    fmt: output.Format,
) -> None:
    """Prove a finished migration once more; reads both sides, writes to neither.

    Ends with exit code 8 when a record differs, for instance because applications have written to the target since.
    """

    async def work() -> dict[str, Any]:
        receipt = receipts.read(receipt_path)
        async with _sink(database_url, database_password_file) as (store, sink):
            with display() as shown:
                if against == "receipt":
                    targets = {item.path: item for item in await store.list_collections()}
                    found = await reverify.against_receipt(receipt, targets, sink, shown)
                else:
                    folder = source or Path(receipt["source"]["path"])
                    if not folder.exists():
                        raise SourceError(
                            f"the source {folder} is gone",
                            hint="name its new place by --source, or use --against receipt",
                        )
                    with open_folder(folder, work_folder) as opened:
                        found = await reverify.against_source(receipt, opened, sink, shown)
        return {
            "run_id": receipt["run_id"],
            "against": against,
            "result": "equal" if all(item.equal for item in found) else "different",
            "target": sink.description,
            "collections": [{"collection": item.path, **item.as_json()} for item in found],
        }

    found = _run(work())
    output.emit(found, fmt, texts.comparison(found))
    if found["result"] != "equal":
        different = [item["collection"] for item in found["collections"] if not item["equal"]]
        raise VerificationError(
            f"the target differs in {', '.join(different)}",
            hint="expected when applications wrote to it since the migration; otherwise restore it from a backup or migrate anew",
        )
