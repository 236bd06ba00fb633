"""What an application notices through Chroma's own client, at a server with two workers."""

import uuid
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.config import Settings
from chromadb.errors import InvalidArgumentError, NotFoundError

from support.server import ServerProcess

DOCUMENTS = ["the quick fox", "a lazy dog", "", "100% of a_b\\c 'quoted'"]
METADATAS: list[Any] = [{"n": 1, "s": "x"}, {"n": 2.5, "t": True}, None, {"tags": ["a", "b"], "n": -(2**63)}]
EMBEDDINGS = np.array([[1.0, 2.0], [3.0, -4.0], [0.0, 0.0], [-1.0, -2.0]], dtype=np.float32)
IDS = ["a", "b", "c", "d"]


def vectors(rows: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float32)


@pytest.fixture
def collection(client: ClientAPI) -> chromadb.Collection:
    made = client.create_collection("records", embedding_function=None)
    made.add(ids=IDS, embeddings=EMBEDDINGS, documents=DOCUMENTS, metadatas=METADATAS)
    return made


def test_tenants_and_databases_keep_collections_apart(client: ClientAPI, server: ServerProcess) -> None:
    admin = chromadb.AdminClient(
        Settings(
            chroma_api_impl="chromadb.api.fastapi.FastAPI",
            chroma_server_host="127.0.0.1",
            chroma_server_http_port=server.port,
        )
    )
    admin.create_tenant("acme")
    admin.create_database("one", "acme")
    admin.create_database("two", "acme")
    assert admin.get_tenant("acme")["name"] == "acme"
    assert [entry["name"] for entry in admin.list_databases(tenant="acme")] == ["one", "two"]
    one = chromadb.HttpClient(host="127.0.0.1", port=server.port, tenant="acme", database="one")
    two = chromadb.HttpClient(host="127.0.0.1", port=server.port, tenant="acme", database="two")
    one.create_collection("same", embedding_function=None).add(ids=["x"], embeddings=vectors([[1.0]]))
    two.create_collection("same", embedding_function=None)
    assert two.get_collection("same", embedding_function=None).count() == 0
    assert client.list_collections() == []
    admin.delete_database("one", "acme")
    with pytest.raises(NotFoundError):
        admin.get_database("one", "acme")
    with pytest.raises(NotFoundError):
        one.get_collection("same", embedding_function=None)
    with pytest.raises(NotFoundError):
        admin.get_tenant("nobody")


def test_collections_are_created_listed_renamed_and_deleted(client: ClientAPI) -> None:
    made = client.create_collection(
        "first",
        metadata={"owner": "me"},
        configuration={"hnsw": {"space": "cosine", "ef_search": 50}},
        embedding_function=None,
    )
    assert made.configuration["hnsw"]["space"] == "cosine"  # type: ignore[index]
    with pytest.raises(Exception, match=r"Collection \[first\] already exists"):
        client.create_collection("first", embedding_function=None)
    same = client.get_or_create_collection("first", metadata={"other": 1}, embedding_function=None)
    assert same.id == made.id
    assert same.metadata == {"owner": "me"}
    made.modify(name="second", metadata={"new": 1}, configuration={"hnsw": {"ef_search": 70}})
    found = client.get_collection("second", embedding_function=None)
    assert found.metadata == {"new": 1}
    assert found.configuration["hnsw"]["ef_search"] == 70  # type: ignore[index]
    client.create_collection("third", embedding_function=None)
    assert client.count_collections() == 2
    assert [entry.name for entry in client.list_collections(limit=1, offset=1)] == ["third"]
    client.delete_collection("second")
    with pytest.raises(NotFoundError, match="second"):
        client.get_collection("second", embedding_function=None)


def test_get_returns_what_was_added_in_that_order(collection: chromadb.Collection) -> None:
    found = collection.get(include=["embeddings", "documents", "metadatas"])
    assert found["ids"] == IDS
    assert found["documents"] == DOCUMENTS
    assert found["metadatas"] == METADATAS
    np.testing.assert_array_equal(found["embeddings"], EMBEDDINGS)
    assert collection.count() == 4
    assert collection.get(limit=2, offset=1)["ids"] == ["b", "c"]
    assert collection.get(ids=["d", "a", "nobody"])["ids"] == ["a", "d"]


def test_embeddings_come_back_bit_for_bit(client: ClientAPI) -> None:
    made = client.create_collection("exact", embedding_function=None)
    random = np.random.default_rng(7)
    bits = random.integers(0, 2**32, size=(200, 16), dtype=np.uint32).view(np.float32)
    matrix = np.where(np.isfinite(bits), bits, np.float32(0.1))
    matrix[0, :4] = [np.finfo(np.float32).tiny / 4, -0.0, 3.4028235e38, 1.1754944e-38]
    made.add(ids=[str(number) for number in range(200)], embeddings=matrix)
    found = made.get(include=["embeddings"])["embeddings"]
    np.testing.assert_array_equal(np.asarray(found, dtype=np.float32).view(np.uint32), matrix.view(np.uint32))


