"""Proof by execution one layer at a time, for models whose weights exceed the memory of most machines.

The module stays on the meta device. Before a module that holds parameters of its own runs, they are drawn from a seed
and their key, permuted where that is asked, and widened to float64; when it has run, they are freed. So the whole model
computes in float64 as `verify_by_execution` has it, in the memory of its largest layer. Code that reads the parameters
of a module without calling it finds none there, which is an error.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from rebasin_cli import permutation
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import state_tensors, ties
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.verify import (
    TOLERANCE,
    SoundnessCheck,
    perturbed,
    random_tensor,
    relative_error,
    run_in_float64,
)
from rebasin_cli.trace.weightless import unchanged_attributes

CHUNK = 1 << 18
"""Numbers drawn or perturbed at a time: few enough to stay in a cache."""

Change = Callable[[str, Tensor], Tensor]
"""What becomes of the numbers of one key before they are used."""

Numbers = Callable[[str, Tensor], Tensor]
"""The numbers of one key, for the slot that waits for them."""


@dataclass(frozen=True)
class Streamed:
    """A model without weights, the input it is run on, and the seed of its numbers."""

    module: nn.Module
    example: ExampleInput
    seed: int = 0

    def outputs(self, change: Change) -> list[Tensor]:
        """All tensors of the output in float64, each layer's numbers made when it is reached."""
        with _Loud(), _streaming(self.module, partial(self._numbers, change)):
            return run_in_float64(self.module, self.example, self.seed)

    def original(self) -> list[Tensor]:
        return self.outputs(lambda key, numbers: numbers)

    def permuted(self, spec: PermutationSpec) -> list[Tensor]:
        """Under a random element of every group at once: that which `verify_by_execution` draws."""
        permutations = permutation.random(spec, self.seed + 1)
        return self.outputs(partial(_permuted, spec, permutations))

    def perturbed(self) -> list[Tensor]:
        return self.outputs(self._perturbed)

    def _numbers(self, change: Change, key: str, slot: Tensor) -> Tensor:
        if not slot.is_floating_point():
            return change(key, slot)
        changed = change(key, self._drawn(key, slot.shape))  # nothing else holds what was drawn: it is free to go
        return changed.double()

    def _drawn(self, key: str, shape: torch.Size) -> Tensor:
        """In float16 for as long as it is gathered: four copies of it are one of what is computed with."""
        generator = _generator(self.seed, key)
        drawn = torch.empty(shape, dtype=torch.float16)
        for part in _parts(drawn):
            part.copy_(random_tensor(key, tuple(part.shape), generator, torch.float32))
        return drawn

    def _perturbed(self, key: str, numbers: Tensor) -> Tensor:
        if not numbers.is_floating_point():
            return numbers
        wide, generator = numbers.double(), _generator(self.seed + 1, key)
        for part in _parts(wide):
            part.copy_(perturbed(part, generator))
        return wide


def verify_streamed(streamed: Streamed, spec: PermutationSpec) -> tuple[SoundnessCheck, float]:
    """What `verify_by_execution` says, and the error of the same permutations where one site is not moved along."""
    before = streamed.original()
    error = relative_error(before, streamed.permuted(spec))
    floor = None if error < TOLERANCE else relative_error(before, streamed.perturbed())
    refuted = relative_error(before, streamed.permuted(with_one_site_less(spec, streamed.seed)))
    silent = not any(bool((leaf != 0).any()) for leaf in before)
    return SoundnessCheck(error, floor, streamed.seed, silent), refuted


def with_one_site_less(spec: PermutationSpec, seed: int) -> PermutationSpec:
    """A wrong claim: somewhere in the model, one tensor does not follow its group."""
    place, site = random.Random(seed).choice(
        [(place, site) for place, group in enumerate(spec.groups) for site in group.sites if group.size > 1]
    )
    groups = list(spec.groups)
    groups[place] = replace(groups[place], sites=tuple(other for other in groups[place].sites if other != site))
    return replace(spec, groups=tuple(groups))


def _permuted(spec: PermutationSpec, permutations: Mapping[str, Tensor], key: str, numbers: Tensor) -> Tensor:
    return permutation.permute_tensor(numbers, permutation.gathers(spec, permutations, key, numbers.shape))


def _generator(seed: int, key: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}:{key}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _parts(numbers: Tensor) -> tuple[Tensor, ...]:
    """Runs of whole rows, as views: what a row's scale depends on is in its own shape."""
    if numbers.numel() <= CHUNK:
        return (numbers,)
    return torch.split(numbers, max(1, CHUNK // numbers[0].numel()))


@contextmanager
def _streaming(module: nn.Module, numbers: Numbers) -> Iterator[None]:
    """Within this context, the module's state is made by `numbers`: buffers at once, parameters when they are needed.

    Tied tensors are asked for by the first of their keys.
    """
    tied = ties(module)
    keys = {id(tensor): tied.get(key, key) for key, tensor in state_tensors(module).items()}
    with unchanged_attributes(module):
        handles: list[Any] = []
        try:
            for owner in module.modules():
                for name, buffer in owner._buffers.items():
                    if buffer is not None and id(buffer) in keys:
                        owner._buffers[name] = numbers(keys[id(buffer)], buffer)
                slots = {name: slot for name, slot in owner._parameters.items() if slot is not None}
                if slots:
                    fill = partial(_fill, slots, {name: keys[id(slot)] for name, slot in slots.items()}, numbers)
                    handles.append(owner.register_forward_pre_hook(fill, prepend=True))
                    handles.append(owner.register_forward_hook(partial(_free, slots)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _fill(
    slots: Mapping[str, nn.Parameter], keys: Mapping[str, str], numbers: Numbers, owner: nn.Module, args: object
) -> None:
    with _disable_current_modes():  # the mode that widens everything would widen what is drawn, too
        made = {name: nn.Parameter(numbers(keys[name], slot), False) for name, slot in slots.items()}
    for name, parameter in made.items():
        setattr(owner, name, parameter)  # not through _parameters: recurrent layers keep a list of their own


def _free(slots: Mapping[str, nn.Parameter], owner: nn.Module, args: object, output: object) -> None:
    for name, slot in slots.items():
        setattr(owner, name, slot)


class _Loud(TorchDispatchMode):
    """Nothing may be computed from the meta device: some operations would leave it out in silence."""

    def __torch_dispatch__(self, func: OpOverload, types: Iterable[type], args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(leaf, Tensor) and leaf.is_meta for leaf in tree_leaves((args, kwargs))):
            raise RuntimeError(
                f"{func} is given a tensor of the meta device: a parameter of a module that is not called"
            )
        return func(*args, **(kwargs or {}))
