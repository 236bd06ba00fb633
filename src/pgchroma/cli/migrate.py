"""`pgchroma migrate`: options in, library called, result out."""

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import click

from pgchroma import output
from pgchroma.cli import migrate_options as shared
from pgchroma.cli import migrate_text as texts
from pgchroma.cli.logfile import conclude, log_file
from pgchroma.cli.migrate_more import MORE
from pgchroma.cli.migrate_options import Given
from pgchroma.cli.migrate_places import both, opened_sink
from pgchroma.cli.options import database_options, format_option, run_id, work_folder
from pgchroma.errors import PgchromaError, RefusedError
from pgchroma.migrate import increments, journal, places, runner
from pgchroma.migrate import plan as plans
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.archive import manifest_of
from pgchroma.migrate.chroma.folder import ChromaFolder
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.exchange.sink import ExchangeSink
from pgchroma.migrate.model import Json, Source
from pgchroma.migrate.places import Options, Place
from pgchroma.migrate.progress import display
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.folder import FolderSink
from pgchroma.migrate.remote.sink import ServerSink
from pgchroma.migrate.reverify import limits_of
from pgchroma.migrate.second import SecondProcess
from pgchroma.migrate.selection import Selected
from pgchroma.migrate.sink import StoreSink

_since = click.option(
    "--since",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Bring the target, as this receipt left it, to the state of the source, a pgchroma database: apply what was born, changed "
    "or deleted since.",
)
_dry_run = click.option(
    "--dry-run", is_flag=True, help="Make every check of a run, show its plan, and write nothing."
)


@click.group()
def migrate() -> None:
    """Move collections between Chroma folders, Chroma servers, pgchroma and files, and prove it.

    \b
    A place is written as
      DIR                          a Chroma folder (with chroma.sqlite3)
      http://HOST:PORT             a Chroma server, or pgchroma's
      postgresql://...             a pgchroma database
      FILE.jsonl, FILE.jsonl.zst   exchange file, see docs/EXCHANGE_FORMAT.md
      DIR.parquet                  exchange folder

    A source is never written to; a folder is read through a private copy and never opened by chromadb. Stop the
    application that writes to it first; a source that changes meanwhile is detected.
    """


@migrate.command()
@shared.source_argument
@database_options
@shared.source_access
@shared.target_options
@shared.selection_options
@shared.policy_options
@work_folder
@log_file
@format_option
def plan(source: str, fmt: output.Format, **given: Any) -> None:
    """Show what would be moved, how long it takes, and every problem found; writes nothing.

    With a target database named, its collections are checked as well.
    """
    settings = Given.of(given)
    place = shared.place_of(source, "source", given)
    target = shared.target_of(given) if given["target"] or given["database_url"] else None
    kind = target.kind if target else "pgchroma-database"
    layout = f"chromadb {settings.options.chromadb_version or versions.DEFAULT}"

    async def work() -> tuple[Json, RefusedError | None]:
        refusal = None
        with places.open_source(place, settings.options) as opened, display() as shown:
            total = sum(item.count for item in opened.collections())
            made = plans.make(opened, shown.step("looking through the source", total).advance)
            limits = limits_of(kind, layout if kind == "chroma-folder" else "")
            if target and target.kind in ("pgchroma-database", "chroma-server"):
                async with opened_sink(target, settings.options, Path("receipts/plan.json")) as sink:
                    limits = sink.limits
                    try:
                        await plans.require_free_targets(opened, sink)
                    except RefusedError as error:
                        refusal = error
        return made.as_json(settings.policies, limits, kind), refusal

    found, refusal = shared.carry_out(work())
    conclude(found, fmt, texts.plan(found))
    if refusal:
        raise refusal


@migrate.command()
@shared.source_argument
@database_options
@shared.source_access
@shared.target_options
@shared.selection_options
@shared.policy_options
@work_folder
@shared.receipt_out
@log_file
@_since
@_dry_run
@format_option
def run(
    source: str,
    receipt_path: Path | None,
    since: Path | None,
    dry_run: bool,
    fmt: output.Format,
    **given: Any,
) -> None:
    """Copy every collection of SOURCE, prove every record, write a receipt and a report.

    Each batch is committed with its checkpoint, so that an interrupted run loses and doubles nothing when it is resumed.
    A collection that exists in the target and holds records is refused.
    """
    found = start_run(source, shared.target_of(given), receipt_path, since, dry_run, given)
    conclude(found, fmt, texts.plan(found) if dry_run else texts.result(found))


