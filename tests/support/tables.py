"""`pgchroma tables` as tests run it."""

from pathlib import Path
from typing import Any

import psycopg
import yaml

from support.command import Outcome, here, pgchroma


def tables(*arguments: object, prelude: str = "") -> Outcome:
    return pgchroma("tables", *arguments, prelude=prelude) if prelude else here("tables", *arguments)


def run(source: Path, url: str, tmp_path: Path, *options: object, prelude: str = "") -> Outcome:
    receipt = tmp_path / "receipt.json"
    return tables(
        "run",
        source,
        "--database-url",
        url,
        "--schema",
        "app",
        "--receipt",
        receipt,
        "--format",
        "json",
        *options,
        prelude=prelude,
    )


def edited(source: Path, tmp_path: Path, edit: Any, name: str = "mapping.yml") -> Path:
    """Write the suggested mapping, as changed by `edit`, which gets its data."""
    path = tmp_path / name
    assert tables("plan", source, "--schema", "app", "--write-mapping", path).code == 0
    data = yaml.safe_load(path.read_text())
    edit(data["tables"])
    path.write_text(yaml.safe_dump(data))
    return path


def scalar(connection: psycopg.Connection[Any], query: str) -> Any:
    row = connection.execute(query).fetchone()
    assert row is not None
    return row[0]
