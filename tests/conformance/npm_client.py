"""Chroma's JavaScript client: installed once into the cache, from the versions and hashes that package-lock.json fixes."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).parent / "npm"
_MANIFESTS = ("package.json", "package-lock.json")
_PROGRAM = "round_trip.mjs"
_TIMEOUT_SECONDS = 300


def install() -> Path:
    """Return a folder with the client in it; from npm when it is not in the cache ($PGCHROMA_CACHE/npm) yet."""
    digest = hashlib.sha256(b"".join((_SOURCE / name).read_bytes() for name in _MANIFESTS)).hexdigest()[:16]
    cache = Path(os.environ.get("PGCHROMA_CACHE", "/var/cache/pgchroma")) / "npm"
    folder = cache / digest
    if not folder.exists():
        # Renamed when it is whole: another run at the same time, or one that broke off, leaves nothing half done.
        partial = cache / f"{digest}.{os.getpid()}"
        partial.mkdir(parents=True)
        for name in _MANIFESTS:
            shutil.copy(_SOURCE / name, partial)
        _run(["npm", "ci", "--ignore-scripts", "--omit=optional", "--no-audit", "--no-fund"], partial)
        try:
            partial.rename(folder)
        except OSError:
            shutil.rmtree(partial)
    return folder


def round_trip(phase: str, port: int, token: str = "") -> None:
    """Run one part of the round trip; AssertionError with what node said when it fails."""
    folder = install()
    # Node looks for packages from where the program lies.
    shutil.copy(_SOURCE / _PROGRAM, folder)
    _run(["node", _PROGRAM, phase, str(port), *filter(None, [token])], folder)


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=_TIMEOUT_SECONDS
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"


if __name__ == "__main__":
    install()
