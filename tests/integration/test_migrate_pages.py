"""What is held at once is bounded by bytes, wherever the records come from and whatever part of them is large."""

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pgchroma.migrate.chroma import reading
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.database import open_database, settings_for
from pgchroma.migrate.policies import texts_of
from pgchroma.migrate.remote import source as remote
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.client import Access
from pgchroma.migrate.remote.folder import ChromaProcess
from pgchroma.store import Store, snapshot
from pgchroma.types import Record, RecordBatch
from support import chroma
from support.command import within

PAGE_BYTES = 64 * 1024
# Each record has one large part, and which one that is changes from record to record.
LARGE, RECORDS = 8 * 1024, 90


def size(page: list[Record]) -> int:
    return sum(len(text) for record in page for text in texts_of(record))


def pages_of(pages: Iterator[list[Record]]) -> list[list[Record]]:
    found = list(pages)
    assert [record.id for page in found for record in page] == [f"r{n}" for n in range(RECORDS)]
    return found


@pytest.fixture
def filled(database_url: str) -> str:
    """A database with records whose documents, URIs and metadata take turns at being large."""

    async def fill() -> None:
        async with await Store.open(database_url) as store:
            made = await store.create_collection("default_tenant", "default_database", "large")
            text = "".join(map(chr, np.random.default_rng(1).integers(97, 123, LARGE)))
            await store.add(
                made.id,
                RecordBatch(
                    [f"r{n}" for n in range(RECORDS)],
                    np.eye(RECORDS, 8, dtype=np.float32),
                    documents=[text if n % 3 == 0 else None for n in range(RECORDS)],
                    uris=[text if n % 3 == 1 else None for n in range(RECORDS)],
                    # Of one letter, so that PostgreSQL packs it to a few bytes.
                    metadatas=[{"k": "x" * LARGE} if n % 3 == 2 else None for n in range(RECORDS)],
                ),
            )

    asyncio.run(fill())
    return database_url


def test_pages_of_a_database(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "PAGE_BYTES", PAGE_BYTES)
    with open_database(filled, settings_for(None)) as source:
        (collection,) = source.collections()
        whole = pages_of(source.records(collection))
        seqs = [record.seq for page in whole for record in page]
        some = pages_of(source.snapshot.records_of(source.stored[collection.id], seqs))
    for pages in (whole, some):
        assert len(pages) > 5
        assert max(map(size, pages)) <= PAGE_BYTES


def test_pages_of_a_server_and_of_a_folder(
    filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PAGE_BYTES", PAGE_BYTES)
    monkeypatch.setattr(reading, "PAGE_BYTES", PAGE_BYTES)
    done = within("migrate", "run", filled, "--to", tmp_path / "folder", "--receipt", tmp_path / "r.json")
    assert done.code == 0, done.stderr
    with open_folder(tmp_path / "folder") as folder:
        pages = pages_of(folder.records(folder.collections()[0]))
    # The record that fills a page is in it.
    assert max(map(size, pages)) <= PAGE_BYTES + LARGE
    process = ChromaProcess(versions.program("1.5.9"), tmp_path / "folder", tmp_path / "log")
    try:
        with remote.open_server(Access(process.url, {}), [("default_tenant", None, None)]) as server:
            pages = pages_of(server.records(server.collections()[0]))
    finally:
        process.stop()
    # How long the next records are, a server does not say beforehand: the first page is of few.
    assert len(pages[0]) <= 16
    assert max(map(size, pages[1:])) <= PAGE_BYTES


def test_pages_of_records_that_chroma_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = chroma.extract("1.5.9", tmp_path)
    with sqlite3.connect(folder / "chroma.sqlite3") as database:
        database.execute("DELETE FROM embeddings WHERE embedding_id LIKE 'south-backup-%'")
    database.close()
    found = []
    for page_bytes in (1, 1 << 20):
        monkeypatch.setattr(reading, "PAGE_BYTES", page_bytes)
        with open_folder(folder) as source:
            notes = next(item for item in source.collections() if item.path == "south/live/notes")
            found.append(list(source.lost(notes)))
    single, together = found
    assert len(together) == 1
    assert len(single) == len(together[0]) > 1
    for (record,), same in zip(single, together[0], strict=True):
        assert (record.seq, record.id, record.document) == (same.seq, same.id, same.document)
        assert record.embedding is not None
        assert same.embedding is not None
        assert record.embedding.tobytes() == same.embedding.tobytes()
