"""Sparse vectors in metadata: kept to the last bit, found, and gone when they are."""

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Schema, SparseEmbeddingFunction, SparseVectorIndexConfig
from chromadb.base_types import SparseVector
from chromadb.execution.expression import K, Knn, Search
from chromadb.utils.embedding_functions import register_sparse_embedding_function
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgchroma.store import Store, inspection
from pgchroma.store.connection import Connection
from pgchroma.types import DEFAULT_DATABASE, DEFAULT_TENANT, RecordBatch
from support.api import COLLECTIONS, INVALID, Api, check
from support.server import ServerProcess

MAX_INDEX = 2**32 - 1


@register_sparse_embedding_function
class Letters(SparseEmbeddingFunction[list[str]]):
    """A learned expansion's shape, without the model: each letter stands for itself and, weaker, for its neighbour."""

    def __init__(self, weaker: float = 0.5) -> None:
        self.weaker = weaker

    def __call__(self, input: list[str]) -> list[SparseVector]:  # noqa: A002 - the protocol's name
        vectors = []
        for text in input:
            weights: dict[int, float] = {}
            for letter in text:
                for index, weight in ((ord(letter), 1.0), (ord(letter) + 1, self.weaker)):
                    weights[index] = weights.get(index, 0.0) + weight
            vectors.append(SparseVector(sorted(weights), [weights[index] for index in sorted(weights)]))
        return vectors

    @staticmethod
    def name() -> str:
        return "letters"

    def get_config(self) -> dict[str, Any]:
        return {"weaker": self.weaker}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "Letters":
        return Letters(config["weaker"])


def made(client: ClientAPI, name: str = "sparse", **config: Any) -> Collection:
    schema = Schema().create_index(key="s", config=SparseVectorIndexConfig(**config))
    return client.create_collection(name, schema=schema)


def nearest(collection: Collection, query: SparseVector | str, limit: int = 100) -> list[str]:
    found = collection.search(Search().rank(Knn(query=query, key="s", limit=limit)))
    return list(found["ids"][0])


def test_a_function_of_ones_own_is_kept_with_the_schema(client: ClientAPI) -> None:
    made(client, source_key="#document", embedding_function=Letters(0.25))
    collection = client.get_collection("sparse")
    collection.add(
        ids=["ab", "cd", "xy"], embeddings=np.array([[1.0]] * 3, np.float32), documents=["ab", "cd", "xy"]
    )
    found = collection.search(Search().rank(Knn(query="ab", key="s")).select(K.SCORE))
    # b and c are neighbours: "cd" shares 0.25 of c.
    assert found["ids"] == [["ab", "cd"]]
    np.testing.assert_allclose(found["scores"][0], [1 - (1 + 1.25 * 1.25 + 0.0625), 1 - 0.25], rtol=1e-6)
    stored = collection.get(ids=["ab"])["metadatas"]
    assert stored is not None
    assert stored[0]["s"] == Letters(0.25)(["ab"])[0]


def test_they_follow_every_write(client: ClientAPI) -> None:
    collection = made(client)
    one, two, three = (SparseVector([i, 7], [1.0, 0.5]) for i in (1, 2, 3))
    collection.add(
        ids=["a", "b", "c"],
        embeddings=np.array([[1.0]] * 3, np.float32),
        metadatas=[{"s": one, "k": 1}, {"s": two}, {"k": 3}],
    )
    assert nearest(collection, SparseVector([7], [1.0])) == ["a", "b"]
    collection.add(ids=["a"], embeddings=np.array([[1.0]], np.float32), metadatas=[{"s": three}])
    assert nearest(collection, SparseVector([3], [1.0])) == []
    collection.update(ids=["a", "c", "nope"], metadatas=[{"s": two}, {"s": three}, {"s": one}])
    assert nearest(collection, SparseVector([1], [1.0])) == []
    assert set(nearest(collection, SparseVector([2], [1.0]))) == {"a", "b"}
    collection.update(
        ids=["a"], metadatas=[{"k": 5}], embeddings=np.array([[2.0]], np.float32), documents=["x"]
    )
    assert set(nearest(collection, SparseVector([2], [1.0]))) == {"a", "b"}
    collection.update(ids=["b"], metadatas=[{"s": None}])
    assert nearest(collection, SparseVector([2], [1.0])) == ["a"]
    collection.upsert(
        ids=["b", "d"], embeddings=np.array([[1.0]] * 2, np.float32), metadatas=[{"s": one}, {"s": two}]
    )
    assert set(nearest(collection, SparseVector([2], [1.0]))) == {"a", "d"}
    collection.upsert(ids=["d"], embeddings=np.array([[1.0]], np.float32), metadatas=[{"s": "a word"}])
    assert nearest(collection, SparseVector([2], [1.0])) == ["a"]
    collection.delete(where={"k": 5})
    assert nearest(collection, SparseVector([2], [1.0])) == []
    collection.delete(ids=["b", "c", "d"])
    assert nearest(collection, SparseVector([7], [1.0])) == []
    collection.add(ids=["a"], embeddings=np.array([[1.0]], np.float32), metadatas=[{"k": 1}])
    assert nearest(collection, SparseVector([7], [1.0])) == []


