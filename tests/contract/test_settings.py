"""The settings in the documentation are those of the code, with the same defaults."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

from pgchroma.server.settings import OTHER_VARIABLES, ServerSettings, variable_name

ROOT = Path(__file__).parents[2]
_VARIABLE = re.compile(r"PGCHROMA_[A-Z_]+")


def documented() -> dict[str, str]:
    """Return variable -> default of the table in the server's page."""
    page = (ROOT / "docs/CHROMA_SERVER_SETUP.md").read_text()
    found: dict[str, str] = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        names = _VARIABLE.findall(cells[0]) if line.startswith("| `PGCHROMA_") else []
        defaults = [value.strip(" `*") for value in cells[1].split(",")] if names else []
        found |= dict(zip(names, defaults, strict=True))
    return found


def shown(value: object) -> str:
    if value is MISSING:
        return "required"
    if value is None or value == "":
        return "unset"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def test_every_setting_is_documented_with_its_default() -> None:
    expected = {variable_name(item.name): shown(item.default) for item in fields(ServerSettings)}
    assert documented() == expected


def test_the_example_environment_names_only_what_exists() -> None:
    names = set(_VARIABLE.findall((ROOT / ".env.example").read_text()))
    known = {variable_name(item.name) for item in fields(ServerSettings)} | OTHER_VARIABLES
    assert names <= known
    assert {"PGCHROMA_DATABASE_URL", "PGCHROMA_HOST", "PGCHROMA_PORT"} <= names
