"""Quantizers of a model: layers that round values to multiples of a scale.

Scales and zero points belong to the ranges of one network's values. On a line scales are averaged like all real
numbers, and zero points, integers, are those of the nearer checkpoint, so between two networks with other ranges they
do not fit each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

NAMES = ("scale", "zero_point")


def quantizer_warning(module: nn.Module, networks: Sequence[Mapping[str, Tensor]]) -> str | None:
    """What the user is told of quantizers whose scale or zero point differs between the networks; None for none.

    Args:
        networks: tensors by state-dict key.
    """
    layers = sum(
        any(_differ(f"{prefix}{name}", networks) for name in NAMES)
        for prefix in (f"{name}." if name else "" for name, child in module.named_modules() if _quantizes(child))
    )
    if not layers:
        return None
    counted = "1 layer" if layers == 1 else f"{layers} layers"
    return (
        f"quantizers ({counted}) have other ranges in the checkpoints: between them scales are averaged and zero "
        "points are the nearer one's, so calibrate the quantizers of an interpolated network before you use it"
    )


def _quantizes(module: nn.Module) -> bool:
    own = {**module._parameters, **module._buffers}
    return all(isinstance(own.get(name), Tensor) for name in NAMES)


def _differ(key: str, networks: Sequence[Mapping[str, Tensor]]) -> bool:
    present = [network[key] for network in networks if key in network]
    return any(one.shape != present[0].shape or not torch.equal(one, present[0]) for one in present[1:])
