"""The parent process: starts the workers, tells systemd when all are ready, replaces a dead one, stops them gracefully.

Built on uvicorn's supervisor, whose loop waits for each worker's answer in turn; here a worker that hangs delays neither signals
nor the others.
"""

import contextlib
import logging
import multiprocessing.connection
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from pgchroma.errors import PgchromaError
from pgchroma.server import logs, metrics
from pgchroma.server.app import ApplicationFactory
from pgchroma.server.listening import listen, url
from pgchroma.server.notify import notify
from pgchroma.server.protocol import JoiningProtocol
from pgchroma.server.settings import ServerSettings, unknown_variables

logger = logging.getLogger("pgchroma.supervisor")

# Longer than the 40 s for which Chroma's clients keep an idle connection, so that it is they who close it.
KEEP_ALIVE_SECONDS = 75
_TICK_SECONDS = 0.25
_PING_SECONDS = 2.0
# How often one that starts is asked whether it is ready.
_STARTING_SECONDS = 0.05
# A worker is busy for seconds over a large batch; one that has not answered for this long hangs.
_HUNG_SECONDS = 60.0
# A worker that dies sooner than this after its start is not replaced before.
_RESTART_SECONDS = 1.0
# What the parent grants the workers beyond the time they grant their requests.
_STOP_MARGIN_SECONDS = 5.0


