"""One writer at a time for a folder: the process that writes it inherits the lock, which so outlives a migrator that is killed."""

import fcntl
import os
import threading
import time
from pathlib import Path

from pgchroma.errors import ConfigurationError, RefusedError

# A writer whose migrator was killed is told so and ends by itself, once what it was writing is whole.
_WAIT_SECONDS = 60.0


class FolderLock:
    """A locked folder. Let go of once every process that has the descriptor has closed it or ended.

    Attributes:
        descriptor: what a writer has to inherit.

    Raises:
        RefusedError: another process still has it after a minute.
        ConfigurationError: the file system knows no locks.
    """

    def __init__(self, folder: Path, writer: int | None = None) -> None:
        self.descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._wait(folder, writer)
        except BaseException:
            os.close(self.descriptor)
            raise

    def _wait(self, folder: Path, writer: int | None) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        pause = threading.Event()
        while True:
            try:
                fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if time.monotonic() < deadline:
                    pause.wait(0.05)
                    continue
                known = f" (the interrupted run's had the process id {writer})" if writer else ""
                raise RefusedError(
                    f"another process is writing {folder}{known}",
                    hint="wait for the migration that uses it, or end the process that `fuser -v` shows for its chroma.sqlite3",
                ) from error
            except OSError as error:
                raise ConfigurationError(
                    f"cannot lock {folder}: {error.strerror}", hint="name a folder on a local disk"
                ) from error
            return

    def close(self) -> None:
        """Let go of the folder; a writer that still runs keeps it."""
        os.close(self.descriptor)
