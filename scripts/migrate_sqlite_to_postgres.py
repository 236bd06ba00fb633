#!/usr/bin/env python3
"""Move an application's SQLite tables to PostgreSQL and prove every row; the same as `pgchroma tables`."""

import entry

if __name__ == "__main__":
    entry.run("tables")
