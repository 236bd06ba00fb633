"""The sink `Chroma folder`: a server of the chosen chromadb release, in its own process, writes it; then it is read back.

The folder grows beside its place under another name and takes its place only once it is proven, so that there is never half of
one under the name that an application opens.
"""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

from pgchroma.errors import ConfigurationError, RefusedError, SourceError
from pgchroma.migrate import aside, journal
from pgchroma.migrate.chroma import layout, snapshot
from pgchroma.migrate.chroma.folder import open_folder
from pgchroma.migrate.model import (
    Checkpoint,
    Encode,
    Json,
    Limits,
    Noted,
    Quarantined,
    RunNote,
    Source,
    SourceCollection,
    as_they_are,
)
from pgchroma.migrate.remote import versions
from pgchroma.migrate.remote.client import Access, RemoteClient, RemoteError, RemoteRefusalError
from pgchroma.migrate.remote.lock import FolderLock
from pgchroma.migrate.remote.sink import ServerSink
from pgchroma.types import Float32Matrix, Record

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
# What every release takes at a time; some take more.
_BATCH = 5_000
# Has the kernel end the program together with whoever started it, by SIGTERM, so that it completes what it is writing. In an
# interpreter of its own, because little is safe between fork and exec in a process with threads.
_TIED: Final = """
import ctypes, os, signal, sys
PR_SET_PDEATHSIG = 1
ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class ChromaProcess:
    """`chroma run` over a folder, on a loopback port of its own; it ends with this process, however that ends.

    Args:
        lock: held for as long as it runs.

    Raises:
        SourceError: it does not start; the message holds the end of its log.
    """

    def __init__(
        self, command: Sequence[str | Path], folder: Path, log: Path, lock: FolderLock | None = None
    ) -> None:
        self._log = log
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # Releases before 1.0 also write a log of their own into the current folder.
        self._home = tempfile.TemporaryDirectory(prefix="pgchroma-chromadb-")
        with log.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603 - our own arguments
                [
                    *(sys.executable, "-I", "-S", "-c", _TIED, str(os.getpid())),
                    *command,
                    "run",
                    "--path",
                    str(folder.resolve()),
                    "--host",
                    "127.0.0.1",
                    "--port",
                    str(port),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._home.name,
                env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
                start_new_session=True,
                pass_fds=[] if lock is None else [lock.descriptor],
            )
        self.pid = self._process.pid
        self._clients: list[RemoteClient] = []
        self.client = self._connect()

    def _connect(self) -> RemoteClient:
        deadline = time.monotonic() + _START_SECONDS
        pause = threading.Event()
        port = int(self.url.rpartition(":")[2])
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                self._clients.append(RemoteClient(Access(self.url, {})))
                return self._clients[0]
            pause.wait(0.05)
        self.stop()
        told = self._log.read_text(errors="replace").strip().splitlines()[-3:]
        raise SourceError(
            f"the chromadb that is to write the folder does not start: {' / '.join(told)}",
            hint=f"its log is {self._log}",
        )

    def stop(self) -> None:
        """End it, so that everything is on disk."""
        for client in self._clients:
            client.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._home.cleanup()


class FolderSink:
    """A Chroma folder as the target of one run; see model.Sink.

    Attributes:
        version: the chromadb release that writes it.
        partial: where it grows; the place itself once an interrupted attempt has brought it there.
        asks_early: questions are put before the proof, while the writer runs.
        base: with this, the folder is a changed copy of an existing one instead of a new one.
    """

    asks_early = True
    transactional = False

    def __init__(
        self,
        path: Path,
        receipt_path: Path,
        version: str,
        *,
        python: Path | None = None,
        work_folder: Path | None = None,
        base: Path | None = None,
    ) -> None:
        self.path, self.version, self._base = path.resolve(), version, base
        self.partial = self.path.with_name(self.path.name + ".partial")
        if base is None and self.path.exists() and any(self.path.iterdir()):
            if self.partial.exists() or not journal.was_publishing(receipt_path):
                raise RefusedError(
                    f"{path} exists and is not empty", hint="name a folder that does not exist yet"
                )
            # An attempt was killed when the folder had its name and the receipt was not written yet.
            self.partial = self.path
        self._work_folder = work_folder
        self._python, self._command = python, list[str | Path]()
        versions.numbers(version)
        self._receipt_path = receipt_path
        self._server: ServerSink | None = None
        self._process: ChromaProcess | None = None
        self._lock: FolderLock | None = None
        self.description: Json = {
            "kind": "chroma-folder",
            "path": str(self.path),
            "layout": f"chromadb {version}",
        }

    @property
    def limits(self) -> Limits:
        """What this release cannot hold."""
        number = versions.numbers(self.version)
        return Limits(
            vectors=1_000_000,
            name=63 if number < (1,) else 512,
            plain_metadata=True,
            arrays=number >= (1, 5),
            sparse=False,
            batch=_BATCH,
        )

    def build(self) -> None:
        """Have the release that writes the folder at hand; ConfigurationError when it cannot be installed."""
        self._command = self._command or versions.program(self.version, self._python)

    def start(self, *, fresh: bool) -> ServerSink:
        """Start the server over the growing folder; `fresh` removes what an attempt that is not resumed has left."""
        if self._server is None:
            self.build()
            self._take_folder()
            if fresh:
                self._empty()
            if self._base is not None and not any(self.partial.iterdir()):
                shutil.copytree(self._base, self.partial, dirs_exist_ok=True)
            before = self._layout()
            log = self._receipt_path.with_suffix(".chroma.log").resolve()
            log.parent.mkdir(parents=True, exist_ok=True)
            self._process = ChromaProcess(self._command, self.partial, log, self._lock)
            if before is not None:
                self._require_layout(before)
            self._server = ServerSink(self._process.client, self._receipt_path)
            self._server.journal.target = self.description
        return self._server

    def _take_folder(self) -> None:
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"cannot create {self.partial}: {error.strerror}",
                hint="name a place that can be written to",
            ) from error
        self._lock = self._lock or FolderLock(self.partial, journal.writer(self._receipt_path))

    def _empty(self) -> None:
        for entry in self.partial.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _layout(self) -> layout.Layout | None:
        """Return the layout of the folder as it is now; None where there is no database in it yet."""
        database = self.partial / snapshot.DATABASE
        if not database.exists():
            return None
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return layout.detect(connection, str(database))

    def _require_layout(self, before: layout.Layout) -> None:
        """Refuse a release that has just brought the copy to a layout that its readers do not expect."""
        after = self._layout()
        if after != before:
            self._stop()
            self._empty()
            self.partial.rmdir()
            raise RefusedError(
                f"chromadb {self.version} turns the layout of {self.path}, {before.name}, into another",
                hint="name by --chromadb-version the release that the folder's application uses; the folder itself is unchanged",
            )

    async def _started(self, *, fresh: bool = False) -> ServerSink:
        return await asyncio.to_thread(self.start, fresh=fresh)

    async def find(self, collection: SourceCollection) -> tuple[SourceCollection, int] | None:
        """Return the collection in the growing folder; a folder that is not begun has none."""
        if self._server is None and self._base is None:
            return None
        return await (await self._started()).find(collection)

    async def begin(self, note: RunNote, collections: Sequence[SourceCollection]) -> None:
        """Begin the folder and the journal."""
        if self.partial == self.path:
            raise RefusedError(
                f"{self.path} was put in its place by a run whose receipt is not written yet",
                hint="complete that one by `pgchroma migrate resume`",
            )
        server = await self._started(fresh=True)
        await server.begin(note, collections)
        self._note_writer(server)

    def _note_writer(self, server: ServerSink) -> None:
        if self._process is not None:
            server.journal.note_writer(self._process.pid)

    async def noted(self, run_id: UUID | None) -> Noted:
        """Take up the run of the journal, with the release that began it."""
        began = journal.release(self._receipt_path)
        if began is not None and began != self.version:
            raise RefusedError(
                f"chromadb {began} began {self.partial}, {self.version} would change its layout",
                hint=f"give --chromadb-version {began} or leave it out, or start a new migration",
            )
        server = await self._started()
        noted = await server.noted(run_id)
        self._note_writer(server)
        return noted

    async def server(self) -> ServerSink:
        """Return what talks to the process that writes the folder."""
        return await self._started()

    async def checkpoint(self, run_id: UUID, collection: SourceCollection) -> Checkpoint:
        """Return how far the copy of a collection is."""
        return await (await self._started()).checkpoint(run_id, collection)

    async def prepare(self, run_id: UUID, collection: SourceCollection) -> None:
        """Create the collection, or take it up."""
        await (await self._started()).prepare(run_id, collection)

    async def encoder(self, collection: SourceCollection) -> Encode:
        """Return records as they are."""
        return as_they_are

    async def write(
        self,
        collection: SourceCollection,
        checkpoint: Checkpoint,
        records: Sequence[Record],
        quarantined: Sequence[Quarantined],
        position: int,
    ) -> Checkpoint:
        """Append records."""
        try:
            return await (await self._started()).write(collection, checkpoint, records, quarantined, position)
        except (RemoteError, RemoteRefusalError) as error:
            raise SourceError(
                f"chromadb {self.version} does not take the batch: {error.message}",
                hint=f"see its log {self._receipt_path.with_suffix('.chroma.log')}",
            ) from error

    async def set_phase(
        self, run_id: UUID, collection: SourceCollection, phase: str, errors: int | None = None
    ) -> None:
        """Note a collection's phase."""
        if self._server is not None:
            await self._server.set_phase(run_id, collection, phase, errors)

    async def query(
        self, collection: SourceCollection, vectors: Float32Matrix, count: int
    ) -> list[list[str]] | None:
        """Ask the chromadb that writes the folder, as long as it does: opening a proven folder again would change it."""
        if self._process is None or self._server is None:
            return None
        return await self._server.query(collection, vectors, count)

    @contextlib.asynccontextmanager
    async def written(self) -> AsyncIterator[Source]:
        """Stop the writer and read its folder the way an existing one is read."""
        await asyncio.to_thread(self._stop)
        with open_folder(self.partial, self._work_folder) as source:
            yield source

    def _stop(self) -> None:
        if self._process is not None:
            self._process.stop()
            self._process = None

    async def publish(self) -> Json:
        """Give the folder its name; one that it replaces is kept under another."""
        kept_journal = self._server.journal if self._server is not None else None
        kept: Json = dict(kept_journal.publishing or {}) if kept_journal is not None else {}
        if self.partial == self.path:
            return kept
        if self.path.exists() and any(self.path.iterdir()):
            former = aside.name_for(self.path)
            kept = {"replaced": str(former)}
            if kept_journal is not None:
                kept_journal.note_publishing(kept)
            self.path.rename(former)
        elif self.path.exists():
            self.path.rmdir()
        if kept_journal is not None:
            kept_journal.note_publishing(kept)
        self.partial.rename(self.path)
        return kept

    async def finish(self) -> None:
        """Forget the journal: the run is through."""
        if self._server is not None:
            await self._server.finish()

    async def close(self) -> None:
        """End the writer and let go of the folder."""
        await asyncio.to_thread(self._stop)
        if self._server is not None:
            await self._server.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
