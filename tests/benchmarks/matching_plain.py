"""A plain restatement of coordinate descent, as the known tools do it: identity start, every product made anew.

Ainsworth et al. 2022, Algorithm 1: per group `sum over its sites of A (permuted B)^T`, one assignment, random order,
until a pass changes nothing. It copies and permutes whole tensors; it shares no code with the package but the spec.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from scipy.optimize import linear_sum_assignment

from rebasin_cli.permutation import Permutations, gathers, identity, permute_tensor
from rebasin_cli.spec import AxisGroup, PermutationSpec
from tests.benchmarks.matching_specs import Tensors


def objective(spec: PermutationSpec, perms: Permutations, a: Tensors, b: Tensors, keys: Collection[str]) -> float:
    """`sum over keys <A, B permuted>`."""
    return sum(
        float((a[key] * permute_tensor(b[key], gathers(spec, perms, key, b[key].shape))).sum(dtype=torch.float64))
        for key in keys
    )


def similarity(
    spec: PermutationSpec, group: AxisGroup, perms: Permutations, a: Tensors, b: Tensors, keys: Collection[str]
) -> torch.Tensor:
    """The similarity of a group's units, computed anew; plain sites (an axis as a whole) only."""
    others = {name: perm for name, perm in perms.items() if name != group.name}
    total = torch.zeros(group.size, group.size, dtype=torch.float64)
    for site in group.sites:
        if site.key in keys:
            theirs = permute_tensor(b[site.key], gathers(spec, others, site.key, b[site.key].shape))
            left = a[site.key].movedim(site.axis, 0).reshape(group.size, -1)
            total += left @ theirs.movedim(site.axis, 0).reshape(group.size, -1).T
    return total


def plain_coordinate_descent(
    spec: PermutationSpec, a: Tensors, b: Tensors, keys: Collection[str], *, seed: int = 0, passes: int = 100
) -> tuple[Permutations, int]:
    """The permutations and the number of passes; stops when a pass gains nothing."""
    perms = identity(spec)
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, passes + 1):
        gained = False
        for place in torch.randperm(len(spec.groups), generator=generator).tolist():
            group = spec.groups[place]
            matrix = similarity(spec, group, perms, a, b, keys)
            found = torch.from_numpy(linear_sum_assignment(matrix.numpy(), maximize=True)[1])
            rows = torch.arange(group.size)
            if float((matrix[rows, found] - matrix[rows, perms[group.name]]).sum()) > 1e-12:
                perms[group.name] = found
                gained = True
        if not gained:
            return perms, number
    return perms, passes
