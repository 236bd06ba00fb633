"""`make bench-growth`: how speed, indexes, disk and memory grow with the collection, for both servers, as a table and a chart."""

import json
import shutil
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import pygal

from bench import dataset, report, work
from bench.systems import OURS, QUIET_SECONDS, UPSTREAM, System, ours, upstream


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured of one server at one size.

    Attributes:
        ingest: rows a second.
        index_seconds: from the last write until a tail of less than 2,000 vectors is all that no index covers.
        p50: of a query over one connection, in milliseconds.
        disk_mb, memory_mb: growth of the server's folder by this collection; memory of all its processes while it holds it.
    """

    system: str
    rows: int
    ingest: float
    index_seconds: float
    p50: float
    recall: float
    disk_mb: float
    memory_mb: float


def measure(system: System, data: dataset.Dataset, *, seconds: float, repeat: int) -> Point:
    """Load a new collection and measure it."""
    before = system.disk_mb()
    collection = system.create(f"growth-{len(data)}")
    ingest = work.ingest(collection, data)
    started = time.monotonic()
    if system.name == OURS:
        system.settle(collection)
    else:
        collection.query(query_embeddings=data.queries[:1], n_results=1)
    index_seconds = time.monotonic() - started - (QUIET_SECONDS if system.name == OURS else 0)
    request = work.plain(data)
    found = work.recall(system, collection, data, request)
    loads = [work.load(system, collection, request, connections=1, seconds=seconds) for _ in range(repeat)]
    return Point(
        system.name,
        len(data),
        ingest,
        index_seconds,
        statistics.median(load.p50 for load in loads),
        found,
        system.disk_mb() - before,
        system.memory_mb(),
    )


_COLUMNS = (
    "rows",
    "server",
    "ingest, rows/s",
    "indexed after the last write, s",
    "query p50, ms",
    "recall@10",
    "disk, MB",
    "memory, MB",
)


def table(points: list[Point]) -> str:
    """Return the points as a Markdown table."""
    lines = [_COLUMNS, ("---:",) * len(_COLUMNS)]
    for point in points:
        index = f"{point.index_seconds:.0f}" if point.system == OURS else "-"
        lines.append(
            (
                f"{point.rows:,}",
                point.system,
                report.number(point.ingest),
                index,
                f"{point.p50:.2f}",
                f"{point.recall:.3f}",
                report.number(point.disk_mb),
                report.number(point.memory_mb),
            )
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def chart(points: list[Point], field: str, title: str, out: Path) -> None:
    """Write a chart of one field by rows, a line for each server."""
    drawing = pygal.XY(
        title=title, x_title="rows", width=700, height=420, range=None, include_x_axis=True, js=[], margin=20
    )
    for name in dict.fromkeys(point.system for point in points):
        drawing.add(name, [(point.rows, getattr(point, field)) for point in points if point.system == name])
    drawing.render_to_file(str(out))


CHARTS = {
    "p50": "query p50 over one connection, ms",
    "ingest": "ingest, rows a second",
    "disk_mb": "disk, MB",
    "memory_mb": "memory of the server, MB",
}


@click.command()
@click.option(
    "--data", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Folder with other data."
)
@click.option(
    "--rows", type=click.IntRange(2_500), multiple=True, default=(5_000, 20_000, 100_000), show_default=True
)
@click.option(
    "--seconds", type=click.FloatRange(1), default=4, show_default=True, help="Length of each load."
)
@click.option("--repeat", type=click.IntRange(1), default=3, show_default=True)
@click.option("--only", type=click.Choice([OURS, UPSTREAM]), help="Measure one of the two.")
@click.option("--docs", type=click.Path(exists=True, file_okay=False, path_type=Path), default=Path("docs"))
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("build/bench/growth.json"), show_default=True
)
def main(
    data: Path | None,
    rows: tuple[int, ...],
    seconds: float,
    repeat: int,
    only: str | None,
    docs: Path,
    out: Path,
) -> None:
    """Measure collections of several sizes and write table and charts into docs/BENCHMARKS.md."""
    found = dataset.load(data)
    points: list[Point] = []
    folder = Path(tempfile.mkdtemp(prefix="pgchroma-growth-"))
    facts = {}
    try:
        # Each size gets a server of its own, so that memory and caches are its own, too.
        for count in rows:
            part = found.grown(count)
            if only != UPSTREAM:
                with ours(folder / f"pgchroma-{count}") as system:
                    points.append(measure(system, part, seconds=seconds, repeat=repeat))
                    facts = report.machine(system.database_url)
            if only != OURS:
                with upstream(folder / f"chroma-{count}") as system:
                    points.append(measure(system, part, seconds=seconds, repeat=repeat))
            click.echo(table(points[-2:] if only is None else points[-1:]), err=True)
    finally:
        shutil.rmtree(folder)
    out.parent.mkdir(parents=True, exist_ok=True)
    facts["data"] = f"{found.name}, {found.fingerprint}"
    out.write_text(
        json.dumps({"facts": facts, "points": [asdict(point) for point in points]}, indent=1) + "\n"
    )
    pictures = []
    for field, title in CHARTS.items():
        name = f"growth-{field.replace('_mb', '')}.svg"
        chart(points, field, title, docs / name)
        pictures.append(f"![{title}]({name})\n")
    about = "; ".join(f"{key}: {value}" for key, value in facts.items())
    report.insert(docs / "BENCHMARKS.md", "growth", f"{table(points)}\n{about}\n\n{''.join(pictures)}")
    click.echo(table(points))
    click.echo(f"written to {out}, {docs / 'BENCHMARKS.md'} and {docs}/growth-*.svg")


if __name__ == "__main__":
    main()
