"""What moving costs: the rows of `make bench-migrate`, as ratios to what the machine could do at best in the same run.

PYTHONPATH=tests python -m bench.migrate [--rows 20000] [--repeat 5] [--check]
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
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
# How often what takes longer is measured.
FEWER = 3

# (page of collection.get, how vectors are written), see usual_loop.py
PUBLISHED, QUICKEST = (500, "text"), (1_000, "binary")


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


def _most_memory(pid: int, ended: threading.Event, found: list[int]) -> None:
    """Note the most memory that a process, and each process started by it, has had, until the first one ends.

    What wait4 tells of a process counts what the one that started it had, too, which here holds all the data.
    """
    most: dict[str, int] = {}
    while not ended.wait(0.02):
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            for process in (str(pid), *children):
                status = Path(f"/proc/{process}/status").read_text()
                line = next((line for line in status.splitlines() if line.startswith("VmHWM")), "VmHWM: 0")
                # One that has ended and was not waited for has none.
                most[process] = max(most.get(process, 0), int(line.split()[1]) * 1024)
    found.append(sum(most.values()))


def _run(*arguments: object) -> tuple[Any, int]:
    """Run a command; return what it says as JSON and the most memory of its processes together, in bytes; what they share counts twice."""
    with subprocess.Popen(
        [PROGRAM, *map(str, arguments), "--format", "json"], stdout=subprocess.PIPE
    ) as process:
        ended, found = threading.Event(), list[int]()
        watch = threading.Thread(target=_most_memory, args=(process.pid, ended, found))
        watch.start()
        told, _ = process.communicate()
        ended.set()
        watch.join()
    if process.returncode:
        raise click.ClickException(f"pgchroma {' '.join(map(str, arguments))} failed")
    return json.loads(told), found[0]


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


def usual_loop(url: str, folder: Path, page: int, form: str) -> float:
    """Return rows/s of collection.get in pages and executemany; the reading process has its own copy."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "folder"
        subprocess.run(["cp", "-r", str(folder), str(copy)], check=True)
        done = subprocess.run(
            [sys.executable, "-m", "bench.usual_loop", str(copy), url, chroma_folder.COLLECTION, str(page), form],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM looped").fetchone()
    return (row[0] if row else 0) / float(done.stdout)


@dataclass(frozen=True, slots=True)
class Moved:
    """One folder moved: rows/s of the copy, end to end, with the process around it, and of a full verification; bytes of memory.

    Attributes:
        whole: from opening the source to the last commit: private copy, look through it, tables, records.
        process: the same with the start of the process, receipt and report, without the proof.
    """

    copied: float
    whole: float
    process: float
    verified: float
    memory: int


def moved(url: str, folder: Path, receipts: Path) -> Moved:
    """Move a folder and verify it once more."""
    receipt = receipts / f"{folder.name}.json"
    started = time.monotonic()
    told, memory = _run("migrate", "run", folder, "--to", url, "--receipt", receipt)
    elapsed = time.monotonic() - started
    seconds, rows = told["seconds"], told["records"]
    verified, verifying = _run("migrate", "verify", "--receipt", receipt, "--to", url)
    (collection,) = verified["collections"]
    return Moved(
        rows / seconds["copy"],
        rows / sum(seconds[step] for step in ("open", "connect", "plan", "copy")),
        rows / (elapsed - seconds["proof"]),
        rows / collection["seconds"],
        max(memory, verifying),
    )


@dataclass(frozen=True, slots=True)
class Pair:
    """A migration and the raw COPY just before it, into the same database."""

    raw: float
    ours: Moved


def pairs(
    databases: Databases, data: dataset.Dataset, folder: Path, receipts: Path, times: int
) -> list[Pair]:
    """Measure so many pairs, each in a database of its own; in order of the end-to-end ratio."""
    found = []
    for _ in range(times):
        with databases.fresh() as url:
            raw = raw_copy(url, data)
            found.append(Pair(raw, moved(url, folder, receipts)))
    return sorted(found, key=lambda pair: pair.ours.whole / pair.raw)


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


def measure(rows: int, repeat: int) -> list[Measured]:
    """Run everything; of what is done `repeat` times, the middle one counts."""
    data = dataset.load().grown(rows)
    folder, large = chroma_folder.folder(rows), chroma_folder.folder(LARGE)
    with temporary_postgres() as postgres, tempfile.TemporaryDirectory() as name:
        databases, receipts = Databases(postgres), Path(name)
        found = pairs(databases, data, folder, receipts, repeat)
        more = pairs(databases, data, large, receipts, 1)[0]
        with databases.fresh() as url:
            moved(url, folder, receipts)
            published, quickest = usual_loop(url, folder, *PUBLISHED), usual_loop(url, folder, *QUICKEST)
            backs = [to_server(url, data, receipts) for _ in range(FEWER)]
        with databases.fresh() as url:
            several = [sqlite_tables.measure(url, sqlite_tables.MESSAGES, f"app{n}") for n in range(FEWER)]
    best, back = sorted(backs, key=lambda pair: pair[1] / pair[0])[FEWER // 2]
    tables = sorted(several, key=lambda run: run.ratio)[FEWER // 2]
    middle = found[len(found) // 2]
    raw, ours = middle.raw, middle.ours
    ratios = ", ".join(f"{pair.ours.whole / pair.raw:.2f}" for pair in found)
    verified = sorted(pair.ours.verified for pair in found)[len(found) // 2]
    return [
        Measured("folder to PostgreSQL, end to end, against raw COPY BINARY", f"{ours.whole:,.0f} of {raw:,.0f} rows/s ({ratios})", ours.whole / raw, 0.5),
        Measured(f"the same at {LARGE:,} rows", f"{more.ours.whole:,.0f} of {more.raw:,.0f} rows/s", more.ours.whole / more.raw, 0.5),
        Measured("reading and writing alone", f"{ours.copied:,.0f} of {raw:,.0f} rows/s", ours.copied / raw, 0.5),
        Measured("end to end, against the loop as published", f"{ours.whole:,.0f} against {published:,.0f} rows/s", ours.whole / published, 10),
        Measured("end to end, against the quickest form of it", f"{ours.whole:,.0f} against {quickest:,.0f} rows/s", ours.whole / quickest, 10),
        Measured("with the start of the process, receipt and report, rows/s", f"{ours.process:,.0f} rows/s", ours.process, 10_000),
        Measured("verification of every record, rows/s", f"{verified:,.0f} rows/s", verified, 20_000),
        Measured(f"memory at {LARGE:,} rows, MB", f"{more.ours.memory / 1e6:,.0f} MB", more.ours.memory / 1e6, 400, at_most=True),
        Measured(f"memory at {LARGE:,} rows, against {rows:,}", f"{more.ours.memory / 1e6:,.0f} against {ours.memory / 1e6:,.0f} MB", more.ours.memory / ours.memory, 1.5, at_most=True),
        Measured("SQLite tables to PostgreSQL: reading and writing, against raw COPY BINARY", f"{tables.rows / tables.load:,.0f} of {tables.rows / tables.raw_copy:,.0f} rows/s", tables.ratio, 0.5),
        Measured("the same with the private copy and the look at every value", f"{tables.raw_copy:.1f} against {tables.raw_copy / tables.whole_ratio:.1f} s", tables.whole_ratio, 0.5),
        Measured("PostgreSQL to a Chroma server, against what it ingests", f"{back:,.0f} of {best:,.0f} rows/s", back / best, 0.9),
    ]  # fmt: skip


@click.command(help=__doc__)
@click.option("--rows", default=dataset.ROWS, show_default=True, help="Records of the folder.")
@click.option(
    "--repeat", default=5, show_default=True, help="How often folder and raw COPY are measured in turn."
)
@click.option("--check", is_flag=True, help="Exit with 1 where a target is missed.")
def main(rows: int, repeat: int, check: bool) -> None:
    """Measure and show."""
    load = os.getloadavg()[0]
    click.echo(f"load at the beginning {load:.1f}, {os.cpu_count()} cores, {rows:,} rows")
    found = measure(rows, repeat)
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
