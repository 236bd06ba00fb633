"""Chroma's own server, `chroma run` from the installed wheel: what ours is compared with."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.server import ServerProcess, free_port


@contextmanager
def running_chroma(folder: Path, *, allow_reset: bool = True) -> Iterator[ServerProcess]:
    """Run `chroma run` over an empty directory in `folder` until the block ends."""
    port = free_port()
    configuration = folder / f"chroma-{port}.yaml"
    configuration.write_text(
        f"port: {port}\nlisten_address: 127.0.0.1\npersist_path: {folder / f'chroma-{port}'}\n"
        f"allow_reset: {str(allow_reset).lower()}\n"
    )
    log = folder / f"chroma-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(Path(sys.executable).with_name("chroma")), "run", str(configuration)],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    server = ServerProcess(process, port, log)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.stop()
