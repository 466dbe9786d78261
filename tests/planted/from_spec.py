"""Permutations planted by a plain reading of a spec: index tables written out in NumPy, one position at a time."""

from __future__ import annotations

from math import prod

import numpy as np

from rebasin_cli.spec import PermutationSpec
from tests.planted.by_hand import Arrays


def plant(spec: PermutationSpec, arrays: Arrays, seed: int) -> Arrays:
    """Every group permuted at random: inner groups first, then the blocks that they lie in."""
    random = np.random.default_rng(seed)
    perms = {group.name: random.permutation(group.size) for group in spec.groups}
    planted = dict(arrays)
    left = list(spec.groups)
    while left:
        parents = {group.parent.group for group in left if group.parent is not None}
        ready = [group for group in left if group.name not in parents]
        for group in ready:
            for site in group.sites:
                array = planted[site.key]
                shape = array.shape
                before, merged = shape[: site.axis], prod(shape[site.axis : site.axis + site.span])
                flat = array.reshape(*before, merged, *shape[site.axis + site.span :])
                index = np.arange(merged)
                rows = np.array(site.rows(group.size))
                index[rows] = rows[perms[group.name]]
                planted[site.key] = np.take(flat, index, axis=site.axis).reshape(shape)
        left = [group for group in left if group not in ready]
    return planted
