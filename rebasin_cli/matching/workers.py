"""Assignments beside products: threads that solve while the products of the next groups are made.

Both solvers let go of the interpreter lock while they work, and products run on all cores or on another device. Groups
are solved at the same time only where none of them sees another's permutation, so the result is, to the last bit, that
of one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import TypeVar

import torch

Result = TypeVar("Result")
Deferred = Callable[[], Result]
"""Gives the result when it is called, at once or after a wait."""

MOST = 4
"""Groups at a time: each has its similarities in memory, and a copy of them in the solver."""


def at_a_time(device: torch.device) -> int:
    """Groups to be in flight: as many as there are threads for products; beside another device at least two."""
    return max(1 if device.type == "cpu" else 2, min(MOST, torch.get_num_threads()))


def deferred(solve: Deferred[Result], most: int) -> Deferred[Result]:
    """`solve`, begun in a thread where more than one group is in flight, else when its result is asked for."""
    return solve if most == 1 else _pool().submit(solve).result


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST, thread_name_prefix="assignment")
