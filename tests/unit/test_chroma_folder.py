"""A Chroma folder yields exactly what was written into it, and is left as it was."""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pgchroma.errors import SourceChangedError, SourceError
from pgchroma.migrate.chroma import reading, snapshot
from pgchroma.migrate.chroma.folder import ChromaFolder, open_folder
from pgchroma.migrate.model import SourceCollection
from pgchroma.types import Record
from support import chroma


@pytest.fixture(scope="session", params=chroma.VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """A version of chromadb that wrote a folder."""
    return str(request.param)


@pytest.fixture(scope="session")
def pristine(version: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of that version; not to be changed."""
    return chroma.extract(version, tmp_path_factory.mktemp("folder"))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "copy"))


def everything(source: ChromaFolder, collection: SourceCollection, after: int = 0) -> list[Record]:
    return [record for page in source.records(collection, after) for record in page]


def named(source: ChromaFolder, name: str) -> SourceCollection:
    return next(item for item in source.collections() if item.name == name)


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_every_record_is_as_it_was_written(version: str, pristine: Path) -> None:
    wanted = chroma.expected(version)
    with open_folder(pristine) as source:
        assert [item.path for item in source.collections()] == sorted(wanted)
        for collection in source.collections():
            expected = wanted[collection.path]
            assert collection.space == expected.distance
            assert collection.count == len(expected.rows)
            assert chroma.differences(everything(source, collection), expected) == []
            assert {problem.severity for problem in source.problems(collection)} <= {"notice"}


def test_collections_keep_their_metadata_with_types(pristine: Path) -> None:
    with open_folder(pristine) as source:
        metadata = named(source, "handbook").metadata or {}
        assert {key: value for key, value in metadata.items() if not key.startswith("hnsw:")} == {
            "about": "operating pgchroma",
            "edition": 3,
            "weight": 1.5,
        }
        assert type(metadata["edition"]) is int
        assert named(source, "odd").metadata is None or "hnsw:space" in (named(source, "odd").metadata or {})
        assert named(source, "empty").dimension is None


def test_reading_goes_on_after_any_record(pristine: Path) -> None:
    with open_folder(pristine) as source:
        collection = named(source, "odd")
        whole = everything(source, collection)
        for place in (0, 1, 50, len(whole) - 2, len(whole) - 1):
            rest = everything(source, collection, after=whole[place].seq)
            assert [record.id for record in rest] == [record.id for record in whole[place + 1 :]]


def test_nothing_is_written_to_the_source(folder: Path) -> None:
    before = hashes(folder)
    with open_folder(folder) as source:
        for collection in source.collections():
            everything(source, collection)
    assert hashes(folder) == before


# Root, too, is held by the modes of files once it has given up its capabilities.
_READ_WITHOUT_PRIVILEGES = """
import ctypes, sys
from pathlib import Path
from pgchroma.migrate.chroma.folder import open_folder
if ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()):
    sys.exit("capset failed")
folder = Path(sys.argv[1])
try:
    (folder / "probe").touch()
except PermissionError:
    with open_folder(folder) as source:
        sys.stdout.write(str(sum(len(page) for item in source.collections() for page in source.records(item))))
else:
    sys.exit("the folder can be written to")
"""


def test_an_application_writes_while_its_folder_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PAGE_RECORDS", 20)
    with open_folder(folder) as source:
        pages = source.records(named(source, "handbook"))
        next(pages)
        # No timeout: the first lock in its way would be an error.
        with contextlib.closing(sqlite3.connect(folder / "chroma.sqlite3", timeout=0)) as application:
            application.execute("BEGIN EXCLUSIVE")
            application.execute("DELETE FROM embeddings WHERE embedding_id = 'plain-1'")
            application.execute("COMMIT")
        assert sum(map(len, pages)) > 0
        assert source.changes()


def test_a_folder_that_cannot_be_written_to_is_read(folder: Path) -> None:
    with open_folder(folder) as source:
        wanted = sum(item.count for item in source.collections())
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        command = [sys.executable, "-c", _READ_WITHOUT_PRIVILEGES, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, str(wanted)), done.stderr
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


_KILLED_WRITER = """
import os, sqlite3, sys
path, mode = sys.argv[1:]
connection = sqlite3.connect(path, isolation_level=None)
connection.execute("PRAGMA journal_mode = " + mode)
# A cache of one page makes SQLite write changed pages into the database before the commit.
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE embedding_metadata SET string_value = 'half written' WHERE string_value IS NOT NULL")
if mode == "WAL":
    connection.execute("COMMIT")
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def left_by_a_crash(folder: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder as a killed writer leaves it: with a hot journal, or with a write-ahead log."""
    database = folder / "chroma.sqlite3"
    before = database.read_bytes()
    killed = subprocess.run([sys.executable, "-c", _KILLED_WRITER, database, request.param], check=False)
    assert killed.returncode == -9
    side = "-wal" if request.param == "WAL" else "-journal"
    assert (folder / f"chroma.sqlite3{side}").stat().st_size > 0
    if request.param == "DELETE":
        # The control: without its journal the database would show pages of the transaction that never ended.
        assert database.read_bytes() != before
    for path in folder.iterdir():
        path.chmod(0o555 if path.is_dir() else 0o444)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)


@pytest.mark.parametrize("left_by_a_crash", ["DELETE"], indirect=True)
def test_an_unfinished_transaction_is_rolled_back_in_the_copy(left_by_a_crash: Path, version: str) -> None:
    before = hashes(left_by_a_crash)
    wanted = chroma.expected(version)
    with open_folder(left_by_a_crash) as source:
        for collection in source.collections():
            assert chroma.differences(everything(source, collection), wanted[collection.path]) == []
    assert hashes(left_by_a_crash) == before


@pytest.mark.parametrize("left_by_a_crash", ["WAL"], indirect=True)
def test_what_is_committed_in_a_write_ahead_log_is_read(left_by_a_crash: Path) -> None:
    before = hashes(left_by_a_crash)
    with open_folder(left_by_a_crash) as source:
        documents = {record.document for record in everything(source, named(source, "handbook"))}
    assert documents == {"half written"}
    assert hashes(left_by_a_crash) == before


def test_a_change_of_the_source_is_noticed_and_named(folder: Path) -> None:
    with open_folder(folder) as source:
        assert source.changes() == []
        database = sqlite3.connect(folder / "chroma.sqlite3")
        database.execute("DELETE FROM embeddings WHERE embedding_id = 'plain-1'")
        database.commit()
        database.close()
        (change,) = source.changes()
        assert "default_tenant/default_database/odd: records was" in change


def test_a_file_that_was_only_touched_is_no_change(folder: Path) -> None:
    with open_folder(folder) as source:
        os.utime(folder / "chroma.sqlite3")
        assert source.changes() == []


def test_an_application_that_keeps_writing_is_named_as_the_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_indexes = snapshot._copy_indexes
    written = 0

    def interfere(source: Path, copy: Path, segments: list[str]) -> None:
        nonlocal written
        copy_indexes(source, copy, segments)
        written += 1
        (source / segments[0] / "index_metadata.pickle").parent.mkdir(exist_ok=True)
        (source / segments[0] / "index_metadata.pickle").write_bytes(b"x" * written)

    monkeypatch.setattr(snapshot, "_copy_indexes", interfere)
    monkeypatch.setattr(snapshot, "_PAUSE_SECONDS", 0.0)
    with pytest.raises(SourceChangedError, match="keeps writing") as caught, open_folder(folder):
        pass
    assert "stop the application" in caught.value.hint


def test_copies_left_by_killed_processes_are_removed_and_those_in_use_are_not(
    pristine: Path, tmp_path: Path
) -> None:
    left = tmp_path / "pgchroma-snapshot-left"
    left.mkdir()
    (left / "in-use").touch()
    foreign = tmp_path / "pgchroma-snapshot-without-lock"
    foreign.mkdir()
    with open_folder(pristine, tmp_path):
        (used,) = set(tmp_path.iterdir()) - {left, foreign}
        for folder in (left, foreign, used):
            os.utime(folder, (0, 0))
        with open_folder(pristine, tmp_path):
            assert not left.exists()
            assert used.exists()
    assert list(tmp_path.iterdir()) == [foreign]


def test_rows_of_dropped_collections_are_not_seen(folder: Path) -> None:
    database = sqlite3.connect(folder / "chroma.sqlite3")
    database.execute(
        "INSERT INTO embeddings (segment_id, embedding_id, seq_id) VALUES ('no such segment', 'orphan', 1)"
    )
    database.commit()
    database.close()
    (folder / "00000000-0000-0000-0000-000000000001").mkdir()
    with open_folder(folder) as source:
        ids = {record.id for collection in source.collections() for record in everything(source, collection)}
    assert "orphan" not in ids
    assert len(ids) > 400


def test_a_cosine_collection_stays_one_whatever_the_stored_configuration_says(folder: Path) -> None:
    """Chroma 0.5 writes l2 into the configuration of every collection; the metadata say what was in force."""
    with open_folder(folder) as source:
        assert named(source, "handbook").space == "cosine"
        assert named(source, "odd").space == "ip"


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: shutil.rmtree(folder), "does not exist"),
        (lambda folder: (folder / "chroma.sqlite3").unlink(), "holds no chroma.sqlite3"),
        (lambda folder: (folder / "chroma.sqlite3").write_bytes(b""), "is not an SQLite database"),
        (lambda folder: (folder / "chroma.sqlite3").write_bytes(b"x" * 9999), "is not an SQLite database"),
        (lambda folder: _cut(folder / "chroma.sqlite3"), "is damaged|cannot read|is not a Chroma database"),
        (lambda folder: _sql(folder, "DROP TABLE migrations"), "is not a Chroma database"),
        (
            lambda folder: _sql(folder, "INSERT INTO migrations VALUES ('sysdb', 11, 'x', 'x', 'x')"),
            "layout newer than Chroma 1.5.9 .*sysdb",
        ),
        (
            lambda folder: _sql(folder, "INSERT INTO migrations VALUES ('graphdb', 1, 'x', 'x', 'x')"),
            "layout newer than Chroma 1.5.9 .*graphdb",
        ),
        (
            lambda folder: _sql(folder, "DELETE FROM migrations WHERE dir = 'sysdb' AND version > 3"),
            "layout older than Chroma 0.4.15",
        ),
    ],
)
def test_a_wrong_folder_is_refused_by_name(folder: Path, prepare: object, message: str) -> None:
    assert callable(prepare)
    prepare(folder)
    with pytest.raises(SourceError, match=message) as caught, open_folder(folder):
        pass
    assert str(folder) in caught.value.message or "chroma.sqlite3" in caught.value.message
    assert caught.value.hint


def test_a_file_instead_of_a_folder_is_refused(folder: Path) -> None:
    with pytest.raises(SourceError, match="is not a folder"), open_folder(folder / "chroma.sqlite3"):
        pass


def _sql(folder: Path, statement: str) -> None:
    database = sqlite3.connect(folder / "chroma.sqlite3")
    database.execute(statement)
    database.commit()
    database.close()


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)
