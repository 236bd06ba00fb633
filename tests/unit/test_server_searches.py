"""Search requests: what the client sends is understood, what cannot be is refused by name."""

from typing import Any

import msgspec
import numpy as np
import pytest
from chromadb.base_types import SparseVector
from chromadb.execution.expression import GroupBy, K, Knn, MaxK, MinK, Search
from hypothesis import given
from hypothesis import strategies as st

from pgchroma import ranking
from pgchroma.ranking import Aggregate, Operation
from pgchroma.ranking import GroupBy as Groups
from pgchroma.ranking import Knn as Nearest
from pgchroma.ranking import Search as Wanted
from pgchroma.server import searches
from pgchroma.server.http import HttpError
from pgchroma.server.payloads import Decoder

_decoder: Decoder[searches.SearchPayload] = Decoder(searches.SearchPayload)


def parse(*items: dict[str, Any]) -> list[Wanted]:
    return searches.parse(_decoder.decode(msgspec.json.encode({"searches": list(items)})))


def rank(value: object) -> dict[str, Any]:
    return {"rank": value}


def knn(**members: object) -> dict[str, Any]:
    return rank({"$knn": {"query": [1, 2], **members}})


def sparse(**members: object) -> dict[str, Any]:
    vector = {"#type": "sparse_vector", "indices": [1, 5], "values": [0.5, 1], **members}
    return knn(query=vector, key="s")


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"$val": 1}
    for _ in range(depth):
        value = {"$abs": value}
    return rank(value)


def test_what_the_client_writes() -> None:
    asked = (
        Search()
        .where((K("topic") == "x") & K.ID.is_in(["a"]))
        .rank(Knn(query=[1.0, 2.0], limit=7) * 0.5 + Knn(query=SparseVector([3], [1.0]), key="s", default=9))
        .group_by(GroupBy(keys=K("topic"), aggregate=MinK(keys=[K("year"), K.SCORE], k=2)))
        .limit(3, offset=1)
        .select(K.DOCUMENT, "title")
    )
    (found,) = parse(asked.to_dict())
    assert found.where == {"$and": [{"topic": {"$eq": "x"}}, {"#id": {"$in": ["a"]}}]}
    assert (found.limit, found.offset, set(found.select)) == (3, 1, {"#document", "title"})
    assert found.group_by == Groups(("topic",), Aggregate(("year", "#score"), 2, largest=False))
    assert isinstance(found.rank, Operation)
    assert found.rank.name == "sum"
    product, second = found.rank.operands
    assert isinstance(product, Operation)
    first = product.operands[0]
    assert isinstance(first, Nearest)
    assert isinstance(second, Nearest)
    assert isinstance(first.query, np.ndarray)
    assert (first.query.tolist(), first.limit, first.key) == ([1, 2], 7, "#embedding")
    assert (second.key, second.limit, second.default) == ("s", 16, 9)


def test_an_empty_search_asks_for_everything() -> None:
    assert parse(Search().to_dict()) == [Wanted()]
    assert parse({}, {"filter": {}, "group_by": {}, "limit": None}) == [Wanted()] * 2
    assert parse() == []


