"""Spectral norm on a line: the vectors u and v are computed from the interpolated weight, without data.

A weight W (units along one axis, everything else flattened) is divided by sigma = u^T W v, with unit vectors u and v
that estimate the singular vectors of its largest singular value (Miyato et al. 2018, "Spectral Normalization for
Generative Adversarial Networks", section 2.1). Training follows them by one step of power iteration at a time. Those of
two checkpoints belong to two other weights, and their average to none: even signs differ. So they are found anew.
Copies of it in users' code may keep u alone and compute v in every pass (BigGAN's `u0`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn
from torch.func import functional_call

STEPS = 200
"""At most so many steps of block power iteration; a typical weight takes ten."""
CONVERGED = 1e-10
"""Relative change of sigma squared in one step."""
SPARE = 4
"""Columns of the block beside those it starts from: it converges by the ratio of sigma 1 to the first one left out."""
ORIGINALS = ("_orig", "_bar", "")
"""What the weight is called beside `weight_u`, by PyTorch's older function and by copies of it."""
BARE = {"u": "v", "u0": "v0"}
"""Names of u without the weight's, in copies whose weight is called `weight`, and of the v beside it."""
UNIT = 1e-2
"""How far from 1 the norm of a vector may be that is taken for u by its name and shape alone."""

TensorOf = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class SpectralSite:
    """State-dict keys of a weight and of its vectors.

    Attributes:
        weight: the key of the weight, or of what it is computed from.
        u, v: the keys of the vectors; v is None where the module computes it in every pass.
        axis: of the weight, along which the units of u lie.
        reads: all keys that the weight is computed from.
        before: the parametrizations that compute the weight from `reads`, before the spectral norm; empty for none.
        guessed: known by names and shapes alone.
    """

    weight: str
    u: str
    v: str | None
    axis: int
    reads: tuple[str, ...]
    before: tuple[nn.Module, ...] = ()
    guessed: bool = False

    @property
    def computed(self) -> tuple[str, ...]:
        """The keys of the vectors."""
        return (self.u,) if self.v is None else (self.u, self.v)

    def matrix(self, tensor: TensorOf) -> Tensor:
        """The weight that spectral norm divides.

        Args:
            tensor: the network's tensors by key.
        """
        if not self.before:
            return tensor(self.weight)
        stem = self.weight.removesuffix("0").removesuffix(".original")
        values = tuple(tensor(key) for key in self.reads if key.startswith(f"{stem}.original"))
        for number, step in enumerate(self.before):
            prefix = f"{stem}.{number}."
            own = {key.removeprefix(prefix): tensor(key) for key in self.reads if key.startswith(prefix)}
            values = (functional_call(step, own, values),)
        return values[0]

    def vectors(self, tensor: TensorOf, starts: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """u and v by key, float64; empty for a weight of zeros, which has none.

        Args:
            tensor: the network's tensors by key.
            starts: the checkpoints' u.
        """
        found = singular_vectors(self.matrix(tensor), self.axis, starts)
        return {} if found is None else dict(zip(self.computed, found, strict=False))


def spectral_sites(module: nn.Module, networks: Sequence[Mapping[str, Tensor]] = ()) -> tuple[SpectralSite, ...]:
    """All weights of the module under spectral norm that keep their vectors.

    Args:
        networks: what is known by names and shapes alone must have vectors of length 1 in all of these.
    """
    found: dict[str, SpectralSite] = {}
    for name, child in module.named_modules():
        prefix = f"{name}." if name else ""
        for site in (*_parametrized(prefix, child), *_hooked(prefix, child), *_by_name(prefix, child)):
            found.setdefault(site.u, site)
    return tuple(site for site in found.values() if not site.guessed or _has_unit_vectors(site, networks))


def _has_unit_vectors(site: SpectralSite, networks: Sequence[Mapping[str, Tensor]]) -> bool:
    present = [network[site.u] for network in networks if site.u in network]
    return all(abs(float(torch.linalg.vector_norm(one.detach().double())) - 1) <= UNIT for one in present)


def site_by_vector(sites: Sequence[SpectralSite], keys: Sequence[str]) -> dict[str, SpectralSite]:
    """The site by the key of each vector that it computes, of those sites whose tensors are all among the keys."""
    known = set(keys)
    return {key: site for site in sites if known.issuperset((*site.reads, *site.computed)) for key in site.computed}


def _parametrized(prefix: str, module: nn.Module) -> Iterator[SpectralSite]:
    """`torch.nn.utils.parametrizations.spectral_norm`, the first parametrization of its tensor or a later one."""
    kind = import_module("torch.nn.utils.parametrizations")._SpectralNorm
    parametrizations = module._modules.get("parametrizations")
    for tensor, chain in () if parametrizations is None else parametrizations.named_children():
        stem, steps = f"{prefix}parametrizations.{tensor}", list(chain.children())
        originals = [name for name in chain.state_dict(keep_vars=True) if name.startswith("original")]
        for number, step in enumerate(steps):
            if not isinstance(step, kind) or not isinstance(getattr(step, "_u", None), Tensor):
                continue
            before = [name for name in chain.state_dict(keep_vars=True) if _number(name) < number]
            yield SpectralSite(
                f"{stem}.{originals[0]}",
                f"{stem}.{number}._u",
                f"{stem}.{number}._v",
                int(step.dim),
                tuple(f"{stem}.{name}" for name in (*originals, *before)),
                tuple(steps[:number]),
            )


def _number(name: str) -> float:
    """The number of the parametrization that a tensor of their list belongs to; infinite for the originals."""
    first = name.partition(".")[0]
    return int(first) if first.isdigit() else float("inf")


def _hooked(prefix: str, module: nn.Module) -> Iterator[SpectralSite]:
    """`torch.nn.utils.spectral_norm`, which computes the weight in a hook."""
    kind = import_module("torch.nn.utils.spectral_norm").SpectralNorm
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, kind):
            key = f"{prefix}{hook.name}"
            yield SpectralSite(f"{key}_orig", f"{key}_u", f"{key}_v", int(hook.dim), (f"{key}_orig",))