def test_upsert_and_update_merge(collection: chromadb.Collection) -> None:
    collection.upsert(
        ids=["a", "e"], embeddings=vectors([[9.0, 9.0], [5.0, 5.0]]), metadatas=[{"s": "y"}, {"k": 1}]
    )
    # Documents alone would make the client ask its default model for embeddings.
    collection.update(ids=["b", "nobody"], embeddings=EMBEDDINGS[1:3], documents=["changed", "ignored"])
    collection.update(ids=["a"], metadatas=[{"n": None}])
    found = collection.get(ids=["a", "b", "e", "nobody"], include=["embeddings", "documents", "metadatas"])
    assert found["ids"] == ["a", "b", "e"]
    assert found["documents"] == ["the quick fox", "changed", None]
    assert found["metadatas"] == [{"s": "y"}, METADATAS[1], {"k": 1}]
    np.testing.assert_array_equal(found["embeddings"], [[9.0, 9.0], EMBEDDINGS[1], [5.0, 5.0]])


def test_add_leaves_an_existing_record_alone(collection: chromadb.Collection) -> None:
    collection.add(ids=["a", "z"], embeddings=vectors([[7.0, 7.0], [8.0, 8.0]]), documents=["new", "z"])
    assert collection.get(ids=["a", "z"])["documents"] == ["the quick fox", "z"]
    assert collection.count() == 5


@pytest.mark.parametrize(
    ("space", "order", "distances"),
    [
        ("l2", ["a", "c", "d", "b"], [0.0, 5.0, 20.0, 40.0]),
        ("cosine", ["a", "c", "b", "d"], [0.0, 1.0, 1.4472136, 2.0]),
        ("ip", ["a", "c", "b", "d"], [-4.0, 1.0, 6.0, 6.0]),
    ],
)
def test_query_orders_by_distance(
    client: ClientAPI, space: str, order: list[str], distances: list[float]
) -> None:
    made = client.create_collection(
        f"d-{space}",
        configuration={"hnsw": {"space": space}},  # type: ignore[arg-type]
        embedding_function=None,
    )
    made.add(ids=IDS, embeddings=EMBEDDINGS, documents=DOCUMENTS, metadatas=METADATAS)
    found = made.query(
        query_embeddings=vectors([[1.0, 2.0]]), n_results=4, include=["distances", "documents"]
    )
    assert found["ids"] == [order]
    assert found["distances"] is not None
    np.testing.assert_allclose(found["distances"][0], distances, atol=1e-6)
    assert found["documents"] == [[DOCUMENTS[IDS.index(name)] for name in order]]
    assert made.query(query_embeddings=vectors([[1.0, 2.0], [3.0, -4.0]]), n_results=1)["ids"] == [
        ["a"],
        ["b"],
    ]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"n": 1}, ["a"]),
        ({"n": {"$gt": 1}}, ["b"]),
        ({"n": {"$ne": 1}}, ["b", "c", "d"]),
        ({"t": True}, ["b"]),
        ({"tags": {"$contains": "a"}}, ["d"]),
        ({"$or": [{"s": "x"}, {"n": {"$lt": 0}}]}, ["a", "d"]),
        ({"$and": [{"n": {"$in": [1.0, 2.5]}}, {"s": {"$nin": ["x"]}}]}, ["b"]),
    ],
)
def test_where_selects(collection: chromadb.Collection, where: Any, expected: list[str]) -> None:
    assert collection.get(where=where)["ids"] == expected
    found = collection.query(query_embeddings=vectors([[1.0, 2.0]]), n_results=10, where=where)
    assert sorted(found["ids"][0]) == expected


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ({"$contains": "quick"}, ["a"]),
        ({"$contains": "%"}, ["d"]),
        ({"$contains": "a_b\\c 'q"}, ["d"]),
        ({"$not_contains": "lazy"}, ["a", "c", "d"]),
        ({"$regex": r"^a \w+ dog$"}, ["b"]),
        ({"$or": [{"$contains": "fox"}, {"$contains": "dog"}]}, ["a", "b"]),
    ],
)
def test_where_document_selects(collection: chromadb.Collection, clause: Any, expected: list[str]) -> None:
    assert collection.get(where_document=clause)["ids"] == expected


