#!/usr/bin/env python3
"""Move a Chroma folder into a pgchroma database and prove it; the same as `pgchroma migrate run`."""

from pgchroma.cli.main import run
from pgchroma.cli.migrate import migrate

if __name__ == "__main__":
    run(migrate.commands["run"], prog_name="migrate_chroma_sqlite_to_postgres.py")
