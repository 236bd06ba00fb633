"""The names under which what is replaced is kept."""

from datetime import UTC, datetime
from pathlib import Path


def name_for(path: Path, why: str = "before") -> Path:
    """Return a name beside `path` that nothing has, with the time: two that are replaced within a second are both kept."""
    while True:
        aside = path.with_name(f"{path.name}.{why}-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}")
        if not aside.exists():
            return aside
