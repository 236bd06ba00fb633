"""What was measured, as a table for people and JSON for programs, each row beside its target."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import chromadb
import click
import psycopg
from rich.console import Console
from rich.table import Table

from pgchroma import __version__


@dataclass(frozen=True, slots=True)
class Target:
    """What a row has to reach, as ours / upstream's.

    Attributes:
        at_least: for speeds.
        at_most: for times.
        recall: the least recall@10 of ours; with `recall_of_upstream` at least upstream's.
    """

    title: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    recall: float | None = None
    recall_of_upstream: bool = False


TARGETS: dict[str, Target] = {
    "ingest": Target("ingest, one client, batches of 1,000", "rows/s", at_least=12),
    "query": Target("query, 1 connection, p50", "ms", at_most=0.8, recall_of_upstream=True),
    "query-8": Target("queries, 8 connections", "/s", at_least=2.5),
    "query-32": Target("queries, 32 connections", "/s", at_least=3),
    **{
        f"filter-{kind}-{size}": Target(
            f"query filtered by metadata, {kind} match, {size} rows, p50", "ms", at_most=0.25, recall=0.99
        )
        for size in ("20k", "60k")
        for kind in ("many", "some", "few")
    },
    "contains-query": Target("query with $contains, p50", "ms", at_most=0.25),
    "contains-get": Target("get with $contains, p50", "ms", at_most=0.25),
    "and-query": Target("query with $and over metadata, p50", "ms", at_most=0.25),
    "and-get": Target("get with $and over metadata, p50", "ms", at_most=0.25),
    "get": Target("get by id, p50", "ms", at_most=0.8),
    "export": Target("full export, pages of 5,000 with embeddings", "rows/s", at_least=4),
    "export-client": Target("the same pages replayed by a program that does nothing else", "rows/s"),
    "mixed": Target("8 readers beside a writer, reader p95", "ms", at_most=0.5),
    "mixed-readers": Target("8 readers beside a writer, queries", "/s"),
    "mixed-writer": Target("the writer beside 8 readers", "rows/s"),
    "ingest-60k": Target("ingest of 60,000 rows", "rows/s"),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line: medians, and every value they are the medians of."""

    name: str
    ours: float
    upstream: float
    our_recall: float | None
    their_recall: float | None
    our_values: list[float]
    their_values: list[float]

    @property
    def ratio(self) -> float:
        """Ours / upstream's."""
        return self.ours / self.upstream

    @property
    def target(self) -> Target:
        """What the row has to reach."""
        return TARGETS[self.name]

    def reached(self) -> bool | None:
        """Whether the target is reached; None without one."""
        target = self.target
        if target.at_least is None and target.at_most is None:
            return None
        if target.at_least is not None and self.ratio < target.at_least:
            return False
        if target.at_most is not None and self.ratio > target.at_most:
            return False
        if target.recall is not None and (self.our_recall or 0) < target.recall:
            return False
        return not (target.recall_of_upstream and (self.our_recall or 0) < (self.their_recall or 0))


def machine(database_url: str) -> dict[str, Any]:
    """Return what the figures depend on beside the software."""
    with psycopg.connect(database_url) as connection:
        found = connection.execute(
            "SELECT current_setting('server_version'), (SELECT extversion FROM pg_extension WHERE extname = 'vector')"
        ).fetchone()
    assert found is not None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "memory_gib": round(memory, 1),
        "load_average": round(os.getloadavg()[2], 2),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "pgchroma": f"{__version__}, 2 workers",
        "postgresql": f"{found[0]} (embedded, fsync and synchronous_commit on)",
        "pgvector": found[1],
        "chromadb": chromadb.__version__,
    }


def _aim(target: Target) -> str:
    parts = []
    if target.at_least is not None:
        parts.append(f"≥ {target.at_least:g} ×")
    if target.at_most is not None:
        parts.append(f"≤ {target.at_most:g} ×")
    if target.recall is not None:
        parts.append(f"recall ≥ {target.recall:g}")
    if target.recall_of_upstream:
        parts.append("recall ≥ upstream's")
    return ", ".join(parts) or "-"


def number(value: float) -> str:
    """Return a figure with as many digits as mean something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def cells(row: Row) -> tuple[str, ...]:
    """Return a row's line of the table."""
    verdict = {True: "yes", False: "NO", None: "-"}[row.reached()]
    recalls = "-" if row.our_recall is None else f"{row.our_recall:.3f} / {row.their_recall or 0:.3f}"
    return (
        f"{row.target.title} ({row.target.unit})",
        number(row.ours),
        number(row.upstream),
        f"{row.ratio:.2f} ×",
        recalls,
        _aim(row.target),
        verdict,
    )


def insert(page: Path, name: str, text: str) -> None:
    """Put a text between the page's two marks of that name."""
    begin, end = f"<!-- {name}: ", f"<!-- end of {name} -->"
    head, mark, rest = page.read_text().partition(begin)
    comment, _, _ = rest.partition("\n")
    _, last, tail = rest.partition(end)
    if not (mark and last):
        raise click.ClickException(f"{page} has no place for this table: {begin}... --> and {end}")
    page.write_text(f"{head}{begin}{comment}\n\n{text}\n{end}{tail}")


HEADINGS = ("work", "pgchroma", "chroma run", "ratio", "recall@10", "wanted", "reached")


def write(out: Path, rows: Sequence[Row], facts: Mapping[str, Any], docs: Path | None) -> list[str]:
    """Write the JSON file and a Markdown table beside it and into the docs, show it, and return the rows that missed their target."""
    out.parent.mkdir(parents=True, exist_ok=True)
    found = [{**asdict(row), "ratio": row.ratio, "reached": row.reached()} for row in rows]
    out.write_text(json.dumps({"facts": dict(facts), "rows": found}, indent=1) + "\n")
    lines = [HEADINGS, ("---",) * len(HEADINGS), *map(cells, rows)]
    text = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    about = "; ".join(f"{key}: {value}" for key, value in facts.items())
    out.with_suffix(".md").write_text(f"{text}\n{about}\n")
    if docs is not None:
        insert(docs / "BENCHMARKS.md", "results", f"{text}\n{about}\n")
    table = Table(*HEADINGS, title="pgchroma against chroma run, medians")
    for row in rows:
        table.add_row(*cells(row))
    console = Console(width=150)
    console.print(table)
    console.print(about, markup=False)
    click.echo(f"written to {out} and {out.with_suffix('.md')}")
    return [row.name for row in rows if row.reached() is False]
