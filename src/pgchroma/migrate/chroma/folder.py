"""The source `Chroma folder`: records put together from SQLite's rows, the HNSW files and the log."""

import contextlib
import functools
import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np

from pgchroma.errors import SourceError
from pgchroma.migrate.chroma import catalog, dangers, layout, log, snapshot
from pgchroma.migrate.chroma.reading import FolderReader, reopened, unreadable
from pgchroma.migrate.chroma.vectors import are_sound
from pgchroma.migrate.model import SHOWN_IDS, Json, Problem, SourceCollection, describe_changes
from pgchroma.migrate.policies import DANGERS, texts_of
from pgchroma.store import text
from pgchroma.types import Record

Found = TypeVar("Found")


def digest_of(collections: Sequence[SourceCollection], found: layout.Layout) -> str:
    """Return the fingerprint of a folder, from the state of its collections."""
    whole = {"layout": found.name, "collections": {item.path: item.state for item in collections}}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


class ChromaFolder:
    """A Chroma folder, read through a private copy; see model.Source.

    Use `open_folder`; the copy lives as long as that context.
    """

    frozen = True

    def __init__(self, taken: snapshot.Snapshot) -> None:
        self._snapshot = taken
        self._connection = taken.connection
        self.path = taken.folder
        self.layout = layout.detect(self._connection, str(taken.folder / snapshot.DATABASE))
        try:
            # The copy is ours: these make paging by collection cheap.
            self._connection.execute(
                "CREATE INDEX IF NOT EXISTS pgchroma_order ON embeddings (segment_id, id)"
            )
            log.prepare(self._connection)
            self._collections = catalog.read(self._connection, taken.path)
            self._reader = FolderReader(self._connection, taken.path, self.path)
        except sqlite3.DatabaseError as error:
            raise unreadable(self.path, error) from error
        self._fingerprint = digest_of(self._collections, self.layout)
        # SQLite's look through the copy and ours through its texts need this process's attention only at their end.
        self._beside = ThreadPoolExecutor(2, thread_name_prefix="looking through a folder")
        self._sound = self._beside.submit(self._with_own_connection, snapshot.require_sound)

    @functools.cached_property
    def _texts(self) -> Future[dangers.Texts]:
        """What the texts hold, being looked for since the first time this was asked for: a proof needs none of it."""
        return self._beside.submit(self._with_own_connection, dangers.look_at)

    def _with_own_connection(self, work: Callable[[sqlite3.Connection], Found]) -> Found:
        with self._snapshot.beside() as connection:
            return work(connection)

    def close(self) -> None:
        """Wait for what is still looking at the copy."""
        self._beside.shutdown(cancel_futures=True)

    def require_sound(self) -> None:
        """Wait until SQLite has looked through the copy; SourceError when it is damaged."""
        self._sound.result()

    @property
    def description(self) -> Json:
        """Kind, path and layout, for the receipt."""
        return {"kind": "chroma-folder", "path": str(self.path.resolve()), "layout": self.layout.name}

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over layout, counts, sequence numbers, index files and descriptions."""
        return self._fingerprint

    def collections(self) -> Sequence[SourceCollection]:
        """Return the collections, ordered by tenant, database and name."""
        return self._collections

    def records(self, collection: SourceCollection, after: int = 0) -> Iterator[list[Record]]:
        """Yield pages of records in insertion order; see FolderReader.records."""
        return self._reader.records(collection, after)

    def lost(self, collection: SourceCollection) -> Iterator[list[Record]]:
        """Yield the records that Chroma lost; see FolderReader.lost."""
        return self._reader.lost(collection)

    def elsewhere(self) -> Callable[[], contextlib.AbstractContextManager[FolderReader]]:
        """Return what opens the same copy in another process, for as long as this one keeps it."""
        return functools.partial(reopened, self._snapshot.path, self.path)

    def problems(self, collection: SourceCollection) -> list[Problem]:
        """Look at every vector of a collection, and at what its files and its log say beyond its records."""
        texts = self._texts
        self.require_sound()
        missing: list[str] = []
        unstorable: list[str] = []
        unequal: list[str] = []
        try:
            vectors = self._reader.vectors_of(collection)
            lost, complete = self._reader.without_record(collection, vectors)
            if not (complete and vectors.all_sound()):
                for ids in self._reader.ids(collection):
                    fetched = vectors.fetch(ids)
                    if are_sound(fetched, collection.dimension):
                        continue
                    for name, vector in zip(ids, fetched, strict=True):
                        if vector is None:
                            missing.append(name)
                        elif collection.dimension is not None and len(vector) != collection.dimension:
                            unequal.append(name)
                        elif not np.isfinite(vector).all():
                            unstorable.append(name)
        except sqlite3.DatabaseError as error:
            raise unreadable(self.path, error) from error
        found = []
        if vectors.damage:
            severity = "error" if missing else "notice"
            found.append(
                Problem(severity, "index-damaged", collection.path, vectors.damage)  # type: ignore[arg-type]
            )
        for code, message, ids in (
            ("vector-missing", "records whose vector is in neither the HNSW files nor the log", missing),
            (
                "vector-not-finite",
                "records whose vector holds NaN or infinity",
                unstorable,
            ),
            ("vector-dimension", "records whose vector is of another dimension than the collection", unequal),
        ):
            if ids:
                found.append(
                    Problem("error", code, collection.path, message, len(ids), tuple(ids[:SHOWN_IDS]))
                )
        if lost:
            found.append(
                Problem(
                    "notice",
                    "record-lost",
                    collection.path,
                    "records that Chroma lost: it shows them no more, but its log or index still holds them",
                    len(lost),
                    tuple(lost[:SHOWN_IDS]),
                )
            )
            found += self._not_unicode(collection)
        try:
            if not texts.result().harmless:
                found += dangers.in_texts(self._connection, collection.path, self._reader.segment(collection))
            if collection.id == self._collections[0].id:
                left = dangers.orphans(self._connection, self.path)
                found += [left] if left else []
        except sqlite3.DatabaseError as error:
            raise unreadable(self.path, error) from error
        return found

    def _not_unicode(self, collection: SourceCollection) -> list[Problem]:
        """Return which records were lost because a text of theirs is no Unicode, which SQLite did not take."""
        code = "text-not-unicode"
        ids = [
            record.id
            for page in self._reader.lost(collection)
            for record in page
            if not all(map(text.is_unicode, texts_of(record)))
        ]
        shown = tuple(ids[:SHOWN_IDS])
        what = f"lost records with this: {DANGERS[code].what}"
        return [Problem("notice", code, collection.path, what, len(ids), shown)] if ids else []

    def size_bytes(self, collection: SourceCollection) -> int:
        """Return the bytes of a collection's texts and vectors."""
        texts = self._texts.result().size_bytes.get(self._reader.segment(collection) or "", 0)
        return texts + 4 * (collection.dimension or 0) * collection.count

    def changes(self) -> list[str]:
        """Return what has changed in the folder since the copy was taken; empty when nothing has.

        Only when a file's size or time is new is the folder looked into again.
        """
        if self._snapshot.files_unchanged():
            return []
        try:
            with open_folder(self.path, self._snapshot.path) as now:
                if now.fingerprint == self.fingerprint:
                    return []
                before = {item.path: item.state for item in self.collections()}
                return describe_changes(before, {item.path: item.state for item in now.collections()}) or [
                    f"the layout was {self.layout.name}, is {now.layout.name}"
                ]
        except SourceError as error:
            return [error.message]


@contextlib.contextmanager
def open_folder(path: Path, work_folder: Path | None = None) -> Iterator[ChromaFolder]:
    """Open a Chroma folder as a source for as long as the context lasts.

    Args:
        path: the folder that holds chroma.sqlite3; may be read-only.
        work_folder: where to put the private copy; the system's temporary folder when None.

    Raises:
        SourceError: missing, damaged, or of an unknown layout.
        SourceChangedError: an application keeps writing to it.
    """
    with snapshot.take(path, work_folder) as taken, contextlib.closing(ChromaFolder(taken)) as folder:
        yield folder
        folder.require_sound()
