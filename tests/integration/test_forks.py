"""Forks and the state of the index, through Chroma's own client."""

import asyncio
import threading
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.types import Include, IndexingStatus, Schema, SparseVectorIndexConfig
from chromadb.base_types import SparseVector
from chromadb.errors import NotFoundError
from chromadb.execution.expression import Knn, Search

from pgchroma.store import Store, operations
from pgchroma.store.connection import Connection
from pgchroma.types import RecordBatch
from support.api import CHROMA, COLLECTIONS, INVALID, NOWHERE, Api, check
from support.server import ServerProcess
from support.store import eventually

EVERYTHING: Include = ["documents", "metadatas", "embeddings", "uris"]


def test_a_fork_is_the_same_and_goes_its_own_way(client: ClientAPI) -> None:
    schema = Schema().create_index(key="s", config=SparseVectorIndexConfig())
    source = client.create_collection("source", schema=schema, metadata={"about": "it", "f": 2.0})
    rng = np.random.default_rng(1)
    source.add(
        ids=[f"id{i}" for i in range(300)],
        embeddings=rng.standard_normal((300, 16)).astype(np.float32),
        documents=[f"text {i}\x00" for i in range(300)],
        metadatas=[{"i": i, "f": i / 3, "s": SparseVector([i % 7, 100 + i], [1.0, 2.0])} for i in range(300)],
    )
    source.update(ids=["id5"], embeddings=np.ones((1, 16), np.float32), documents=["changed"])
    source.delete(ids=["id7"])
    fork = source.fork("fork")
    assert fork.id != source.id
    assert fork.metadata == source.metadata
    assert fork.configuration_json == source.configuration_json
    before, copied = (each.get(include=EVERYTHING) for each in (source, client.get_collection("fork")))
    np.testing.assert_array_equal(before.pop("embeddings"), copied.pop("embeddings"))  # type: ignore[misc]
    assert before == copied
    search = Search().rank(Knn(query=SparseVector([3], [1.0]), key="s", limit=500))
    assert source.search(search)["ids"] == fork.search(search)["ids"]
    query = np.full((1, 16), 0.5, np.float32)
    assert source.query(query)["ids"] == fork.query(query)["ids"]

    fork.add(ids=["new"], embeddings=np.zeros((1, 16), np.float32), metadatas=[{"only": "here"}])
    fork.delete(where=cast("Any", {"i": {"$lt": 100}}))
    source.update(ids=["id200"], embeddings=np.zeros((1, 16), np.float32), documents=["in the source"])
    assert (source.count(), fork.count()) == (299, 201)
    assert fork.get(ids=["id200"])["documents"] == ["text 200\x00"]
    assert fork.get()["ids"][-1] == "new"
    parent = client.get_collection("source").schema
    child = client.get_collection("fork").schema
    assert parent is not None
    assert child is not None
    assert "only" in child.keys
    assert "only" not in parent.keys
    client.delete_collection("source")
    assert fork.count() == 201
    assert len(fork.search(search)["ids"][0]) > 20


def test_forks_are_counted_over_their_whole_lineage(client: ClientAPI) -> None:
    first = client.create_collection("first")
    assert first.fork_count() == 0
    second = first.fork("second")
    third = second.fork("third")
    assert [each.fork_count() for each in (first, second, third)] == [2, 2, 2]
    assert (second.count(), third.get()["ids"]) == (0, [])
    third.add(ids=["a"], embeddings=np.array([[1.0, 2.0]], np.float32))
    assert first.count() == 0
    client.delete_collection("second")
    assert first.fork_count() == third.fork_count() == 1
    assert client.create_collection("another").fork_count() == 0


def test_forks_that_cannot_be(api: Api, records: str) -> None:
    check(api("POST", f"{records}/fork", {"new_name": "records"}), 409, CHROMA, "[records] already exists")
    check(api("POST", f"{records}/fork", {"new_name": "x"}), 400, INVALID, "new_name")
    check(api("POST", f"{records}/fork", {}), 422, CHROMA, "new_name")
    check(api("POST", f"{records}/fork", {"new_name": 5}), 422, CHROMA, "new_name")
    for method, action, body in (
        ("POST", "fork", {"new_name": "fork"}),
        ("GET", "fork_count", None),
        ("GET", "indexing_status", None),
    ):
        assert api(method, f"{COLLECTIONS}/{NOWHERE}/{action}", body)[0] == 404
    elsewhere = records.replace("default_database", "other")
    assert api("POST", f"{elsewhere}/fork", {"new_name": "fork"})[0] == 404


