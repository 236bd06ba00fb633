"""The entry point of `pgchroma`: Ctrl-C ends it quietly while it still imports, too."""

import sys

from pgchroma.exit_codes import ExitCode


def main() -> None:
    """Run the command."""
    try:
        from pgchroma.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(ExitCode.STOPPED)
    run()


if __name__ == "__main__":
    main()
