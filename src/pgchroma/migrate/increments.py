"""A run of the way back: what is newer than a receipt is applied to the old side, then everything is proven."""

import asyncio
from pathlib import Path
from uuid import uuid4

from pgchroma.errors import RefusedError, SourceChangedError
from pgchroma.migrate import runner
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.database import DatabaseSource
from pgchroma.migrate.model import Json, RunNote, SourceCollection, describe_changes
from pgchroma.migrate.places import Options, Place
from pgchroma.migrate.policies import Policies
from pgchroma.migrate.progress import Display
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.client import Access
from pgchroma.migrate.remote.folder import FolderSink
from pgchroma.migrate.remote.sink import ServerSink
from pgchroma.migrate.remote.source import open_server
from pgchroma.migrate.since import Applier, Increment, require_usable


def check_target(receipt: Json, place: Place, options: Options) -> str | None:
    """Refuse a target that is not what the receipt left; return the chromadb release that fits a folder's layout.

    Raises:
        RefusedError: the target is no Chroma folder or server.
        SourceChangedError: something else has written to it since.
    """
    if place.kind not in ("chroma-folder", "chroma-server"):
        raise RefusedError(
            "--since applies changes to a Chroma folder or server that has the older state",
            hint="for another kind of target leave --since out: everything is moved",
        )
    before = receipt["source"]
    version = None
    if place.kind == "chroma-folder":
        with open_folder(place.path, options.work_folder) as folder:
            layout = folder.layout
            version = versions.BY_LAYOUT.get((layout.sysdb, layout.metadb, layout.embeddings_queue))
            ours = before["kind"] == place.kind and before["path"] == folder.description["path"]
            now = {item.path: item.state for item in folder.collections()}
            changed = ours and folder.fingerprint != before["fingerprint"]
    else:
        with open_server(Access(place.text, place.headers)) as server:
            ours = before["kind"] == place.kind and before["path"] == server.description["path"]
            now = {item.path: item.state for item in server.collections()}
            changed = ours and server.fingerprint != before["fingerprint"]
    if changed:
        states = {item["collection"]: item["state"] for item in receipt["collections"]}
        raise SourceChangedError(
            f"{place.text} is not what the receipt left: " + "; ".join(describe_changes(states, now)),
            hint="something has written to it since; move everything to a new place instead of --since",
        )
    return version


async def carry_out(
    source: DatabaseSource,
    sink: ServerSink | FolderSink,
    receipt: Json,
    display: Display,
    receipt_path: Path,
) -> runner.Run:
    """Apply, prove and write a receipt, which the next increment can start from.

    Raises:
        RefusedError: the receipt does not fit this database.
        VerificationError, SourceChangedError, InterruptedMigrationError: see runner.carry_out.
    """
    await asyncio.to_thread(require_usable, receipt, source)
    run = runner.Run(uuid4(), source, sink, Policies())
    run.extra["since"] = receipt["run_id"]
    run.extra["increment"] = applied = []
    note = RunNote(run.run_id, str(source.description["path"]), source.fingerprint, run.policies.as_json())
    await sink.begin(note, source.collections())
    server = await sink.server()
    applier = Applier(source, server, receipt)
    moved = {item["collection"] for item in receipt["collections"]}
    gone = sorted(moved - {item.path for item in source.collections()})
    run.extra["collections_gone"] = gone

    async def copy(collection: SourceCollection) -> None:
        step = display.step(f"applying to {collection.path}", collection.count)
        if await server.find(collection) is None:
            await runner.copy_collection(run, collection, display)
            applied.append(Increment(collection.path, born=collection.count, created=True).as_json())
            return
        done = await applier.apply(collection, step.advance)
        await sink.set_phase(run.run_id, collection, "copied")
        applied.append(done.as_json())

    return await runner.carry_out(run, display, receipt_path, copy=copy)