@migrate.command()
@shared.export_places
@database_options
@shared.source_access
@shared.selection_options
@shared.policy_options
@work_folder
@shared.receipt_out
@log_file
@click.option("--chromadb-version", help="The release of chromadb that writes a target folder.")
@click.option(
    "--chromadb-python",
    type=click.Path(path_type=Path, dir_okay=False),
    help="A Python that has this release installed.",
)
@_since
@_dry_run
@format_option
def export(
    named: tuple[str, ...],
    source: str | None,
    target: str | None,
    receipt_path: Path | None,
    since: Path | None,
    dry_run: bool,
    fmt: output.Format,
    **given: Any,
) -> None:
    """Write the database, or SOURCE, to TARGET, e.g. FILE.jsonl.zst, DIR.parquet or a Chroma folder, and prove it."""
    origin, goal = shared.exported(named, source, target)
    given["target"] = None
    origin = origin or shared.target_of(given).text
    found = start_run(origin, shared.place_of(goal, "target", given), receipt_path, since, dry_run, given)
    conclude(found, fmt, texts.plan(found) if dry_run else texts.result(found))


def start_run(
    source: str,
    target: Place,
    receipt_path: Path | None,
    since: Path | None,
    dry_run: bool,
    given: dict[str, Any],
) -> Json:
    """Carry out `run` or `export` and return the receipt, or the plan of a dry run."""
    settings = Given.of(given)
    place = shared.place_of(source, "source", given)
    places.require_different(place, target)
    ident = uuid4()
    path = receipt_path or receipts.default_path(ident)
    if since and dry_run:
        raise RefusedError(
            "--since has no dry run: what is newer is known when it is applied", hint="leave --dry-run out"
        )
    if since:
        return shared.carry_out(_increment(place, target, settings, path, receipts.read_moved(since)))

    async def work(second: SecondProcess | None) -> Json:
        started = time.monotonic()
        async with both(place, target, settings.options, path) as (opened, connect):
            opened_at = time.monotonic()
            if not dry_run:
                receipts.require_writable(path)
            sink = await connect()
            if isinstance(sink, FolderSink) and not dry_run:
                await asyncio.to_thread(sink.build)
            connected_at = time.monotonic()
            if dry_run:
                await plans.require_free_targets(opened, sink)
                made = plans.make(opened)
                made.require_movable(settings.policies, sink.limits)
                return {**made.as_json(settings.policies, sink.limits, target.kind), "dry_run": True}
            with display() as shown:
                begun = await runner.start(opened, sink, shown, settings.policies, ident, second)
                begun.seconds = {
                    "open": opened_at - started,
                    "connect": connected_at - opened_at,
                    **begun.seconds,
                }
                begun.describe = functools.partial(_whole, opened, settings)
                done = await runner.carry_out(begun, shown, path)
                return {**done.as_json(), "receipt": str(path)}

    with shared.reading_process(place, target) as second:
        return shared.carry_out(work(second))


def _whole(source: Source, settings: Given, advance: Callable[[int], None]) -> Json:
    """Return what a receipt needs later: which part was moved, or every file of a folder all of which was."""
    origin = source.original if isinstance(source, Selected) else source
    if len(source.collections()) < len(origin.collections()):
        moved = {item.id for item in source.collections()}
        paths = [item.path for item in origin.collections() if item.id in moved]
        return {"scopes": list(settings.scopes) or paths}
    if isinstance(origin, ChromaFolder):
        return {"manifest": manifest_of(origin.path, advance)}
    return {"scopes": list(settings.scopes)} if settings.scopes else {}