def test_a_fork_has_whole_batches_while_writers_go_on(client: ClientAPI) -> None:
    source = client.create_collection("busy")
    names = [f"id{i}" for i in range(50)]
    source.add(ids=names, embeddings=np.array([[0.0, 0.0]] * 50, np.float32), metadatas=[{"round": 0}] * 50)
    done, failures = threading.Event(), []

    def write() -> None:
        number = 0
        try:
            while not done.is_set():
                number += 1
                source.upsert(
                    ids=names,
                    embeddings=np.array([[float(number), 0.0]] * 50, np.float32),
                    metadatas=[{"round": number}] * 50,
                )
        except Exception as error:  # noqa: BLE001 - the test's own thread reports it
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(8):
            fork = source.fork(f"fork{number}")
            found = fork.get(include=["metadatas", "embeddings"])
            assert found["metadatas"] is not None
            assert found["embeddings"] is not None
            rounds = {row["round"] for row in found["metadatas"]}
            assert len(found["ids"]) == 50
            assert len(rounds) == 1
            assert {float(vector[0]) for vector in found["embeddings"]} == {float(str(*rounds))}
    finally:
        done.set()
        writer.join()
    assert failures == []


def wait_until_indexed(client: ClientAPI, name: str) -> IndexingStatus:
    async def look() -> IndexingStatus | None:
        status = client.get_collection(name).get_indexing_status()
        return status if status.op_indexing_progress == 1.0 else None

    return asyncio.run(eventually("the indexer to catch up", look))


def test_operations_are_counted_and_caught_up_with(client: ClientAPI) -> None:
    collection = client.create_collection("counted")
    assert collection.get_indexing_status() == IndexingStatus(0, 0, 0, 1.0)
    collection.add(ids=["a", "b"], embeddings=np.array([[1.0], [2.0]], np.float32))
    collection.upsert(ids=["b", "c"], embeddings=np.array([[1.0], [2.0]], np.float32))
    collection.update(
        ids=["a", "nope"], documents=["x", "y"], embeddings=np.array([[1.0], [1.0]], np.float32)
    )
    collection.delete(ids=["a"])
    assert collection.get_indexing_status().total_ops == 7
    assert wait_until_indexed(client, "counted") == IndexingStatus(7, 0, 7, 1.0)
    version = client.get_collection("counted").get_model()["version"] or 0
    assert version >= 1
    collection.add(ids=["d"], embeddings=np.array([[1.0]], np.float32))
    assert wait_until_indexed(client, "counted").total_ops == 8
    assert (client.get_collection("counted").get_model()["version"] or 0) > version
    fork = collection.fork("counted-fork")
    assert fork.get_indexing_status().total_ops == 3


@pytest.mark.anyio
async def test_a_long_tail_counts_as_not_indexed(database_url: str) -> None:
    async with await Store.open(database_url) as store:
        made = await store.create_collection("default_tenant", "default_database", "long")
        await store.add(made.id, _batch(30))
        connection = await Connection.connect(database_url, autocommit=True)
        async with connection:
            await operations.settle(connection, 20)
            assert await _counts(store, made.id) == (0, 30, 30)
            await operations.settle(connection, 31)
            assert await _counts(store, made.id) == (30, 0, 30)
            await store.delete_collection("default_tenant", "default_database", "long")
            await operations.note(connection, made.id, 3)
            await operations.settle(connection, 31)
            cursor = await connection.execute("SELECT count(*) FROM pgchroma.operations")
            assert await cursor.fetchone() == (0,)
        with pytest.raises(Exception, match="does not exist"):
            await store.indexing_status(made.id)


async def _counts(store: Store, collection_id: UUID) -> tuple[int, int, int]:
    status = await store.indexing_status(collection_id)
    return status.indexed, status.unindexed, status.total


def _batch(count: int) -> RecordBatch:
    return RecordBatch([f"id{i}" for i in range(count)], np.ones((count, 2), np.float32))


def test_functions_are_not_there_and_say_so(api: Api, records: str, server: ServerProcess) -> None:
    del server
    attach = {"name": "x", "function_id": "f", "output_collection": "o"}
    check(api("POST", f"{records}/functions/attach", attach), 501, CHROMA, "no function runner")
    check(api("POST", f"{records}/attached_functions/x/detach", {}), 501, CHROMA, "'x' cannot be detached")
    check(api("GET", f"{records}/functions/x"), 404, "NotFoundError", "'x' not found")


def test_what_is_gone_is_not_found(client: ClientAPI) -> None:
    collection = client.create_collection("gone")
    client.delete_collection("gone")
    for action in (collection.get_indexing_status, collection.fork_count, lambda: collection.fork("new")):
        with pytest.raises(NotFoundError):
            action()
