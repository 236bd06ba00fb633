#!/usr/bin/env python3
"""Prove a finished migration once more from its receipt; the same as `pgchroma migrate verify`."""

from pgchroma.cli.main import run
from pgchroma.cli.migrate import migrate

if __name__ == "__main__":
    run(migrate.commands["verify"], prog_name="validate_migration.py")
