"""`pgchroma backup dump` and `load`: bit for bit, whatever is interrupted, damaged or in the way."""

import asyncio
import errno
import fcntl
import json
import os
import tempfile
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from psycopg import sql

from pgchroma.backup import container, dump, load
from pgchroma.backup.dump import Scope
from pgchroma.errors import (
    ConfigurationError,
    DatabaseUnreachableError,
    NotFoundError,
    RefusedError,
    SourceError,
    UsageError,
    VerificationError,
)
from pgchroma.exit_codes import ExitCode
from pgchroma.migrate.digest import record_digest
from pgchroma.store import Store, backups, builds, dumps, kinds, loads, segments, sketches, sparse, tables
from pgchroma.store.segments import Segment
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, Collection, Filter, RecordBatch
from pgchroma.verify.database import check_database
from support.command import pgchroma
from support.store import batch, contents, ids, make, matrix, nearest, require_whole

pytestmark = pytest.mark.anyio

ROWS = 250


@pytest.fixture
async def own_store(database_url: str) -> AsyncIterator[Store]:
    async with await Store.open(database_url) as opened:
        yield opened


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dumps, "MAX_ROWS", 40)


def ignore(_records: int) -> None:
    pass


def take(
    url: str, folder: Path, database: str | None = None, name: str | None = None, **options: Any
) -> dump.Dumped:
    return dump.dump(
        url,
        Scope(DEFAULT_TENANT, database, name),
        folder,
        **{"with_tokens": False, "advance": ignore, **options},
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def bring(url: str, folder: Path, **options: Any) -> load.Loaded:
    return await load.load(url, folder, **{"advance": ignore, **options})


async def fill(store: Store, name: str = "notes", rows: int = ROWS) -> Collection:
    """A collection with everything that is hard to keep."""
    collection = await store.create_collection(
        DEFAULT_TENANT,
        DEFAULT_DATABASE,
        name,
        metadata={"owner": "us", "share": float("inf")},
        configuration={"hnsw": {"space": "cosine"}},
    )
    random = np.random.default_rng(7)
    values = random.normal(size=(rows, 5)).astype(np.float32)
    values[3] = [0.0, -0.0, 0.0, 0.0, 0.0]
    await store.add(
        collection.id,
        RecordBatch(
            [f"id-{number}" if number != 7 else "\x00" + "long" * 600 for number in range(rows)],
            values,
            documents=[None if number % 5 == 0 else f"text\x00 {number} 漢字" * (number % 9) for number in range(rows)],
            metadatas=[{"n": number, "f": number * 1.0, "odd": -0.0, "many": ["a", "b"]} if number % 2 else None for number in range(rows)],
            uris=[f"file://{number}" if number % 3 == 0 else None for number in range(rows)],
        ),
    )  # fmt: skip
    # Records whose vectors lie elsewhere than they, and a gap.
    await store.upsert(
        collection.id, RecordBatch(["id-5", "id-9"], values[:2], metadatas=[{"changed": True}] * 2)
    )
    await store.delete(collection.id, Filter(ids=["id-11"]))
    return await store.get_collection_by_id(collection.id)


async def digests(store: Store, collection: Collection) -> list[bytes]:
    """What every record holds, in insertion order."""
    return [record_digest(item) async for page in store.iter_records(collection) for item in page]


async def named(
    store: Store, name: str, database: str = DEFAULT_DATABASE, tenant: str = DEFAULT_TENANT
) -> Collection:
    return await store.get_collection(tenant, database, name)


async def test_a_deleted_collection_comes_back_as_it_was(
    own_store: Store, database_url: str, tmp_path: Path
) -> None:
    original = await fill(own_store)
    before = await digests(own_store, original)
    done = take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
    assert (done.manifest.records, len(done.manifest.collections[0].chunks)) == (ROWS - 1, 7)
    await own_store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "notes")
    loaded = await bring(database_url, tmp_path / "d")
    assert (loaded.records, loaded.collections) == (ROWS - 1, ["default_tenant/default_database/notes"])
    again = await named(own_store, "notes")
    assert (again.id, again.metadata, again.configuration, again.schema) == (
        original.id, original.metadata, original.configuration, original.schema,
    )  # fmt: skip
    assert await digests(own_store, again) == before
    assert (await nearest(own_store, again, [1, 0, 0, 0, 0], 3))[0] == (
        await nearest(own_store, again, [1, 0, 0, 0, 0], 3)
    )[0]
    # It can be written to, and what is new comes last.
    await own_store.add(again.id, RecordBatch(["new"], matrix([1, 2, 3, 4, 5])))
    assert (await ids(own_store, again))[-1] == "new"
    require_whole(database_url)
    assert [
        item.id
        for item in await check_database(database_url)
        if item.status == "failed" and item.id in ("stray-tables", "catalog-tables")
    ] == []


