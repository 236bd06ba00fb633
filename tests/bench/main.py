"""`make bench`: pgchroma and `chroma run` on the same machine, in the same run, by turns.

Every figure is the median of several repetitions; within one, both servers are measured one right after the other, and who goes first
changes. Both run all the time, the one that is not measured being idle.
"""

import shutil
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from chromadb.api.models.Collection import Collection

from bench import dataset, report, work, wrk
from bench.dataset import Dataset
from bench.replay import replaying
from bench.report import Row
from bench.systems import OURS, UPSTREAM, System, client, ours, upstream
from bench.work import Request


class Bench:
    """One run: both servers, the data, and what was measured so far."""

    def __init__(self, systems: Sequence[System], data: Dataset, *, repeat: int, seconds: float) -> None:
        self.systems = systems
        self.data = data
        self.repeat = repeat
        self.seconds = seconds
        # row -> server -> one value a repetition
        self.values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.recalls: dict[str, dict[str, float]] = defaultdict(dict)
        self.collections: dict[tuple[str, str], Collection] = {}
        self.only: set[str] = set()

    def wants(self, topic: str) -> bool:
        """Whether a topic is to be measured."""
        return not self.only or topic in self.only

    def by_turns(self, row: str, measure: Callable[[System, int], float], times: int | None = None) -> None:
        """Measure a row on both servers, again and again."""
        for turn in range(times or self.repeat):
            for system in self.systems[:: 1 if turn % 2 == 0 else -1]:
                value = measure(system, turn)
                self.values[row][system.name].append(value)
                click.echo(f"  {row}: {system.name} {value:,.2f}", err=True)

    def fill(self, name: str, data: Dataset) -> Callable[[System, int], float]:
        """Return the measurement that loads `data` into a new collection."""

        def measure(system: System, turn: int) -> float:
            collection = system.create(f"{name}-{turn}")
            self.collections[system.name, f"{name}-{turn}"] = collection
            speed = work.ingest(collection, data)
            # So that what is left to do does not slow down the other one.
            system.settle(collection)
            return speed

        return measure

    def latency(self, row: str, name: str, request: Request) -> None:
        """Measure the median latency over one connection."""
        self.by_turns(
            row,
            lambda system, _: (
                work.load(
                    system, self.collections[system.name, name], request, connections=1, seconds=self.seconds
                ).p50
            ),
        )

    def throughput(self, row: str, name: str, request: Request, connections: int) -> None:
        """Measure requests a second."""
        self.by_turns(
            row,
            lambda system, _: (
                work.load(
                    system,
                    self.collections[system.name, name],
                    request,
                    connections=connections,
                    seconds=self.seconds,
                ).per_second
            ),
        )

    def recall(self, row: str, name: str, data: Dataset, request: Request) -> None:
        """Measure recall@10 of the answers a row is about."""
        for system in self.systems:
            found = work.recall(system, self.collections[system.name, name], data, request)
            self.recalls[row][system.name] = found
            click.echo(f"  {row}: {system.name} recall@10 {found:.4f}", err=True)

    def run(self, large: int) -> None:
        """Measure everything that is wanted."""
        loads = self.repeat if self.wants("ingest") or self.wants("mixed") else 1
        self.by_turns("ingest", self.fill("records", self.data), loads)
        if self.wants("query"):
            plain = work.plain(self.data)
            self.recall("query", "records-0", self.data, plain)
            self.latency("query", "records-0", plain)
            self.throughput("query-8", "records-0", plain, 8)
            self.throughput("query-32", "records-0", plain, 32)
        if self.wants("filter"):
            self._filters("20k", "records-0", self.data)
        if self.wants("contains"):
            for kind, request in zip(("query", "get"), work.contains(self.data), strict=True):
                self.latency(f"contains-{kind}", "records-0", request)
        if self.wants("and"):
            for kind, request in zip(("query", "get"), work.both(self.data), strict=True):
                self.latency(f"and-{kind}", "records-0", request)
        if self.wants("get"):
            self.latency("get", "records-0", work.by_id(self.data))
        if self.wants("export"):
            self.by_turns(
                "export",
                lambda system, _: work.export(self.collections[system.name, "records-0"], len(self.data)),
            )
            self.by_turns("export-client", self._replayed)
        if self.wants("large"):
            grown = self.data.grown(large)
            self.by_turns("ingest-60k", self.fill("large", grown), 1)
            self._filters("60k", "large-0", grown)
        if self.wants("mixed"):
            self._mixed()

    def _replayed(self, system: System, _: int) -> float:
        with replaying(system.port) as port:
            collection = client(port).get_collection("records-0", embedding_function=None)
            # The first time the pages come from the server.
            work.export(collection, len(self.data))
            return work.export(collection, len(self.data))

    def _filters(self, size: str, name: str, data: Dataset) -> None:
        for kind, section in zip(("many", "some", "few"), work.sections(data), strict=True):
            request = work.filtered(data, section)
            row = f"filter-{kind}-{size}"
            self.recall(row, name, data, request)
            self.latency(row, name, request)

    def _mixed(self) -> None:
        written = self.data.renamed("new-")

        def measure(system: System, turn: int) -> float:
            collection = self.collections[system.name, f"records-{turn + 1}"]
            readers, speed = work.beside_a_writer(system, collection, written)
            system.settle(collection)
            self.values["mixed-writer"][system.name].append(speed)
            self.values["mixed-readers"][system.name].append(readers.per_second)
            return readers.p95

        # The first collection was measured by others; each of the rest is written to once.
        self.by_turns("mixed", measure, max(1, self.repeat - 1))

    def rows(self) -> list[Row]:
        """Return the medians."""
        return [
            Row(
                name,
                statistics.median(values[OURS]),
                statistics.median(values[UPSTREAM]),
                self.recalls.get(name, {}).get(OURS),
                self.recalls.get(name, {}).get(UPSTREAM),
                values[OURS],
                values[UPSTREAM],
            )
            for name, values in self.values.items()
        ]


