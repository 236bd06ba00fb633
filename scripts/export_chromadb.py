#!/usr/bin/env python3
"""Write a Chroma folder, a Chroma server or a pgchroma database to exchange files; the same as `pgchroma migrate export`."""

from pgchroma.cli.main import run
from pgchroma.cli.migrate import migrate

if __name__ == "__main__":
    run(migrate.commands["export"], prog_name="export_chromadb.py")
