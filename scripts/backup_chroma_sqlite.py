#!/usr/bin/env python3
"""Copy a Chroma folder in use, check copies, put one back; the same as `pgchroma chroma-backup`."""

from pgchroma.cli.chroma_backup import chroma_backup
from pgchroma.cli.main import run

if __name__ == "__main__":
    run(chroma_backup, prog_name="backup_chroma_sqlite.py")
