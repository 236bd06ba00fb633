"""The commands of `pgchroma migrate` that come after a run: verify, quarantine, cleanup."""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from pgchroma import output
from pgchroma.cli import migrate_options as shared
from pgchroma.cli import migrate_text as texts
from pgchroma.cli.logfile import conclude, log_file
from pgchroma.cli.migrate_options import Given
from pgchroma.cli.options import database_options, format_option, required_url, run_id, work_folder
from pgchroma.errors import ConfigurationError, RefusedError, VerificationError
from pgchroma.migrate import cleanup as cleanups
from pgchroma.migrate import places, reverify
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.database import settings_for
from pgchroma.migrate.exchange.form import metadata_to_text
from pgchroma.migrate.model import Json, Source
from pgchroma.migrate.places import Place
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.progress import display
from pgchroma.migrate.questions import Questions, judge, notice
from pgchroma.migrate.second import SecondProcess, second_process
from pgchroma.migrate.selection import Scope, Selected, in_scope, parse_scopes
from pgchroma.store import Store, quarantine


@click.command()
@click.argument("source", required=False)
@click.option(
    "--receipt",
    "receipt_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The receipt that the migration wrote. Without one, SOURCE and --to are compared as they are.",
)
@click.option(
    "--source", "source_option", help="The same as SOURCE. Default: the place that the receipt names."
)
@click.option(
    "--against",
    type=click.Choice(["source", "receipt"]),
    default="source",
    show_default=True,
    help="Compare every record of both sides, or only one side's digests with the receipt's.",
)
@click.option(
    "--side",
    type=click.Choice(["target", "source"]),
    default="target",
    show_default=True,
    help="With --against receipt: the side that is read. The other one need not exist any more.",
)
@database_options
@shared.source_access
@shared.target_options
@shared.selection_options
@shared.policy_options
@work_folder
@log_file
@format_option
def verify(
    source: str | None,
    source_option: str | None,
    receipt_path: Path | None,
    against: str,
    side: str,
    fmt: output.Format,
    **given: Any,
) -> None:
    """Prove a migration once more, or compare any two places; reads, and writes to neither.

    SOURCE may also be a receipt: FILE.json is one and no place. One of tables is what `pgchroma tables verify` proves.

    Collections that only the target has are named, but are no difference: it may hold more than what was moved.

    Ends with exit code 8 when a record differs, for instance because applications have written to the target since.
    """
    settings = Given.of(given)
    if source is not None and receipt_path is None and Path(source).suffix == ".json":
        # No place is called so.
        receipt_path, source = Path(source), None
    origin = source or source_option
    receipt = None
    if receipt_path is not None:
        content = receipts.read(receipt_path)
        if receipts.is_about_tables(content):
            _verify_tables(receipt_path, origin, fmt, given)
            return
        receipt = receipts.require_moved(content, receipt_path)
    if receipt is None and (origin is None or against == "receipt"):
        raise ConfigurationError(
            "there is nothing to compare with", hint="name a --receipt, or SOURCE and --to"
        )
    policies = settings.policies
    if receipt is not None and not given["policies"] and not given["skip_unreadable"]:
        policies = Policies(receipt.get("policies", {}))

    def work(process: SecondProcess | None) -> Json:
        extra: list[str] = []
        answers: dict[str, Json] = {}
        with contextlib.ExitStack() as stack:
            shown = stack.enter_context(display())

            def opened(place: Place, scopes: Sequence[Scope], renames: Mapping[str, str]) -> Source:
                places.require_existing(place)
                # What a receipt names and is gone is a difference, no mistake in an option.
                wanted = scopes is settings.options.scopes
                options = replace(settings.options, scopes=tuple(scopes), renames=renames, wanted=wanted)
                return stack.enter_context(places.open_source(place, options))

            # A server tells only of the tenants that it is asked about: those that were moved.
            chosen = settings.options.scopes or parse_scopes((receipt or {}).get("scopes", ()))
            written = _moved(receipt) if receipt else []

            def source_place() -> Place:
                return shared.place_of(origin or _told(receipt, "source"), "source", given)

            if receipt is not None and against == "receipt":
                place = source_place() if side == "source" else _target_place(receipt, given)
                limits = reverify.limits_of(receipt["target"]["kind"], receipt["target"]["layout"])
                one = (
                    _named(opened(place, chosen, {}), receipt)
                    if side == "source"
                    else opened(place, written if place.kind == "chroma-server" else (), {})
                )
                found = reverify.against_receipt(receipt, one, side, policies, limits, shown)
                target = one.description
            else:
                renames = {} if receipt else settings.options.renames
                first, goal = opened(source_place(), chosen, renames), _target_place(receipt, given)
                pairs = {(item.tenant, item.database): None for item in first.collections()}
                looked = written or [(*pair, None) for pair in pairs]
                second = opened(goal, looked if goal.kind == "chroma-server" else (), {})
                if receipt is not None:
                    first = _named(first, receipt)
                    reverify.require_unchanged(receipt, first)
                else:
                    paths = {item.path for item in first.collections()}
                    extra = [
                        item.path
                        for item in second.collections()
                        if item.path not in paths and in_scope(item, chosen)
                    ]
                told = second.description
                limits = reverify.limits_of(told["kind"], told["layout"])
                asked = [Questions(item) for item in first.collections()] if _answers(goal) else []
                found = reverify.sides(first, second, policies, limits, shown, process, asked)
                answers = asyncio.run(_ask(goal, settings, asked)) if asked else {}
                for item in found:
                    judge(item, answers.get(item.path))
                target = told
        return {
            "run_id": receipt["run_id"] if receipt else None,
            "against": against if side == "target" else f"{against} (source side)",
            "result": "equal" if all(item.equal for item in found) else "different",
            "target": target,
            "only_in_target": extra,
            "notices": [
                low.as_json() for path in answers if (low := notice(path, answers[path])) is not None
            ],
            "collections": [
                {"collection": item.path, "answers": answers.get(item.path), **item.as_json()}
                for item in found
            ],
        }

    async def in_thread(process: SecondProcess | None) -> Json:
        return await asyncio.to_thread(work, process)

    # What the other side is turns out later; a process that turns out to be of no use costs next to nothing.
    with second_process() as process:
        found = shared.carry_out(in_thread(process))
    conclude(found, fmt, texts.comparison(found))
    if found["result"] != "equal":
        different = [item["collection"] for item in found["collections"] if not item["equal"]]
        raise VerificationError(
            f"the target differs in {', '.join(different)}",
            hint="expected when applications wrote to it since the migration; otherwise restore it from a backup or migrate anew",
        )