TOPICS = ("ingest", "query", "filter", "contains", "and", "get", "export", "large", "mixed")


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder with other data."
)
@click.option("--rows", type=click.IntRange(2_000), default=dataset.ROWS, show_default=True)
@click.option(
    "--large",
    type=click.IntRange(2_000),
    default=60_000,
    show_default=True,
    help="Rows of the larger collection.",
)
@click.option(
    "--repeat", type=click.IntRange(1), default=3, show_default=True, help="Repetitions; medians are taken."
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=3, show_default=True, help="Length of each load."
)
@click.option("--only", multiple=True, type=click.Choice(TOPICS), help="Measure only this; may be repeated.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench/bench.json"), show_default=True
)
@click.option(
    "--docs",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder whose BENCHMARKS.md gets the table.",
)
@click.option("--check", is_flag=True, help="Exit with 1 where a target is missed.")
def main(
    data: Path | None,
    rows: int,
    large: int,
    repeat: int,
    seconds: float,
    only: tuple[str, ...],
    out: Path,
    docs: Path | None,
    check: bool,
) -> None:
    """Measure pgchroma against `chroma run`."""
    found = dataset.load(data)
    found = found.grown(rows)
    if "mixed" in only or not only:
        # One collection is for the other rows, at least one to be written to.
        repeat = max(repeat, 2)
    folder = Path(tempfile.mkdtemp(prefix="pgchroma-bench-"))
    try:
        with ours(folder / "pgchroma") as mine, upstream(folder / "chroma") as theirs:
            bench = Bench((mine, theirs), found, repeat=repeat, seconds=seconds)
            bench.only = set(only)
            try:
                bench.run(large)
            except wrk.WrkError as error:
                raise click.ClickException(str(error)) from error
            measured = bench.rows()
            facts = report.machine(mine.database_url)
    finally:
        shutil.rmtree(folder)
    facts |= {"data": f"{found.name}, {found.fingerprint}", "rows": rows}
    missed = report.write(out, measured, facts, docs)
    if check and missed:
        raise click.ClickException(f"targets missed: {', '.join(missed)}")


if __name__ == "__main__":
    main()
