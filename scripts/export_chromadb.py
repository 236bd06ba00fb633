#!/usr/bin/env python3
"""Write a Chroma folder, a Chroma server or a pgchroma database to exchange files; the same as `pgchroma migrate export`."""

import entry

if __name__ == "__main__":
    entry.run("migrate", "export")