def _verify_tables(receipt_path: Path, origin: str | None, fmt: output.Format, given: dict[str, Any]) -> None:
    # Only here: all that a move of tables needs would slow down the start of every other command.
    from pgchroma.cli.tables import tables

    click.get_current_context().invoke(
        tables.commands["verify"],
        receipt_path=receipt_path,
        source=None if origin is None else Path(origin),
        database_url=given["target"] or given["database_url"],
        database_password_file=given["database_password_file"],
        work_folder=given["work_folder"],
        fmt=fmt,
    )


def _answers(place: Place) -> bool:
    """Whether a place can be asked for nearest records without anything being written: a folder's chromadb would write."""
    return place.kind in ("pgchroma-database", "chroma-server")


async def _ask(place: Place, settings: Given, questions: Sequence[Questions]) -> dict[str, Json]:
    sink = await places.open_sink(place, settings.options, Path("receipts/verify.json"))
    try:
        return await reverify.ask(sink, questions)
    finally:
        await sink.close()


def _moved(receipt: Json) -> list[Scope]:
    """Return the collections that a receipt is about, which a server has to be asked for."""
    parts = [item["collection"].split("/", 2) for item in receipt["collections"]]
    return [(tenant, database, name) for tenant, database, name in parts]


def _target_place(receipt: Json | None, given: dict[str, Any]) -> Place:
    """Return the place of --to, else that of the receipt, else the database."""
    if given["target"] is None and receipt and receipt["target"]["kind"] != "pgchroma-database":
        return shared.place_of(_told(receipt, "target"), "target", given)
    return shared.target_of(given)


