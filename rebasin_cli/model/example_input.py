"""What a model is run on to be understood: positional and keyword arguments, drawn from a seed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ExampleInput:
    """The arguments of one forward call: `module(*args, **kwargs)`."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor in the arguments with a name: its keyword, or its position (`0`, `0.1` inside a list)."""
        for index, value in enumerate(self.args):
            yield from _named_tensors(str(index), value)
        for name, value in self.kwargs.items():
            yield from _named_tensors(name, value)

    def describe(self) -> str:
        """For a person and for the report: `1x3x224x224`, `ids=1x16:int64`."""
        words = []
        for name, tensor in self.tensors():
            shape = "x".join(map(str, tensor.shape)) or "scalar"
            dtype = "" if tensor.dtype is torch.float32 else ":" + str(tensor.dtype).removeprefix("torch.")
            words.append(f"{shape}{dtype}" if name[0].isdigit() else f"{name}={shape}{dtype}")
        return ", ".join(words)

    def to(self, target: torch.device | str | torch.dtype) -> ExampleInput:
        """The same input on another device, or with its floating-point tensors in another dtype."""
        return ExampleInput(
            tuple(_moved(value, target) for value in self.args),
            {name: _moved(value, target) for name, value in self.kwargs.items()},
        )


def _named_tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _named_tensors(f"{name}.{key}", item)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _named_tensors(f"{name}.{index}", item)


def _moved(value: Any, target: torch.device | str | torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value if isinstance(target, torch.dtype) and not value.is_floating_point() else value.to(target)
    if isinstance(value, Mapping):
        return {key: _moved(item, target) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_moved(item, target) for item in value)
    return value


def as_example(value: Any) -> ExampleInput:
    """What a user's code offers as its input: a tuple is the arguments, a mapping the keywords, others one argument."""
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