async def test_what_the_server_could_not_use_is_not_loaded(
    own_store: Store, database_url: str, databases: Any, tmp_path: Path
) -> None:
    """A superuser may do everything, and whose tables are his alone is told hours later by a server that may not read them."""
    await fill(own_store, rows=10)
    take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
    with databases.fresh() as url:
        with psycopg.connect(url) as connection:
            connection.execute("CREATE ROLE its_server; GRANT CREATE ON SCHEMA pgchroma_data TO its_server")
        try:
            with pytest.raises(RefusedError, match="the collections here are its_server's") as caught:
                await bring(url, tmp_path / "d")
            assert "connect as its_server" in caught.value.hint
            with pytest.raises(RefusedError, match="its_server"):
                await load.preview(url, tmp_path / "d", None, "fail")
            async with await Store.open(url) as target:
                await make(target, "mine")
            # Who made tables of collections here is a server.
            async with await Store.open(url) as target:
                await target.add((await named(target, "mine")).id, batch(["a"]))
            assert (await bring(url, tmp_path / "d")).records == 10
        finally:
            with psycopg.connect(url) as connection:
                connection.execute("DROP OWNED BY its_server; DROP ROLE its_server")


async def test_a_whole_tenant_goes_to_another_cluster_under_another_name(
    own_store: Store, database_url: str, databases: Any, tmp_path: Path
) -> None:
    await own_store.create_database(DEFAULT_TENANT, "second")
    await own_store.create_database(DEFAULT_TENANT, "nothing-in-it")
    first = await fill(own_store, rows=60)
    await make(own_store, "empty")
    other = await own_store.create_collection(DEFAULT_TENANT, "second", "notes")
    await own_store.add(other.id, batch(["a", "b"]))
    with psycopg.connect(database_url) as connection:
        connection.execute(
            "INSERT INTO pgchroma.tokens (id, name, digest, tenant, scope) VALUES ('t1', 'app', sha256('s'), 'default_tenant', 'write')"
        )
    take(database_url, tmp_path / "d", with_tokens=True)
    with databases.fresh() as url:
        loaded = await bring(url, tmp_path / "d", rename="moved", with_tokens=True)
        assert (loaded.records, loaded.tokens) == (61, 1)
        async with await Store.open(url) as target:
            assert [item.name for item in await target.list_databases("moved")] == [
                "default_database",
                "nothing-in-it",
                "second",
            ]
            assert await digests(target, await named(target, "notes", tenant="moved")) == await digests(
                own_store, first
            )
            assert await target.count((await named(target, "notes", "second", "moved")).id) == 2
            assert (await named(target, "empty", tenant="moved")).dimension is None
        with psycopg.connect(url) as connection:
            assert connection.execute(
                "SELECT tenant, digest = sha256('s') FROM pgchroma.tokens"
            ).fetchall() == [("moved", True)]
        require_whole(url)