def _told(receipt: Json | None, side: str) -> str:
    if receipt is None or receipt[side]["kind"] == "pgchroma-database":
        raise ConfigurationError(
            f"the {side} is a database, whose password no receipt holds",
            hint="name it by --source postgresql://... or --to postgresql://...",
        )
    return str(receipt[side]["path"])


def _named(source: Source, receipt: Json) -> Source:
    """Return the source with only the collections that the receipt is about, under the names it gives them."""
    names = {UUID(item["source_id"]): item["collection"].split("/", 2)[2] for item in receipt["collections"]}
    if {item.id: item.name for item in source.collections()} == names:
        return source
    # A collection that is new since is told by the fingerprint.
    return Selected.of_run(source, names)


@click.command(name="quarantine")
@run_id
@database_options
@format_option
def show_quarantine(run_id: UUID | None, fmt: output.Format, **given: Any) -> None:
    """List the records that migrations into this database put aside; --format json gives them whole.

    Vectors are lists of numbers, in which NaN and Infinity stand by these names; metadata is JSON text.
    """
    url = required_url(given["database_url"])

    async def work() -> list[quarantine.Entry]:
        async with await Store.open(url, settings_for(given["database_password_file"])) as store:
            await store.check_ready(timeout_seconds=10.0)
            async with store.transaction() as connection:
                return await quarantine.read(connection, run_id)

    entries = shared.carry_out(work())
    rows = [
        {
            "run_id": str(entry.run_id),
            "collection": entry.collection,
            "code": entry.code,
            "reason": entry.reason,
            "id": entry.record.id,
            "embedding": None if entry.record.embedding is None else entry.record.embedding.tolist(),
            "document": entry.record.document,
            "metadata": metadata_to_text(entry.record.metadata),
            "uri": entry.record.uri,
        }
        for entry in entries
    ]
    output.emit(rows, fmt, texts.quarantine(rows))


@click.command()
@click.option(
    "--receipt",
    "receipt_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="The green receipt of the migration of this folder.",
)
@click.option(
    "--source",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the folder is now, if it is elsewhere than the receipt says.",
)
@click.option(
    "--backup-to",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to keep a copy (tar, compressed, verified before anything is removed). Default: beside the folder.",
)
@click.option("--no-backup", is_flag=True, help="Keep no copy.")
@click.option(
    "--check-target",
    type=click.Choice(["equal", "present", "no"]),
    default="equal",
    show_default=True,
    help="What must hold of the target: every record is as the receipt says; the collections are there, for a target that "
    "applications have written to since; or nothing, when that was checked by other means.",
)
@database_options
@shared.target_place
@click.option("--yes", is_flag=True, help="Do it. Without this the plan is shown and nothing is changed.")
@log_file
@format_option
def cleanup(
    receipt_path: Path,
    source: Path | None,
    backup_to: Path | None,
    no_backup: bool,
    check_target: str,
    yes: bool,
    fmt: output.Format,
    **given: Any,
) -> None:
    """Remove the old folder, if it still is, byte for byte, what a green receipt proves to be in the target, and the target is there.

    A verified copy is kept unless told otherwise. The collections in the target are not touched.
    """
    receipt = receipts.read_moved(receipt_path)
    prepared = cleanups.prepare(receipt, source, backup_to, backup=not no_backup)
    if check_target != "no":
        _require_target(receipt, given, equal=check_target == "equal")
    told = prepared.as_json()
    if not yes:
        output.emit({**told, "removed": False}, fmt, texts.cleanup(told, done=False))
        raise RefusedError("this is the plan; nothing was changed", hint="to carry it out, add --yes")
    note = receipt_path.with_suffix(".cleanup.json")
    cleanups.carry_out(prepared, note)
    done = {**told, "removed": True, "note": str(note)}
    conclude(done, fmt, texts.cleanup(told, done=True))


def _require_target(receipt: Json, given: dict[str, Any], *, equal: bool) -> None:
    place = _target_place(receipt, given)
    scopes = _moved(receipt) if place.kind == "chroma-server" else []
    options = replace(Given.of(given).options, scopes=tuple(scopes), wanted=False)
    places.require_existing(place)
    with places.open_source(place, options) as target, display() as shown:
        cleanups.require_target(receipt, target, shown, equal=equal)


MORE = (verify, show_quarantine, cleanup)
