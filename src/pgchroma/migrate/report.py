"""The receipt for people: one self-contained HTML page with charts, for whoever has to decide about switching over."""

import os
import re
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import pygal
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pygal.style import Style

from pgchroma import output
from pgchroma.migrate import receipt as receipts
from pgchroma.migrate.model import Json

# More bars than this tell a reader nothing; the table has them all.
_BARS = 15
_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    font_family="system-ui, sans-serif",
    colors=("#1a73e8", "#1e8e3e", "#f9ab00", "#c5221f"),
)


def path_for(receipt_path: Path) -> Path:
    """Return where the page of a receipt is: beside it."""
    return receipt_path.with_suffix(".html")


def _bars(title: str, **options: Any) -> Any:  # noqa: ANN401 - pygal has no types
    # Without `js` the page would fetch a script from elsewhere for its tooltips.
    return pygal.HorizontalBar(
        js=[],
        style=_STYLE,
        title=title,
        height=90 + 40 * options.pop("rows", 3),
        width=640,
        print_values=True,
        legend_at_bottom=True,
        **options,
    )


def _svg(chart: Any) -> Markup:  # noqa: ANN401 - pygal has no types
    drawn = chart.render(is_unicode=True, disable_xml_declaration=True)
    # Inside HTML the names of XML name spaces mean nothing and look like links.
    plain = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", drawn)
    plain = re.sub(r"<!--.*?-->", "", plain, flags=re.DOTALL)
    plain = re.sub(r"<script[^>]*>.*?</script>", "", plain, flags=re.DOTALL)
    return Markup(plain)  # noqa: S704 - drawn by pygal, which escapes labels


def _short(path: str) -> str:
    return path if len(path) <= 34 else "…" + path[-33:]


def charts(receipt: Json) -> list[Markup]:
    """Return the charts of a receipt as SVG elements."""
    drawn = []
    largest = sorted(receipt["collections"], key=lambda item: -int(item["records_source"]))[:_BARS]
    chart = _bars("Records per collection", rows=len(largest) + 1, formatter=lambda value: f"{value:,.0f}")
    chart.x_labels = [_short(item["collection"]) for item in reversed(largest)]
    chart.add("source", [item["records_source"] for item in reversed(largest)])
    chart.add("target", [item["records_target"] for item in reversed(largest)])
    drawn.append(_svg(chart))
    seconds = receipt["seconds"]
    names = {"open": "opening", "plan": "looking through", "copy": "copying", "proof": "proving"}
    chart = _bars("Seconds", rows=4, show_legend=False, formatter=lambda value: f"{value:,.1f}")
    chart.x_labels = [names.get(step, step) for step in reversed(list(seconds))]
    chart.add("seconds", [seconds[step] for step in reversed(list(seconds))])
    drawn.append(_svg(chart))
    asked = [item for item in largest if item.get("answers")]
    if asked:
        chart = _bars("Right answers of ten (recall@10)", rows=len(asked) + 1, show_legend=False, range=(0, 1), formatter=lambda value: f"{value:.3f}")  # fmt: skip
        chart.x_labels = [_short(item["collection"]) for item in reversed(asked)]
        chart.add("recall", [item["answers"]["recall"] for item in reversed(asked)])
        drawn.append(_svg(chart))
    by_reason: dict[str, int] = {}
    for item in receipt["skipped"]:
        by_reason[item["code"]] = by_reason.get(item["code"], 0) + 1
    if by_reason:
        chart = _bars("Records put aside, by reason", rows=len(by_reason) + 1, show_legend=False)
        chart.x_labels = list(by_reason)
        chart.add("records", list(by_reason.values()))
        drawn.append(_svg(chart))
    return drawn


def render(receipt: Json, receipt_name: str) -> str:
    """Return the page of a receipt."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(
        resources.files("pgchroma.migrate").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    answers = [item["answers"] for item in receipt["collections"] if item.get("answers")]
    asked = sum(item["questions"] for item in answers)
    return template.render(
        **receipt,
        title={
            "equal": "Migration proven equal",
            "different": "Migration with differences",
            "source-changed": "Migration of a source that changed",
        }[receipt["result"]],
        receipt_name=receipt_name,
        size=output.size(receipt.get("bytes") or 0),
        different=sum(item["different"] for item in receipt["collections"]),
        differences=[
            {**difference, "collection": item["collection"]}
            for item in receipt["collections"]
            for difference in item["differences"]
        ],
        recall=sum(item["recall"] * item["questions"] for item in answers) / asked if asked else None,
        total_seconds=sum(receipt["seconds"].values()),
        charts=charts(receipt),
    )


def write(receipt: Json, receipt_path: Path) -> Path:
    """Write the page beside its receipt, whole or not at all, and return its path."""
    path = path_for(receipt_path)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(render(receipt, receipt_path.name))
        os.fchmod(file.fileno(), receipts.MODE)
    Path(name).replace(path)
    return path
