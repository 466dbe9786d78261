"""The example input of a model: positional and keyword arguments, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import MappingKey, SequenceKey, tree_flatten_with_path, tree_map_only

ALSO = "__also__"
"""The keyword under which the inputs of further passes travel with those of the first."""


@dataclass(frozen=True, slots=True)
class ExampleInput:
    """The arguments of one forward call: `module(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the arguments with a name: its keyword, or its position (`0`, `0.1` inside a list)."""
        for tree in (self.args, self.kwargs):
            for path, leaf in tree_flatten_with_path(tree)[0]:
                if isinstance(leaf, Tensor):
                    yield ".".join(map(_step, path)), leaf

    def describe(self) -> str:
        """For messages and reports: `1x3x224x224`, `ids=1x16:int64`; without the inputs of further passes."""
        words = []
        for name, tensor in self.tensors():
            if name.startswith(ALSO):
                continue
            shape = "x".join(map(str, tensor.shape)) or "scalar"
            dtype = "" if tensor.dtype is torch.float32 else ":" + str(tensor.dtype).removeprefix("torch.")
            words.append(f"{shape}{dtype}" if name[0].isdigit() else f"{name}={shape}{dtype}")
        return ", ".join(words)

    def to(self, target: torch.device | str | torch.dtype) -> ExampleInput:
        """The same input on another device, or with its floating-point tensors in another dtype."""

        def moved(tensor: Tensor) -> Tensor:
            return tensor if isinstance(target, torch.dtype) and not tensor.is_floating_point() else tensor.to(target)

        args, kwargs = tree_map_only(Tensor, moved, (self.args, self.kwargs))
        return ExampleInput(args, kwargs)


def _step(key: Any) -> str:
    """One step of the path to a value: an index or a key."""
    if isinstance(key, SequenceKey):
        return str(key.idx)
    return str(key.key) if isinstance(key, MappingKey) else str(key).lstrip(".")


def as_example(value: Any) -> ExampleInput:
    """An input that user code provides: a tuple is the arguments, a mapping the keywords, others one argument."""
    if isinstance(value, ExampleInput):
        return value
    if isinstance(value, tuple):
        return ExampleInput(value)
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return ExampleInput((), dict(value))
    return ExampleInput((value,))


class Sampler:
    """Random tensors from one seed: the same seed, the same input, on every machine with the same PyTorch."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal values."""
        return torch.randn(shape, generator=self._generator).to(dtype)

    def uniform(self, *shape: int) -> Tensor:
        """Values in [0, 1), as images before normalisation have."""
        return torch.rand(shape, generator=self._generator)

    def integers(self, shape: Sequence[int], bound: int, dtype: torch.dtype = torch.int64) -> Tensor:
        """Integers in [0, bound)."""
        return torch.randint(0, max(bound, 1), tuple(shape), generator=self._generator).to(dtype)
