#!/usr/bin/env python3
"""Move a pgchroma database or exchange files back into a Chroma folder or server; the same as `pgchroma migrate run`."""

import entry

if __name__ == "__main__":
    entry.run("migrate", "run")