def test_delete_by_ids_and_by_filters(collection: chromadb.Collection) -> None:
    collection.delete(ids=["a", "nobody"])
    collection.delete(where={"t": True})
    collection.delete(where_document={"$contains": "100%"})
    assert collection.get()["ids"] == ["c"]


def test_any_text_survives(client: ClientAPI) -> None:
    made = client.create_collection("text", embedding_function=None)
    texts = [
        "nul \x00 inside",
        "tab\tnew\nline",
        "Ünïcödé ≠ ASCII 🦊",
        '"quoted" {json} \\u0041',
        "\ufdd0\ufffe",
    ]
    made.add(
        ids=texts,
        embeddings=vectors([[1.0]] * len(texts)),
        documents=texts,
        metadatas=[{text: text} for text in texts],
    )
    found = made.get()
    assert found["ids"] == texts
    assert found["documents"] == texts
    assert found["metadatas"] == [{text: text} for text in texts]


def test_mistakes_are_named(collection: chromadb.Collection, client: ClientAPI) -> None:
    with pytest.raises(InvalidArgumentError, match="dimension of 2, got 3"):
        collection.query(query_embeddings=vectors([[1.0, 2.0, 3.0]]))
    with pytest.raises(InvalidArgumentError, match="dimension of 2, got 1"):
        collection.add(ids=["n"], embeddings=vectors([[1.0]]))
    with pytest.raises(InvalidArgumentError, match="inf"):
        collection.add(ids=["n"], embeddings=vectors([[1e39, 0.0]]))
    with pytest.raises(InvalidArgumentError, match=r"[Rr]egex"):
        collection.get(where_document={"$regex": "(?=x)"})
    client.delete_collection("records")
    with pytest.raises(NotFoundError, match=str(collection.id)):
        collection.count()


def test_both_workers_answer_and_see_the_same(client: ClientAPI, server: ServerProcess) -> None:
    made = client.create_collection("shared", embedding_function=None)
    identifiers = [uuid.uuid4().hex for _ in range(20)]
    for identifier in identifiers:
        # A client of its own, so that connections spread over the workers.
        other = chromadb.HttpClient(host="127.0.0.1", port=server.port)
        found = other.get_collection("shared", embedding_function=None)
        found.upsert(ids=[identifier], embeddings=vectors([[1.0, 1.0]]))
        assert found.get(ids=[identifier])["ids"] == [identifier]
    assert made.count() == 20
    seen = {
        line.split(b'"process":')[1].split(b",")[0]
        for line in server.log.read_bytes().splitlines()
        if b'"request"' in line
    }
    assert len(seen) == 2


def test_a_large_batch_takes_one_request(client: ClientAPI) -> None:
    assert client.get_max_batch_size() >= 100_000
    made = client.create_collection("large", embedding_function=None)
    count = client.get_max_batch_size()
    made.add(ids=[str(number) for number in range(count)], embeddings=np.ones((count, 8), dtype=np.float32))
    assert made.count() == count


def test_pages_show_what_was_written_since_the_page_before(client: ClientAPI) -> None:
    """Though the server reads the next page ahead."""
    made = client.create_collection("pages", embedding_function=None)
    ids = [f"{number:04}" for number in range(4_500)]
    embeddings = np.random.default_rng(1).standard_normal((len(ids), 8)).astype(np.float32)
    made.add(ids=ids, embeddings=embeddings, metadatas=[{"is": record_id} for record_id in ids])
    for turn in range(3):
        seen: list[str] = []
        values: list[Any] = []
        found = []
        for offset in range(0, 5_000, 1_000):
            page = made.get(limit=1_000, offset=offset, include=["metadatas", "embeddings"])
            seen += page["ids"]
            values += [metadata["is"] for metadata in page["metadatas"] or []]
            found.append(np.asarray(page["embeddings"], np.float32).reshape(-1, 8))
            if turn == 1:
                # Neither the order nor the page that a record is on changes.
                made.update(
                    ids=[ids[offset + 1_000]] if offset < 3_000 else [ids[0]],
                    metadatas=[{"is": f"new {offset}"}],
                )
        assert seen == ids
        assert np.array_equal(np.concatenate(found), embeddings)
        if turn:
            assert [values[offset + 1_000] for offset in range(0, 3_000, 1_000)] == [
                f"new {offset}" for offset in range(0, 3_000, 1_000)
            ]
    made.delete(ids=ids[:1_000])
    made.get(limit=1_000, offset=0)
    made.delete(ids=ids[1_000:2_000])
    assert made.get(limit=1_000, offset=1_000)["ids"] == ids[3_000:4_000]
    made.get(limit=1_000, offset=0)
    client.delete_collection("pages")
    with pytest.raises(NotFoundError):
        made.get(limit=1_000, offset=1_000)
