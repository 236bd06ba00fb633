"""Old and new chromadb releases, each in a virtual environment of its own, to write folders that such a release can open.

The first environment of a version resolves its dependencies and writes them with their hashes into a lock file in the cache;
every later one installs exactly these. A host without a package registry names an interpreter that has chromadb instead.
"""

import json
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path
from typing import Final

from pgchroma.errors import ConfigurationError

# What an old release needs beside itself to start today.
_EXTRA: Final[dict[tuple[int, ...], list[str]]] = {(0, 4): ["numpy<2"], (0, 5): ["numpy<2"]}
OLDEST: Final = (0, 4, 15)
NEWEST: Final = (1, 5, 9)
DEFAULT: Final = "1.5.9"
# layout -> the release that writes it, for folders that are to be changed in place.
BY_LAYOUT: Final = {(4, 3, 1): "0.4.24", (9, 4, 2): "0.6.3", (9, 5, 2): "1.0.21", (10, 6, 2): "1.5.9"}


def numbers(version: str) -> tuple[int, ...]:
    """Return a release's numbers; ConfigurationError for what is none, or is outside of what was measured."""
    parts = version.split(".")
    if len(parts) != 3 or not all(part.isdigit() for part in parts):
        raise ConfigurationError(
            f"{version!r} is no release of chromadb", hint="for example --chromadb-version 1.5.9"
        )
    found = tuple(map(int, parts))
    if not OLDEST <= found <= NEWEST:
        raise ConfigurationError(
            f"chromadb {version} writes a layout that was never compared with this reader",
            hint=f"choose a release from {'.'.join(map(str, OLDEST))} to {'.'.join(map(str, NEWEST))}",
        )
    return found


def cache() -> Path:
    """Return where environments and locks are kept: $PGCHROMA_CACHE, else /var/cache/pgchroma."""
    return Path(os.environ.get("PGCHROMA_CACHE", "/var/cache/pgchroma"))


def _run(command: list[str | Path], what: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or done.stderr.splitlines()
        raise ConfigurationError(
            f"cannot {what}: {lines[-1] if lines else f'exit status {done.returncode}'}",
            hint="name an interpreter that has that chromadb by --chromadb-python, or let this host reach a package registry",
        )
    return done.stdout


def _lock(python: Path, version: str, path: Path) -> None:
    """Resolve what a release needs and write it with hashes."""
    wanted = [f"chromadb=={version}", *_EXTRA.get(numbers(version)[:2], [])]
    with tempfile.TemporaryDirectory() as name:
        report = Path(name) / "report.json"
        _run(
            [
                python,
                "-m",
                "pip",
                "install",
                "-q",
                "--dry-run",
                "--ignore-installed",
                "--report",
                report,
                *wanted,
            ],
            f"resolve what chromadb {version} needs",
        )
        entries = json.loads(report.read_text())["install"]
    lines = sorted(
        f"{entry['metadata']['name']}=={entry['metadata']['version']} "
        f"--hash=sha256:{entry['download_info']['archive_info']['hashes']['sha256']}\n"
        for entry in entries
    )
    path.with_suffix(".part").write_text("".join(lines))
    path.with_suffix(".part").replace(path)


def program(version: str, python: Path | None = None) -> list[str | Path]:
    """Return the command that runs a release's `chroma`, in an environment that is built when there is none yet.

    Args:
        python: an interpreter that has chromadb already; then nothing is built.

    Raises:
        ConfigurationError: the release is unknown, or cannot be installed.
    """
    wanted = numbers(version)
    if python is not None:
        told = _run(
            [python, "-c", "import sys, chromadb; sys.stdout.write(chromadb.__version__)"], f"run {python}"
        ).strip()
        if numbers(told) != wanted:
            raise ConfigurationError(
                f"{python} has chromadb {told}, not {version}", hint=f"give --chromadb-version {told}"
            )
        return [python.parent / "chroma"]
    folder = cache() / f"chromadb-{version}"
    if not (folder / ".ready").exists():
        cache().mkdir(parents=True, exist_ok=True)
        venv.create(folder, clear=True, with_pip=True)
        lock = cache() / f"chromadb-{version}-py{sys.version_info[0]}{sys.version_info[1]}.lock"
        if not lock.exists():
            _lock(folder / "bin" / "python", version, lock)
        _run(
            [
                folder / "bin" / "python",
                "-m",
                "pip",
                "install",
                "-q",
                "--require-hashes",
                "--no-deps",
                "-r",
                lock,
            ],
            f"install chromadb {version}",
        )
        (folder / ".ready").touch()
    return [folder / "bin" / "chroma"]
