"""Loading a dump: everything is checked, then loaded beside what is there, compared with the dump, and only then made visible."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias
from uuid import UUID

import psycopg
from psycopg import AsyncConnection

from pgchroma.backup import container
from pgchroma.backup.container import CollectionEntry, Manifest
from pgchroma.errors import InvalidArgumentError, RefusedError, UsageError, VerificationError
from pgchroma.store import Store, StoreSettings, barrier, dumps, load_locks, loads, names
from pgchroma.store.connection import conninfo
from pgchroma.store.dumps import Catalogued, Snapshot
from pgchroma.store.failures import unreachable
from pgchroma.store.loads import Load

Policy: TypeAlias = Literal["fail", "replace", "merge"]
Advance = Callable[[int], None]
# From a dumped tenant, database and collection to where they go.
Where: TypeAlias = Callable[[str, str, str], tuple[str, str, str]]
_PATIENCE_SECONDS = 600.0


@dataclass(frozen=True, slots=True)
class Target:
    """Where one dumped collection goes.

    Attributes:
        merging: the collection is there and its records are to be merged with the dump's.
    """

    entry: CollectionEntry
    tenant: str
    database: str
    name: str
    policy: Policy
    merging: bool

    @property
    def path(self) -> str:
        """`tenant/database/name`."""
        return f"{self.tenant}/{self.database}/{self.name}"

    def source(self) -> Catalogued:
        """Return the dumped collection as the store knows it."""
        entry = self.entry
        return Catalogued(
            entry.id,
            self.tenant,
            self.database,
            self.name,
            entry.metadata,
            entry.metadata_exact,
            entry.configuration,
            entry.schema,
            entry.dimension,
            None,
        )


@dataclass(slots=True)
class Loaded:
    """What a load did.

    Attributes:
        continued: records that an interrupted attempt had written already.
    """

    collections: list[str] = field(default_factory=list)
    records: int = 0
    continued: int = 0
    replaced: int = 0
    merged: int = 0
    tokens: int = 0


def check(folder: Path, manifest: Manifest, advance: Advance) -> None:
    """Read every file of a dump and compare its checksum; SourceError names the first that is damaged."""
    for collection in manifest.collections:
        for chunk in collection.chunks:
            container.check_chunk(folder, chunk, collection)
            advance(chunk.rows)


def renamed(manifest: Manifest, rename: str | None) -> Where:
    """Return where a tenant's, database's and collection's names lead under `--as`.

    Raises:
        UsageError: it does not fit the dump, or names what no client could create or ask for.
    """
    scope = manifest.scope
    depth = 1 + (scope.get("database") is not None) + (scope.get("collection") is not None)
    if rename is None:
        return lambda tenant, database, name: (tenant, database, name)
    parts = rename.split("/")
    if len(parts) > depth or not all(parts):
        shape = "/".join(("tenant", "database", "name")[:depth])
        raise UsageError(
            f"--as {rename!r} does not fit a dump of {'/'.join(v for v in scope.values() if v)}",
            hint=f"give {shape}, or only its last part",
        )
    dumped = (scope.get("tenant"), scope.get("database"), scope.get("collection"))
    for place in range(depth - len(parts), depth):
        name = parts[place - depth]
        if name != dumped[place]:
            _require_name(rename, name, is_tenant=place == 0)

    def where(tenant: str, database: str, name: str) -> tuple[str, str, str]:
        path = [tenant, database, name]
        path[depth - len(parts) : depth] = parts
        return path[0], path[1], path[2]

    return where


def _require_name(rename: str, name: str, *, is_tenant: bool) -> None:
    """Raise UsageError unless the server would create a tenant, or a database or collection, of that name."""
    try:
        # Neither can be . or .., which clients and proxies resolve in the path of a URL.
        (names.require_tenant if is_tenant else names.require)(name)
    except InvalidArgumentError as error:
        raise UsageError(f"--as {rename!r}: {error.message}", hint="give another name") from error


async def targets(store: Store, manifest: Manifest, rename: str | None, policy: Policy) -> list[Target]:
    """Return where everything goes; RefusedError when the policy is `fail` and something is there, or the role is not the server's."""
    async with store.transaction() as connection:
        await loads.require_server(connection)
    where = renamed(manifest, rename)
    found, taken = [], []
    for entry in manifest.collections:
        tenant, database, name = where(entry.tenant, entry.database, entry.name)
        existing = await store.find_collection(tenant, database, name)
        if existing and policy == "fail":
            taken.append(existing.path)
        if (
            existing
            and policy == "merge"
            and existing.dimension not in (None, entry.dimension)
            and entry.chunks
        ):
            raise RefusedError(
                f"collection {existing.path} has {existing.dimension} dimensions, the dump {entry.dimension}",
                hint="load it under another name by --as",
            )
        found.append(Target(entry, tenant, database, name, policy, bool(existing) and policy == "merge"))
    if taken:
        raise RefusedError(
            f"there already: {', '.join(taken[:10])}"
            + (f" and {len(taken) - 10} more" if len(taken) > 10 else ""),
            hint="name another place by --as, or say --if-exists replace or merge",
        )
    return found


