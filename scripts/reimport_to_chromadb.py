#!/usr/bin/env python3
"""Move a pgchroma database or exchange files back into a Chroma folder or server; the same as `pgchroma migrate run`."""

from pgchroma.cli.main import run
from pgchroma.cli.migrate import migrate

if __name__ == "__main__":
    run(migrate.commands["run"], prog_name="reimport_to_chromadb.py")