def _by_name(prefix: str, module: nn.Module) -> Iterator[SpectralSite]:
    """Copies of it in users' code, by their names and shapes."""
    own = {name: one for name, one in (*module._parameters.items(), *module._buffers.items()) if one is not None}
    for name, u in own.items():
        stem = "weight" if name in BARE else name.removesuffix("_u")
        weight = next((f"{stem}{ending}" for ending in ORIGINALS if f"{stem}{ending}" in own), None)
        if stem == name or weight is None or own[weight].dim() < 2 or u.requires_grad:
            continue
        v = BARE.get(name, f"{stem}_v")
        if v in own and u.numel() * own[v].numel() != own[weight].numel():
            continue
        axes = [axis for axis, size in enumerate(own[weight].shape[:2]) if size == u.numel()]
        if axes:
            key = f"{prefix}{weight}"
            second = f"{prefix}{v}" if v in own else None
            yield SpectralSite(key, f"{prefix}{name}", second, axes[0], (key,), guessed=True)


def singular_vectors(weight: Tensor, axis: int, starts: Sequence[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The vectors u and v of the largest singular value, float64; None for a weight of zeros.

    Block power iteration: it starts from the checkpoints' u and from fixed random vectors, so it cannot miss a
    direction that is orthogonal to both.

    Args:
        axis: of the weight, along which u lies.
    """
    matrix = weight.detach().double().movedim(axis, 0).flatten(1)
    if matrix.shape[1] == 0 or not bool(matrix.any()):
        return None
    units = matrix.shape[0]
    spare = torch.randn(units, SPARE, dtype=matrix.dtype, generator=torch.Generator().manual_seed(0))
    columns = [start.detach().double().reshape(units, 1).to(matrix.device) for start in starts]
    block = torch.cat([*columns, spare.to(matrix.device)], 1)[:, :units]
    known = torch.zeros((), dtype=matrix.dtype, device=matrix.device)
    for _ in range(STEPS):
        basis = torch.linalg.qr(block).Q
        block = matrix @ (matrix.T @ basis)
        squares, mixes = torch.linalg.eigh(basis.T @ block)
        if abs(float(squares[-1] - known)) <= CONVERGED * float(squares[-1]):
            break
        known = squares[-1]
    v = nn.functional.normalize(matrix.T @ (basis @ mixes[:, -1]), dim=0)
    return nn.functional.normalize(matrix @ v, dim=0), v
