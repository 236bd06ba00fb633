"""The options that several `pgchroma backup` commands share."""

from pathlib import Path

import click

from pgchroma.backup import state

state_option = click.option(
    "--state-dir",
    envvar="PGCHROMA_BACKUP_STATE",
    show_envvar=True,
    type=click.Path(path_type=Path, file_okay=False),
    default=state.DEFAULT_DIRECTORY,
    show_default=True,
    help="Where digests and the receipts of drills are kept.",
)
