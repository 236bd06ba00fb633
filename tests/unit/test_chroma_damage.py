"""Damaged and hostile index files: nothing is run, nothing is made up, what is whole is found."""

import os
import pickle
import shutil
import sqlite3
import struct
from pathlib import Path

import numpy as np
import pytest

from pgchroma.errors import SourceError
from pgchroma.migrate import plan as plans
from pgchroma.migrate.chroma import hnsw
from pgchroma.migrate.chroma.folder import ChromaFolder, open_folder
from pgchroma.migrate.model import Limits, SourceCollection
from pgchroma.migrate.policies import Policies, movable
from support import chroma


@pytest.fixture(scope="session", params=chroma.EXTREMES)
def pristine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder; not to be changed."""
    return chroma.extract(request.param, tmp_path_factory.mktemp("folder"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


@pytest.fixture
def index(folder: Path) -> Path:
    """The folder with the HNSW files of the collection `handbook`."""
    database = sqlite3.connect(folder / "chroma.sqlite3")
    (segment,) = database.execute(
        "SELECT s.id FROM segments s JOIN collections c ON c.id = s.collection WHERE c.name = 'handbook' AND scope = 'VECTOR'"
    ).fetchone()
    database.close()
    return folder / str(segment)


def handbook(source: ChromaFolder) -> SourceCollection:
    return next(item for item in source.collections() if item.name == "handbook")


class _Malicious:
    """What an attacker would put into the pickle."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self._marker}",)


def test_a_malicious_pickle_is_refused_and_not_run(folder: Path, index: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (index / hnsw.PICKLE).write_bytes(pickle.dumps(_Malicious(marker)))
    with open_folder(folder) as source:
        made = plans.make(source)
        assert not marker.exists()
        damage = next(problem for problem in made.problems if problem.code == "index-damaged")
        assert "system" in damage.message
        if log_is_whole(source):
            # Chroma 0.4 kept every write in its log: nothing is lost with the files.
            made.require_movable(Policies(), Limits())
        else:
            with pytest.raises(SourceError, match="cannot be moved whole"):
                made.require_movable(Policies(), Limits())
        made.require_movable(Policies.of(["vector-missing=quarantine"]), Limits())
    # The control: an ordinary unpickler would have run it.
    pickle.loads((index / hnsw.PICKLE).read_bytes())  # noqa: S301
    assert marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x05",
        b"not a pickle",
        pickle.dumps([1, 2]),
        pickle.dumps({"id_to_label": {1: "x"}}),
        pickle.dumps({}),
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.",
        b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.",
    ],
)
def test_what_is_no_index_metadata_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / hnsw.PICKLE
    path.write_bytes(content)
    with pytest.raises(SourceError, match="is refused"):
        hnsw.read_pickle(path)


def test_a_cut_data_file_loses_only_what_is_cut(folder: Path, index: Path) -> None:
    os.truncate(index / hnsw.DATA, (index / hnsw.DATA).stat().st_size // 4)
    with open_folder(folder) as source:
        collection = handbook(source)
        problems = {problem.code: problem for problem in source.problems(collection)}
        assert "is cut" in problems["index-damaged"].message
        if log_is_whole(source):
            assert "vector-missing" not in problems
            return
        lost = problems["vector-missing"].count
        records = [record for page in source.records(collection) for record in page]
        missing = [record for record in records if record.embedding is None]
        assert 0 < lost == len(missing) < collection.count == len(records)
        assert problems["vector-missing"].ids[0] == missing[0].id
        # What is whole is still exact.
        wanted = chroma.expected(_version(source))[collection.path]
        by_id = {row["id"]: row for row in wanted.rows}
        for record in records:
            if record.embedding is not None:
                original = np.array(by_id[record.id]["embedding"], dtype=np.float32)
                assert np.abs(record.embedding - original).max() <= chroma.COSINE_TOLERANCE


def _version(source: ChromaFolder) -> str:
    return {10: "1.5.9", 9: "1.0.21" if source.layout.metadb == 5 else "0.5.23", 4: "0.4.24"}[
        source.layout.sysdb
    ]


def log_is_whole(source: ChromaFolder) -> bool:
    return source.layout.embeddings_queue == 1


@pytest.mark.parametrize("name", [hnsw.HEADER, hnsw.DATA, hnsw.LENGTHS, hnsw.PICKLE])
def test_a_missing_file_is_named(folder: Path, index: Path, name: str) -> None:
    (index / name).unlink()
    with open_folder(folder) as source:
        problems = {problem.code: problem for problem in source.problems(handbook(source))}
        whole = log_is_whole(source)
    if whole:
        # Without the pickle 0.4 looks as if it had never written an index; in any case the log has everything.
        assert "vector-missing" not in problems
        return
    assert name in problems["index-damaged"].message or index.name in problems["index-damaged"].message
    assert problems["vector-missing"].severity == "error"
    assert problems["vector-missing"].count > 300


def test_a_missing_index_folder_is_named(folder: Path, index: Path) -> None:
    shutil.rmtree(index)
    with open_folder(folder) as source:
        problems = {problem.code: problem for problem in source.problems(handbook(source))}
        whole = log_is_whole(source)
    if whole:
        assert problems.keys() <= {"nul", "orphans"}
        return
    assert index.name in problems["index-damaged"].message
    assert problems["vector-missing"].count > 300


def test_a_header_that_contradicts_itself_is_not_believed(folder: Path, index: Path) -> None:
    header = bytearray((index / hnsw.HEADER).read_bytes())
    struct.pack_into("<Q", header, 28, 7)
    (index / hnsw.HEADER).write_bytes(header)
    with open_folder(folder) as source:
        problems = {problem.code: problem for problem in source.problems(handbook(source))}
    assert "contradicts itself" in problems["index-damaged"].message


def test_a_vector_that_postgresql_cannot_hold_is_listed(folder: Path) -> None:
    database = sqlite3.connect(folder / "chroma.sqlite3")
    database.execute(
        "UPDATE embeddings_queue SET vector = ? WHERE id = 'south-backup-01'",
        (np.full(64, np.nan, dtype="<f4").tobytes(),),
    )
    database.execute(
        "UPDATE embeddings_queue SET vector = ? WHERE id = 'north-backup-01'",
        (np.ones(63, dtype="<f4").tobytes(),),
    )
    database.commit()
    database.close()
    with open_folder(folder) as source:
        made = plans.make(source)
        found = {
            (problem.collection, problem.code): problem.ids
            for problem in made.problems
            if problem.severity == "error"
        }
        assert found == {
            ("south/live/notes", "vector-not-finite"): ("south-backup-01",),
            ("north/live/notes", "vector-dimension"): ("north-backup-01",),
            ("north/trial/notes", "vector-dimension"): ("north-backup-01",),
        }
        put_aside = [
            item.code
            for collection in source.collections()
            for _, aside, _ in movable(source, collection, Policies.of((), skip_unreadable=True), Limits())
            for item in aside
        ]
        assert sorted(put_aside) == ["vector-dimension", "vector-dimension", "vector-not-finite"]


def test_a_vector_whose_record_chroma_lost_is_told(folder: Path) -> None:
    database = sqlite3.connect(folder / "chroma.sqlite3")
    database.execute("DELETE FROM embeddings WHERE embedding_id IN ('plain-1', 'plain-118')")
    database.commit()
    database.close()
    with open_folder(folder) as source:
        made = plans.make(source)
    assert not made.blocking(Policies(), Limits())
    (lost,) = [problem for problem in made.problems if problem.code == "record-lost"]
    assert (lost.severity, lost.count) == ("notice", 2)
