"""Under `torchrun` only the first process speaks."""

from __future__ import annotations

import os
import sys


def this_rank() -> int:
    """This process' number among those that torchrun has started; torch need not be imported yet."""
    return int(os.environ.get("RANK", "0")) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else 0


def only_the_first_speaks() -> None:
    """Call before anything is said; from then on, what another process would say is lost."""
    if this_rank() > 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
