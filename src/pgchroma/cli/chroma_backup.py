"""`pgchroma chroma-backup`: copies of a Chroma folder in use; options in, library called, result out."""

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from pgchroma import output
from pgchroma.cli.options import format_option
from pgchroma.migrate.chroma import backup

_archive = click.argument("archive", type=click.Path(path_type=Path, dir_okay=False))


@click.group("chroma-backup")
def chroma_backup() -> None:
    """Copy an embedded Chroma folder while it is in use, check copies, put one back.

    The source is never written to and never opened by chromadb. A copy is an archive with a manifest of checksums; what is
    restored from it can be opened by the Chroma version that wrote it.
    """


@chroma_backup.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="Folder for the archive. Default: the current one.",
)
@click.option(
    "--work-folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where to make the copy that is packed; as much room as FOLDER takes. Default: the system's temporary folder.",
)
@format_option
def create(folder: Path, target: Path, work_folder: Path | None, fmt: output.Format) -> None:
    """Copy FOLDER, check the copy's integrity, pack it, read the archive back."""
    made = backup.create(folder, target, work_folder).as_json()
    output.emit(made, fmt, _shown("written and read back", made))


@chroma_backup.command()
@_archive
@format_option
def verify(archive: Path, fmt: output.Format) -> None:
    """Read ARCHIVE whole and compare every file with its manifest."""
    found = backup.verify(archive).as_json()
    output.emit(found, fmt, _shown("as its manifest says", found))


@chroma_backup.command()
@_archive
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--replace",
    is_flag=True,
    help="Move what is at FOLDER aside, under a name with the time, instead of refusing.",
)
@format_option
def restore(archive: Path, folder: Path, replace: bool, fmt: output.Format) -> None:
    """Put FOLDER back from ARCHIVE; it appears whole or not at all. Stop the application first."""
    made, aside = backup.restore(archive, folder, replace=replace)
    data = {**made.as_json(), "folder": str(folder), "former_folder": str(aside) if aside else None}
    output.emit(data, fmt, _shown(f"restored to {folder}", data))


def _shown(what: str, data: dict[str, Any]) -> output.TextRenderer:
    def draw(console: Console) -> None:
        console.print(output.table("", ("collection", "records>"), list(data["collections"].items())))
        total = sum(size_ for size_, _ in data["files"].values())
        console.print(
            Text(
                f"{data['layout']}, {len(data['files'])} files, {output.size(total)}, taken {data['taken_at']} from {data['source']}"
            )
        )
        console.print(Text(f"{data['archive']}: {output.size(data['archive_bytes'])}, {what}"))
        if data.get("former_folder"):
            console.print(Text(f"the former folder is {data['former_folder']}"))

    return draw
