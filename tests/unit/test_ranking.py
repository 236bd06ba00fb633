"""Rank expressions, as the chromadb client writes them, against a model that knows nothing but dictionaries."""

import math
from typing import Any

import numpy as np
import pytest
from chromadb.execution.expression import Knn as ClientKnn
from chromadb.execution.expression import Rank, Rrf, Val
from chromadb.execution.expression import operator as client
from hypothesis import given
from hypothesis import strategies as st

from pgchroma import ranking
from pgchroma.ranking import Aggregate, GroupBy
from pgchroma.server import searches

Result = list[tuple[int, float]]

SEQS = st.integers(1, 12)
NUMBERS = st.floats(-8, 8, width=32).filter(lambda value: abs(value) > 1e-3)
RESULTS = st.lists(st.tuples(SEQS, NUMBERS), max_size=8, unique_by=lambda pair: pair[0]).map(
    lambda pairs: sorted(pairs, key=lambda pair: (pair[1], pair[0]))
)
KNNS = st.builds(
    ClientKnn,
    query=st.just([1.0, 2.0]),
    default=st.none() | NUMBERS,
    return_rank=st.booleans(),
    limit=st.integers(1, 50),
)
RANKS = st.recursive(
    KNNS | st.builds(Val, NUMBERS),
    lambda ranks: st.one_of(
        st.builds(lambda left, right: left + right, ranks, ranks),
        st.builds(lambda left, right: left - right, ranks, ranks),
        st.builds(lambda left, right: left * right, ranks, ranks),
        st.builds(lambda left, right: left / right, ranks, ranks),
        st.builds(lambda left, right: left.max(right), ranks, ranks),
        st.builds(lambda left, right: left.min(right), ranks, ranks),
        st.builds(abs, ranks),
        st.builds(lambda rank: -rank, ranks),
        st.builds(lambda rank: rank.exp(), ranks),
        st.builds(lambda rank: rank.log(), ranks),
    ),
    max_leaves=6,
)


def parsed(rank: Rank | dict[str, Any]) -> ranking.Expression:
    wire = rank if isinstance(rank, dict) else rank.to_dict()
    (found,) = searches.parse(searches.SearchPayload([searches.SearchItem(rank=wire)]))
    assert found.rank is not None
    return found.rank


def leaves(rank: Rank) -> list[ClientKnn]:
    if isinstance(rank, ClientKnn):
        return [rank]
    if isinstance(rank, client.Div | client.Sub):
        return leaves(rank.left) + leaves(rank.right)
    if isinstance(rank, client.Abs | client.Exp | client.Log):
        return leaves(rank.rank)
    if isinstance(rank, client.Sum | client.Mul | client.Max | client.Min):
        return [leaf for part in rank.ranks for leaf in leaves(part)]
    return []


_TWO = {
    client.Sum: np.add,
    client.Mul: np.multiply,
    client.Sub: np.subtract,
    client.Div: np.divide,
    client.Max: np.fmax,
    client.Min: np.fmin,
}
_ONE = {client.Abs: np.abs, client.Exp: np.exp, client.Log: np.log}


def model(rank: Rank, results: dict[int, Result]) -> tuple[dict[int, np.float32], np.float32 | None]:
    """Return the values that a rank has for single records, and the one it has for all others."""
    if isinstance(rank, Val):
        return {}, np.float32(rank.value)
    if isinstance(rank, ClientKnn):
        found = results[id(rank)]
        values = {
            seq: np.float32(place if rank.return_rank else value) for place, (seq, value) in enumerate(found)
        }
        return values, None if rank.default is None else np.float32(rank.default)
    if type(rank) in _ONE:
        function = _ONE[type(rank)]
        values, default = model(rank.rank, results)  # type: ignore[attr-defined]
        return {seq: function(value) for seq, value in values.items()}, None if default is None else function(
            default
        )
    parts = [rank.left, rank.right] if hasattr(rank, "left") else rank.ranks  # type: ignore[attr-defined]
    values, default = model(parts[0], results)
    for part in parts[1:]:
        more, other = model(part, results)
        merged = {}
        for seq in values.keys() | more.keys():
            left, right = values.get(seq, default), more.get(seq, other)
            if left is not None and right is not None:
                merged[seq] = _TWO[type(rank)](left, right)
        default = None if default is None or other is None else _TWO[type(rank)](default, other)
        values = merged
    return values, default


