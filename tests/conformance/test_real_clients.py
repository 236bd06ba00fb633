"""Other clients than chromadb's plain one: each writes, the server is started anew, each reads what it wrote."""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import chromadb
import chromadb.errors
import numpy as np
import pytest
from chromadb.api.types import EmbeddingFunction, Embeddings
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings as LangchainEmbeddings
from llama_index.core.schema import BaseNode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.vector_stores.chroma import ChromaVectorStore

from conformance import npm_client
from support.embedding import embed
from support.server import ServerProcess, running_server
from support.tokens import make_token

# Takes the port of a server and a token for it.
Part = Callable[[int, str], None]
WITH_TOKENS = {"PGCHROMA_AUTH": "token"}
DOG = "A lazy dog sleeps"


class HashedWords(EmbeddingFunction[Any]):
    """An embedding function of the caller's own, which the server only remembers by name."""

    def __init__(self, dimension: int = 384) -> None:
        self._dimension = dimension

    def __call__(self, input: Any) -> Embeddings:  # noqa: A002 - chromadb's name
        return [np.array(embed(text, self._dimension), dtype=np.float32) for text in input]

    @staticmethod
    def name() -> str:
        return "hashed-words"

    def get_config(self) -> dict[str, Any]:
        return {"dimension": self._dimension}

    @staticmethod
    def build_from_config(config: dict[str, Any]) -> "EmbeddingFunction[Any]":
        return HashedWords(**config)


