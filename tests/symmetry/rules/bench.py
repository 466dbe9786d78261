"""Fixtures of the rule tests: derive a small model, read its groups, confirm or refute a claim by execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site
from rebasin_cli.symmetry.derive import Derivation, derive
from rebasin_cli.tracing.tracer import trace_model

ROUNDING = 1e-12


class Net(nn.Module):
    """Named layers and a function that wires them: `run(net, *inputs)`."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs: Tensor) -> Any:
        return self.run(self, *inputs)


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def found(net: nn.Module, *inputs: Tensor) -> Derivation:
    """Derive, and insist that execution confirms what was derived."""
    derivation = derive(trace_model(net, ExampleInput(inputs)))
    assert holds(net, derivation.spec, *inputs)
    return derivation


def holds(net: nn.Module, spec: PermutationSpec, *inputs: Tensor) -> bool:
    """Whether random permutations of all groups of a spec leave the outputs alone; three draws, as one may be idle."""
    checks = (verify_by_execution(lambda: net, ExampleInput(inputs), spec, seed) for seed in (5, 6, 8))
    return all(check.max_relative_error < ROUNDING for check in checks)


def axes(derivation: Derivation) -> list[tuple[int, list[str]]]:
    """Size and sites of every group, a site as `key/axis`, in an order of their own."""
    return sorted((group.size, sorted(_place(site) for site in group.sites)) for group in derivation.spec.groups)


def _place(site: Site) -> str:
    text = f"{site.key}/{site.axis}"
    if site.positions is not None:
        return f"{text}@{','.join(' '.join(map(str, row)) for row in site.positions)}"
    if (site.offset, site.outer, site.inner) != (0, 1, 1):
        text += f"+{site.offset}({site.outer},{site.inner})"
    return text


def group_with(derivation: Derivation, key: str, axis: int) -> AxisGroup:
    """The root group that acts on this axis."""
    return next(
        group
        for group in derivation.spec.groups
        if group.parent is None and any((site.key, site.axis) == (key, axis) for site in group.sites)
    )


def only(group: AxisGroup, *places: str) -> PermutationSpec:
    """A spec that says no more than a part of a group: what a rule that loses a relation would claim."""
    sites = tuple(site for site in group.sites if f"{site.key}/{site.axis}" in places)
    assert len(sites) == len(places)
    return PermutationSpec((replace(group, sites=sites),))


def every_site_is_needed(net: nn.Module, derivation: Derivation, *inputs: Tensor) -> bool:
    """Whether leaving out any one site of any root group is caught by execution: the check has power."""
    return all(
        not holds(net, PermutationSpec((replace(group, sites=(*group.sites[:at], *group.sites[at + 1 :])),)), *inputs)
        for group in derivation.spec.groups
        if group.parent is None
        for at in range(len(group.sites))
    )


def claim(size: int, *sites: Site) -> PermutationSpec:
    """One group, by hand."""
    return PermutationSpec((AxisGroup("claim", size, sites),))


def reason(derivation: Derivation, key: str, axis: int) -> str:
    """Why an axis is pinned."""
    return next(pin.reason for pin in derivation.spec.pinned if (pin.key, pin.axis) == (key, axis))
