"""A run of the way back: what is newer than a receipt is applied to the old side, then everything is proven."""

import asyncio
from pathlib import Path
from uuid import uuid4

from pgchroma.errors import ConfigurationError, RefusedError, SourceChangedError
from pgchroma.migrate import copying, journal, places, runner
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.exchange.sink import ExchangeSink
from pgchroma.migrate.model import Json, RunNote, Source, SourceCollection, describe_changes
from pgchroma.migrate.places import Options, Place
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.progress import Display, display
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.client import Access
from pgchroma.migrate.remote.folder import FolderSink
from pgchroma.migrate.remote.sink import ServerSink
from pgchroma.migrate.remote.source import open_server
from pgchroma.migrate.reverify import against_receipt, limits_of
from pgchroma.migrate.run import Run
from pgchroma.migrate.selection import parse_scopes
from pgchroma.migrate.since import Applier, Increment, require_usable


def _what_to_do(place: Place, receipts: Path) -> str:
    """Say how to go on with a target that is not what a receipt left; an increment to a server may have been interrupted half-way."""
    if place.kind != "chroma-server":
        return "something has written to it since; move everything to a new place instead of --since"
    left = [path for path in receipts.glob("*.journal.json") if _is_about(path, place)]
    if not left:
        return "something has written to it since; move everything to an empty server instead of --since"
    return (
        f"an attempt to write to it was interrupted ({', '.join(map(str, left))}), so it holds some of what is newer and nobody "
        "can tell whether something else wrote to it, too: delete these collections there and run without --since, which "
        "writes and proves everything, or do so with an empty server; then remove the journal"
    )


def _is_about(path: Path, place: Place) -> bool:
    try:
        return bool(journal.read(path)["target"].get("path") == place.text.rstrip("/"))
    except ConfigurationError:
        return False


def check_target(receipt: Json, place: Place, options: Options, receipts: Path) -> str | None:
    """Refuse a target that is not what the receipt left; return the chromadb release that fits a folder's layout.

    Args:
        receipts: the folder where an interrupted attempt will have left its journal.

    Raises:
        RefusedError: the target is no Chroma folder or server.
        SourceChangedError: something else has written to it since.
    """
    if place.kind == "pgchroma-database":
        raise RefusedError(
            "--since does not apply changes to another pgchroma database: there a batch and its checkpoint are one transaction, "
            "which changes and deletions of records that are there already would not be",
            hint="leave --since out and name an empty database; or restore a backup there, which PostgreSQL keeps up to date",
        )
    if place.kind in ("exchange-jsonl", "exchange-parquet"):
        _require_unchanged_files(receipt, place, options)
        return None
    before = receipt["source"]
    version = options.chromadb_version
    if place.kind == "chroma-folder":
        with open_folder(place.path, options.work_folder) as folder:
            layout = folder.layout
            version = version or versions.BY_LAYOUT.get(
                (layout.sysdb, layout.metadb, layout.embeddings_queue)
            )
            if version is None:
                raise RefusedError(
                    f"which release of chromadb writes the layout of {place.text} is not known: {layout.name}",
                    hint="name by --chromadb-version the release that the folder's application uses",
                )
            ours = before["kind"] == place.kind and before["path"] == folder.description["path"]
            now = {item.path: item.state for item in folder.collections()}
            changed = ours and folder.fingerprint != before["fingerprint"]
    else:
        scopes = parse_scopes(receipt.get("scopes", ()))
        with open_server(Access(place.text, place.headers), scopes) as server:
            ours = before["kind"] == place.kind and before["path"] == server.description["path"]
            now = {item.path: item.state for item in server.collections()}
            changed = ours and server.fingerprint != before["fingerprint"]
    if changed:
        states = {item["collection"]: item["state"] for item in receipt["collections"]}
        raise SourceChangedError(
            f"{place.text} is not what the receipt left: " + "; ".join(describe_changes(states, now)),
            hint=_what_to_do(place, receipts),
        )
    return version


