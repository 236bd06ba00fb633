"""A real server process over a given database."""

import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from support.waiting import wait_for

PROGRAM = Path(sys.executable).with_name("pgchroma")
START_SECONDS = 30.0
STOP_SECONDS = 60.0


def command_line(pid: str) -> bytes:
    """Return how a process was called, or nothing when it has ended since it was listed."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return b""


@dataclass(slots=True)
class ServerProcess:
    """A running `pgchroma serve`; `url` is where it listens, `log` what it wrote to standard error."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[int]:
        """The process ids of the workers, oldest first."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        # The parent also has multiprocessing's resource tracker for a child.
        return [int(pid) for pid in children if b"spawn_main" in command_line(pid)]

    def has_replaced(self, killed: Sequence[int], workers: int = 2) -> bool:
        """Whether all workers are there and none of the killed is; one look, as a dying one may go between two."""
        now = self.workers()
        return len(now) == workers and not set(now) & set(killed)

    def status(self, path: str = "/api/v2/healthcheck") -> int:
        """The HTTP status of a GET; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as answer:  # noqa: S310 - our own URL
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.status() == 200

        wait_for("the server to be ready", ready, seconds=START_SECONDS)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        """Send a signal, wait for the end, return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(sig)
        return self.process.wait(STOP_SECONDS)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def running_server(
    database_url: str,
    folder: Path,
    *,
    workers: int = 2,
    environment: Mapping[str, str] | None = None,
    wait: bool = True,
) -> Iterator[ServerProcess]:
    """Run a server until the block ends; `folder` takes its log, `environment` its further settings."""
    port = free_port()
    log = folder / f"server-{port}.log"
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PGCHROMA_")}
    variables |= {
        "PGCHROMA_DATABASE_URL": database_url,
        "PGCHROMA_ALLOW_RESET": "true",
        "PGCHROMA_AUTH": "off",
        **(environment or {}),
    }
    command = [str(PROGRAM), "serve", "--port", str(port), "--workers", str(workers)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)
    server = ServerProcess(process, port, log)
    try:
        if wait:
            server.wait_until_ready()
        yield server
    finally:
        server.stop()
