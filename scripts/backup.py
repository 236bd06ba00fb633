#!/usr/bin/env python3
"""Dump a tenant, a database or a collection into a folder; the same as `pgchroma backup dump`."""

import entry

if __name__ == "__main__":
    entry.run("backup", "dump")
