#!/usr/bin/env python3
"""Dump a tenant, a database or a collection into a folder; the same as `pgchroma backup dump`."""

from pgchroma.cli.backup_dump import dump_command
from pgchroma.cli.main import run

if __name__ == "__main__":
    run(dump_command, prog_name="backup.py")
