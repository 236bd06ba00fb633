"""`pgchroma status`."""

import asyncio
import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.cli.options import database_options, format_option, required_url
from pgchroma.output import Format
from pgchroma.store import Store, StoreSettings
from pgchroma.store.statuses import CollectionStatus

_COLUMNS = (
    "collection",
    "space",
    "dimension>",
    "rows>",
    "not indexed>",
    "segments>",
    "watermark>",
    "index",
    "documents",
    "building",
    "MiB>",
)


@click.command()
@database_options
@format_option
def status(database_url: str | None, database_password_file: Path | None, fmt: Format) -> None:
    """Show collections, records and how far the vector indexes are.

    Rows that no index covers yet are compared one by one at each query; the background indexer keeps them few.
    """
    settings = StoreSettings(password_file=database_password_file, pool_size=1)
    collections = asyncio.run(_collect(required_url(database_url), settings))
    data = {"collections": [{**dataclasses.asdict(entry), "id": str(entry.id)} for entry in collections]}
    output.emit(data, fmt, lambda console: _draw(console, collections))


async def _collect(database_url: str, settings: StoreSettings) -> list[CollectionStatus]:
    store = await Store.open(database_url, settings)
    async with store:
        await store.check_ready(settings.pool_timeout_seconds)
        return await store.status()


def _draw(console: Console, collections: list[CollectionStatus]) -> None:
    rows = [
        (
            entry.path,
            entry.space,
            entry.dimension,
            entry.rows,
            entry.tail_rows,
            entry.segments,
            entry.watermark,
            entry.index,
            entry.documents or "-",
            entry.building or "-",
            f"{entry.size_bytes / 2**20:.1f}",
        )
        for entry in collections
    ]
    console.print(output.table("", _COLUMNS, rows))
    total = sum(entry.rows for entry in collections)
    console.print(Text(f"{len(collections)} collections, {total:,} records"))
