"""What moving costs: the rows of `make bench-migrate`, as ratios to what the machine could do at best in the same run.

PYTHONPATH=tests python -m bench.migrate [--rows 20000] [--check]
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np
import psycopg

from bench import chroma_folder, dataset, sqlite_tables
from pgchroma.migrate.remote.client import RemoteClient, in_batches
from pgchroma.migrate.remote.folder import ChromaProcess
from pgchroma.server.embedded import temporary_postgres
from pgchroma.store import vectors
from pgchroma.types import Record
from support.postgres import Databases

PROGRAM = Path(sys.executable).with_name("pgchroma")
LARGE = 100_000

_LOOP = """
import json, sys, time
import chromadb, psycopg
from chromadb.config import Settings
from pgvector.psycopg import register_vector
folder, url, name = sys.argv[1:]
collection = chromadb.PersistentClient(folder, settings=Settings(anonymized_telemetry=False)).get_collection(name, embedding_function=None)
connection = psycopg.connect(url)
register_vector(connection)
connection.execute("CREATE TABLE looped (id text PRIMARY KEY, embedding vector(384), document text, metadata jsonb)")
started = time.monotonic()
count = collection.count()
for offset in range(0, count, 1000):
    page = collection.get(limit=1000, offset=offset, include=["embeddings", "documents", "metadatas"])
    rows = [(i, e, d, json.dumps(m)) for i, e, d, m in zip(page["ids"], page["embeddings"], page["documents"], page["metadatas"])]
    with connection.cursor() as cursor:
        cursor.executemany("INSERT INTO looped VALUES (%s, %s, %s, %s)", rows)
    connection.commit()
sys.stdout.write(str(count / (time.monotonic() - started)))
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of the table."""

    what: str
    figure: str
    ratio: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the target is reached."""
        return self.ratio <= self.target if self.at_most else self.ratio >= self.target


def _timed(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _run(*arguments: object) -> tuple[Any, int]:
    """Run a command; return what it says as JSON and the largest memory of any of its processes, in bytes."""
    with tempfile.TemporaryFile() as told:
        pid = os.posix_spawn(
            PROGRAM,
            [str(PROGRAM), *map(str, arguments), "--format", "json"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, told.fileno(), 1)],
        )
        _, status, usage = os.wait4(pid, 0)
        if os.waitstatus_to_exitcode(status):
            raise click.ClickException(f"pgchroma {' '.join(map(str, arguments))} failed")
        told.seek(0)
        return json.load(told), usage.ru_maxrss * 1024


def raw_copy(url: str, data: dataset.Dataset) -> float:
    """Return rows/s of COPY BINARY of prepared rows into a table with its primary key."""
    parts = [vectors.COPY_HEADER]
    for record_id, embedding, document, metadata in zip(
        data.ids, data.embeddings, data.documents, data.metadatas, strict=True
    ):
        vector = np.array([len(embedding), 0], ">i2").tobytes() + embedding.astype(">f4").tobytes()
        fields = [record_id.encode(), vector, document.encode(), b"\x01" + msgspec.json.encode(metadata)]
        parts.append((4).to_bytes(2, "big"))
        parts += [part for field in fields for part in (len(field).to_bytes(4, "big"), field)]
    buffer = b"".join([*parts, vectors.COPY_TRAILER])
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE TABLE raw (id text PRIMARY KEY, embedding vector(384), document text, metadata jsonb)"
        )
        connection.execute("ALTER TABLE raw ALTER COLUMN embedding SET STORAGE PLAIN")
        connection.commit()

        def work() -> None:
            with connection.cursor() as cursor, cursor.copy("COPY raw FROM STDIN (FORMAT BINARY)") as copy:
                for start in range(0, len(buffer), 1 << 20):
                    copy.write(buffer[start : start + (1 << 20)])
            connection.commit()

        return len(data) / _timed(work)


