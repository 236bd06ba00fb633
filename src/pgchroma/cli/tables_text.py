"""How `pgchroma tables` shows its results to a person; each function returns what draws the given JSON object."""

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pgchroma import output

_SHOWN = 20


def plan(data: dict[str, Any]) -> output.TextRenderer:
    """A plan: one line a table, then notes, then every value that does not fit, as far as they are listed."""

    def draw(console: Console) -> None:
        console.print(Text(f"{data['source']['path']}: {output.size(data['source']['bytes'])}"))
        console.print(
            output.table(
                "",
                ("table", "becomes", "rows>", "columns"),
                [
                    (
                        item["table"],
                        "(skipped)" if item["skipped"] else item["target"],
                        item["rows"],
                        ", ".join(f"{name} {kind}" for name, kind in item["columns"].items()),
                    )
                    for item in data["tables"]
                ],
            )
        )
        for note in data["notes"]:
            console.print(Text.assemble(("note: ", "yellow"), note))
        for deviation in data["deviations"]:
            console.print(Text.assemble(("note: ", "yellow"), deviation["note"]))
            _values(console, deviation)
        _misfits(console, data["misfits"])
        if data.get("dry_run"):
            for statement in data["statements"]:
                console.print(Text(statement))
        console.print(Text(f"{data['rows']:,} rows; nothing was written"))
        if not data["runnable"]:
            console.print(
                Text(
                    "A run would be refused until the mapping says what becomes of the values above.",
                    "bold red",
                )
            )

    return draw


def _misfits(console: Console, findings: list[dict[str, Any]]) -> None:
    for finding in findings:
        style = "bold red" if finding["policy"] == "fail" else "yellow"
        console.print(
            Text.assemble(
                (f"{finding['policy']}: ", style),
                f"{finding['table']}.{finding['column']}: {finding['count']:,} values are no {finding['type']}",
            )
        )
        _values(console, finding)


def _values(console: Console, finding: dict[str, Any]) -> None:
    for value in finding["values"][:_SHOWN]:
        key = "/".join(map(str, value["key"]))
        console.print(Text(f"  row {key}: {value['storage']} {value['value']}"))
    if finding["count"] > _SHOWN:
        console.print(Text(f"  and {finding['count'] - _SHOWN:,} more; --format json lists up to 1,000"))


def _tables(found: list[dict[str, Any]]) -> Table:
    return output.table(
        "",
        ("table", "target", "source rows>", "target rows>", "quarantined>", "proof"),
        [
            (
                item["table"],
                item["target"],
                item["source_rows"],
                item["target_rows"],
                item["quarantined"],
                output.status_text("equal" if item["equal"] else "different"),
            )
            for item in found
        ],
    )


def result(data: dict[str, Any]) -> output.TextRenderer:
    """A finished run."""

    def draw(console: Console) -> None:
        console.print(_tables(data["tables"]))
        for name, count in data["orphans"].items():
            console.print(Text.assemble(("orphans: ", "yellow"), f"{name}: {count:,} rows without a parent"))
        rate = data["rows"] / data["seconds"] if data["seconds"] else 0
        console.print(
            Text.assemble(
                f"{data['rows']:,} rows in {data['seconds']:.1f} s ({rate:,.0f} rows/s, proof included): every row ",
                output.status_text(data["result"]),
            )
        )
        console.print(Text(f"run {data['run_id']}, receipt {data['receipt']}"))

    return draw


def status(data: list[dict[str, Any]]) -> output.TextRenderer:
    """Every run, table by table."""

    def draw(console: Console) -> None:
        if not data:
            console.print(Text("no tables were ever moved into this database"))
        for item in data:
            console.print(
                output.table(
                    f"{item['run_id']}  {item['started_at']:%Y-%m-%d %H:%M:%S %Z}  {item['result']}  {item['source']}",
                    (
                        "table",
                        "target",
                        "phase",
                        "rows>",
                        "read>",
                        "written>",
                        "quarantined>",
                        "differences>",
                    ),
                    [
                        (
                            row["source_table"],
                            row["target_table"],
                            output.status_text(row["phase"]),
                            row["source_rows"],
                            row["rows_read"],
                            row["rows_written"],
                            row["quarantined"],
                            row["errors"],
                        )
                        for row in item["tables"]
                    ],
                )
            )

    return draw


def comparison(data: dict[str, Any]) -> output.TextRenderer:
    """A later verification."""

    def draw(console: Console) -> None:
        console.print(_tables(data["tables"]))
        if data["source_changed"]:
            console.print(Text("note: the source has changed since it was moved", "yellow"))
        console.print(Text.assemble("every row: ", output.status_text(data["result"])))

    return draw
