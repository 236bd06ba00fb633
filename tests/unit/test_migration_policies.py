"""Each danger does what its name and the chosen action say: to a record in the way, and to nothing else."""

from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pytest

from pgchroma.cli.migrate_options import place_of, target_of
from pgchroma.errors import ConfigurationError, SourceError
from pgchroma.migrate.model import Limits, SourceCollection
from pgchroma.migrate.places import kind_of
from pgchroma.migrate.plan import of_target
from pgchroma.migrate.policies import DANGERS, EMPTY_ID, Policies
from pgchroma.types import Record

COLLECTION = SourceCollection(UUID(int=1), "t", "d", "name", None, {"hnsw": {"space": "l2"}}, None, 3, 3)
PLAIN = Record(1, "plain", np.array([1, 2, 3], np.float32), "text", {"n": 1})
NARROW = Limits(plain_metadata=True, arrays=False, sparse=False)

# danger -> a record that meets it
IN_THE_WAY = {
    "vector-missing": replace(PLAIN, id="x", embedding=None),
    "vector-not-finite": replace(PLAIN, id="x", embedding=np.array([np.nan, np.inf, -np.inf], np.float32)),
    "vector-dimension": replace(PLAIN, id="x", embedding=np.ones(2, np.float32)),
    "nul": replace(PLAIN, id="x\0", document="a\0b", metadata={"k\0": "v\0", "list": ["\0"]}, uri="\0"),
    "text-not-unicode": replace(
        PLAIN, id="x", document="a\ud800", uri="\udfff", metadata={"k\udc00": "v", "list": ["\ud801"]}
    ),
    "id-empty": replace(PLAIN, id=""),
    "metadata-number": replace(PLAIN, id="x", metadata={"big": 2**63, "nan": float("nan"), "kept": 1}),
    "metadata-key": replace(PLAIN, id="x", metadata={"chroma:own": 1, "kept": 1}),
    "metadata-array": replace(PLAIN, id="x", metadata={"list": [1, 2]}),
    "metadata-sparse": replace(PLAIN, id="x", metadata={"s": {"#type": "sparse_vector"}, "kept": 1}),
}
# Those that are looked for within lists, too, which therefore stay lists in the test.
IN_LISTS = ("nul", "text-not-unicode")
CONVERTED = {
    "nul": replace(PLAIN, id="x␀", document="a␀b", metadata={"k␀": "v␀", "list": ["␀"]}, uri="␀"),
    "text-not-unicode": replace(
        PLAIN, id="x", document="a\ufffd", uri="\ufffd", metadata={"k\ufffd": "v", "list": ["\ufffd"]}
    ),
    "id-empty": replace(PLAIN, id=EMPTY_ID),
    "metadata-number": replace(PLAIN, id="x", metadata={"big": float(2**63), "kept": 1}),
    "metadata-key": replace(PLAIN, id="x", metadata={"kept": 1}),
    "metadata-array": replace(PLAIN, id="x", metadata={"list": "[1,2]"}),
    "metadata-sparse": replace(PLAIN, id="x", metadata={"kept": 1}),
}


def fields(record: Record) -> tuple[object, ...]:
    return record.id, record.document, record.uri, record.metadata


def test_each_of_two_databases_has_a_password_of_its_own() -> None:
    given = {"target": None, "database_url": "postgresql://b/b", "database_password_file": Path("both")}
    assert place_of("postgresql://a/a", "source", given).password_file == Path("both")
    assert target_of(given).password_file == Path("both")
    given |= {"source_password_file": Path("one"), "target_password_file": Path("other")}
    assert place_of("postgresql://a/a", "source", given).password_file == Path("one")
    assert target_of(given).password_file == Path("other")
    assert target_of({**given, "target": "postgresql://c/c"}).password_file == Path("other")
    assert place_of("http://a", "source", given).password_file is None


def test_every_danger_that_records_meet_is_tested() -> None:
    # The other two need a folder, and 256 MiB.
    assert set(DANGERS) == {*IN_THE_WAY, "record-lost", "document-too-large"}


@pytest.mark.parametrize("code", IN_THE_WAY)
def test_fail_stops_and_names_the_record_and_the_choices(code: str) -> None:
    with pytest.raises(SourceError) as caught:
        Policies({code: "fail"}).sort([PLAIN, IN_THE_WAY[code]], COLLECTION, NARROW)
    assert repr(IN_THE_WAY[code].id) in caught.value.message
    assert f"--policy {code}=quarantine" in caught.value.hint


