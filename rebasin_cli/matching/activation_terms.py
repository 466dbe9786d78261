"""Activations as terms of the matching problem: correlations written as tensors that weight matching understands.

A correlation matrix C between the units of A and B at a tap is the pair of tensors (C, identity) with a site on their
first axes: permuting the second by p makes their inner product `sum_i C[i, p(i)]`, what activation matching maximises.
So nested groups, several taps for one group, and any mixture with the weights need no search of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor

from rebasin_cli.spec import AxisGroup, PermutationSpec, Site, Tap

PREFIX = "activations at operation "


@dataclass(frozen=True, slots=True)
class Terms:
    """A matching problem with activations in it.

    Args:
        spec: the groups with sites at the taps, beside or instead of those in the weights.
        a, b: tensors by key.
        keys: those that make up the objective.
    """

    spec: PermutationSpec
    a: Mapping[str, Tensor]
    b: Mapping[str, Tensor]
    keys: tuple[str, ...]


def activations_alone(spec: PermutationSpec, taps: Sequence[Tap], correlations: Sequence[Tensor]) -> Terms:
    """The problem in which only activations count; groups that no tap sees keep their order."""
    sites = _tap_sites(taps)
    groups = tuple(replace(group, sites=tuple(sites.get(group.name, ()))) for group in spec.groups)
    return _terms(PermutationSpec(groups), taps, correlations, 1.0)


def mixed(
    spec: PermutationSpec,
    a: Mapping[str, Tensor],
    b: Mapping[str, Tensor],
    parameters: Collection[str],
    taps: Sequence[Tap],
    correlations: Sequence[Tensor],
    share: float,
) -> Terms:
    """The problem in which activations weigh `share` and weights the rest, each relative to the most it could be.

    Args:
        share: in (0, 1).
    """
    sites = _tap_sites(taps)
    groups: tuple[AxisGroup, ...] = tuple(
        replace(group, sites=(*group.sites, *sites.get(group.name, ()))) for group in spec.groups
    )
    most = _norm(a, parameters) * _norm(b, parameters)
    units = sum(tap.length for tap in taps)
    terms = _terms(PermutationSpec(groups), taps, correlations, share / (1 - share) * most / max(units, 1))
    return Terms(terms.spec, _Joined(a, terms.a), _Joined(b, terms.b), (*parameters, *terms.keys))


def _tap_sites(taps: Sequence[Tap]) -> dict[str, list[Site]]:
    sites: dict[str, list[Site]] = {}
    for tap in taps:
        for name, site in tap.sites:
            sites.setdefault(name, []).append(replace(site, key=_key(tap), axis=0))
    return sites


def _key(tap: Tap) -> str:
    return f"{PREFIX}{tap.ordinal}, {tap.operand or 'result'}, axis {tap.axis}"


def _terms(spec: PermutationSpec, taps: Sequence[Tap], correlations: Sequence[Tensor], scale: float) -> Terms:
    a = {_key(tap): (matrix * scale).float() for tap, matrix in zip(taps, correlations, strict=True)}
    b = {_key(tap): torch.eye(tap.length) for tap in taps}
    return Terms(spec, a, b, tuple(a))


def _norm(tensors: Mapping[str, Tensor], keys: Collection[str]) -> float:
    return sqrt(sum(float(tensors[key].float().square().sum()) for key in keys))


class _Joined(Mapping[str, Tensor]):
    """Two mappings read as one, nothing read before it is asked for."""

    def __init__(self, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
        self._first, self._second = first, second

    def __getitem__(self, key: str) -> Tensor:
        return self._second[key] if key in self._second else self._first[key]

    def __iter__(self) -> Iterator[str]:
        yield from self._first
        yield from self._second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)