@given(st.data(), RANKS)
def test_any_expression_comes_to_what_the_model_says(data: st.DataObject, rank: Rank) -> None:
    expression = parsed(rank)
    wanted = leaves(rank)
    results = [data.draw(RESULTS) for _ in wanted]
    arrays = [
        (np.array([seq for seq, _ in found], np.int64), np.array([value for _, value in found], np.float32))
        for found in results
    ]
    assert len(ranking.knns(expression)) == len(wanted)
    seqs, scores = ranking.evaluate(expression, arrays)
    with np.errstate(all="ignore"):
        expected, _ = model(rank, {id(leaf): found for leaf, found in zip(wanted, results, strict=True)})
    order = sorted(expected, key=lambda seq: (math.isnan(expected[seq]), expected[seq], seq))
    numbers = [seq for seq in order if not math.isnan(expected[seq])]
    assert seqs.tolist()[: len(numbers)] == numbers
    assert set(seqs.tolist()) == set(order)
    np.testing.assert_array_equal(scores, np.array([expected[seq] for seq in seqs.tolist()], np.float32))


@given(
    st.lists(RESULTS, min_size=1, max_size=4),
    st.integers(1, 100),
    st.booleans(),
    st.data(),
)
def test_reciprocal_rank_fusion(results: list[Result], k: int, normalize: bool, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(0.125, 4, width=32), min_size=len(results), max_size=len(results)))
    ranks: list[Rank] = [ClientKnn(query=[1.0], return_rank=True, default=1000.0) for _ in results]
    expression = parsed(Rrf(ranks, k=k, weights=weights, normalize=normalize))
    arrays = [
        (np.array([seq for seq, _ in found], np.int64), np.array([value for _, value in found], np.float32))
        for found in results
    ]
    seqs, scores = ranking.evaluate(expression, arrays)
    total = sum(weights) if normalize else 1.0
    expected = {}
    for seq in {seq for found in results for seq, _ in found}:
        places = [next((i for i, (other, _) in enumerate(found) if other == seq), 1000) for found in results]
        expected[seq] = -sum(
            weight / total / (k + place) for weight, place in zip(weights, places, strict=True)
        )
    assert set(seqs.tolist()) == set(expected)
    assert scores.tolist() == sorted(scores.tolist())
    np.testing.assert_allclose(scores, [expected[seq] for seq in seqs.tolist()], rtol=1e-5)


def test_without_defaults_only_what_all_have_remains() -> None:
    two = parsed(ClientKnn(query=[1.0]) + ClientKnn(query=[1.0]))
    left = (np.array([1, 2], np.int64), np.array([0.5, 1.5], np.float32))
    right = (np.array([2, 3], np.int64), np.array([0.25, 4], np.float32))
    seqs, scores = ranking.evaluate(two, [left, right])
    assert (seqs.tolist(), scores.tolist()) == ([2], [1.75])
    filled = parsed(ClientKnn(query=[1.0], default=10.0) + ClientKnn(query=[1.0]))
    seqs, scores = ranking.evaluate(filled, [left, right])
    assert (seqs.tolist(), scores.tolist()) == ([2, 3], [1.75, 14.0])


def test_a_constant_ranks_nothing_and_ties_keep_insertion_order() -> None:
    seqs, _ = ranking.evaluate(parsed(Val(1.0)), [])
    assert seqs.tolist() == []
    found = (np.array([7, 3, 5], np.int64), np.array([1, 2, 3], np.float32))
    seqs, scores = ranking.evaluate(parsed(ClientKnn(query=[1.0]) * 0), [found])
    assert (seqs.tolist(), scores.tolist()) == ([3, 5, 7], [0, 0, 0])


def test_what_is_no_number_comes_last() -> None:
    found = (np.array([1, 2, 3], np.int64), np.array([-1, 1, 2], np.float32))
    seqs, scores = ranking.evaluate(parsed(ClientKnn(query=[1.0]).log()), [found])
    assert seqs.tolist() == [2, 3, 1]
    assert math.isnan(scores[2])


METADATAS: list[dict[str, Any] | None] = [
    {"c": "a", "p": 2},
    {"c": "b", "p": 1},
    {"c": "a", "p": 1.0},
    None,
    {"c": "a"},
    {"p": 5},
]


@pytest.mark.parametrize(
    ("keys", "by", "k", "largest", "kept"),
    [
        (("c",), ("#score",), 1, False, [0, 1, 3]),
        (("c",), ("#score",), 2, False, [0, 1, 2, 3, 5]),
        (("c",), ("#score",), 1, True, [1, 4, 5]),
        (("c",), ("p", "#score"), 1, False, [1, 3, 4]),
        (("c",), ("p",), 1, True, [0, 1, 5]),
        (("c", "p"), ("#score",), 9, False, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_groups(keys: tuple[str, ...], by: tuple[str, ...], k: int, largest: bool, kept: list[int]) -> None:
    seqs, scores = np.arange(6, dtype=np.int64), np.arange(6, dtype=np.float32)
    group_by = GroupBy(keys, Aggregate(by, k, largest))
    assert ranking.keep_of_groups(group_by, seqs, scores, METADATAS) == kept
