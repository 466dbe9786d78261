"""`python -m rebasin_cli` and the command `rebasin`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the program on the process's arguments."""
    from rebasin_cli.cli.app import main as run

    return run()


if __name__ == "__main__":
    sys.exit(main())