VALUES = st.floats(allow_nan=False, allow_infinity=False, width=32)
VECTORS = st.dictionaries(st.integers(0, 40) | st.integers(0, MAX_INDEX), VALUES, max_size=12).map(
    lambda entries: SparseVector(sorted(entries), [entries[index] for index in sorted(entries)])
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(VECTORS, min_size=1, max_size=8), VECTORS)
def test_any_come_back_whole_and_are_ranked_by_their_product(
    client: ClientAPI, vectors: list[SparseVector], query: SparseVector
) -> None:
    client.reset()
    collection = made(client)
    names = [str(place) for place in range(len(vectors))]
    collection.add(
        ids=names,
        embeddings=np.array([[1.0]] * len(vectors), np.float32),
        metadatas=[{"s": vector} for vector in vectors],
    )
    stored = collection.get()["metadatas"]
    assert stored is not None
    assert [row["s"] for row in stored] == vectors
    expected = {}
    weights = {i: np.float64(v) for i, v in zip(query.indices, query.values, strict=True) if v}
    for name, vector in zip(names, vectors, strict=True):
        shared = [(i, v) for i, v in zip(vector.indices, vector.values, strict=True) if i in weights and v]
        if shared:
            expected[name] = 1 - float(sum(weights[i] * v for i, v in shared))
    found = collection.search(Search().rank(Knn(query=query, key="s", limit=100)).select(K.SCORE))
    assert set(found["ids"][0]) == set(expected)
    for name, score in zip(found["ids"][0], found["scores"][0], strict=True):
        if score is not None and abs(score) < 1e30:
            terms = sum(
                abs(weights[i] * v)
                for i, v in zip(vectors[int(name)].indices, vectors[int(name)].values, strict=True)
                if i in weights
            )
            assert abs(score - expected[name]) <= 1e-5 * (1 + float(terms))


def test_labels_are_kept_and_type_is_named(client: ClientAPI, api: Api) -> None:
    collection = made(client)
    vector = SparseVector([1, 9], [0.1, 2.0], labels=["one", "nine"])
    collection.add(
        ids=["a"], embeddings=np.array([[1.0]], np.float32), metadatas=[{"s": vector, "t": vector, "k": "ü"}]
    )
    stored = collection.get()["metadatas"]
    assert stored is not None
    assert stored[0] == {"s": vector, "t": vector, "k": "ü"}
    raw = api("POST", f"{COLLECTIONS}/{collection.id}/get", {})[1]["metadatas"][0]
    wire = {"#type": "sparse_vector", "indices": [1, 9], "values": [0.1, 2.0], "tokens": ["one", "nine"]}
    assert raw == {"s": wire, "t": wire, "k": "ü"}
    schema = client.get_collection("sparse").schema
    assert schema is not None
    discovered = schema.keys["t"].sparse_vector
    assert discovered is not None
    assert discovered.sparse_vector_index is not None
    assert discovered.sparse_vector_index.enabled is False


def test_they_are_no_part_of_filters(client: ClientAPI) -> None:
    collection = made(client)
    collection.add(
        ids=["a", "b"],
        embeddings=np.array([[1.0]] * 2, np.float32),
        metadatas=[{"s": SparseVector([1], [1.0]), "k": 1}, {"k": 1}],
    )
    assert collection.get(where={"k": 1})["ids"] == ["a", "b"]
    assert collection.get(where={"s": "x"})["ids"] == []
    assert collection.get(where=cast("Any", {"s": {"$ne": "x"}}))["ids"] == ["a", "b"]