async def load(
    database_url: str,
    folder: Path,
    *,
    rename: str | None = None,
    policy: Policy = "fail",
    with_tokens: bool = False,
    advance: Advance,
) -> Loaded:
    """Load a dump, or continue an interrupted load of it.

    Everything but a merge becomes visible at once, at the end, after it was compared with the dump; a merge chunk by chunk.

    Raises:
        SourceError: the dump is incomplete or damaged; nothing was loaded.
        RefusedError: the policy is `fail` and a collection is there, or another load of the dump is at work; nothing was loaded.
        VerificationError: what was loaded is not what the dump holds; it was discarded.
    """
    manifest = container.read_manifest(folder)
    where = renamed(manifest, rename)
    check(folder, manifest, lambda _: None)
    settings = StoreSettings(
        pool_size=2,
        pool_timeout_seconds=10.0,
        statement_timeout_seconds=0,
        application_name="pgchroma backup load",
    )
    done = Loaded(records=manifest.records)
    async with await Store.open(database_url, settings) as store:
        await store.check_ready(10.0)
        async with load_locks.loading(database_url, manifest.digest, _place(manifest, where)) as session:
            going = await targets(store, manifest, rename, policy)
            staged: list[tuple[Load, Target]] = []
            for target in going:
                if target.merging:
                    await _merge(store, folder, manifest, target, done, advance)
                else:
                    staged.append((await _stage(store, folder, manifest, target, done, advance), target))
            for begun, target in staged:
                try:
                    await asyncio.to_thread(_compare, database_url, settings, begun, target)
                except VerificationError:
                    async with store.transaction() as connection:
                        await loads.discard(connection, begun)
                    raise
            places = [where(str(manifest.scope["tenant"]), name, "")[:2] for name in manifest.databases]
            tokens = manifest.tokens if with_tokens else []
            await _publish(session, staged, places, tokens, done)
            await _tidy(store)
    return done


def _place(manifest: Manifest, where: Where) -> str:
    """Return where a whole dump goes; two loads of the same go to the same place or have nothing in common."""
    dumped = [name for key in ("tenant", "database", "collection") if (name := manifest.scope.get(key))]
    tenant, database, collection = [*dumped, "", ""][:3]
    return "/".join(where(tenant, database, collection)[: len(dumped)])


def _begun(manifest: Manifest, target: Target) -> Load:
    policy = "merge" if target.merging else ("replace" if target.policy == "replace" else "fail")
    return Load(
        manifest.digest, UUID(target.entry.id), target.tenant, target.database, target.name, policy, None, 0
    )


async def _stage(
    store: Store, folder: Path, manifest: Manifest, target: Target, done: Loaded, advance: Advance
) -> Load:
    async with store.transaction() as connection:
        begun = await loads.begin(connection, _begun(manifest, target), target.source())
    chunks = target.entry.chunks
    continued = sum(chunk.rows for chunk in chunks[: begun.chunks_done])
    done.continued += continued
    advance(continued)
    for entry in chunks[begun.chunks_done :]:
        chunk = container.read_chunk(folder, entry, target.entry)
        async with store.transaction() as connection:
            begun = await loads.stage(connection, begun, target.source(), chunk)
        advance(chunk.rows)
    done.collections.append(target.path)
    return begun


