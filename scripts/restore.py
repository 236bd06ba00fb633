#!/usr/bin/env python3
"""Load a dump that backup.py wrote; the same as `pgchroma backup load`."""

import entry

if __name__ == "__main__":
    entry.run("backup", "load")
