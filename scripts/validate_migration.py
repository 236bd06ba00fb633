#!/usr/bin/env python3
"""Prove a finished migration once more from its receipt; `pgchroma migrate verify` or `pgchroma tables verify`, as the receipt is."""

import sys
from pathlib import Path

import entry

if __name__ == "__main__":
    with entry.interruptible():
        entry.require_pgchroma()
        from pgchroma.cli.main import run
        from pgchroma.cli.validate import verifier

    command, arguments = verifier(sys.argv[1:])
    run(command, arguments, prog_name=Path(sys.argv[0]).name)