async def _merge(
    store: Store, folder: Path, manifest: Manifest, target: Target, done: Loaded, advance: Advance
) -> None:
    source = target.source()
    async with store.transaction() as connection:
        begun = await loads.begin(connection, _begun(manifest, target), source)
    chunks = target.entry.chunks
    continued = sum(chunk.rows for chunk in chunks[: begun.chunks_done])
    done.continued += continued
    advance(continued)
    for entry in chunks[begun.chunks_done :]:
        chunk = container.read_chunk(folder, entry, target.entry)
        collection = await store.get_collection(target.tenant, target.database, target.name)
        async with store.transaction() as connection:
            if source.dimension is not None:
                collection = await store.prepare_copy(connection, collection, source.dimension)
            await loads.learn_keys(connection, collection, source)
            begun = await loads.merge(connection, begun, collection, chunk)
        advance(chunk.rows)
    async with store.transaction() as connection:
        await loads.forget(connection, begun)
    done.collections.append(target.path)
    done.merged += target.entry.records


def _compare(database_url: str, settings: StoreSettings, begun: Load, target: Target) -> None:
    """Read a load's tables back and compare every chunk with the dump's; VerificationError."""
    if begun.table_number is None or target.entry.dimension is None:
        return
    wanted = target.entry.chunks
    try:
        with Snapshot(conninfo(database_url, settings)) as snapshot:
            seen = 0
            for chunk in dumps.read(
                snapshot.records,
                snapshot.embeddings,
                begun.table_number,
                target.entry.dimension,
                sizes=[entry.rows for entry in wanted],
            ):
                if seen >= len(wanted) or container.content_digest(chunk) != wanted[seen].content_sha256:
                    file = wanted[seen].file if seen < len(wanted) else "behind the last"
                    raise VerificationError(
                        f"{target.path}: what was loaded from chunk {file} is not what it holds",
                        hint="it was discarded and nothing is visible; run the command again, and report it if it stays so",
                    )
                seen += 1
    except psycopg.OperationalError as error:
        raise unreachable(error) from error
    if seen != len(wanted):
        raise VerificationError(
            f"{target.path}: {seen} of {len(wanted)} chunks were loaded",
            hint="it was discarded and nothing is visible; run the command again",
        )


async def _publish(
    session: AsyncConnection[Any],
    staged: Sequence[tuple[Load, Target]],
    places: Sequence[tuple[str, str]],
    tokens: Sequence[dict[str, Any]],
    done: Loaded,
) -> None:
    """Show everything at once, databases without collections and tokens too, in the session that holds the load's locks."""
    connection: Any = session
    try:
        # Without it a write could still go to tables that were just replaced.
        await barrier.hold_to_commit(connection, _PATIENCE_SECONDS)
        published = await loads.publish(
            connection, [(begun, target.source()) for begun, target in staged], places
        )
        done.replaced = sum(item.replaced is not None for item in published)
        done.tokens = await loads.add_tokens(connection, tokens, places[0][0])
        await connection.commit()
    except psycopg.OperationalError as error:
        raise unreachable(error) from error


async def _tidy(store: Store) -> None:
    more = True
    while more:
        async with store.transaction() as connection:
            more = await loads.drop_one_replaced(connection)


async def preview(database_url: str, folder: Path, rename: str | None, policy: Policy) -> list[str]:
    """Check a dump and return where it would go; raises what `load` would before it writes."""
    manifest = container.read_manifest(folder)
    check(folder, manifest, lambda _: None)
    async with await Store.open(database_url, StoreSettings(pool_size=1)) as store:
        await store.check_ready(10.0)
        return [target.path for target in await targets(store, manifest, rename, policy)]


async def discard(database_url: str, folder: Path) -> list[str]:
    """Drop what unfinished loads of a dump have written and not shown yet; return where they were to go.

    Raises:
        RefusedError: such a load is at work; nothing was discarded.
    """
    manifest = container.read_manifest(folder)
    gone = []
    settings = replace(StoreSettings(), pool_size=1, application_name="pgchroma backup load")
    async with await Store.open(database_url, settings) as store:
        await store.check_ready(10.0)
        async with (
            load_locks.discarding(database_url, manifest.digest),
            store.transaction() as connection,
        ):
            for found in await loads.unfinished(connection):
                if found.dump_digest == manifest.digest:
                    await loads.discard(connection, found)
                    gone.append(found.path)
    return gone
