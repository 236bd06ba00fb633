"""Search through Chroma's own client: dense and sparse, fused, filtered, grouped, selected; and what is refused, by name."""

import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import chromadb
import numpy as np
import pytest
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import ReadLevel, Schema, SparseVectorIndexConfig
from chromadb.base_types import SparseVector
from chromadb.errors import InvalidArgumentError
from chromadb.execution.expression import GroupBy, K, Knn, MaxK, MinK, Rank, Rrf, Search, Val
from chromadb.utils.embedding_functions.chroma_bm25_embedding_function import ChromaBm25EmbeddingFunction

from support.api import COLLECTIONS, INVALID, NOWHERE, Api, check
from support.server import ServerProcess

COUNT = 40
DOCUMENTS = [
    f"{('red', 'green', 'blue')[i % 3]} {('fox', 'dog', 'cat', 'owl')[i % 4]} number {'x' * (i % 5 + 1)}"
    for i in range(COUNT)
]
VECTORS = np.random.default_rng(7).standard_normal((COUNT, 8)).astype(np.float32)
QUERY = VECTORS[3] + np.float32(0.25)


@pytest.fixture(params=["l2", "cosine", "ip"])
def space(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def filled(client: ClientAPI, space: str) -> Collection:
    collection = client.create_collection("filled", configuration=cast("Any", {"hnsw": {"space": space}}))
    collection.add(
        ids=[f"id{i}" for i in range(COUNT)],
        embeddings=VECTORS,
        documents=DOCUMENTS,
        metadatas=[
            {"colour": i % 3, "animal": DOCUMENTS[i].split()[1], "size": i % 5 + 0.5} for i in range(COUNT)
        ],
    )
    return collection


@pytest.fixture
def words(client: ClientAPI) -> Collection:
    function = ChromaBm25EmbeddingFunction()
    schema = Schema().create_index(
        key="words", config=SparseVectorIndexConfig(source_key="#document", embedding_function=function)
    )
    collection = client.create_collection("words", schema=schema)
    collection.add(ids=[f"id{i}" for i in range(COUNT)], embeddings=VECTORS, documents=DOCUMENTS)
    return collection


def distances(space: str) -> np.ndarray[Any, Any]:
    if space == "l2":
        return np.asarray(((VECTORS - QUERY) ** 2).sum(axis=1))
    dot = VECTORS @ QUERY
    if space == "ip":
        return np.asarray(1 - dot)
    return np.asarray(1 - dot / np.linalg.norm(VECTORS, axis=1) / np.linalg.norm(QUERY))


def bm25(query: str) -> np.ndarray[Any, Any]:
    function = ChromaBm25EmbeddingFunction()

    def weights(vector: SparseVector) -> dict[int, float]:
        return dict(zip(vector.indices, vector.values, strict=True))

    wanted = weights(function.embed_query([query])[0])
    found = [weights(vector) for vector in function(DOCUMENTS)]
    return np.array([sum(wanted[i] * row[i] for i in wanted.keys() & row.keys()) for row in found])


def ids(positions: Any) -> list[str]:
    return [f"id{i}" for i in positions]


def test_dense(filled: Collection, space: str) -> None:
    found = filled.search(Search().rank(Knn(query=QUERY, limit=12)).select(K.SCORE).limit(5, offset=2))
    expected = distances(space)
    order = np.argsort(expected, kind="stable")[2:7]
    assert found["ids"] == [ids(order)]
    np.testing.assert_allclose(found["scores"][0], expected[order], rtol=1e-4, atol=1e-5)
    assert found["documents"] == found["metadatas"] == found["embeddings"] == [None]


def test_filters_come_before_the_ranking(filled: Collection, space: str) -> None:
    where = (K("colour") == 1) & K("size").is_in([0.5, 2.5]) & K.DOCUMENT.not_contains("owl")
    chosen = [i for i in range(COUNT) if i % 3 == 1 and i % 5 in (0, 2) and "owl" not in DOCUMENTS[i]]
    order = sorted(chosen, key=lambda i: distances(space)[i])
    found = filled.search(Search().where(where).rank(Knn(query=QUERY, limit=3)))
    assert found["ids"] == [ids(order[:3])]
    by_id = filled.search(Search().where(K.ID.is_in(["id5", "id7", "nope"])).rank(Knn(query=QUERY)))
    assert set(by_id["ids"][0]) == {"id5", "id7"}
    without = filled.search(Search().where(K.ID.not_in(ids(range(1, COUNT)))))
    assert without["ids"] == [["id0"]]
    same = filled.search(Search().where((K.ID == "id9") | K.DOCUMENT.regex("^red cat .* x{9}$")))
    assert same["ids"] == [["id9"]]


def test_without_a_rank_in_insertion_order(filled: Collection) -> None:
    found = filled.search(Search().where(K("colour") == 2).limit(3, offset=1).select(K.SCORE, K.DOCUMENT))
    assert found["ids"] == [["id5", "id8", "id11"]]
    assert found["documents"] == [[DOCUMENTS[5], DOCUMENTS[8], DOCUMENTS[11]]]
    assert found["scores"] == [[0, 1, 2]]


def test_what_is_selected(filled: Collection) -> None:
    found = filled.search(
        [
            Search().limit(2).select("colour", "never"),
            Search().limit(2).select("never"),
            Search().limit(1).select_all(),
            Search().where(K("colour") == 99).select_all(),
            Search().limit(1),
        ]
    )
    assert found["metadatas"][:2] == [[{"colour": 0}, {"colour": 1}], [None, None]]
    (row,) = found.rows()[2]
    assert row["id"] == "id0"
    assert row["document"] == DOCUMENTS[0]
    assert row["metadata"] == {"colour": 0, "animal": "fox", "size": 0.5}
    np.testing.assert_array_equal(np.array(row["embedding"], np.float32), VECTORS[0])
    assert (found["ids"][3], found["documents"][3], found["embeddings"][3], found["scores"][3]) == (
        [],
        [],
        [],
        [],
    )
    assert found.rows()[4] == [{"id": "id0"}]
    assert found["select"][0] == ["colour", "never"]


def test_arithmetic(filled: Collection, space: str) -> None:
    knn = Knn(query=QUERY, limit=COUNT)
    expected = distances(space)
    cases: list[tuple[Rank, np.ndarray[Any, Any]]] = [
        (knn * 2 + 1, expected * 2 + 1),
        (1 - knn, 1 - expected),
        (knn / 4, expected / 4),
        (abs(-knn), np.abs(expected)),
        ((knn / 100).exp(), np.exp(expected / 100)),
        ((abs(knn) + 1).log(), np.log(np.abs(expected) + 1)),
        (knn.max(0.5).min(9.0), np.minimum(np.maximum(expected, 0.5), 9.0)),
        (Val(3) * knn - knn, 2 * expected),
    ]
    found = filled.search([Search().rank(rank).select(K.SCORE) for rank, _ in cases])
    for scores, row, (_, wanted) in zip(found["scores"], found["ids"], cases, strict=True):
        assert scores == sorted(scores)
        assert len(row) == COUNT
        positions = [int(name.removeprefix("id")) for name in row]
        np.testing.assert_allclose(scores, wanted[positions], rtol=1e-3, atol=1e-4)


def test_a_default_stands_in_for_what_a_knn_did_not_find(filled: Collection, space: str) -> None:
    first, second = Knn(query=QUERY, limit=3), Knn(query=QUERY, limit=5)
    both = filled.search(Search().rank(first + second))
    assert len(both["ids"][0]) == 3
    filled_up = Search().rank(Knn(query=QUERY, limit=3, default=1000.0) + second).select(K.SCORE)
    found = filled.search(filled_up)
    order = np.argsort(distances(space), kind="stable")[:5]
    assert found["ids"] == [ids(order)]
    np.testing.assert_allclose(found["scores"][0][3:], distances(space)[order[3:]] + 1000, rtol=1e-5)


def test_groups(filled: Collection, space: str) -> None:
    knn = Knn(query=QUERY, limit=COUNT)
    order = np.argsort(distances(space), kind="stable").tolist()
    best = [next(i for i in order if i % 3 == colour) for colour in range(3)]
    found = filled.search(Search().rank(knn).group_by(GroupBy(K("colour"), MinK(K.SCORE, 1))))
    assert found["ids"] == [ids(sorted(best, key=order.index))]
    largest = filled.search(
        Search().rank(knn).group_by(GroupBy([K("colour"), K("animal")], MaxK([K("size"), K.SCORE], 1)))
    )
    groups: dict[tuple[int, str], int] = {}
    for i in range(COUNT):
        key = (i % 3, DOCUMENTS[i].split()[1])
        if key not in groups or (i % 5, distances(space)[i]) > (
            groups[key] % 5,
            distances(space)[groups[key]],
        ):
            groups[key] = i
    assert set(largest["ids"][0]) == set(ids(groups.values()))
    assert largest["ids"][0] == ids(sorted(groups.values(), key=order.index))
    page = filled.search(
        Search().rank(knn).group_by(GroupBy(K("colour"), MinK(K.SCORE, 2))).limit(2, offset=1)
    )
    assert len(page["ids"][0]) == 2


def test_words_by_bm25(words: Collection) -> None:
    scores = bm25("green owl")
    found = words.search(Search().rank(Knn(query="green owl", key="words", limit=COUNT)).select(K.SCORE))
    order = [i for i in np.argsort(-scores, kind="stable") if scores[i] > 0]
    assert found["ids"] == [ids(order)]
    np.testing.assert_allclose(found["scores"][0], 1 - scores[order], rtol=1e-5)
    few = words.search(
        Search()
        .where(K.DOCUMENT.contains("red"))
        .rank(Knn(query="owl", key="words", limit=2, return_rank=True))
        .select(K.SCORE)
    )
    owls = [i for i in range(COUNT) if "red owl" in DOCUMENTS[i]]
    assert few["ids"][0] == ids(sorted(owls, key=lambda i: -bm25("owl")[i])[:2])
    assert few["scores"] == [[0, 1]]


def test_dense_and_words_fused(words: Collection) -> None:
    dense = np.argsort(((VECTORS - QUERY) ** 2).sum(axis=1), kind="stable")[:10].tolist()
    scores = bm25("blue cat")
    sparse = [i for i in np.argsort(-scores, kind="stable").tolist() if scores[i] > 0][:10]
    fused = Rrf(
        [
            Knn(query=QUERY, limit=10, return_rank=True, default=100),
            Knn(query="blue cat", key="words", limit=10, return_rank=True, default=100),
        ],
        k=60,
        weights=[2.0, 1.0],
    )
    found = words.search(Search().rank(fused).limit(8).select(K.SCORE))

    def score(i: int) -> float:
        ranks = [listed.index(i) if i in listed else 100 for listed in (dense, sparse)]
        return -(2 / (60 + ranks[0]) + 1 / (60 + ranks[1]))

    expected = sorted({*dense, *sparse}, key=lambda i: (np.float32(score(i)), i))[:8]
    np.testing.assert_allclose(found["scores"][0], [score(i) for i in expected], rtol=1e-5)
    assert found["ids"] == [ids(expected)]


def test_inverse_document_frequency_where_the_index_says_bm25(client: ClientAPI) -> None:
    schema = Schema().create_index(key="s", config=SparseVectorIndexConfig(bm25=True))
    collection = client.create_collection("weighed", schema=schema)
    vectors = [SparseVector([0, 1], [1.0, 1.0]), SparseVector([0], [1.0]), SparseVector([0, 2], [2.0, 1.0])]
    collection.add(
        ids=["a", "b", "c", "d"],
        embeddings=np.array([[1.0]] * 4, np.float32),
        metadatas=[{"s": vector} for vector in vectors] + [{"other": 1}],
    )
    query = SparseVector([0, 1], [1.0, 1.0])
    found = collection.search(Search().rank(Knn(query=query, key="s")).select(K.SCORE))
    common, rare = np.log((4 - 3 + 0.5) / 3.5 + 1), np.log((4 - 1 + 0.5) / 1.5 + 1)
    assert found["ids"] == [["a", "c", "b"]]
    np.testing.assert_allclose(found["scores"][0], [1 - common - rare, 1 - 2 * common, 1 - common], rtol=1e-5)


def test_every_read_level(filled: Collection) -> None:
    for level in ReadLevel:
        found = filled.search(Search().rank(Knn(query=QUERY, limit=4)), read_level=level)
        assert len(found["ids"][0]) == 4


def test_an_empty_collection_and_none(client: ClientAPI, api: Api) -> None:
    collection = client.create_collection("empty")
    found = collection.search([Search().rank(Knn(query=[1.0, 2.0])), Search().select_all()])
    assert found["ids"] == [[], []]
    assert found["documents"] == [None, []]
    assert api("POST", f"{COLLECTIONS}/{collection.id}/search", {"searches": []})[1]["ids"] == []
    assert api("POST", f"{COLLECTIONS}/{NOWHERE}/search", {"searches": []})[0] == 404
    client.delete_collection("empty")
    with pytest.raises(chromadb.errors.NotFoundError):
        collection.search(Search())


@pytest.mark.parametrize(
    ("search", "named"),
    [
        (Search().rank(Knn(query=[1.0, 2.0])), "expecting embedding with dimension of 8, got 2"),
        (Search().rank(Knn(query=SparseVector([1], [1.0]), key="nope")), "'nope' with type 'SparseVector'"),
        (Search().where(K("colour") > "x"), "$gt"),
        (Search().where(K.DOCUMENT.regex("(")), "regex"),
        (Search().where(K.ID == 5), "#id"),
        (Search().where(K.SCORE > 1), "cannot filter by #score"),
        (Search().rank(Knn(query=[1.0] * 8, limit=100_001)), "PGCHROMA_MAX_RESULTS"),
        (Search().limit(100_001), "PGCHROMA_MAX_RESULTS"),
    ],
)
@pytest.mark.parametrize("space", ["l2"], indirect=True)
def test_refusals_name_the_thing(filled: Collection, search: Search, named: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        filled.search(search)
    assert named in str(caught.value)


def test_disabled_indexes_are_refused(client: ClientAPI, api: Api) -> None:
    off = {"string": {"string_inverted_index": {"enabled": False, "config": {}}}}
    schema = {
        "defaults": {},
        "keys": {"k": off, "s": {"sparse_vector": {"sparse_vector_index": {"enabled": False, "config": {}}}}},
    }
    status, made, _ = api("POST", COLLECTIONS, {"name": "disabled", "schema": schema})
    assert status == 200
    path = f"{COLLECTIONS}/{made['id']}/search"
    sparse = {"#type": "sparse_vector", "indices": [1], "values": [1]}
    check(
        api("POST", path, {"searches": [{"filter": {"k": "x"}}]}),
        400,
        INVALID,
        "metadata key 'k' with type 'Str'",
    )
    rank = {"$knn": {"query": sparse, "key": "s"}}
    check(
        api("POST", path, {"searches": [{"rank": rank}]}),
        400,
        INVALID,
        "metadata key 's' with type 'SparseVector'",
    )


# Chroma's default function would have to download its model.
_PRELUDE = """
import sys
import chromadb, numpy
from chromadb.api.types import DefaultEmbeddingFunction
def letters(self, input):
    return [numpy.array([text.count(letter) + 0.5 for letter in "aeiou"], numpy.float32) for text in input]
DefaultEmbeddingFunction.__call__ = letters
client = chromadb.HttpClient(host="127.0.0.1", port=int(sys.argv[1]))
"""


def test_the_example_in_the_documentation(client: ClientAPI, server: ServerProcess) -> None:
    page = (Path(__file__).parents[2] / "docs/SEARCH.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    start = code.index("notes.search(")
    program = f"{_PRELUDE}{code[:start]}\n(found,) = {code[start:]}\nprint(*(row['document'] for row in found), sep='|')"
    command = [sys.executable, "-c", program, str(server.port)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.strip().split("|")) == {"the quick brown fox", "a lazy dog"}
    assert client.get_collection("notes").count() == 2
