"""The merged network: every tensor is made when it is asked for, from the aligned networks, one after the other.

Parameters are combined by the method, floating-point buffers (running statistics) by the weighted mean, integers and
booleans are the reference's. The vectors of a spectral norm are computed from the merged weight.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rebasin_cli.execution.spectral_norm import SpectralSite, site_by_vector
from rebasin_cli.execution.weight_arithmetic import compute_dtype
from rebasin_cli.merging.joint import Tensors
from rebasin_cli.merging.method import MergeMethod, OneTensor, Weighting
from rebasin_cli.merging.methods.linear import weighted_sum


@dataclass(frozen=True)
class Recipe:
    """How tensors are combined.

    Attributes:
        weights: one for each network; see `MergeMethod.weights`.
        by_key: the weights of single tensors, where they are others.
        options: the method's own.
    """

    method: MergeMethod
    weights: tuple[float, ...]
    seed: int = 0
    options: object | None = None
    by_key: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights as shares that sum to 1: those of buffers, and of the targets of REPAIR."""
        if self.method.weighting is Weighting.SHARES or self.method.choose is not None:
            return self.weights
        total = sum(map(abs, self.weights))
        return tuple(abs(weight) / total for weight in self.weights)


class Merged:
    """The tensors of the merged network, by model key; a `Network` for whatever runs it.

    Args:
        networks: aligned, by model key.
        base: likewise, where the method needs it.
        integers: the network that integers and booleans are taken from, the reference.
        parameters: the keys of the model that are parameters, tied ones under their first name.
        ties: for each further name of a tensor its first one.
        spectral: the weights under spectral norm.
    """

    name = "result"
    end: int | None = None
    lam = 0.0
    adjusted = True

    def __init__(
        self,
        networks: Sequence[Tensors],
        base: Tensors | None,
        integers: Tensors,
        recipe: Recipe,
        *,
        parameters: Collection[str],
        ties: Mapping[str, str],
        spectral: Sequence[SpectralSite] = (),
    ) -> None:
        self.networks, self.base, self.recipe = tuple(networks), base, recipe
        self._integers, self._parameters, self._ties = integers, frozenset(parameters), ties
        needed = [*networks, *([] if base is None else [base])]
        self.keys = tuple(key for key in networks[0] if all(key in other for other in needed))
        self._spectral = site_by_vector(spectral, self.keys)
        self._vectors: dict[str, Mapping[str, Tensor]] = {}

    @property
    def between(self) -> tuple[int, int]:
        return 0, 0

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        return tuple(enumerate(self.recipe.shares))

    def tensor(self, key: str, device: torch.device | None = None) -> Tensor:
        """The tensor of this key, float32 or wider where it is no integer, on a device."""
        value = self._made(key)
        return value if device is None else value.to(device)

    def _made(self, key: str) -> Tensor:
        own = self.networks[0][key]
        if not (own.is_floating_point() or own.is_complex()):
            return self._integers.get(key, own)
        if key in self._spectral:
            vector = self._vector(key)
            if vector is not None:
                return vector.reshape(own.shape).to(compute_dtype(own.dtype))
        first, recipe = self._ties.get(key, key), self.recipe
        is_parameter = first in self._parameters and not own.is_complex()
        weights = recipe.by_key.get(key, recipe.weights if is_parameter else recipe.shares)
        base = None if self.base is None else _wide(self.base[key])
        one = OneTensor(
            first, weights, lambda number: _wide(self.networks[number][key]), base, recipe.seed, recipe.options
        )
        return (recipe.method.combine if is_parameter else weighted_sum)(one)

    def _vector(self, key: str) -> Tensor | None:
        """u or v of the merged weight, float64; None for a weight of zeros."""
        site = self._spectral[key]
        if site.u not in self._vectors:
            self._vectors[site.u] = site.vectors(self._made, [network[site.u] for network in self.networks])
        return self._vectors[site.u].get(key)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(compute_dtype(tensor.dtype))


class Given:
    """One of the checkpoints, aligned; a `Network` with its own statistics.

    Args:
        number: among the checkpoints.
        tensors: by model key.
    """

    lam = 0.0
    adjusted = False

    def __init__(self, number: int, tensors: Tensors) -> None:
        self.number, self.name, self.tensors = number, f"checkpoint {number}", tensors
        self.keys = tuple(tensors)

    @property
    def end(self) -> int | None:
        return self.number

    @property
    def between(self) -> tuple[int, int]:
        return self.number, self.number

    @property
    def shares(self) -> tuple[tuple[int, float], ...]:
        return ((self.number, 1.0),)

    def tensor(self, key: str, device: torch.device | None = None) -> Tensor:
        """The tensor of this key, on a device."""
        value = self.tensors[key]
        return value if device is None else value.to(device)
