"""`python -m rebasin_cli` and the command `rebasin`."""

from __future__ import annotations

import os
import sys

_STOPPED = (130, 141, 143)

# Matching goes back and forth between products on all threads and assignments on one. Threads that spin while they wait
# take the time of the one that works: on two cores a factor of five.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def main() -> int:
    """Run the program on the process's arguments.

    A run that was told to stop ends at once: all is cleaned up by then, and taking the libraries down takes seconds.
    """
    from rebasin_cli.cli.app import main as run

    code = run()
    if code in _STOPPED:
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
