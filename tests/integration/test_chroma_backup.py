"""Copies of a Chroma folder: taken while Chroma writes, opened again by Chroma, refused when damaged."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
import zstandard
from chromadb.config import Settings

from pgchroma.exit_codes import ExitCode
from support.command import here

_WRITER = """
import sys, chromadb
from chromadb.config import Settings
collection = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False)).get_or_create_collection(
    "busy", configuration={"hnsw": {"sync_threshold": 100, "batch_size": 50}})
for n in range(1_000_000):
    collection.add(ids=[f"{n}-{k}" for k in range(20)], embeddings=[[n, k, 1.0, 2.0] for k in range(20)],
                   documents=[f"document {n} {k}" for k in range(20)])
    print(n, flush=True)
"""
_READER = """
import json, sys, chromadb
from chromadb.config import Settings
collection = chromadb.PersistentClient(sys.argv[1], Settings(anonymized_telemetry=False)).get_collection("busy")
found = collection.get(include=["embeddings", "documents"])
nearest = collection.query(query_embeddings=[[3.0, 4.0, 1.0, 2.0]], n_results=1)
print(json.dumps([found["ids"], [list(map(float, e)) for e in found["embeddings"]], found["documents"], nearest["ids"]]))
"""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run an application that adds records for as long as the context lasts."""
    process = subprocess.Popen([sys.executable, "-c", _WRITER, folder], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        # Past several writes of the index.
        while int(process.stdout.readline()) < 15:
            pass
        yield process
    finally:
        process.kill()
        process.wait()


def opened_by_chroma(folder: Path) -> list[Any]:
    done = subprocess.run([sys.executable, "-c", _READER, folder], capture_output=True, text=True, check=True)
    found: list[Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "chroma"
    client = chromadb.PersistentClient(str(path), Settings(anonymized_telemetry=False))
    embeddings = np.array([[1, 2], [3, 4]], dtype=np.float32)
    client.create_collection("notes").add(ids=["a", "b"], embeddings=embeddings, documents=["x", "y"])
    del client
    return path


@pytest.fixture
def archive(folder: Path, tmp_path: Path) -> Path:
    done = here("chroma-backup", "create", folder, "--to", tmp_path / "archives", "--format", "json")
    assert done.code == 0, done.stderr
    return Path(done.json["archive"])


def test_a_copy_taken_while_the_application_writes_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "busy"
    with writing(folder):
        for _ in range(3):
            done = here("chroma-backup", "create", folder, "--to", tmp_path, "--format", "json")
            assert done.code == 0, done.stderr
            archive, counts = Path(done.json["archive"]), done.json["collections"]
            archive.rename(archive.with_name("newest.tar.zst"))
    restored = tmp_path / "restored"
    assert here("chroma-backup", "restore", tmp_path / "newest.tar.zst", restored).code == 0
    ids, embeddings, documents, nearest = opened_by_chroma(restored)
    # A batch that Chroma had logged and not yet filed when it was copied is filed when it opens the folder.
    assert len(ids) - counts["default_tenant/default_database/busy"] in (0, 20)
    assert len(ids) >= 300
    # Every record is whole: its vector and its document are those of its id.
    for record, embedding, document in zip(ids, embeddings, documents, strict=True):
        n, k = record.split("-")
        assert embedding == [float(n), float(k), 1.0, 2.0]
        assert document == f"document {n} {k}"
    assert nearest == [["3-4"]]


def test_a_restored_folder_is_byte_for_byte_what_was_copied(archive: Path, tmp_path: Path) -> None:
    assert here("chroma-backup", "verify", archive).code == 0
    restored = here("chroma-backup", "restore", archive, tmp_path / "again", "--format", "json")
    assert restored.code == 0, restored.stderr
    assert restored.json["collections"] == {"default_tenant/default_database/notes": 2}
    client = chromadb.PersistentClient(str(tmp_path / "again"), Settings(anonymized_telemetry=False))
    assert client.get_collection("notes").get()["documents"] == ["x", "y"]


def test_a_folder_that_is_there_is_kept(archive: Path, folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    refused = here("chroma-backup", "restore", archive, folder)
    assert refused.code == ExitCode.REFUSED
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    done = here("chroma-backup", "restore", archive, folder, "--replace", "--format", "json")
    assert done.code == 0, done.stderr
    aside = Path(done.json["former_folder"])
    assert {aside / path.relative_to(folder): data for path, data in before.items()} == {
        path: path.read_bytes() for path in aside.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_archive_is_refused_and_restores_nothing(
    damage: str, archive: Path, tmp_path: Path
) -> None:
    data = bytearray(archive.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 0x10
    archive.write_bytes(bytes({"flipped": data, "cut": data[: len(data) // 2], "empty": bytearray()}[damage]))
    target = tmp_path / "again"
    for command in (("verify", archive), ("restore", archive, target)):
        done = here("chroma-backup", *command)
        assert done.code == ExitCode.SOURCE_UNREADABLE, done.stderr
        assert str(archive) in done.stderr
    assert not target.exists()


def test_a_file_that_differs_from_the_manifest_is_named(archive: Path) -> None:
    plain = zstandard.ZstdDecompressor().decompressobj().decompress(archive.read_bytes())
    # Inside the archive's data, where tar has no checksum of its own.
    at = plain.index(b"SQLite format 3\x00") + 5000
    changed = plain[:at] + bytes([plain[at] ^ 1]) + plain[at + 1 :]
    archive.write_bytes(zstandard.ZstdCompressor().compress(changed))
    done = here("chroma-backup", "verify", archive)
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert "chroma.sqlite3 has other content" in done.stderr


def test_a_damaged_database_is_not_backed_up(folder: Path, tmp_path: Path) -> None:
    database = folder / "chroma.sqlite3"
    data = bytearray(database.read_bytes())
    data[4096 * 3 : 4096 * 9] = b"\xa5" * 4096 * 6
    database.write_bytes(data)
    done = here("chroma-backup", "create", folder, "--to", tmp_path / "archives")
    assert done.code == ExitCode.SOURCE_UNREADABLE
    assert not list((tmp_path / "archives").glob("*")) if (tmp_path / "archives").exists() else True
