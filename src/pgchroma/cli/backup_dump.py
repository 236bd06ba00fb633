"""`pgchroma backup dump`, `load` and `verify-dump`."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.backup import container, load
from pgchroma.backup import dump as dumping
from pgchroma.backup.dump import Scope
from pgchroma.backup.load import Policy
from pgchroma.cli.options import database_options, format_option, required_url, with_password
from pgchroma.errors import InterruptedMigrationError
from pgchroma.migrate.progress import display
from pgchroma.types import DEFAULT_TENANT

_folder = click.argument("folder", type=click.Path(path_type=Path, file_okay=False))


@contextmanager
def _resumable() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        raise InterruptedMigrationError(
            "stopped before the end", hint="run the same command again; it continues where this one was"
        ) from error


@click.command("dump")
@_folder
@click.option("--tenant", default=DEFAULT_TENANT, show_default=True, help="Tenant to dump.")
@click.option("--database", help="Only this database of the tenant.")
@click.option("--collection", help="Only this collection of the database.")
@click.option(
    "--with-tokens",
    is_flag=True,
    help="Also the tenant's tokens, as hashes, so that clients keep theirs where it is loaded.",
)
@database_options
@format_option
def dump_command(
    folder: Path,
    tenant: str,
    database: str | None,
    collection: str | None,
    with_tokens: bool,
    database_url: str | None,
    database_password_file: Path | None,
    fmt: output.Format,
) -> None:
    """Write a tenant, a database or a collection into FOLDER, as it is at one moment.

    Applications go on meanwhile. Run the same command again after an interruption: chunks that still hold what the database
    shows are kept, the others are written anew, so that the dump is of one moment all the same.
    """
    url = with_password(required_url(database_url), database_password_file)
    started = time.monotonic()
    with _resumable(), display() as shown:
        done = dumping.dump(
            url,
            Scope(tenant, database, collection),
            folder,
            with_tokens=with_tokens,
            advance=shown.step("dumping", 0).advance,
        )
    manifest, seconds = done.manifest, time.monotonic() - started
    data = {
        "folder": str(folder),
        "digest": manifest.digest,
        "collections": len(manifest.collections),
        "records": manifest.records,
        "reused_records": done.reused,
        "tokens": len(manifest.tokens),
        "bytes": sum(chunk.bytes for item in manifest.collections for chunk in item.chunks),
        "seconds": round(seconds, 2),
    }

    def draw(console: Console) -> None:
        rows = [(item.path, item.records, len(item.chunks)) for item in manifest.collections]
        console.print(output.table("", ("collection", "records>", "chunks>"), rows))
        console.print(
            Text(
                f"{manifest.records:,} records in {seconds:.1f} s into {folder}"
                + (f", {done.reused:,} of them by an earlier attempt" if done.reused else "")
            )
        )
        console.print(Text(f"digest {manifest.digest}"))

    output.emit(data, fmt, draw)


@click.command("load")
@_folder
@click.option(
    "--as",
    "rename",
    help="Load as another tenant, tenant/database or tenant/database/name, or the last part of it, as was dumped.",
)
@click.option(
    "--if-exists",
    "policy",
    type=click.Choice(["fail", "replace", "merge"]),
    default="fail",
    show_default=True,
    help="A collection that is there: refuse, put the dump in its place at once, or let the dump's records take the place of "
    "those with the same ids.",
)
@click.option("--with-tokens", is_flag=True, help="Also the tokens in the dump, where their ids are free.")
@click.option("--dry-run", is_flag=True, help="Check the dump and what it would meet; write nothing.")
@click.option(
    "--discard", is_flag=True, help="Drop what an unfinished load of this dump has written instead."
)
@database_options
@format_option
def load_command(
    folder: Path,
    rename: str | None,
    policy: Policy,
    with_tokens: bool,
    dry_run: bool,
    discard: bool,
    database_url: str | None,
    database_password_file: Path | None,
    fmt: output.Format,
) -> None:
    """Load the dump in FOLDER: check it, load it beside what is there, compare it with the dump, then show all of it at once.

    Nothing is loaded from a dump with a damaged chunk. Run the same command again after an interruption.
    """
    url = with_password(required_url(database_url), database_password_file)
    if discard:
        gone = asyncio.run(load.discard(url, folder))
        output.emit(
            {"discarded": gone},
            fmt,
            lambda console: console.print(Text(f"discarded: {', '.join(gone) or 'nothing'}")),
        )
        return
    if dry_run:
        paths = asyncio.run(load.preview(url, folder, rename, policy))
        output.emit(
            {"would_load": paths},
            fmt,
            lambda console: console.print(
                Text(f"the dump is whole; it would be loaded as {', '.join(paths)}")
            ),
        )
        return
    started = time.monotonic()
    with _resumable(), display() as shown:
        done = asyncio.run(
            load.load(
                url,
                folder,
                rename=rename,
                policy=policy,
                with_tokens=with_tokens,
                advance=shown.step("loading", container.read_manifest(folder).records).advance,
            )
        )
    seconds = time.monotonic() - started
    output.emit(
        {**asdict(done), "seconds": round(seconds, 2)},
        fmt,
        lambda console: console.print(
            Text(
                f"{done.records:,} records of {len(done.collections)} collections loaded and compared in {seconds:.1f} s: "
                f"{', '.join(done.collections)}"
            )
        ),
    )


@click.command("verify-dump")
@_folder
@format_option
def verify_dump(folder: Path, fmt: output.Format) -> None:
    """Read every chunk of the dump in FOLDER and compare checksums and content; needs no database.

    Ends with exit code 6, naming the chunk, when one is missing, cut short or changed.
    """
    manifest = container.read_manifest(folder)
    with display() as shown:
        step = shown.step("checking", manifest.records)
        for item in manifest.collections:
            for chunk in item.chunks:
                container.read_chunk(folder, chunk, item)
                step.advance(chunk.rows)
    data = {"digest": manifest.digest, "collections": len(manifest.collections), "records": manifest.records}
    output.emit(
        data,
        fmt,
        lambda console: console.print(
            Text(f"{manifest.records:,} records of {len(manifest.collections)} collections are whole")
        ),
    )
