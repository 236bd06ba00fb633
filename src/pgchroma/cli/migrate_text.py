"""How `pgchroma migrate` shows its results to a person; each function returns what draws the given JSON object."""

import itertools
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from pgchroma import output


def _problems(console: Console, problems: list[dict[str, Any]]) -> None:
    for problem in problems:
        ids = ", ".join(map(repr, problem["ids"][:5]))
        count = f"{problem['count']:,} " if problem["count"] else ""
        style = "bold red" if problem["severity"] == "error" else "yellow"
        console.print(
            Text.assemble(
                (f"{problem['severity']}: ", style),
                (f"{problem['collection']}: " if problem["collection"] else "")
                + f"{count}{problem['message']}"
                + (f", e.g. {ids}" if ids else "")
                + (f" [{problem['code']}={problem['action']}]" if "action" in problem else ""),
            )
        )


def plan(data: dict[str, Any]) -> output.TextRenderer:
    """A plan: one line a collection, then the problems."""

    def draw(console: Console) -> None:
        console.print(Text(f"{data['source']['path']}: {data['source']['layout']}"))
        console.print(
            output.table(
                "",
                ("collection", "records>", "size>", "dimension>", "distance", "problems>"),
                [
                    (
                        item["collection"],
                        item["records"],
                        output.size(item["bytes"]),
                        item["dimension"],
                        item["distance"],
                        len(item["problems"]),
                    )
                    for item in data["collections"]
                ],
            )
        )
        _problems(console, [problem for item in data["collections"] for problem in item["problems"]])
        expected = data["expected"]
        console.print(
            Text(
                f"{data['records']:,} records, {output.size(data['bytes'])}; expected: about {expected['seconds']:,.0f} s and "
                f"{output.size(expected['disk_bytes'] + expected.get('index_disk_bytes', 0))} in the target; nothing was written"
            )
        )
        if not data["runnable"]:
            console.print(Text("A run refuses this unless --policy says what becomes of such records."))

    return draw


def _rate(records: int, seconds: float) -> str | None:
    # Of a few records, the time says how long a connection took and nothing about speed.
    return f"{records / seconds:,.0f}" if records >= 1000 and seconds else None


def _comparison_table(console: Console, collections: list[dict[str, Any]]) -> None:
    console.print(
        output.table(
            "",
            ("collection", "records>", "SHA-256 of all records", "proof", "recall@10>", "rows/s>"),
            [
                (
                    item["collection"],
                    item["records_target"],
                    item["digest_target"][:16],
                    output.status_text("equal" if item["equal"] else f"{item['different']:,} differ"),
                    f"{item['answers']['recall']:.3f}" if item.get("answers") else None,
                    _rate(item["records_target"], item["seconds"]),
                )
                for item in collections
            ],
        )
    )
    for item in collections:
        for difference in item["differences"][:10]:
            where = f"{item['collection']} {difference['id'] or ''}".rstrip()
            console.print(Text(f"differs: {where}: {difference['what']}: {difference['detail']}"))


def result(data: dict[str, Any]) -> output.TextRenderer:
    """A run that came to its end."""

    def draw(console: Console) -> None:
        _comparison_table(console, data["collections"])
        _problems(console, data["notices"])
        for skipped in data["skipped"][:20]:
            console.print(Text(f"put aside: {skipped['collection']} {skipped['id']!r}: {skipped['reason']}"))
        seconds = data["seconds"]
        console.print(
            Text.assemble(
                output.status_text(data["result"]),
                f": {data['records']:,} records moved and proven one by one, {len(data['skipped']):,} put aside; "
                f"copied in {seconds['copy']:.1f} s, proven in {seconds['proof']:.1f} s",
            )
        )
        for item in data.get("increment", ()):
            described = f", {' and '.join(item['described'])} changed" if item["described"] else ""
            console.print(
                Text(
                    f"{item['collection']}: {item['born']:,} born, {item['changed']:,} changed, {item['deleted']:,} deleted{described}"
                )
            )
        for item in data.get("collections_renamed", ()):
            console.print(Text(f"{item['from']}: renamed to {item['to']}"))
        for path in data.get("collections_gone", ()):
            console.print(Text(f"{path}: deleted, since the database has it no more"))
        console.print(Text(f"receipt: {data['receipt']}"))
        console.print(Text(f"report: {data['report']}"))

    return draw


def comparison(data: dict[str, Any]) -> output.TextRenderer:
    """A later verification."""

    def draw(console: Console) -> None:
        _comparison_table(console, data["collections"])
        _problems(console, data["notices"])
        for path in data["only_in_target"]:
            console.print(Text(f"only in the target: {path}"))
        console.print(
            Text.assemble(output.status_text(data["result"]), f": compared with the {data['against']}")
        )

    return draw


def _moment(when: datetime | str | None) -> str | None:
    moment = datetime.fromisoformat(when) if isinstance(when, str) else when
    return None if moment is None else f"{moment:%Y-%m-%d %H:%M:%S}"


def status(rows: list[dict[str, Any]]) -> output.TextRenderer:
    """The migrations of a database."""

    def draw(console: Console) -> None:
        if not rows:
            console.print(Text("no migration has run into this database"))
            return
        for run_id, group in itertools.groupby(rows, key=lambda row: row["run_id"]):
            of_run = list(group)
            console.print(
                output.table(
                    f"{run_id}: {of_run[0]['source']}"
                    + (f" to {of_run[0]['target']}" if "target" in of_run[0] else ""),
                    ("collection", "phase", "records>", "of>", "skipped>", "errors>", "started", "completed"),
                    [
                        (
                            row["collection"],
                            output.status_text(row["phase"]),
                            row["records"],
                            row["source_records"],
                            row["skipped"],
                            row["errors"],
                            _moment(row["started_at"]),
                            _moment(row["completed_at"]),
                        )
                        for row in of_run
                    ],
                )
            )

    return draw


def quarantine(rows: list[dict[str, Any]]) -> output.TextRenderer:
    """Records that were put aside."""

    def draw(console: Console) -> None:
        if not rows:
            console.print(Text("nothing was put aside"))
            return
        columns = ("run_id", "collection", "id", "reason")
        console.print(output.table("", columns, [[row[name] for name in columns] for row in rows]))

    return draw


def cleanup(data: dict[str, Any], *, done: bool) -> output.TextRenderer:
    """What a cleanup does or has done."""

    def draw(console: Console) -> None:
        verb = "removed" if done else "would remove"
        console.print(Text(f"{verb} {data['folder']}: {data['files']} files, {output.size(data['bytes'])}"))
        console.print(
            Text(
                f"its {data['records']:,} records are in {data['target']['path']}, {data['put_aside']:,} were put aside there"
            )
        )
        console.print(Text(f"copy: {data['backup'] or 'none'}"))

    return draw
