#!/usr/bin/env python3
"""Move a Chroma folder into a pgchroma database and prove it; the same as `pgchroma migrate run`."""

import entry

if __name__ == "__main__":
    entry.run("migrate", "run")