class LangchainWords(LangchainEmbeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [embed(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return embed(text)


def langchain_store(port: int, token: str) -> Chroma:
    return Chroma(
        collection_name="langchain",
        embedding_function=LangchainWords(),
        host="127.0.0.1",
        port=port,
        headers={"Authorization": f"Bearer {token}"},
        collection_configuration={"hnsw": {"space": "cosine"}},
    )


def langchain_write(port: int, token: str) -> None:
    chroma = langchain_store(port, token)
    documents = [
        Document("The quick brown fox jumps", metadata={"animal": "fox", "legs": 4}),
        Document(DOG, metadata={"animal": "dog", "legs": 4, "lazy": True}),
        Document("A bird sings", metadata={"animal": "bird", "legs": 2}),
    ]
    assert chroma.add_documents(documents, ids=["1", "2", "3"]) == ["1", "2", "3"]
    chroma.add_texts(["A fourth text"], metadatas=[{}], ids=["4"])
    ((found, distance),) = chroma.similarity_search_with_score(DOG, k=1)
    assert (found.page_content, found.metadata) == (DOG, {"animal": "dog", "legs": 4, "lazy": True})
    assert distance == pytest.approx(0, abs=1e-5)
    fewer: Any = {"legs": {"$lt": 4}}
    found_fewer = chroma.similarity_search("animal", k=3, filter=fewer)
    assert [document.metadata["animal"] for document in found_fewer] == ["bird"]
    texts = chroma.similarity_search("animal", k=3, where_document={"$contains": "quick"})
    assert [document.id for document in texts] == ["1"]
    chroma.update_document("3", Document("A bird flies", metadata={"animal": "bird", "flies": True}))
    chroma.delete(["4"])


def langchain_read(port: int, token: str) -> None:
    chroma = langchain_store(port, token)
    assert chroma.get()["ids"] == ["1", "2", "3"]
    (bird,) = chroma.get_by_ids(["3"])
    assert (bird.page_content, bird.metadata["flies"]) == ("A bird flies", True)
    diverse = chroma.max_marginal_relevance_search("fox", k=2, fetch_k=3)
    assert len({document.id for document in diverse}) == 2
    retriever = chroma.as_retriever(search_kwargs={"k": 1, "filter": {"lazy": True}})
    assert [document.id for document in retriever.invoke("anything")] == ["2"]
    chroma.delete_collection()


def llama_store(port: int, token: str) -> ChromaVectorStore:
    return ChromaVectorStore.from_params(
        "llama", host="127.0.0.1", port=str(port), headers={"X-Chroma-Token": token}
    )


def llama_node(number: str, text: str, source: str, **metadata: object) -> TextNode:
    made = TextNode(id_=number, text=text, metadata=metadata, embedding=embed(text))
    made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=source)
    return made


def llama_ids(vector_store: ChromaVectorStore, text: str, count: int = 2, **options: Any) -> list[str] | None:
    query = VectorStoreQuery(query_embedding=embed(text), similarity_top_k=count, **options)
    return vector_store.query(query).ids


def llama_write(port: int, token: str) -> None:
    vectors = llama_store(port, token)
    nodes: list[BaseNode] = [
        llama_node("1", "The quick brown fox jumps", "book", animal="fox", legs=4),
        llama_node("2", DOG, "book", animal="dog", legs=4),
        llama_node("3", "A bird sings", "song", animal="bird", legs=2),
    ]
    assert vectors.add(nodes) == ["1", "2", "3"]
    assert llama_ids(vectors, DOG, 1) == ["2"]
    filters = MetadataFilters(
        filters=[
            MetadataFilter(key="legs", value=3, operator=FilterOperator.GT),
            MetadataFilter(key="animal", value="dog", operator=FilterOperator.NE),
        ],
        condition=FilterCondition.AND,
    )
    assert llama_ids(vectors, DOG, 3, filters=filters) == ["1"]
    # It has no update of its own: the same node is deleted and added again.
    vectors.delete_nodes(["2"])
    vectors.add([llama_node("2", "A dog that works", "book", animal="dog", legs=3)])
    vectors.delete("song")


def llama_read(port: int, token: str) -> None:
    vectors = llama_store(port, token)
    nodes = vectors.get_nodes(["1", "2"])
    assert [(found.node_id, found.metadata["legs"]) for found in nodes] == [("1", 4), ("2", 3)]
    assert vectors.get_nodes(["3"]) == []
    assert llama_ids(vectors, "A dog that works", 5) == ["2", "1"]
    found = llama_ids(vectors, "dog", 2, mode=VectorStoreQueryMode.MMR)
    assert found is not None
    assert set(found) == {"1", "2"}
    vectors.clear()


async def asynchronous_write(port: int, token: str) -> None:
    client = await chromadb.AsyncHttpClient(
        host="127.0.0.1", port=port, headers={"Authorization": f"Bearer {token}"}
    )
    made = await client.create_collection("async", embedding_function=HashedWords())
    texts = [f"{word} number {number}" for number in range(40) for word in ("fox", "dog")]
    parts = [range(start, start + 10) for start in range(0, len(texts), 10)]
    await asyncio.gather(
        *(
            made.add(
                ids=[str(n) for n in part],
                documents=[texts[n] for n in part],
                metadatas=[{"n": n} for n in part],
            )
            for part in parts
        )
    )
    found = await asyncio.gather(*(made.query(query_texts=[text], n_results=1) for text in texts[:10]))
    assert [result["ids"] for result in found] == [[[str(n)]] for n in range(10)]
    await made.update(ids=["0"], documents=["changed"])
    above: Any = {"n": {"$gte": 70}}
    await made.delete(where=above)


async def asynchronous_read(port: int, token: str) -> None:
    client = await chromadb.AsyncHttpClient(
        host="127.0.0.1", port=port, headers={"Authorization": f"Bearer {token}"}
    )
    made = await client.get_collection("async", embedding_function=HashedWords())
    assert await made.count() == 70
    assert (await made.get(ids=["0"]))["documents"] == ["changed"]
    assert (await made.query(query_texts=["changed"], n_results=1))["ids"] == [["0"]]


def cloud_client(port: int, token: str) -> Any:
    """It names tenant, database and a token in a header, as against Chroma's own service."""
    return chromadb.CloudClient(
        tenant="default_tenant",
        database="default_database",
        api_key=token,
        cloud_host="127.0.0.1",
        cloud_port=port,
        enable_ssl=False,
    )


def cloud_write(port: int, token: str) -> None:
    made = cloud_client(port, token).create_collection("cloud", embedding_function=HashedWords())
    made.add(ids=["a", "b"], documents=["one fox", "two dogs"])
    made.upsert(ids=["b"], documents=["two cats"])


def cloud_read(port: int, token: str) -> None:
    made = cloud_client(port, token).get_collection("cloud", embedding_function=HashedWords())
    assert made.query(query_texts=["cats"], n_results=1)["documents"] == [["two cats"]]
    assert made.configuration["embedding_function"].get_config() == {"dimension": 384}
    cloud_client(port, token).delete_collection("cloud")
    assert "cloud" not in [entry.name for entry in cloud_client(port, token).list_collections()]


CLIENTS: dict[str, tuple[Part, Part]] = {
    "javascript": (
        lambda port, token: npm_client.round_trip("write", port, token),
        lambda port, token: npm_client.round_trip("read", port, token),
    ),
    "langchain": (langchain_write, langchain_read),
    "llama-index": (llama_write, llama_read),
    "asynchronous": (
        lambda port, token: asyncio.run(asynchronous_write(port, token)),
        lambda port, token: asyncio.run(asynchronous_read(port, token)),
    ),
    "cloud": (cloud_write, cloud_read),
}


@pytest.fixture(scope="module")
def token(module_database_url: str) -> str:
    """A token that may write, which every client sends in its own way; the servers here ask for one."""
    return make_token(module_database_url, "clients", "write")


@pytest.fixture(scope="module")
def written(
    module_database_url: str, token: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Exception]:
    """Let every client write to a server with two workers that ends afterwards; what went wrong, by client."""
    problems: dict[str, Exception] = {}
    with running_server(
        module_database_url, tmp_path_factory.mktemp("first"), workers=2, environment=WITH_TOKENS
    ) as first:
        for name, (write, _) in CLIENTS.items():
            try:
                write(first.port, token)
            except Exception as error:  # noqa: BLE001 - told by the test of that client
                problems[name] = error
    return problems


@pytest.fixture(scope="module")
def restarted(
    written: dict[str, Exception], module_database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A second server over what the clients wrote to the first."""
    with running_server(
        module_database_url, tmp_path_factory.mktemp("second"), workers=2, environment=WITH_TOKENS
    ) as second:
        yield second


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_finds_what_it_wrote_before_a_restart(
    written: dict[str, Exception], restarted: ServerProcess, token: str, name: str
) -> None:
    if name in written:
        raise written[name]
    CLIENTS[name][1](restarted.port, token)


def test_a_client_without_a_token_is_refused(restarted: ServerProcess) -> None:
    with pytest.raises(chromadb.errors.ChromaAuthError):
        chromadb.HttpClient(host="127.0.0.1", port=restarted.port)
    with pytest.raises(AssertionError, match=r"Chroma\w+Error"):
        npm_client.round_trip("write", restarted.port)
