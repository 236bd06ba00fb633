"""A cluster that archives its WAL, base backups of it, and copies restored to a point in time."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg

from pgchroma.server.embedded import SUPERUSER, EmbeddedPostgres
from support.waiting import wait_for

DATABASE = "archived"


class ArchivingCluster:
    """A primary whose WAL goes to a folder."""

    def __init__(self, folder: Path) -> None:
        folder.chmod(0o711)
        self.archive = folder / "archive"
        self.archive.mkdir()
        # Whatever account PostgreSQL runs under writes there.
        self.archive.chmod(0o777)
        primary = folder / "primary"
        primary.mkdir()
        self._folder = folder
        self._copies = 0
        self.postgres = EmbeddedPostgres(
            primary,
            settings={
                "archive_mode": "on",
                "archive_command": f"test ! -f {self.archive}/%f && cp %p {self.archive}/%f",
            },
        )

    @property
    def url(self) -> str:
        """The URL of the database with the schema."""
        return self.postgres.url(DATABASE)

    def base_backup(self) -> Path:
        """Copy the running cluster's files."""
        self._copies += 1
        target = self._folder / f"base{self._copies}"
        socket = str(self.postgres.folder)
        program = self.postgres.binary("pg_basebackup")
        subprocess.run(
            [program, "-D", target, "-X", "none", "-c", "fast", "-h", socket, "-U", SUPERUSER],
            check=True,
            capture_output=True,
        )
        _give_to_postgres(target, self.postgres)
        return target

    @contextlib.contextmanager
    def restored(self, base: Path, *, target_name: str | None = None) -> Iterator[EmbeddedPostgres]:
        """Run a copy of the base backup, recovered to a named point or, without one, to the end of the archive; it archives nothing."""
        with tempfile.TemporaryDirectory(prefix="pgchroma-") as name:
            folder = Path(name)
            folder.chmod(0o711)
            subprocess.run(["cp", "-a", base, folder / "data"], check=True)
            (folder / "data/recovery.signal").touch()
            settings = {"archive_mode": "off", "restore_command": f"cp {self.archive}/%f %p"}
            if target_name:
                settings |= {"recovery_target_name": target_name, "recovery_target_action": "promote"}
            _give_to_postgres(folder, self.postgres)
            with EmbeddedPostgres(folder, settings=settings) as copy:
                wait_for("the copy is promoted", lambda: not _in_recovery(copy))
                yield copy


def _give_to_postgres(folder: Path, postgres: EmbeddedPostgres) -> None:
    owner = postgres.data.stat()
    for path in (folder, *folder.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _in_recovery(copy: EmbeddedPostgres) -> bool:
    with psycopg.connect(copy.url(), autocommit=True) as connection:
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
    return bool(row and row[0])
