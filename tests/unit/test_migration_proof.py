"""The proof finds every kind of difference and names it; equal sides prove equal."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from pgchroma.errors import SourceError
from pgchroma.migrate import proof
from pgchroma.migrate.digest import record_digest
from pgchroma.migrate.model import Problem, SourceCollection
from pgchroma.migrate.policies import Policies
from pgchroma.types import Record

ID = UUID(int=1)
SOURCE = SourceCollection(
    ID, "t", "d", "c", {"a": 1}, {"hnsw": {"space": "cosine", "ef_search": 50}}, None, 4, 50
)
TARGET = replace(
    SOURCE, configuration={"hnsw": {"space": "cosine", "ef_search": 50}, "embedding_function": None}
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
    """Records, in pages of 7, as one side of a comparison."""

    frozen = True
    fingerprint = ""

    def __init__(
        self,
        records: Sequence[Record],
        collection: SourceCollection | None = SOURCE,
        kind: str = "pgchroma-database",
    ) -> None:
        self._records, self._collection = records, collection
        self.description = {"kind": kind, "path": "", "layout": ""}

    def collections(self) -> Sequence[SourceCollection]:
        return [self._collection] if self._collection else []

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        for start in range(0, len(self._records), 7):
            yield list(self._records[start : start + 7])

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        return iter(())

    def problems(self, collection: SourceCollection) -> list[Problem]:
        return []

    def size_bytes(self, collection: SourceCollection) -> int:
        return 0

    def changes(self) -> list[str]:
        return []


SKIP = Policies.of((), skip_unreadable=True)


def compare(
    source: Sequence[Record],
    target: Sequence[Record],
    found: SourceCollection | None = TARGET,
    kind: str = "pgchroma-database",
) -> proof.CollectionProof:
    return proof.prove(Side(source), SOURCE, Side(target, found, kind), SKIP)


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
    assert [item.record.id for item in result.skipped] == ["id-5"]
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
def test_the_description_of_the_collection_is_compared(target: SourceCollection | None, what: str) -> None:
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


def test_a_vector_that_chroma_normalised_is_equal_within_rounding() -> None:
    target = rows()
    for record in target:
        assert record.embedding is not None
        record.embedding = np.nextafter(record.embedding, np.float32(np.inf))
    assert not compare(rows(), target).equal
    result = compare(rows(), target, kind="chroma-folder")
    assert result.equal
    assert 0 < result.largest_error <= proof.NORMALISED_TOLERANCE
    # The control: what is off by more is a difference.
    assert target[20].embedding is not None
    target[20].embedding = target[20].embedding * np.float32(1.001)
    assert [item["id"] for item in compare(rows(), target, kind="chroma-folder").differences] == ["id-20"]


def test_a_reader_that_fails_in_its_thread_fails_the_proof() -> None:
    class Broken(Side):
        def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
            yield rows(3)
            raise SourceError("gone")

    with pytest.raises(SourceError, match="gone"):
        proof.prove(Broken([]), SOURCE, Side(rows(), TARGET), SKIP)
