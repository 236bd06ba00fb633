#!/usr/bin/env python3
"""Copy a Chroma folder in use, check copies, put one back; the same as `pgchroma chroma-backup`."""

import entry

if __name__ == "__main__":
    entry.run("chroma-backup")