async def _increment(place: Place, target: Place, settings: Given, path: Path, receipt: Json) -> Json:
    if settings.scopes or settings.options.renames:
        raise RefusedError(
            "--since applies everything that is newer; it goes with neither --scope nor --rename",
            hint="leave them out",
        )
    receipts.require_writable(path)
    version = await asyncio.to_thread(increments.check_target, receipt, target, settings.options, path.parent)
    options = settings.with_version(version)
    with places.open_source(place, options) as opened, display() as shown:
        if not isinstance(opened, DatabaseSource):
            raise RefusedError(
                f"{place.text} is no pgchroma database", hint="--since needs one as the source"
            )
        base = target.path if target.kind != "chroma-server" else None
        async with opened_sink(target, options, path, base) as sink:
            if isinstance(sink, ExchangeSink):
                with places.open_source(target, options) as older:
                    done = await increments.carry_out_files(opened, sink, receipt, older, shown, path)
                return {**done.as_json(), "receipt": str(path)}
            if not isinstance(sink, ServerSink | FolderSink):
                raise RefusedError("--since needs a Chroma folder or server as the target", hint="see --help")
            done = await increments.carry_out(opened, sink, receipt, shown, path)
            return {**done.as_json(), "receipt": str(path)}


@migrate.command()
@click.option(
    "--source",
    help="Where the source is now; needed when it is elsewhere than when the migration began, or is a database.",
)
@run_id
@database_options
@shared.source_access
@shared.target_options
@shared.scope_option
@work_folder
@shared.receipt_out
@log_file
@format_option
def resume(
    source: str | None, run_id: UUID | None, receipt_path: Path | None, fmt: output.Format, **given: Any
) -> None:
    """Continue the newest interrupted migration into a target, or the one named by --run.

    Refused when the source has changed since the migration began.
    """
    settings = Given.of(given)
    target = shared.target_of(given)

    async def work(second: SecondProcess | None) -> Json:
        path, options = receipt_path, settings.options
        if not target.is_database and path is None:
            wanted = target.text.rstrip("/") if target.kind == "chroma-server" else str(target.path.resolve())
            found_at = journal.find(Path("receipts"), wanted)
            path = found_at.with_name(found_at.name.replace(".journal.json", ".json"))
        if target.kind == "chroma-folder" and path is not None:
            options = settings.with_version(journal.release(path))
        async with opened_sink(target, options, path or Path("receipts/resume.json")) as sink:
            noted = await sink.noted(run_id)
            path = path or receipts.default_path(noted.note.run_id)
            receipts.require_writable(path)
            origin = shared.place_of(source or noted.note.source, "source", given)
            places.require_existing(origin)
            if origin.kind == "chroma-server" and not options.scopes:
                # It tells only of the databases that it is asked about: those that were moved.
                parts = [path.split("/", 2) for path in noted.states]
                found_in = sorted({(tenant, database) for tenant, database, _ in parts})
                looked = tuple((tenant, database, None) for tenant, database in found_in)
                options = replace(options, scopes=looked, wanted=False)
            with places.open_source(origin, options) as opened, display() as shown:
                chosen = opened
                if {item.id: item.name for item in opened.collections()} != noted.names:
                    chosen = Selected.of_run(opened, noted.names)
                taken_up = runner.resume(noted, chosen, sink)
                taken_up.second = second
                taken_up.describe = functools.partial(_whole, chosen, settings)
                done = await runner.carry_out(taken_up, shown, path)
                return {**done.as_json(), "receipt": str(path)}

    # Where the source is is known only later; a process that turns out to be of no use costs next to nothing.
    with shared.reading_process(None, target) as second:
        found = shared.carry_out(work(second))
    conclude(found, fmt, texts.result(found))


@migrate.command()
@run_id
@database_options
@click.option(
    "--receipts",
    type=click.Path(path_type=Path, file_okay=False),
    default="receipts",
    show_default=True,
    help="Folder in which interrupted migrations into folders and servers left their journals.",
)
@format_option
def status(run_id: UUID | None, receipts: Path, fmt: output.Format, **given: Any) -> None:
    """Show how far each migration into this database is, newest first; then interrupted ones into folders and servers."""
    kept = journal.rows(receipts, run_id)
    if kept and not given["database_url"]:
        output.emit(kept, fmt, texts.status(kept))
        return

    async def work() -> list[dict[str, Any]]:
        async with opened_sink(shared.target_of(given), Options(), Path("receipts/status.json")) as sink:
            if not isinstance(sink, StoreSink):
                raise PgchromaError("status is about a database")
            return [{**asdict(row), "collection": row.path} for row in await sink.status(run_id)]

    rows = [*shared.carry_out(work()), *kept]
    output.emit(rows, fmt, texts.status(rows))


for command in MORE:
    migrate.add_command(command)