@pytest.mark.parametrize("code", IN_THE_WAY)
def test_quarantine_puts_the_whole_record_aside(code: str) -> None:
    record = IN_THE_WAY[code]
    kept, aside = Policies({code: "quarantine"}).sort(
        [PLAIN, record, PLAIN], COLLECTION, Limits(), doubtful=True
    )
    assert kept == [PLAIN, PLAIN]
    assert [(item.code, item.record) for item in aside] == [(code, record)]


@pytest.mark.parametrize("code", CONVERTED)
def test_convert_changes_what_it_says_and_nothing_else(code: str) -> None:
    (kept,), aside = Policies(
        {code: "convert", "metadata-array": "keep" if code in IN_LISTS else "convert"}
    ).sort([IN_THE_WAY[code]], COLLECTION, Limits(plain_metadata=True) if code in IN_LISTS else NARROW)
    assert not aside
    assert fields(kept) == fields(CONVERTED[code])


def test_convert_makes_vectors_finite() -> None:
    (kept,), _ = Policies({"vector-not-finite": "convert"}).sort(
        [IN_THE_WAY["vector-not-finite"]], COLLECTION, Limits()
    )
    largest = np.finfo(np.float32).max
    assert kept.embedding is not None
    assert kept.embedding.tolist() == [0.0, largest, -largest]


@pytest.mark.parametrize(
    "code", ["nul", "metadata-number", "metadata-key", "metadata-array", "metadata-sparse"]
)
def test_a_database_keeps_these_by_default_and_chroma_cannot(code: str) -> None:
    record = IN_THE_WAY[code]
    kept, aside = Policies().sort([record], COLLECTION, Limits())
    assert (kept, aside) == ([record], [])
    if code != "nul":
        with pytest.raises(SourceError, match=record.id):
            Policies().sort([record], COLLECTION, NARROW)


def test_two_keys_that_become_one_are_not_merged_silently() -> None:
    record = replace(PLAIN, metadata={"k\0": 1, "k␀": 2})
    with pytest.raises(SourceError, match="two of its metadata keys"):
        Policies({"nul": "convert"}).sort([record], COLLECTION, Limits())


def test_a_document_too_large_is_put_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    from pgchroma.migrate import policies

    monkeypatch.setattr(policies, "LARGEST_DOCUMENT_BYTES", 10)
    large = replace(PLAIN, document="ä" * 6)
    kept, aside = Policies({"document-too-large": "quarantine"}).sort([PLAIN, large], COLLECTION, Limits())
    assert (kept, [item.record for item in aside]) == ([PLAIN], [large])
    with pytest.raises(SourceError, match="larger than"):
        Policies().sort([large], COLLECTION, Limits())


@pytest.mark.parametrize("option", ["nonsense", "nul=explode", "vector-missing=convert", "=fail"])
def test_an_unknown_choice_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError):
        Policies.of([option])


@pytest.mark.parametrize(
    ("change", "limits", "code"),
    [
        ({"name": "n" * 64}, Limits(name=63), "name-too-long"),
        ({"name": "a b"}, Limits(), "name-not-allowed"),
        ({"name": "ab"}, Limits(), "name-not-allowed"),
        ({"dimension": 16_001}, Limits(), "dimension-too-large"),
        ({"dimension": 2_001}, Limits(), "dimension-index"),
        ({"dimension": 4_001}, Limits(), "dimension-index"),
    ],
)
def test_what_the_target_cannot_hold_is_told_by_the_plan(
    change: dict[str, object], limits: Limits, code: str
) -> None:
    assert of_target(COLLECTION, limits) == []
    (problem,) = of_target(replace(COLLECTION, **change), limits)  # type: ignore[arg-type]
    assert problem.code == code


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("/srv/chroma", "chroma-folder"),
        ("http://localhost:8000", "chroma-server"),
        ("https://x/chroma", "chroma-server"),
        ("postgresql:///pgchroma?host=/run", "pgchroma-database"),
        ("postgres://u@h/d", "pgchroma-database"),
        ("host=/run dbname=pgchroma", "pgchroma-database"),
        ("all.jsonl", "exchange-jsonl"),
        ("/x/all.jsonl.zst", "exchange-jsonl"),
        ("all.parquet/", "exchange-parquet"),
        ("host-folder", "chroma-folder"),
    ],
)
def test_a_place_is_told_by_how_it_is_written(text: str, kind: str) -> None:
    assert kind_of(text) == kind