@pytest.mark.parametrize(
    ("vector", "named"),
    [
        ({"indices": [2, 1], "values": [1, 1]}, "strictly ascending, got 1 after 2 at 1"),
        ({"indices": [1, 1], "values": [1, 1]}, "strictly ascending, got 1 after 1 at 1"),
        ({"indices": [-1], "values": [1]}, "integers from 0 to 4294967295, got -1 at 0"),
        ({"indices": [2**32], "values": [1]}, "got 4294967296 at 0"),
        ({"indices": [1.5], "values": [1]}, "got 1.5 at 0"),
        ({"indices": [True], "values": [1]}, "got True at 0"),
        ({"indices": [1], "values": ["x"]}, "finite numbers (as float32), got 'x' at 0"),
        ({"indices": [1], "values": [1e39]}, "finite numbers (as float32), got 1e+39 at 0"),
        ({"indices": [1], "values": [10**400]}, "finite numbers (as float32), got a huge integer at 0"),
        ({"indices": [10**400], "values": [1]}, "got a huge integer at 0"),
        ({"indices": [1, 2], "values": [1]}, "2 indices but 1 values"),
        ({"indices": 1, "values": [1]}, "indices and values must be lists"),
        ({"indices": [1], "values": [1], "tokens": [1]}, "tokens must be a list of strings"),
        ({"indices": [1], "values": [1], "tokens": []}, "1 indices but 0 tokens"),
        ({"indices": [1], "values": [1], "#type": "dense"}, "#type must be 'sparse_vector', got: 'dense'"),
        ({"indices": list(range(16_001)), "values": [1] * 16_001}, "16001 values; at most 16000"),
    ],
)
def test_what_none_can_be_is_named(api: Api, records: str, vector: Mapping[str, Any], named: str) -> None:
    body = {"ids": ["n"], "embeddings": [[1, 2]], "metadatas": [{"k": 1, "s": vector}]}
    for action in ("add", "upsert", "update"):
        answer = api("POST", f"{records}/{action}", body)
        check(answer, 400, INVALID, "Invalid sparse vector in metadatas[0].s: ")
        check(answer, 400, INVALID, named)


def test_many_entries_are_possible(client: ClientAPI) -> None:
    collection = made(client)
    rng = np.random.default_rng(3)
    indices = np.sort(rng.choice(MAX_INDEX, 16_000, replace=False)).tolist()
    vector = SparseVector(indices, [1.0] * 16_000)
    collection.add(ids=["long"], embeddings=np.array([[1.0]], np.float32), metadatas=[{"s": vector}])
    found = collection.search(Search().rank(Knn(query=vector, key="s")).select(K.SCORE))
    assert found["ids"] == [["long"]]
    assert found["scores"] == [[1 - 16_000]]


def test_a_collections_own_metadata_has_none(api: Api, client: ClientAPI) -> None:
    del client
    vector = {"#type": "sparse_vector", "indices": [1], "values": [1]}
    answer = api("POST", COLLECTIONS, {"name": "own", "metadata": {"s": vector}})
    check(answer, 400, INVALID, "metadata.s: a collection's metadata cannot hold a sparse vector")


@pytest.mark.anyio
async def test_they_are_in_what_is_moved(
    client: ClientAPI, module_database_url: str, server: ServerProcess
) -> None:
    del server
    collection = made(client, "moved")
    vector = SparseVector([5, MAX_INDEX], [0.25, -3.0])
    collection.add(ids=["a"], embeddings=np.array([[1.0]], np.float32), metadatas=[{"s": vector, "f": 2.0}])
    async with await Store.open(module_database_url) as store:
        source = await store.get_collection_by_id(collection.id)
        made_again = await store.create_collection(
            source.tenant, source.database, "again", schema=source.schema, schema_is_settled=True
        )
        async for page in store.iter_records(source):
            async with store.transaction() as connection:
                target = await store.prepare_copy(connection, made_again, 1)
                await store.copy_records(connection, target, page)
    again = client.get_collection("again")
    assert again.get()["metadatas"] == [{"s": vector, "f": 2.0}]
    assert nearest(again, SparseVector([MAX_INDEX], [-1.0])) == ["a"]


@pytest.mark.anyio
async def test_their_tables_are_known_and_go_with_the_collection(
    store: Store, module_database_url: str
) -> None:
    before = await _data_tables(module_database_url)
    schema = {"defaults": {}, "keys": {"s": {"sparse_vector": {"sparse_vector_index": {"enabled": True}}}}}
    await store.create_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "tables", schema=schema)
    made = await store.get_collection(DEFAULT_TENANT, DEFAULT_DATABASE, "tables")
    vector = {"#type": "sparse_vector", "indices": [1], "values": [1.0]}
    await store.add(made.id, RecordBatch(["a"], np.ones((1, 2), np.float32), metadatas=[{"s": vector}]))
    await store.fork(made.id, "tables-fork")
    connection = await Connection.connect(module_database_url)
    async with connection:
        found = await inspection.catalog(connection)
    assert (found.missing_tables, found.stray_tables) == ((), ())
    assert len(await _data_tables(module_database_url) - before) == 6
    for name in ("tables", "tables-fork"):
        await store.delete_collection(DEFAULT_TENANT, DEFAULT_DATABASE, name)
    assert await _data_tables(module_database_url) == before


async def _data_tables(url: str) -> set[str]:
    connection = await Connection.connect(url)
    async with connection:
        cursor = await connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'pgchroma_data'"
        )
        return {name for (name,) in await cursor.fetchall()}