class Worker(Process):
    """A worker process that is asked for its state without waiting, and that ends when its parent is gone."""

    def __init__(self, config: Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self.started_at = self.answered_at = time.monotonic()
        self.ready = False
        self._pinged_at = 0.0

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve; runs in the worker."""
        # With our copy of the parent's end closed, the pipe ends when the parent does.
        self.parent_conn.close()
        # Made before there is a second thread: uvicorn makes it at its first use, and where both threads were first, the one that answers
        # would tell for ever that its own has not started.
        server = self.server
        threading.Thread(target=self._answer_pings, daemon=True).start()
        server.run(sockets)

    def _answer_pings(self) -> None:
        try:
            self.always_pong()
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)

    def look(self) -> None:
        """Take the worker's answer, if one is there, and ask again when it is time."""
        now = time.monotonic()
        with contextlib.suppress(OSError, EOFError):
            while self.parent_conn.poll(0):
                self.ready = bool(self.parent_conn.recv())
                self.answered_at = now
            # Never more than one question is open.
            interval = _PING_SECONDS if self.ready else _STARTING_SECONDS
            if self.answered_at >= self._pinged_at and now - self._pinged_at >= interval:
                self.parent_conn.send(b"ping")
                self._pinged_at = now

    @property
    def is_hung(self) -> bool:
        """Whether it has not answered for too long."""
        return time.monotonic() - self.answered_at > _HUNG_SECONDS


class Supervisor(Multiprocess):
    """Runs the workers until SIGTERM or SIGINT."""

    def __init__(
        self, config: Config, sockets: list[socket.socket], on_ready: Callable[[], None] | None = None
    ) -> None:
        super().__init__(config, sockets)
        self.failed = False
        self._workers: list[Worker] = []
        self._on_ready = on_ready
        self._was_ready = False

    def run(self) -> None:
        """Start the workers, watch over them until a signal ends it, then stop them."""
        self._workers = [self._started() for _ in range(self.processes_num)]
        while not self.should_exit.is_set():
            multiprocessing.connection.wait(
                [*(worker.process.sentinel for worker in self._workers), *self._pipes()],
                _TICK_SECONDS if self._was_ready else _STARTING_SECONDS,
            )
            self.handle_signals()
            self._look_after_workers()
        notify("STOPPING=1", "STATUS=finishing the requests in flight")
        self._stop()

    def _pipes(self) -> list[Any]:
        return [worker.parent_conn for worker in self._workers if not worker.parent_conn.closed]

    def _started(self) -> Worker:
        worker = Worker(self.config, self.sockets)
        worker.start()
        return worker

    def _look_after_workers(self) -> None:
        for position, worker in enumerate(self._workers):
            if self.should_exit.is_set():
                return
            worker.look()
            if worker.process.is_alive() and not worker.is_hung:
                continue
            if time.monotonic() - worker.started_at < _RESTART_SECONDS and worker.exitcode != STARTUP_FAILURE:
                # Not to spin over one that dies at once; the next looks come to it again.
                self.should_exit.wait(_TICK_SECONDS)
                continue
            reason = "hangs" if worker.process.is_alive() else f"ended with status {worker.exitcode}"
            worker.kill()
            worker.join()
            if worker.pid is not None:
                metrics.forget(worker.pid)
            if worker.exitcode == STARTUP_FAILURE:
                logger.error("a worker could not start, giving up", extra={"fields": {"worker": worker.pid}})
                self.failed = True
                self.should_exit.set()
                return
            logger.error("a worker %s, replacing it", reason, extra={"fields": {"worker": worker.pid}})
            self._workers[position] = self._started()
        self._report()

    def _report(self) -> None:
        ready = all(worker.ready for worker in self._workers)
        if ready and not self._was_ready:
            logger.info("all %d workers are ready", len(self._workers))
            notify("READY=1", f"STATUS={len(self._workers)} workers ready on {url(self.sockets[0])}")
            if self._on_ready is not None:
                # Said once; a worker that was replaced is not the service's start.
                self._on_ready()
                self._on_ready = None
        elif not ready and self._was_ready:
            notify("STATUS=replacing a worker")
        self._was_ready = ready

    def _stop(self) -> None:
        # The workers close theirs, too: who comes now is refused at once instead of waiting for nobody.
        for listener in self.sockets:
            listener.close()
        grace = self.config.timeout_graceful_shutdown or 0
        deadline = time.monotonic() + grace + _STOP_MARGIN_SECONDS
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
            if worker.process.is_alive():
                logger.error(
                    "a worker did not stop in time, killing it", extra={"fields": {"worker": worker.pid}}
                )
                worker.process.kill()
                worker.process.join()

    def handle_hup(self) -> None:
        """Ignore SIGHUP: settings are read at start, and a terminal that closes sends it, too."""

    def handle_ttin(self) -> None:
        """Ignore SIGTTIN; the number of workers is a setting."""

    def handle_ttou(self) -> None:
        """Ignore SIGTTOU; the number of workers is a setting."""


def serve(
    settings: ServerSettings,
    *,
    sockets: Sequence[socket.socket] | None = None,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Run the server in this process and its workers until SIGTERM or SIGINT.

    Args:
        sockets: listening sockets to use instead of opening some.
        on_ready: called once with the base URL when all workers answer requests.

    Raises:
        ConfigurationError: the port is taken, a file cannot be read.
        PgchromaError: the workers cannot start.
    """
    logs.configure(settings.log_level)
    listeners = list(sockets) if sockets is not None else listen(settings.host, settings.port)
    base_url = url(listeners[0])
    _warn(settings)
    logger.info(
        "starting %d workers on %s",
        settings.workers,
        base_url,
        extra={"fields": {"database": settings.shown_database_url}},
    )
    config = Config(
        ApplicationFactory(settings),
        factory=True,
        workers=settings.workers,
        loop="uvloop",
        http=JoiningProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=settings.shutdown_seconds,
    )
    supervisor = Supervisor(config, listeners, on_ready and (lambda: on_ready(base_url)))
    with metrics.folder():
        supervisor.run()
    if supervisor.failed:
        raise PgchromaError("the server's workers could not start", hint="the log above says why")
    logger.info("stopped")


def _warn(settings: ServerSettings) -> None:
    if settings.auth == "off":
        logger.warning(
            "PGCHROMA_AUTH=off: everyone who can reach %s port %d may read and write",
            settings.host,
            settings.port,
        )
    if settings.allow_reset:
        logger.warning("PGCHROMA_ALLOW_RESET=true: one request can delete everything")
    for name in unknown_variables(os.environ):
        logger.warning("the environment variable %s means nothing to this version", name)
    path = settings.database_password_file
    if path is not None and path.exists() and Path(path).stat().st_mode & 0o077:
        logger.warning("the password file %s can be read by others; set its mode to 0600", path)