def usual_loop(url: str, folder: Path) -> float:
    """Return rows/s of collection.get in pages of 1,000 and executemany; the reading process has its own copy."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "folder"
        subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
        done = subprocess.run(
            [sys.executable, "-c", _LOOP, str(copy), url, chroma_folder.COLLECTION],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    return float(done.stdout)


@dataclass(frozen=True, slots=True)
class Moved:
    """One folder moved: rows/s of the copy, of the whole run without its proof, of a full verification; bytes of memory."""

    copied: float
    whole: float
    verified: float
    memory: int


def moved(url: str, folder: Path, receipts: Path) -> Moved:
    """Move a folder and verify it once more."""
    receipt = receipts / f"{folder.name}.json"
    told, memory = _run("migrate", "run", folder, "--to", url, "--receipt", receipt)
    seconds, rows = told["seconds"], told["records"]
    verified, verifying = _run("migrate", "verify", "--receipt", receipt, "--to", url)
    (collection,) = verified["collections"]
    return Moved(
        rows / seconds["copy"],
        rows / (seconds["open"] + seconds["plan"] + seconds["copy"]),
        rows / collection["seconds"],
        max(memory, verifying),
    )


def to_server(url: str, data: dataset.Dataset, receipts: Path) -> tuple[float, float]:
    """Return (rows/s that a Chroma server ingests at best, rows/s of the migrator into it)."""
    records = [
        Record(number, *row)
        for number, row in enumerate(
            zip(data.ids, data.embeddings, data.documents, data.metadatas, strict=True), start=1
        )
    ]
    command = [Path(sys.executable).with_name("chroma")]
    with tempfile.TemporaryDirectory() as name:
        server = ChromaProcess(command, Path(name) / "best", Path(name) / "best.log")
        client: RemoteClient = server.client
        made = client.create("default_tenant", "default_database", {"name": "best", "configuration": {"hnsw": {"space": "cosine", "max_neighbors": 4, "ef_construction": 8}}})  # fmt: skip
        where = ("default_tenant", "default_database", str(made["id"]))

        def work() -> None:
            for batch in in_batches(records, client.max_batch):
                client.write(*where, "add", batch)

        best = len(records) / _timed(work)
        server.stop()
        server = ChromaProcess(command, Path(name) / "ours", Path(name) / "ours.log")
        try:
            told, _ = _run("migrate", "run", url, "--to", server.url, "--receipt", receipts / "server.json")
        finally:
            server.stop()
    (collection,) = told["collections"]
    return best, len(records) / collection["copy_seconds"]


def measure(rows: int) -> list[Measured]:
    """Run everything once."""
    data = dataset.load().grown(rows)
    folder, large = chroma_folder.folder(rows), chroma_folder.folder(LARGE)
    with temporary_postgres() as postgres, tempfile.TemporaryDirectory() as name:
        databases, receipts = Databases(postgres), Path(name)
        with databases.fresh() as url:
            raw = raw_copy(url, data)
            ours = moved(url, folder, receipts)
            loop = usual_loop(url, folder)
            best, back = to_server(url, data, receipts)
        with databases.fresh() as url:
            more = moved(url, large, receipts)
        with databases.fresh() as url:
            tables = sqlite_tables.measure(url, sqlite_tables.MESSAGES)
    return [
        Measured("folder to PostgreSQL: reading and writing, against raw COPY BINARY", f"{ours.copied:,.0f} of {raw:,.0f} rows/s", ours.copied / raw, 0.5),
        Measured(f"the same at {LARGE:,} rows", f"{more.copied:,.0f} of {raw:,.0f} rows/s", more.copied / raw, 0.5),
        Measured("the same with the private copy and the look through the source", f"{ours.whole:,.0f} of {raw:,.0f} rows/s", ours.whole / raw, 0.25),
        Measured("folder to PostgreSQL, against get + executemany", f"{ours.copied:,.0f} against {loop:,.0f} rows/s", ours.copied / loop, 10),
        Measured("verification of every record, rows/s", f"{ours.verified:,.0f} rows/s", ours.verified, 20_000),
        Measured(f"memory at {LARGE:,} rows, MB", f"{more.memory / 1e6:,.0f} MB", more.memory / 1e6, 400, at_most=True),
        Measured(f"memory at {LARGE:,} rows, against {rows:,}", f"{more.memory / 1e6:,.0f} against {ours.memory / 1e6:,.0f} MB", more.memory / ours.memory, 1.5, at_most=True),
        Measured("SQLite tables to PostgreSQL: reading and writing, against raw COPY BINARY", f"{tables.rows / tables.load:,.0f} of {tables.rows / tables.raw_copy:,.0f} rows/s", tables.ratio, 0.5),
        Measured("the same with the private copy and the look at every value", f"{tables.raw_copy:.1f} against {tables.raw_copy / tables.whole_ratio:.1f} s", tables.whole_ratio, 0.2),
        Measured("PostgreSQL to a Chroma server, against what it ingests", f"{back:,.0f} of {best:,.0f} rows/s", back / best, 0.9),
    ]  # fmt: skip


@click.command(help=__doc__)
@click.option("--rows", default=dataset.ROWS, show_default=True, help="Records of the folder.")
@click.option("--check", is_flag=True, help="Exit with 1 where a target is missed.")
def main(rows: int, check: bool) -> None:
    """Measure and show."""
    load = os.getloadavg()[0]
    click.echo(f"load at the beginning {load:.1f}, {os.cpu_count()} cores, {rows:,} rows")
    found = measure(rows)
    click.echo("| work | measured | ratio | target |\n|---|---|---|---|")
    for item in found:
        sign = "at most" if item.at_most else "at least"
        click.echo(
            f"| {item.what} | {item.figure} | {item.ratio:,.2f} | {sign} {item.target:,g} {'' if item.met else 'MISSED'} |"
        )
    if check and not all(item.met for item in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