@pytest.mark.parametrize(
    ("item", "named"),
    [
        (rank(3), "searches[0].rank: expected an object"),
        (rank({}), "exactly one operator"),
        (rank({"$val": 1, "$abs": {"$val": 1}}), "exactly one operator"),
        (rank({"$pow": {"$val": 1}}), "rank.$pow: unknown rank operator"),
        (rank({"val": 1}), "rank.val: unknown rank operator"),
        (rank({"$val": "1"}), "rank.$val: expected a number"),
        (rank({"$val": True}), "rank.$val: expected a number"),
        (rank({"$val": None}), "rank.$val: expected a number"),
        (rank({"$val": 1e39}), "rank.$val: not a finite number"),
        (rank({"$sum": []}), "rank.$sum: expected a list of ranks"),
        (rank({"$sum": {"$val": 1}}), "rank.$sum: expected a list of ranks"),
        (rank({"$mul": [{"$val": 1}, 2]}), "rank.$mul[1]: expected an object"),
        (rank({"$div": {"left": {"$val": 1}}}), "rank.$div: expected an object with left and right"),
        (rank({"$sub": {"left": {"$val": 1}, "right": {"$knn": 1}}}), "rank.$sub.right.$knn"),
        (nested(searches.MAX_DEPTH + 1), f"more than {searches.MAX_DEPTH} levels"),
        (rank({"$sum": [{"$val": 1}] * searches.MAX_TERMS}), f"more than {searches.MAX_TERMS} terms"),
        (rank({"$sum": [knn()["rank"]] * (searches.MAX_KNNS + 1)}), f"more than {searches.MAX_KNNS} $knn"),
        (knn(limit=0), "$knn.limit"),
        (knn(limit=-1), "$knn.limit"),
        (knn(limit=1.5), "$knn.limit"),
        (knn(limit=2**32), "$knn.limit"),
        (knn(key=5), "$knn.key: expected a string"),
        (knn(key="other"), "no dense vectors under 'other'"),
        (knn(default="x"), "$knn.default: expected a number"),
        (knn(return_rank=1), "$knn.return_rank: expected a boolean"),
        (knn(ef=5), "unknown member 'ef'"),
        (knn(query="text"), "$knn.query: a string"),
        (knn(query=None), "$knn.query: expected a dense or a sparse vector"),
        (knn(query=[]), "at least 1 dimension"),
        (knn(query=[1, "x"]), "$knn.query[1]: expected a number"),
        (knn(query=[1, 1e39]), "$knn.query[1]: not a finite number"),
        (knn(query={"indices": [], "values": []}), "a sparse vector, but #embedding holds dense ones"),
        (sparse(indices=[5, 1]), "strictly ascending"),
        (sparse(indices=[1, 1]), "strictly ascending"),
        (sparse(indices=[-1, 1]), "integers from 0"),
        (sparse(indices=[1, 2**32]), "integers from 0"),
        (sparse(values=[1]), "2 indices but 1 values"),
        (sparse(values=[1, 1e39]), "finite numbers"),
        (sparse(tokens=["a"]), "2 indices but 1 tokens"),
        (sparse(**{"#type": "dense"}), "#type must be 'sparse_vector'"),
        (sparse(indices=list(range(16_001)), values=[1] * 16_001), "at most 16000"),
        ({"filter": 3}, "searches[0].filter: expected an object"),
        ({"filter": {"$and": [{"#score": {"$gt": 1}}]}}, "cannot filter by #score"),
        ({"filter": {"#embedding": {"$eq": 1}}}, "cannot filter by #embedding"),
        ({"select": {"keys": ["#nope"]}}, "select.keys: unknown key '#nope'"),
        ({"select": {"keys": [""]}}, "select.keys: unknown key ''"),
        ({"group_by": {"keys": ["a"], "aggregate": {"$min_k": {"keys": ["b"], "k": 1}}}}, "needs a rank"),
        (knn() | {"group_by": {"keys": ["a"]}}, "group_by: expected an object with keys and aggregate"),
    ],
)
def test_what_cannot_be_is_named(item: dict[str, Any], named: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse(item)
    assert caught.value.status == 400
    assert named in caught.value.message


@pytest.mark.parametrize(
    ("keys", "aggregate", "named"),
    [
        ([], {"$min_k": {"keys": ["b"], "k": 1}}, "group_by.keys: expected a list"),
        (["#score"], {"$min_k": {"keys": ["b"], "k": 1}}, "'#score' is not the key"),
        (["a"], {"$sum": {"keys": ["b"], "k": 1}}, "unknown operator '$sum'"),
        (["a"], {"$max_k": {"keys": ["b"], "k": 0}}, "$max_k.k"),
        (["a"], {"$max_k": {"keys": ["#document"], "k": 1}}, "'#document' is not the key"),
        (["a"], {"$max_k": {"keys": ["b"]}}, "$max_k: expected an object with keys and k"),
        (["a"], {}, "expected an object with $min_k or $max_k"),
    ],
)
def test_groups_that_cannot_be(keys: list[str], aggregate: dict[str, Any], named: str) -> None:
    with pytest.raises(HttpError) as caught:
        parse(knn() | {"group_by": {"keys": keys, "aggregate": aggregate}})
    assert caught.value.status == 400
    assert named in caught.value.message


def test_both_aggregates() -> None:
    for aggregate, largest in ((MinK(K.SCORE, 3), False), (MaxK(K.SCORE, 3), True)):
        asked = Search().rank(Knn(query=[1.0])).group_by(GroupBy(K("a"), aggregate))
        (found,) = parse(asked.to_dict())
        assert found.group_by == Groups(("a",), Aggregate(("#score",), 3, largest=largest))


@pytest.mark.parametrize(
    "body",
    [
        b'{"searches": [{"limit": {"limit": -1}}]}',
        b'{"searches": [{"limit": {"offset": -1}}]}',
        b'{"searches": [{"limit": 5}]}',
        b'{"searches": [{"select": ["#document"]}]}',
        b'{"searches": [], "read_level": "all"}',
        b'{"searches": {}}',
        b"{}",
    ],
)
def test_another_shape_is_unprocessable(body: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        _decoder.decode(body)
    assert caught.value.status == 422


def test_a_bomb_is_no_json() -> None:
    depth = 100_000
    with pytest.raises(HttpError) as caught:
        _decoder.decode(b'{"searches":[{"rank":' + b'{"$abs":' * depth + b"1" + b"}" * depth + b"}]}")
    assert caught.value.status == 400


def test_too_many_searches_are_refused() -> None:
    with pytest.raises(HttpError, match=f"at most {searches.MAX_SEARCHES}"):
        parse(*[{}] * (searches.MAX_SEARCHES + 1))


WORDS = st.sampled_from(
    ["$knn", "$val", "$sum", "$mul", "$max", "$min", "$sub", "$div", "$abs", "$exp", "$log", "left", "right", "query", "key",
     "limit", "offset", "default", "return_rank", "keys", "aggregate", "$min_k", "$max_k", "k", "#score", "#embedding", "indices",
     "values", "tokens", "#type", "$and", "#id", "s"]
)  # fmt: skip
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | WORDS
    | st.just("sparse_vector")
    | st.sampled_from([400, 5000]).map(lambda digits: 10**digits)
)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=12,
)