class TestInTheWay:
    @pytest.fixture
    async def dumped(self, own_store: Store, database_url: str, tmp_path: Path) -> Path:
        await fill(own_store, rows=100)
        take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
        return tmp_path / "d"

    async def test_fail_refuses_and_changes_nothing(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        before = await digests(own_store, await named(own_store, "notes"))
        outcome = pgchroma("backup", "load", dumped, "--database-url", database_url)
        assert outcome.code == 9
        assert "default_tenant/default_database/notes" in outcome.stderr
        assert "--as" in outcome.stderr
        assert await digests(own_store, await named(own_store, "notes")) == before

    async def test_another_name_stands_beside_it(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        await bring(database_url, dumped, rename="copy")
        one, other = await named(own_store, "notes"), await named(own_store, "copy")
        assert one.id != other.id
        assert await digests(own_store, one) == await digests(own_store, other)
        await bring(database_url, dumped, rename="elsewhere/third")
        assert await own_store.count((await named(own_store, "third", "elsewhere")).id) == 99

    async def test_replace_swaps_at_once_and_keeps_the_id(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        collection = await named(own_store, "notes")
        before = await digests(own_store, collection)
        await own_store.delete(collection.id, Filter(ids=["id-1", "id-2"]))
        await own_store.upsert(collection.id, RecordBatch(["later"], matrix([1, 2, 3, 4, 5])))
        await own_store.modify_collection(collection.id, new_metadata={"owner": "somebody else"})
        stop = asyncio.Event()

        async def watch() -> set[int]:
            seen = set()
            while not stop.is_set():
                seen.add(await own_store.count(collection.id))
            return seen

        watching = asyncio.create_task(watch())
        done = await bring(database_url, dumped, policy="replace")
        stop.set()
        # 98 before, 99 after, and nothing in between.
        assert await watching <= {98, 99}
        assert done.replaced == 1
        again = await named(own_store, "notes")
        assert (again.id, again.metadata) == (collection.id, {"owner": "us", "share": float("inf")})
        assert await digests(own_store, again) == before
        with psycopg.connect(database_url) as connection:
            assert connection.execute("SELECT count(*) FROM pgchroma.replaced_tables").fetchone() == (0,)
        require_whole(database_url)

    async def test_no_acknowledged_write_is_lost_beside_the_replacement(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        collection = await named(own_store, "notes")
        stop = asyncio.Event()

        async def write(writer: int) -> list[str]:
            written: list[str] = []
            while not stop.is_set():
                name = f"w{writer}-{len(written)}"
                await own_store.upsert(collection.id, RecordBatch([name], matrix([1, 2, 3, 4, 5])))
                written.append(name)
            return written

        writing = [asyncio.create_task(write(number)) for number in range(3)]
        await bring(database_url, dumped, policy="replace")
        after = {number: f"w{number}-late" for number in range(3)}
        for name in after.values():
            await own_store.upsert(collection.id, RecordBatch([name], matrix([1, 2, 3, 4, 5])))
        stop.set()
        written = await asyncio.gather(*writing)
        there = set(await ids(own_store, await named(own_store, "notes")))
        assert set(after.values()) <= there
        for names in written:
            # What was written before the swap is replaced with the rest; from the first that is there on, all are.
            kept = [name in there for name in names]
            assert kept == sorted(kept)
        require_whole(database_url)

    async def test_an_index_of_the_replaced_tables_is_not_taken_for_one_of_the_new(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        collection = await named(own_store, "notes")
        await bring(database_url, dumped, policy="replace")
        kind = kinds.wanted(collection)
        assert kind is not None
        async with await backups.connect(database_url, "test") as connection:
            # What an indexer does that began before the swap and comes to its end before the old tables are dropped.
            assert collection.table_number is not None
            for statement in tables.create(collection.table_number, 5, "cosine"):
                await connection.execute(statement)
            await builds.build_segment(connection, collection, kind, Segment(0, 10**6, ""))  # type: ignore[arg-type]
            assert await segments.load(connection, collection.id) == []  # type: ignore[arg-type]

    async def test_merge_takes_the_place_of_the_same_ids_only(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        collection = await named(own_store, "notes")
        wanted = await contents(own_store, collection)
        await own_store.delete(collection.id, Filter(ids=["id-1", "id-2"]))
        await own_store.upsert(
            collection.id,
            RecordBatch(
                ["id-3", "mine"],
                matrix([9, 9, 9, 9, 9], [8, 8, 8, 8, 8]),
                documents=["changed", "kept"],
                metadatas=[{"new": "key"}] * 2,
            ),
        )
        done = await bring(database_url, dumped, policy="merge")
        assert done.merged == 99
        found = await contents(own_store, collection)
        mine = found.pop("mine")
        assert mine[1] == "kept"
        assert found.keys() == wanted.keys()
        assert repr(sorted(found.items())) == repr(sorted(wanted.items()))
        # Those that were there kept their place, those that were gone come last.
        assert (await ids(own_store, collection))[-2:] == ["id-1", "id-2"]
        assert await ids(own_store, collection, where={"n": {"$gt": 90}})
        require_whole(database_url)

    async def test_merge_refuses_another_dimension(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        other = await make(own_store, "other")
        await own_store.add(other.id, batch(["a"]))
        with pytest.raises(RefusedError, match="2 dimensions, the dump 5"):
            await bring(database_url, dumped, rename="other", policy="merge")

    async def test_names_that_do_not_fit_are_refused(self, database_url: str, dumped: Path) -> None:
        for name in ("a/b/c/d", "/x", ""):
            with pytest.raises(ConfigurationError, match="does not fit"):
                await bring(database_url, dumped, rename=name)
        # What the server would not create, at any place.
        for name in (
            "a b",
            "..",
            "ab/notes",
            "elsewhere/x/notes",
            "elsewhere/a b/notes",
            "../elsewhere/notes",
        ):
            with pytest.raises(UsageError, match=r"--as '.*Expected a name|--as '.*at least 3 characters"):
                await bring(database_url, dumped, rename=name)
        outcome = pgchroma("backup", "load", dumped, "--as", "..", "--database-url", database_url)
        assert outcome.code == ExitCode.USAGE
        assert "give another name" in outcome.stderr

    async def test_a_tenant_that_nobody_could_ask_for_is_not_loaded(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        await fill(own_store, rows=10)
        take(database_url, tmp_path / "tenant")
        for name in ("..", ".", "x"):
            with pytest.raises(UsageError, match="at least 3 characters"):
                await bring(database_url, tmp_path / "tenant", rename=name)
        assert [item.tenant for item in await own_store.list_collections()] == [DEFAULT_TENANT]

    async def test_a_dry_run_writes_nothing(self, own_store: Store, database_url: str, dumped: Path) -> None:
        outcome = pgchroma(
            "backup",
            "load",
            dumped,
            "--as",
            "copy",
            "--dry-run",
            "--database-url",
            database_url,
            "--format",
            "json",
        )
        assert outcome.json == {"would_load": ["default_tenant/default_database/copy"]}
        assert len(await own_store.list_collections()) == 1


class TestDamage:
    @pytest.fixture
    async def dumped(self, own_store: Store, database_url: str, tmp_path: Path) -> Path:
        await fill(own_store, rows=100)
        take(database_url, tmp_path / "d")
        return tmp_path / "d"

    async def refused(self, store: Store, url: str, folder: Path, match: str) -> None:
        with pytest.raises(SourceError, match=match):
            await bring(url, folder, rename="copy")
        assert [item.tenant for item in await store.list_collections()] == [DEFAULT_TENANT]
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT count(*) FROM pgchroma.loads").fetchone() == (0,)

    async def test_a_flipped_bit(self, own_store: Store, database_url: str, dumped: Path) -> None:
        chunk = dumped / "c00001/000002.zst"
        data = bytearray(chunk.read_bytes())
        data[len(data) // 2] ^= 1
        chunk.write_bytes(data)
        await self.refused(
            own_store,
            database_url,
            dumped,
            r"chunk c00001/000002\.zst of collection .*/notes is damaged: its SHA-256",
        )
        outcome = pgchroma("backup", "verify-dump", dumped)
        assert outcome.code == 6
        assert "c00001/000002.zst" in outcome.stderr

    async def test_a_chunk_cut_short(self, own_store: Store, database_url: str, dumped: Path) -> None:
        chunk = dumped / "c00001/000003.zst"
        chunk.write_bytes(chunk.read_bytes()[:-1])
        await self.refused(own_store, database_url, dumped, r"000003\.zst .* bytes instead of")

    async def test_a_missing_chunk(self, own_store: Store, database_url: str, dumped: Path) -> None:
        (dumped / "c00001/000001.zst").unlink()
        await self.refused(own_store, database_url, dumped, r"000001\.zst .*No such file")

    async def test_a_file_that_may_not_be_read_is_not_called_damaged(
        self, own_store: Store, database_url: str, dumped: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def forbidden(path: Path, *_: object, **__: object) -> bytes:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        manifest = container.read_manifest(dumped)
        (entry,) = manifest.collections
        monkeypatch.setattr(Path, "read_bytes", forbidden)
        monkeypatch.setattr(Path, "open", forbidden)
        for read in (
            lambda: container.check_chunk(dumped, entry.chunks[0], entry),
            lambda: container.read_manifest(dumped),
        ):
            with pytest.raises(SourceError, match="cannot be read: Permission denied") as caught:
                read()
            assert "a user that may read it" in caught.value.hint

    async def test_a_changed_manifest(self, own_store: Store, database_url: str, dumped: Path) -> None:
        manifest = dumped / container.MANIFEST
        original = manifest.read_text()
        manifest.write_text(original.replace('"rows": 40', '"rows": 41', 1))
        await self.refused(own_store, database_url, dumped, "its digest does not fit")
        manifest.write_text(original[:-20])
        await self.refused(own_store, database_url, dumped, "cannot be read")
        manifest.write_text('{"format": "pgchroma-dump/9"}')
        await self.refused(own_store, database_url, dumped, "not of the format")
        manifest.unlink()
        await self.refused(own_store, database_url, dumped, "holds no dump")

    async def test_a_manifest_cannot_reach_other_files(
        self, own_store: Store, database_url: str, dumped: Path
    ) -> None:
        content = json.loads((dumped / container.MANIFEST).read_text())
        content["collections"][0]["chunks"][0]["file"] = "../../etc/passwd"
        fields = {name: content[name] for name in container.Manifest.__dataclass_fields__}
        entries = [
            container.CollectionEntry(
                **{**item, "chunks": [container.ChunkEntry(**c) for c in item["chunks"]]}
            )
            for item in content["collections"]
        ]
        content["digest"] = container.Manifest(**{**fields, "collections": entries}).digest
        (dumped / container.MANIFEST).write_text(json.dumps(content))
        await self.refused(own_store, database_url, dumped, "outside the dump")

    async def test_what_was_loaded_otherwise_is_discarded(
        self, own_store: Store, database_url: str, dumped: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = loads.stage

        async def spoiled(connection: Any, begun: Any, source: Any, chunk: Any) -> Any:
            result = await original(connection, begun, source, chunk)
            query = sql.SQL("UPDATE {} SET uri = 'x' WHERE id = 'id-50'")
            await connection.execute(query.format(tables.records(result.table_number or 0)))
            return result

        monkeypatch.setattr(loads, "stage", spoiled)
        with pytest.raises(VerificationError, match=r"000002\.zst is not what it holds"):
            await bring(database_url, dumped, rename="copy")
        assert [item.tenant for item in await own_store.list_collections()] == [DEFAULT_TENANT]
        require_whole(database_url)


class TestInterrupted:
    KILL_DUMP = (
        "import os\nfrom pgchroma.backup import container\nfrom pgchroma.store import dumps\ndumps.MAX_ROWS = 40\n"
        "real = container.Journal.append\n"
        "def append(self, entry):\n    real(self, entry)\n    if entry['chunk']['file'].endswith('000004.zst'):\n        os.kill(os.getpid(), 9)\n"
        "container.Journal.append = append\n"
    )
    KILL_LOAD = (
        "import os\nfrom pgchroma.store import loads\nreal = loads.stage\n"
        "async def stage(connection, load, *rest):\n    if load.chunks_done == 3:\n        os.kill(os.getpid(), 9)\n"
        "    return await real(connection, load, *rest)\nloads.stage = stage\n"
    )

    async def test_a_killed_dump_is_continued_and_true_to_one_moment(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        collection = await fill(own_store)
        command = ("backup", "dump", tmp_path / "d", "--database-url", database_url, "--format", "json")
        assert pgchroma(*command, prelude=self.KILL_DUMP).code == -9
        with pytest.raises(SourceError, match="unfinished dump"):
            container.read_manifest(tmp_path / "d")
        # The last line of the journal may be cut short, and a chunk half written.
        with (tmp_path / "d/journal.jsonl").open("a") as journal:
            journal.write('{"collec')
        (tmp_path / "d/c00001/000005.part").write_bytes(b"half")
        outcome = pgchroma(*command)
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["reused_records"] == 160
        assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["c00001", "manifest.json"]
        await bring(database_url, tmp_path / "d", rename="copied")
        assert await digests(own_store, await named(own_store, "notes", tenant="copied")) == await digests(
            own_store, collection
        )

    @pytest.mark.parametrize(
        ("change", "kept"),
        [("update", 40), ("embedding", 40), ("delete", 40), ("append", 160), ("recreate", 0)],
    )
    async def test_what_changed_since_is_dumped_anew(
        self, own_store: Store, database_url: str, tmp_path: Path, change: str, kept: int
    ) -> None:
        collection = await fill(own_store)
        command = ("backup", "dump", tmp_path / "d", "--database-url", database_url, "--format", "json")
        assert pgchroma(*command, prelude=self.KILL_DUMP).code == -9
        if change == "update":
            await own_store.update(collection.id, RecordBatch(["id-50"], documents=["changed"]))
        elif change == "embedding":
            await own_store.update(collection.id, RecordBatch(["id-50"], matrix([9, 9, 9, 9, 9])))
        elif change == "delete":
            await own_store.delete(collection.id, Filter(ids=["id-50"]))
        elif change == "append":
            await own_store.add(collection.id, RecordBatch(["new"], matrix([9, 9, 9, 9, 9])))
        else:
            await own_store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "notes")
            collection = await fill(own_store)
        outcome = pgchroma(*command)
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["reused_records"] == kept
        await bring(database_url, tmp_path / "d", rename="copied")
        assert await digests(own_store, await named(own_store, "notes", tenant="copied")) == await digests(
            own_store, collection
        )

    async def test_a_killed_load_is_continued_and_was_not_visible(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        collection = await fill(own_store)
        take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
        command = (
            "backup",
            "load",
            tmp_path / "d",
            "--as",
            "copy",
            "--database-url",
            database_url,
            "--format",
            "json",
        )
        assert pgchroma(*command, prelude=self.KILL_LOAD).code == -9
        assert await own_store.find_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "copy") is None
        strays = {item.id: item for item in await check_database(database_url)}["stray-tables"]
        assert strays.status == "ok", strays.detail
        outcome = pgchroma(*command)
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["continued"] == 120
        assert await digests(own_store, await named(own_store, "copy")) == await digests(
            own_store, collection
        )
        require_whole(database_url)

    async def test_a_killed_merge_is_continued(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        collection = await fill(own_store)
        take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
        await own_store.delete(collection.id, Filter(ids=[f"id-{number}" for number in range(20, 200)]))
        command = (
            "backup",
            "load",
            tmp_path / "d",
            "--if-exists",
            "merge",
            "--database-url",
            database_url,
            "--format",
            "json",
        )
        assert pgchroma(*command, prelude=self.KILL_LOAD.replace("stage", "merge")).code == -9
        outcome = pgchroma(*command)
        assert outcome.code == 0, outcome.stderr
        assert outcome.json["continued"] == 120
        assert await own_store.count(collection.id) == ROWS - 1
        require_whole(database_url)

    async def test_an_abandoned_load_can_be_discarded(
        self, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        await fill(own_store)
        take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
        command = ("backup", "load", tmp_path / "d", "--as", "copy", "--database-url", database_url)
        assert pgchroma(*command, prelude=self.KILL_LOAD).code == -9
        outcome = pgchroma(
            "backup", "load", tmp_path / "d", "--discard", "--database-url", database_url, "--format", "json"
        )
        assert outcome.json == {"discarded": ["default_tenant/default_database/copy"]}
        require_whole(database_url)


class TestAtWork:
    @pytest.fixture
    async def loading(self, own_store: Store, database_url: str, tmp_path: Path) -> AsyncIterator[Any]:
        """A load that waits behind its first chunk; what it returns goes on with it."""
        await fill(own_store)
        take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes")
        begun, let_go = threading.Event(), threading.Event()

        def advance(records: int) -> None:
            if records:
                begun.set()
                let_go.wait(60)

        def run() -> load.Loaded:
            return asyncio.run(load.load(database_url, tmp_path / "d", rename="copy", advance=advance))

        # In a thread and a loop of its own, as another process would.
        task = asyncio.create_task(asyncio.to_thread(run))
        assert await asyncio.to_thread(begun.wait, 60)

        async def go_on() -> load.Loaded:
            let_go.set()
            return await task

        yield go_on
        let_go.set()
        await asyncio.wait([task])

    async def test_a_load_at_work_is_not_discarded(
        self, loading: Any, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        command = ("backup", "load", tmp_path / "d", "--discard", "--database-url", database_url)
        outcome = pgchroma(*command)
        assert outcome.code == ExitCode.REFUSED, outcome.stderr
        assert "a load of this dump is at work" in outcome.stderr
        assert "wait until it has ended, or stop it" in outcome.stderr
        assert (await loading()).records == ROWS - 1
        assert await own_store.count((await named(own_store, "copy")).id) == ROWS - 1
        assert pgchroma(*command, "--format", "json").json == {"discarded": []}

    async def test_the_same_is_not_loaded_twice_at_a_time(
        self, loading: Any, own_store: Store, database_url: str, tmp_path: Path
    ) -> None:
        for policy in ("fail", "replace"):
            with pytest.raises(
                RefusedError, match="to default_tenant/default_database/copy is at work already"
            ):
                await bring(database_url, tmp_path / "d", rename="copy", policy=policy)
        # Another place has nothing to do with it.
        assert (await bring(database_url, tmp_path / "d", rename="third")).records == ROWS - 1
        assert (await loading()).continued == 0
        assert await own_store.count((await named(own_store, "copy")).id) == ROWS - 1
        require_whole(database_url)

    async def test_a_load_whose_locks_are_lost_shows_nothing(
        self, loading: Any, own_store: Store, database_url: str
    ) -> None:
        with psycopg.connect(database_url) as connection:
            ended = connection.execute(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' "
                "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
            ).fetchone()
        assert ended == (1,)
        with pytest.raises(DatabaseUnreachableError):
            await loading()
        assert await own_store.find_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "copy") is None


async def test_a_dump_shows_one_moment_although_writes_go_on(
    own_store: Store, database_url: str, tmp_path: Path
) -> None:
    first, second = await make(own_store, "first"), await make(own_store, "second")
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            # Always to the first before the second.
            await own_store.add(first.id, batch([f"r{number}"]))
            await own_store.add(second.id, batch([f"r{number}"]))
            number += 1

    writing = asyncio.create_task(write())
    counts = []
    for attempt in range(4):
        done = await asyncio.to_thread(take, database_url, tmp_path / str(attempt))
        counts.append([item.records for item in done.manifest.collections])
    stop.set()
    await writing
    assert all(one - other in (0, 1) for one, other in counts), counts


async def test_filters_work_as_fast_after_a_load(own_store: Store, database_url: str, tmp_path: Path) -> None:
    """Long vectors have sketches beside their records, which a dump does not hold."""
    collection = await make(own_store, "long")
    values = np.random.default_rng(2).normal(size=(90, 128)).astype(np.float32)
    await own_store.add(collection.id, RecordBatch([f"r{number}" for number in range(90)], values))
    take(database_url, tmp_path / "d", DEFAULT_DATABASE, "long")
    await bring(database_url, tmp_path / "d", rename="copy")
    await own_store.delete(collection.id, Filter(ids=["r1", "r50"]))
    await own_store.upsert(collection.id, RecordBatch(["r2"], values[:1]))
    await bring(database_url, tmp_path / "d", policy="merge")
    with psycopg.connect(database_url) as connection:
        found: dict[str, dict[str, str]] = {}
        for name in ("long", "copy"):
            row = connection.execute(
                "SELECT table_number, sketch, unit_length FROM pgchroma.collections WHERE name = %s", [name]
            ).fetchone()
            assert row is not None
            assert row[1:] == (3, False)
            query = sql.SQL("SELECT id, sketch::text FROM {}").format(tables.records(row[0]))
            found[name] = dict(connection.execute(query).fetchall())
    assert found["long"] == found["copy"]
    packed = sketches.encode(values, 3)
    assert found["copy"]["r7"] == sketches.text(packed[7], 128, 3)


async def test_sparse_vectors_are_searched_after_a_load(
    own_store: Store, database_url: str, tmp_path: Path
) -> None:
    schema = {
        "keys": {
            "sparse": {"sparse_vector": {"sparse_vector_index": {"enabled": True, "config": {"bm25": False}}}}
        }
    }
    collection = await own_store.create_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "hybrid", schema=schema)
    vectors = [
        {"sparse": {"#type": "sparse_vector", "indices": [number, 100], "values": [1.0, 0.5]}}
        for number in range(3)
    ]
    await own_store.add(collection.id, batch(["a", "b", "c"], metadatas=vectors))
    take(database_url, tmp_path / "d", DEFAULT_DATABASE, "hybrid")
    await bring(database_url, tmp_path / "d", rename="copy")
    await bring(database_url, tmp_path / "d", policy="merge")
    with psycopg.connect(database_url) as connection:
        for name in ("hybrid", "copy"):
            row = connection.execute(
                "SELECT table_number FROM pgchroma.collections WHERE name = %s", [name]
            ).fetchone()
            assert row is not None
            query = sql.SQL("SELECT r.id, s.dims FROM {} s JOIN {} r ON r.seq = s.record_seq ORDER BY 1")
            found = connection.execute(query.format(sparse.table(row[0]), tables.records(row[0]))).fetchall()
            assert found == [("a", [0, 100]), ("b", [1, 100]), ("c", [2, 100])]


async def test_folders_that_hold_something_else_are_refused(
    own_store: Store, database_url: str, tmp_path: Path
) -> None:
    await fill(own_store, rows=10)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("")
    with pytest.raises(RefusedError, match="is not empty"):
        take(database_url, tmp_path / "other")
    take(database_url, tmp_path / "d")
    with pytest.raises(RefusedError, match="finished dump"):
        take(database_url, tmp_path / "d")
    chunk = (tmp_path / "d/c00001/000001.zst").read_bytes()
    (tmp_path / "e/c00001").mkdir(parents=True)
    (tmp_path / "e/c00001/000001.zst").write_bytes(chunk)
    container.Journal(tmp_path / "e").start([{"format": container.FORMAT, "scope": {"tenant": "other"}}])
    with pytest.raises(RefusedError, match="of something else"):
        take(database_url, tmp_path / "e", DEFAULT_DATABASE, "notes")
    with pytest.raises(ConfigurationError, match="without its database"):
        take(database_url, tmp_path / "f", None, "notes")


@pytest.mark.parametrize("scope", [("nowhere", None), (DEFAULT_DATABASE, "nothing")])
async def test_a_mistyped_name_leaves_nothing_in_the_way(
    own_store: Store, database_url: str, tmp_path: Path, scope: tuple[str, str | None]
) -> None:
    await fill(own_store, rows=10)
    with pytest.raises(NotFoundError, match=f"{'/'.join(filter(None, scope))} does not exist"):
        take(database_url, tmp_path / "new/d", *scope)
    assert names_in(tmp_path) == []
    (tmp_path / "there").mkdir()
    outcome = pgchroma(
        "backup", "dump", tmp_path / "there", "--tenant", "nobody", "--database-url", database_url
    )
    assert outcome.code == ExitCode.USAGE
    assert names_in(tmp_path / "there") == []
    take(database_url, tmp_path / "there", DEFAULT_DATABASE, "notes")


async def test_a_dump_without_a_database_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreachableError):
        take(f"postgresql:///x?host={tmp_path}", tmp_path / "d")
    assert names_in(tmp_path) == []


async def test_a_dump_that_wrote_only_its_name_is_in_nobodys_way(
    own_store: Store, database_url: str, tmp_path: Path
) -> None:
    await fill(own_store, rows=10)
    container.Journal(tmp_path / "d").start([{"format": container.FORMAT, "scope": {"tenant": "mistyped"}}])
    assert take(database_url, tmp_path / "d", DEFAULT_DATABASE, "notes").manifest.records == 10


@pytest.mark.parametrize(
    ("code", "hint"), [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EACCES, "write to")]
)
async def test_a_place_that_cannot_be_written_to_is_told_with_what_helps(
    own_store: Store,
    database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    hint: str,
) -> None:
    await fill(own_store, rows=10)

    def fails(**_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(tempfile, "mkstemp", fails)
    with pytest.raises(ConfigurationError, match=os.strerror(code)) as caught:
        take(database_url, tmp_path / "d")
    assert hint in caught.value.hint
    assert names_in(tmp_path) == []


async def test_two_dumps_do_not_write_into_one_folder(
    own_store: Store, database_url: str, tmp_path: Path
) -> None:
    """The chunks of one would replace those of the other, of another moment."""
    await fill(own_store, rows=10)
    (tmp_path / "d").mkdir()
    other = os.open(tmp_path / "d", os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(RefusedError, match="another dump writes to"):
            take(database_url, tmp_path / "d")
    finally:
        os.close(other)
    assert list((tmp_path / "d").iterdir()) == []
    take(database_url, tmp_path / "d")


async def test_dumps_are_for_their_owner_only(own_store: Store, database_url: str, tmp_path: Path) -> None:
    await fill(own_store, rows=10)
    take(database_url, tmp_path / "d")
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "d").rglob("*.*"):
        assert path.stat().st_mode & 0o077 == 0, path
