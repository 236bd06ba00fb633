#!/usr/bin/env python3
"""Move an application's SQLite tables to PostgreSQL and prove every row; the same as `pgchroma tables`."""

from pgchroma.cli.main import run
from pgchroma.cli.tables import tables

if __name__ == "__main__":
    run(tables, prog_name="migrate_sqlite_to_postgres.py")
