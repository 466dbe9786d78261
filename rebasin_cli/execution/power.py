"""Whether a check could have failed: for every site of a group, would leaving it behind have been seen?

Let `p` be a random projection of all outputs, each position divided by its own scale (`noise.local_scale`) and by the
root of their number. One backward pass gives the gradient `G` of `p` with respect to every tensor `T`. Leaving one site
behind changes `T` by `D`, and `p` by about `sum(G * D)`. Where one of these products is far above rounding, the check
has power. Where the gradient says nothing (a discrete choice, a part computed without gradients, a tensor on which
nothing depends), the site is left behind indeed, together with sites of other groups and then by halves, and the
outputs are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn

from rebasin_cli import permutation
from rebasin_cli.execution.forward import Changed, State, call, carrying
from rebasin_cli.execution.noise import local_scale
from rebasin_cli.execution.widening import cast
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import Permutations
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site

CLEAR = 1e-5
"""What one number of a tensor must contribute to a change of `p`, which is of order 1, to be no rounding of float32."""

PRECISIONS = (torch.float32, torch.float64)
"""In which gradients are computed, the cheaper first: a model that insists on float64 does not run in the other."""

LARGEST = 200_000_000
"""Numbers in the state up to which gradients are taken: they, the weights and the activations must fit in memory."""

FEW = 16
"""Positions of a site that are looked at first."""

MOST_TRIALS = 64
"""Forward passes spent on sites about which the gradient says nothing."""

Member = tuple[str, Site]
"""A group's name and one of its sites."""


@dataclass(frozen=True, slots=True)
class Power:
    """What leaving tensors behind would have shown.

    Args:
        unseen: (group, tensor) for which it would have shown nothing: the outputs do not depend on the order there.
        unknown: why it could not be found out; None where it was.
    """

    unseen: tuple[tuple[str, str], ...] = ()
    unknown: str | None = None

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups without power, each once, in order."""
        return tuple(dict.fromkeys(group for group, _ in self.unseen))


def gradients(
    module: nn.Module, state: State, example: ExampleInput, keys: Sequence[str], seed: int, dtype: torch.dtype
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """The outputs, and the gradient of their random projection with respect to the tensors named.

    Raises:
        RuntimeError: the module does not run with gradients.
    """
    parameters = {key: nn.Parameter(cast(state[key], dtype)) for key in keys if state[key].is_floating_point()}
    own = Changed(state, lambda key, tensor: parameters.get(key, tensor))
    generator = torch.Generator().manual_seed(seed)
    with torch.enable_grad(), carrying(module, own, dtype):
        outputs = call(module, example, seed=seed, dtype=dtype)
        terms = []
        for output in outputs:
            if output.requires_grad and output.numel():
                real = torch.view_as_real(output) if output.is_complex() else output
                finite = torch.isfinite(real.detach())
                scale = local_scale(real.detach().masked_fill(~finite, 0.0).double())
                signs = torch.randn(real.shape, generator=generator, dtype=torch.float64) / scale / sqrt(real.numel())
                terms.append((real.masked_fill(~finite, 0.0) * signs.to(real.dtype)).sum())
        wanted = list(parameters)
        if not terms:
            return [output.detach() for output in outputs], {}
        found = torch.autograd.grad(sum(terms), [parameters[key] for key in wanted], allow_unused=True)  # type: ignore[arg-type]
    return [output.detach() for output in outputs], {
        key: gradient for key, gradient in zip(wanted, found, strict=True) if gradient is not None
    }


def silent_sites(
    spec: PermutationSpec, permutations: Permutations, state: State, gradient: dict[str, Tensor]
) -> list[Member]:
    """The sites whose being left behind the gradient does not show."""
    return [
        (group.name, site)
        for group in spec.groups
        if group.size > 1 and not permutation.is_identity(permutations[group.name])
        for site in group.sites
        if not _shown(group, site, permutations[group.name], state, gradient)
    ]


def _shown(group: AxisGroup, site: Site, perm: Tensor, state: State, gradient: dict[str, Tensor]) -> bool:
    if site.key not in gradient:
        return False
    tensor, slope = state[site.key], gradient[site.key]
    if site.span > 1:
        tensor = tensor.flatten(site.axis, site.axis + site.span - 1)
        slope = slope.flatten(site.axis, site.axis + site.span - 1)
    index = permutation.site_gather(site, perm, tensor.shape[site.axis])
    moved = (index != torch.arange(len(index))).nonzero().flatten()
    for rows in (moved[:FEW], moved) if len(moved) > FEW else (moved,):  # nearly always a few of them show it
        change = tensor.index_select(site.axis, rows) - tensor.index_select(site.axis, index[rows])
        if float((slope.index_select(site.axis, rows) * change).abs().max()) > CLEAR:
            return True
    return False


def without_sites(spec: PermutationSpec, members: Sequence[Member]) -> PermutationSpec:
    """The spec with some sites left behind."""
    out = set(members)
    groups = tuple(
        replace(group, sites=tuple(site for site in group.sites if (group.name, site) not in out))
        for group in spec.groups
    )
    return replace(spec, groups=groups)


def confirm_unseen(members: Sequence[Member], seen_without: Callable[[Sequence[Member]], bool]) -> Power:
    """Leave the sites behind, one of every group at once and then by halves, to find those that nothing shows.

    Two sites of one group are never left behind together: the tensors that they belong to would still fit each other.

    Args:
        members: what the gradient does not show.
        seen_without: whether the outputs change when these sites are left behind.
    """
    unseen: list[Member] = []
    left = 0
    trials = 0
    queue = _one_of_each_group(members)
    while queue:
        part = queue.pop(0)
        if trials == MOST_TRIALS:
            left += len(part)
            continue
        trials += 1
        if not seen_without(part):
            unseen += part
        elif len(part) > 1:
            queue += [part[: len(part) // 2], part[len(part) // 2 :]]
    order = {member: place for place, member in enumerate(members)}
    unseen.sort(key=order.__getitem__)
    unknown = f"not found out for {left} of them, which need a forward pass each" if left else None
    return Power(tuple((name, site.key) for name, site in unseen), unknown)


def _one_of_each_group(members: Sequence[Member]) -> list[list[Member]]:
    rounds: list[list[Member]] = []
    count: dict[str, int] = {}
    for member in members:
        place = count[member[0]] = count.get(member[0], -1) + 1
        if place == len(rounds):
            rounds.append([])
        rounds[place].append(member)
    return rounds
