"""What a merge will take, from shapes alone: memory beyond the program's own, and multiply-adds of the alignment.

Whatever the number of checkpoints, there are at most two networks of float32 in memory (the sum of the others and the
one that is aligned to it), one network's matrices, and a few copies of the largest tensor.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch

from rebasin_cli.matching.plan import ALLOWANCES
from rebasin_cli.matching.problem import assignment_work, families_and_clusters, product_work, similarity_bytes
from rebasin_cli.matching.search import SECONDS_OF_WORK
from rebasin_cli.merging.cycle_consistent import ANCHORS, SWEEPS
from rebasin_cli.spec import PermutationSpec

FLOAT = 4
COPIES = 4
"""Of the largest tensor, in float64, while it is merged."""
ROUNDS = 4
"""Rounds that descents to the sum of the others usually take."""


@dataclass(frozen=True, slots=True)
class Work:
    """Of one alignment of a pair: multiply-adds of a full pass with its assignments, and bytes of all similarities."""

    full_pass: int
    similarities: int

    @property
    def large(self) -> bool:
        """Whether the automatic effort is `fast`."""
        return self.full_pass >= SECONDS_OF_WORK


def pair_work(spec: PermutationSpec, shapes: Mapping[str, tuple[int, ...]]) -> Work:
    """The work of a pair.

    Args:
        shapes: of the parameters.
    """
    families, clusters = families_and_clusters(spec, shapes)
    work = sum(product_work(families, cluster) for cluster in clusters)
    return Work(work + sum(map(assignment_work, clusters)), sum(map(similarity_bytes, clusters)))


def tensor_bytes(shapes: Mapping[str, tuple[int, ...]], *, joint: bool, run: bool) -> int:
    """Bytes of tensors in memory at once.

    Args:
        joint: networks are aligned to the sum of others.
        run: networks are run on data.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    networks = max(2 if joint else 0, 1 if run else 0)
    return FLOAT * networks * sum(sizes) + 2 * FLOAT * COPIES * max(sizes, default=0)


def alignment_work(work: Work, align: str, networks: int, effort: str, *, all_pairs: bool = False) -> float:
    """Multiply-adds of the alignment of so many networks, at the most."""
    if align == "none" or networks < 2:
        return 0.0
    level = ("fast" if work.large else "standard") if effort == "auto" else effort
    allowed, few = ALLOWANCES[level], ALLOWANCES["fast"]
    one = max(allowed.passes_of_work * work.full_pass, allowed.work)
    descents = few.passes_of_work * work.full_pass if effort == "auto" else one
    sharing = networks * (networks - 1) / 2 * work.full_pass
    if align == "reference":
        pairs = networks * (networks - 1) / 2 if all_pairs else networks - 1
        return sharing + pairs * one
    rounds = ROUNDS * networks * 4 * work.full_pass
    if align == "merge-many":
        return sharing + networks * descents + rounds
    anchors = min(ANCHORS[level], networks)
    annealed = anchors * (networks - 1) * sum(SWEEPS[level]) * 4 * work.full_pass
    return sharing + annealed + (2 + anchors * len(SWEEPS[level])) * rounds


def multiply_adds_per_second() -> float:
    """Measured on products of a typical size, in a few hundredths of a second."""
    a, b = torch.ones(256, 256), torch.ones(256, 256)
    torch.mm(a, b)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < 0.03:
        torch.mm(a, b)
        count += 1
    return count * 256**3 / (time.perf_counter() - began)
