"""Plants a permutation of every group at once in random tensors, and asks the matching to take it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.model.state import parameter_keys, state_tensors, ties
from rebasin_cli.permutation import apply
from rebasin_cli.spec import PermutationSpec
from tests.planted import from_spec

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Recovery:
    """`planted` of `tensors` differed from A before the matching, `wrong` differ after it."""

    result: MatchResult
    tensors: int
    planted: tuple[str, ...]
    wrong: tuple[str, ...]
    bound: float

    @property
    def is_exact(self) -> bool:
        return not self.wrong


def random_arrays(module: nn.Module, seed: int, dtype: type[np.floating[Any]] = np.float32) -> Arrays:
    """Standard normal numbers for every parameter and float buffer, also those that start as zeros or ones.

    No two units are alike then, so that only one permutation brings all of them back. Tied tensors stay tied.
    """
    random = np.random.default_rng(seed)
    shared = ties(module)
    arrays: Arrays = {}
    for key, tensor in state_tensors(module).items():
        if key in shared:
            arrays[key] = arrays[shared[key]]
        elif tensor.is_floating_point():
            arrays[key] = np.asarray(random.standard_normal(tuple(tensor.shape), dtype=np.float32), dtype)
    return arrays


def plant_and_recover(spec: PermutationSpec, module: nn.Module, seed: int, *, half: bool = False) -> Recovery:
    """B is A with all groups permuted, inner ones and blocks; what matching B to A leaves wrong, tensor by tensor."""
    a = random_arrays(module, seed, np.float16 if half else np.float32)
    b = from_spec.plant(spec, a, seed + 1)
    planted = tuple(key for key in a if not np.array_equal(a[key], b[key]))
    ours, theirs = _tensors(a), _tensors(b)
    keys = parameter_keys(module)
    result = weight_matching(spec, ours, theirs, parameters=keys)
    back = apply(spec, result.permutations, theirs)
    wrong = tuple(key for key in a if not torch.equal(back[key], ours[key]))
    return Recovery(result, len(a), planted, wrong, sum(float(ours[key].double().square().sum()) for key in keys))


def _tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {key: torch.from_numpy(value) for key, value in arrays.items()}
