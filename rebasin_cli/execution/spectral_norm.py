"""Spectral norm on a line: the vectors u and v are computed from the interpolated weight, without data.

A weight W (units along one axis, everything else flattened) is divided by sigma = u^T W v, with unit vectors u and v
that estimate the singular vectors of its largest singular value (Miyato et al. 2018, "Spectral Normalization for
Generative Adversarial Networks", section 2.1). Training follows them by one step of power iteration at a time. Those of
two checkpoints belong to two other weights, and their average to none: even signs differ. So they are found anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module

import torch
from torch import Tensor, nn

STEPS = 200
"""At most so many steps of block power iteration; a typical weight takes ten."""
CONVERGED = 1e-10
"""Relative change of sigma squared in one step."""
SPARE = 4
"""Columns of the block beside those it starts from: it converges by the ratio of sigma 1 to the first one left out."""
ORIGINALS = ("_orig", "_bar")
"""What the weight is called beside `weight_u` and `weight_v`, by PyTorch's older function and by copies of it."""


@dataclass(frozen=True, slots=True)
class SpectralSite:
    """State-dict keys of a weight and of its vectors; `axis` of the weight has the units of u."""

    weight: str
    u: str
    v: str
    axis: int


def spectral_sites(module: nn.Module) -> tuple[SpectralSite, ...]:
    """All weights of the module under spectral norm that keep their vectors."""
    found: dict[str, SpectralSite] = {}
    for name, child in module.named_modules():
        prefix = f"{name}." if name else ""
        for site in (*_parametrized(prefix, child), *_hooked(prefix, child), *_by_name(prefix, child)):
            found.setdefault(site.u, site)
    return tuple(found.values())


def _parametrized(prefix: str, module: nn.Module) -> Iterator[SpectralSite]:
    """`torch.nn.utils.parametrizations.spectral_norm`, where it is the first parametrization of its tensor."""
    kind = import_module("torch.nn.utils.parametrizations")._SpectralNorm
    parametrizations = module._modules.get("parametrizations")
    for tensor, chain in () if parametrizations is None else parametrizations.named_children():
        first = chain._modules.get("0")
        if isinstance(first, kind) and isinstance(getattr(first, "_u", None), Tensor):
            key = f"{prefix}parametrizations.{tensor}"
            yield SpectralSite(f"{key}.original", f"{key}.0._u", f"{key}.0._v", int(first.dim))


def _hooked(prefix: str, module: nn.Module) -> Iterator[SpectralSite]:
    """`torch.nn.utils.spectral_norm`, which computes the weight in a hook."""
    kind = import_module("torch.nn.utils.spectral_norm").SpectralNorm
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, kind):
            key = f"{prefix}{hook.name}"
            yield SpectralSite(f"{key}_orig", f"{key}_u", f"{key}_v", int(hook.dim))


def _by_name(prefix: str, module: nn.Module) -> Iterator[SpectralSite]:
    """Copies of it in users' code, by their names and shapes."""
    own = {name: one for name, one in (*module._parameters.items(), *module._buffers.items()) if one is not None}
    for name, u in own.items():
        stem, v = name.removesuffix("_u"), own.get(f"{name.removesuffix('_u')}_v")
        weight = next((f"{stem}{ending}" for ending in ORIGINALS if f"{stem}{ending}" in own), None)
        if stem == name or v is None or weight is None or u.numel() * v.numel() != own[weight].numel():
            continue
        axes = [axis for axis, size in enumerate(own[weight].shape) if size == u.numel()]
        if axes:
            yield SpectralSite(f"{prefix}{weight}", f"{prefix}{name}", f"{prefix}{stem}_v", axes[0])


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