@given(JSON, JSON, JSON, st.lists(WORDS, max_size=3))
def test_whatever_is_sent_is_understood_or_refused(
    where: object, expression: object, group_by: object, keys: list[str]
) -> None:
    select = searches.SelectPayload(keys)
    for item in (
        searches.SearchItem(filter=where),
        searches.SearchItem(rank=expression, select=select),
        searches.SearchItem(rank={"$knn": expression}),
        searches.SearchItem(rank={"$knn": {"query": expression}}),
        searches.SearchItem(rank={"$knn": {"query": {"indices": [1], "values": expression}, "key": "s"}}),
        searches.SearchItem(rank={"$knn": {"query": {"indices": expression, "values": [1]}, "key": "s"}}),
        searches.SearchItem(rank={"$val": 1}, group_by=group_by),
        searches.SearchItem(rank={"$val": 1}, group_by={"keys": ["a"], "aggregate": group_by}),
    ):
        found, refusal = None, None
        try:
            (found,) = searches.parse(searches.SearchPayload([item]))
        except HttpError as error:
            refusal = error
        assert refusal is None or (refusal.status == 400 and len(refusal.message) < 500)
        if found is not None and found.rank is not None:
            nothing = (np.empty(0, np.int64), np.empty(0, np.float32))
            ranking.evaluate(found.rank, [nothing] * len(ranking.knns(found.rank)))
