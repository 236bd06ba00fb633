"""The proof finds every kind of difference and names it; equal sides prove equal."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast
from uuid import UUID

import numpy as np
import pytest

from pgchroma.migrate import proof
from pgchroma.migrate.digest import record_digest
from pgchroma.migrate.model import Sink, Source, SourceCollection
from pgchroma.types import Collection, Record

ID = UUID(int=1)
SOURCE = SourceCollection(
    ID, "t", "d", "c", {"a": 1}, {"hnsw": {"space": "cosine", "ef_search": 50}}, None, 4, 50
)
TARGET = Collection(
    ID,
    "c",
    "t",
    "d",
    {"a": 1},
    {"hnsw": {"space": "cosine", "ef_search": 50}, "embedding_function": None},
    {},
    4,
    1,
)


def rows(count: int = 50) -> list[Record]:
    return [
        Record(
            number,
            f"id-{number}",
            np.arange(number, number + 4, dtype=np.float32),
            f"text {number}",
            {"n": number, "f": float(number), "b": True, "s": str(number), "list": [1, 2]},
            None,
        )
        for number in range(count)
    ]


class Side:
    """Records, in pages of 7, as a source and as a sink."""

    def __init__(self, records: Sequence[Record]) -> None:
        self._records = records

    def _pages(self) -> Iterator[list[Record]]:
        for start in range(0, len(self._records), 7):
            yield list(self._records[start : start + 7])

    def as_source(self) -> Source:
        return cast(Source, _SourceSide(self._records))

    def as_sink(self) -> Sink:
        return cast(Sink, _SinkSide(self._records))


class _SourceSide(Side):
    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        return self._pages()


class _SinkSide(Side):
    async def records(self, target: Collection) -> AsyncGenerator[list[Record]]:
        for page in self._pages():
            yield page


def compare(
    source: Sequence[Record], target: Sequence[Record], found: Collection | None = TARGET
) -> proof.CollectionProof:
    return asyncio.run(proof.prove(Side(source).as_source(), SOURCE, Side(target).as_sink(), found))


def test_equal_sides_are_equal() -> None:
    result = compare(rows(), rows())
    assert result.equal
    assert result.records_source == result.records_target == 50
    assert result.digest_source == result.digest_target


def _change(**changes: Any) -> Callable[[list[Record]], object]:
    def apply(records: list[Record]) -> None:
        records[20] = replace(records[20], **changes)

    return apply


def _metadata(**changes: object) -> Callable[[list[Record]], object]:
    def apply(records: list[Record]) -> None:
        records[20].metadata = {**(records[20].metadata or {}), **changes}  # type: ignore[dict-item]

    return apply


def _bits(records: list[Record]) -> None:
    vector = records[20].embedding
    assert vector is not None
    records[20].embedding = np.nextafter(vector, np.float32(np.inf))


def _negative_zero(records: list[Record]) -> None:
    vector = records[0].embedding
    assert vector is not None
    assert vector[0] == 0.0
    vector[0] = -0.0


@pytest.mark.parametrize(
    ("change", "what", "detail"),
    [
        (_change(document="other"), "record", "document"),
        (_change(document=None), "record", "document"),
        (_change(document=""), "record", "document"),
        (_change(uri="x"), "record", "uri"),
        (_change(metadata=None), "record", "metadata: b, f, list, n, s"),
        (_metadata(n=20.0), "record", "metadata: n"),
        (_metadata(f=20), "record", "metadata: f"),
        (_metadata(b=1), "record", "metadata: b"),
        (_metadata(s=20), "record", "metadata: s"),
        (_metadata(list=[2, 1]), "record", "metadata: list"),
        (_metadata(list=[1, 2.0]), "record", "metadata: list"),
        (_metadata(more="x"), "record", "metadata: more"),
        (_bits, "record", "embedding"),
        (_negative_zero, "record", "embedding"),
        (lambda records: records.pop(20), "missing", "in the source, not in the target"),
        (lambda records: records.pop(), "missing", "in the source, not in the target"),
        (lambda records: records.clear(), "missing", "in the source, not in the target"),
        (lambda records: records.insert(3, replace(records[0], id="new")), "extra", "in the target"),
        (lambda records: records.append(replace(records[0], id="new")), "extra", "in the target"),
        (lambda records: records.insert(0, records.pop()), "order", "another place"),
        (lambda records: records.reverse(), "order", "another place"),
    ],
)
def test_a_difference_is_found_and_named(
    change: Callable[[list[Record]], object], what: str, detail: str
) -> None:
    target = rows()
    change(target)
    result = compare(rows(), target)
    assert not result.equal
    assert {item["what"] for item in result.differences} == {what}
    assert any(detail in item["detail"] for item in result.differences)
    assert result.digest_source != result.digest_target


def test_a_changed_record_behind_a_missing_one_is_found_too() -> None:
    target = rows()
    target[30] = replace(target[30], document="other")
    del target[10]
    result = compare(rows(), target)
    assert {(item["what"], item["id"]) for item in result.differences} == {
        ("missing", "id-10"),
        ("record", "id-30"),
    }


def test_the_order_of_metadata_keys_is_no_difference() -> None:
    one, other = rows(1)[0], rows(1)[0]
    assert one.metadata is not None
    other.metadata = dict(reversed(one.metadata.items()))
    assert record_digest(one) == record_digest(other)


def test_a_record_without_a_vector_is_skipped_and_must_not_be_in_the_target() -> None:
    source = rows()
    source[5] = replace(source[5], embedding=None)
    without = [record for record in rows() if record.id != "id-5"]
    result = compare(source, without)
    assert result.equal
    assert [item.id for item in result.skipped] == ["id-5"]
    assert [item["what"] for item in compare(source, rows()).differences] == ["extra"]


@pytest.mark.parametrize(
    ("target", "what"),
    [
        (None, "collection"),
        (replace(TARGET, metadata={"a": 1.0}), "collection metadata"),
        (replace(TARGET, metadata=None), "collection metadata"),
        (replace(TARGET, dimension=5), "dimension"),
        (replace(TARGET, configuration={"hnsw": {"space": "cosine", "ef_search": 40}}), "configuration"),
    ],
)
def test_the_description_of_the_collection_is_compared(target: Collection | None, what: str) -> None:
    result = compare(rows(), rows(), target)
    assert not result.equal
    assert result.differences[0]["what"] == what


def test_another_distance_is_found() -> None:
    target = replace(TARGET, configuration={"hnsw": {"space": "l2", "ef_search": 50}})
    assert "distance" in {item["what"] for item in compare(rows(), rows(), target).differences}


def test_differences_beyond_a_hundred_are_counted() -> None:
    result = compare(rows(500), [])
    assert result.different == 500
    assert len(result.differences) == 100
