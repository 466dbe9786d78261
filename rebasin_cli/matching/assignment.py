"""Linear assignment: the one module that imports a solver, and the threads that solve while products are made.

Finds the permutation `perm` that maximises `sum_i S[i, perm[i]]`. If the largest entries of the rows already form a
permutation, that is the optimum and no solver runs. `lapx` (the extra `fast`) is used where it is installed.

Both solvers release the interpreter lock while they work. Groups are solved at the same time only if none depends on
another's permutation, so the result is, to the last bit, that of one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import permutations as all_orders
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from rebasin_cli.errors import NumericalError
from rebasin_cli.matching.families import Index

Matrix = NDArray[np.float64]


_ENUMERATED = 4


def _load_solver() -> Callable[[Matrix], Index]:
    try:
        from lap import lapjvs
    except ImportError:
        return _solve_by_scipy
    kept = threading.local()

    def solve(matrix: Matrix) -> Index:
        """Costs in float32, like the products behind them, in memory that each thread reuses: new pages are slow."""
        scratch: NDArray[np.float32] | None = getattr(kept, "scratch", None)
        if scratch is None or scratch.size < matrix.size:
            scratch = kept.scratch = np.empty(matrix.size, dtype=np.float32)
        costs = scratch[: matrix.size].reshape(matrix.shape)
        np.subtract(matrix.max(), matrix, out=costs, casting="same_kind")
        return np.asarray(lapjvs(costs, extend_cost=False, return_cost=False, jvx_like=False)[0], dtype=np.int64)

    return solve


def _solve_by_scipy(matrix: Matrix) -> Index:
    """Costs negated here, in float64: `maximize=True` would make another copy."""
    costs = np.negative(matrix, dtype=np.float64)
    return np.asarray(linear_sum_assignment(costs)[1], dtype=np.int64)


_solve = _load_solver()


def assign(similarity: Matrix, what: str) -> Index:
    """The best one-to-one pairing: int64 (n,), row i goes with column `perm[i]`.

    Args:
        similarity: float64 (n, n).
        what: the group, for messages.

    Raises:
        NumericalError: an entry is not finite, or the solver's answer is not a permutation.
    """
    _check_finite(similarity, what)
    if not similarity.any():
        return np.arange(len(similarity), dtype=np.int64)
    best = similarity.argmax(axis=1)
    if _is_permutation(best):
        return np.asarray(best, dtype=np.int64)
    perm: Index = _solve(similarity)
    if not _is_permutation(perm):
        raise NumericalError(f"the assignment solver's answer for {what} is not a permutation of {len(perm)} units")
    return perm


def assign_many(similarities: Matrix, what: str) -> tuple[Matrix, Index]:
    """Best pairings of many small problems at once.

    Args:
        similarities: float64 (problems, n, n).
        what: the groups, for messages.

    Returns:
        The optimal sums, float64 (problems,), and the permutations, int64 (problems, n).
    """
    count, size, _ = similarities.shape
    _check_finite(similarities, what)
    if size <= _ENUMERATED:
        orders = np.array(list(all_orders(range(size))), dtype=np.int64)
        scores = similarities[:, np.arange(size), orders].sum(axis=2)
        perms = orders[scores.argmax(axis=1)]
    else:
        perms = similarities.argmax(axis=2).astype(np.int64)
        for problem in np.flatnonzero((np.sort(perms, axis=1) != np.arange(size)).any(axis=1)):
            any_signal = similarities[problem].any()
            perms[problem] = _solve(similarities[problem]) if any_signal else np.arange(size)
        if (np.sort(perms, axis=1) != np.arange(size)).any():
            raise NumericalError(f"an answer of the assignment solver for {what} is not a permutation of {size} units")
    rows = np.arange(size)
    return similarities[np.arange(count)[:, None], rows, perms].sum(axis=1), perms


def _check_finite(similarity: Matrix, what: str) -> None:
    if not np.isfinite(similarity.sum()) and not np.isfinite(similarity).all():
        raise NumericalError(
            f"non-finite similarity in {what}: non-finite cost for the assignment", slug="non_finite_similarity"
        )


def _is_permutation(perm: Index) -> bool:
    seen = np.zeros(len(perm), dtype=bool)
    if len(perm) and (perm.min() < 0 or perm.max() >= len(perm)):
        return False
    seen[perm] = True
    return bool(seen.all())


Result = TypeVar("Result")
Deferred = Callable[[], Result]
"""Returns the result when it is called, at once or after a wait."""

MOST = 4
"""Groups at a time, at the most: each has its similarities in memory, and a copy of them in the solver."""


def at_a_time(device: torch.device) -> int:
    """Number of groups to solve at a time: that of the threads for products, and at least two beside a GPU."""
    return max(1 if device.type == "cpu" else 2, min(MOST, torch.get_num_threads()))


def deferred(solve: Deferred[Result], most: int) -> Deferred[Result]:
    """`solve`, started in a thread where more than one group is solved at a time, else run when it is called."""
    return solve if most == 1 else _pool().submit(solve).result


@lru_cache(maxsize=1)
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(MOST, thread_name_prefix="assignment")
