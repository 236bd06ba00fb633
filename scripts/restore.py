#!/usr/bin/env python3
"""Load a dump that backup.py wrote; the same as `pgchroma backup load`."""

from pgchroma.cli.backup_dump import load_command
from pgchroma.cli.main import run

if __name__ == "__main__":
    run(load_command, prog_name="restore.py")
