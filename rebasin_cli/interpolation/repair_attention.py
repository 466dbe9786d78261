"""Queries, keys and values of `nn.MultiheadAttention`: units that no module gives out, for one projection packs them.

Their moments are computed from what the module is given, and while it runs its own weight and bias hold the correction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from rebasin_cli.interpolation.moments import Moments, moments

INPUTS = ("query", "key", "value")


def packed_units(module: nn.Module) -> int:
    """How many units the module's packed projection has; 0 where it has none."""
    weight = getattr(module, "in_proj_weight", None) if isinstance(module, nn.MultiheadAttention) else None
    return int(weight.shape[0]) if isinstance(weight, nn.Parameter) else 0


def projected(module: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Moments:
    """The moments of queries, keys and values, one after the other, for these arguments of the module."""
    given = {**dict(zip(INPUTS, args, strict=False)), **{name: kwargs[name] for name in INPUTS if name in kwargs}}
    bias = module.in_proj_bias
    biases = (None, None, None) if bias is None else bias.chunk(3)
    found = [
        moments(F.linear(given[name], rows, shift), -1)
        for name, rows, shift in zip(INPUTS, module.in_proj_weight.chunk(3), biases, strict=True)
    ]
    mean, variance = torch.cat([one.mean for one in found]), torch.cat([one.variance for one in found])
    return Moments(mean, variance, found[0].count)


def hook_projection(
    module: nn.Module, correct: Callable[[Moments], tuple[Tensor, Tensor] | None]
) -> list[RemovableHandle]:
    """From now on, tell `correct` the moments of each run and let the projection give `scale * units + shift` in it.

    The parameters are put back after each run, also after one that fails.
    """
    assert isinstance(module, nn.MultiheadAttention)
    attention = module
    kept: list[tuple[Tensor, Tensor]] = []

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        made = correct(projected(attention, args, kwargs))
        if made is None:
            return
        weight, bias = attention.in_proj_weight, attention.in_proj_bias
        kept.append((weight, weight.clone()))
        weight.mul_(made[0].to(weight.dtype).unsqueeze(1))
        if bias is not None:
            kept.append((bias, bias.clone()))
            bias.mul_(made[0].to(bias.dtype)).add_(made[1].to(bias.dtype))

    def after(*_: object) -> None:
        while kept:
            parameter, value = kept.pop()
            parameter.copy_(value)

    return [
        attention.register_forward_pre_hook(before, with_kwargs=True),
        attention.register_forward_hook(after, always_call=True),
    ]
