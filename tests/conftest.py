"""What holds for every test: generated examples are the same in every run, and none fails for being slow on a busy machine."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

from support.host import rendered_inventory

settings.register_profile("reproducible", derandomize=True, deadline=None, database=None)
settings.load_profile("reproducible")


def pytest_configure(config: pytest.Config) -> None:
    """Give testinfra an inventory without expressions: it takes the variables of connections as they are written."""
    inventory = config.getoption("ansible_inventory")
    if inventory:
        file = Path(tempfile.mkdtemp(prefix="pgchroma-testinfra-")) / "hosts.json"
        file.write_text(json.dumps(rendered_inventory(inventory)), encoding="utf-8")
        config.option.ansible_inventory = str(file)