def _require_unchanged_files(receipt: Json, place: Place, options: Options) -> None:
    """Raise SourceChangedError when exchange files that a receipt is about hold something else than it says."""
    if not place.path.exists():
        raise RefusedError(
            f"{place.text} does not exist; --since brings an older export up to date",
            hint="leave --since out: everything is written",
        )
    path = str(place.path.resolve())
    which = next((side for side in ("target", "source") if receipt[side].get("path") == path), None)
    if which is None:
        raise RefusedError(
            f"the receipt is not about {place.text}",
            hint="name the receipt of the export that wrote it, or of the migration that read it",
        )
    policies = Policies(receipt.get("policies", {}))
    limits = limits_of(receipt["target"]["kind"], receipt["target"]["layout"])
    with places.open_source(place, options) as files, display() as shown:
        found = against_receipt(receipt, files, which, policies, limits, shown)
    different = [item.path for item in found if not item.equal]
    if different:
        raise SourceChangedError(
            f"{place.text} is not what the receipt left: {', '.join(different)}",
            hint="leave --since out and write a new export",
        )


def _compared(
    source: DatabaseSource, collection: SourceCollection, older: Source, receipt: Json
) -> Increment:
    """Return what was born, changed and deleted in a collection since a receipt, against the older files."""
    done = Increment(collection.path)
    stored, horizon = source.stored[collection.id], receipt["horizon"]
    had = next((item for item in older.collections() if item.path == collection.path), None)
    if had is None:
        done.created, done.born = True, collection.count
        return done
    gone = {record.id for page in older.records(had) for record in page}
    for page in source.snapshot.ids(stored):
        gone.difference_update(page)
    newer = source.snapshot.changed_seqs(stored, horizon["xid"])
    done.changed = sum(seq <= horizon["record_seq"] for seq in newer)
    done.born, done.deleted = len(newer) - done.changed, len(gone)
    return done


async def carry_out_files(
    source: DatabaseSource,
    sink: ExchangeSink,
    receipt: Json,
    older: Source,
    display: Display,
    receipt_path: Path,
) -> Run:
    """Write exchange files anew, tell what is new in them, prove and let them take the older ones' place.

    A stream cannot be changed in its middle; so everything is written, and the older files stay until all is proven.

    Raises:
        RefusedError: the receipt does not fit this database.
        VerificationError, SourceChangedError, InterruptedMigrationError: see runner.carry_out.
    """
    await asyncio.to_thread(require_usable, receipt, source)
    run = await runner.start(source, sink, display, Policies(receipt.get("policies", {})))
    run.extra["since"] = receipt["run_id"]
    run.extra["increment"] = [
        (await asyncio.to_thread(_compared, source, item, older, receipt)).as_json()
        for item in source.collections()
    ]
    moved = {item["collection"] for item in receipt["collections"]}
    run.extra["collections_gone"] = sorted(moved - {item.path for item in source.collections()})
    return await runner.carry_out(run, display, receipt_path)


async def carry_out(
    source: DatabaseSource,
    sink: ServerSink | FolderSink,
    receipt: Json,
    display: Display,
    receipt_path: Path,
) -> Run:
    """Apply, prove and write a receipt, which the next increment can start from.

    Raises:
        RefusedError: the receipt does not fit this database.
        VerificationError, SourceChangedError, InterruptedMigrationError: see runner.carry_out.
    """
    await asyncio.to_thread(require_usable, receipt, source)
    run = Run(uuid4(), source, sink, Policies())
    run.extra["since"] = receipt["run_id"]
    run.extra["increment"] = applied = []
    note = RunNote(run.run_id, str(source.description["path"]), source.fingerprint, run.policies.as_json())
    await sink.begin(note, source.collections())
    server = await sink.server()
    applier = Applier(source, server, receipt)
    await applier.require_applicable()
    run.extra |= await applier.arrange()

    async def copy(collection: SourceCollection) -> None:
        step = display.step(f"applying to {collection.path}", collection.count)
        existing = await server.find(collection)
        if existing is None:
            await copying.copy_collection(run, collection, display)
            applied.append(Increment(collection.path, born=collection.count, created=True).as_json())
            return
        done = await applier.apply(collection, existing[0], step.advance)
        await sink.set_phase(run.run_id, collection, "copied")
        applied.append(done.as_json())

    return await runner.carry_out(run, display, receipt_path, copy=copy)
