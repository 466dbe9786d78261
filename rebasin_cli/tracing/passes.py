"""Several passes of one model, run one after the other as if they were one.

A forward pass in eval mode may leave tensors unread: the auxiliary heads of Inception run in training only, the head of
another task with another argument, an `encode` method on its own. What such a pass reads constrains the permutations
too. So the model's `forward` is replaced, for as long as it is traced or compared, by one that runs all passes on the
same module and returns all their outputs; whatever traces or runs the model then needs to know nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from rebasin_cli.errors import UsageError, did_you_mean
from rebasin_cli.model.example_input import ALSO, ExampleInput

_DROPOUTS = frozenset(
    getattr(where, name)
    for where in (torch, torch.nn.functional)
    for name in ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "dropout_",
                 "feature_dropout")
    if hasattr(where, name)
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Passes:
    """What is run besides the forward pass in eval mode.

    Args:
        methods: names of other methods of the model, called with the example input.
        also: further inputs of `forward`.
        training: `forward` in training mode; normalization layers stay in eval mode, and dropout stays off, so that the
            outputs are functions of the input.
    """

    methods: tuple[str, ...] = ()
    also: tuple[ExampleInput, ...] = ()
    training: bool = False

    def check(self, module: nn.Module) -> None:
        """Refuse methods that the model does not have.

        Raises:
            UsageError: naming the nearest that it has.
        """
        for name in self.methods:
            if not callable(getattr(module, name, None)):
                known = [one for one in dir(type(module)) if not one.startswith("_")]
                raise UsageError(f"--trace-call {name}: the model has no such method{did_you_mean(name, known)}")

    def example(self, first: ExampleInput) -> ExampleInput:
        """The example input together with the further ones: what the joint pass is called with."""
        if not self.also:
            return first
        return ExampleInput(first.args, {**first.kwargs, ALSO: tuple((one.args, one.kwargs) for one in self.also)})

    @contextmanager
    def joined(self, module: nn.Module) -> Iterator[nn.Module]:
        """The module, whose `forward` runs all passes within this context."""
        if not (self.methods or self.also or self.training):
            yield module
            return
        own = module.__dict__.get("forward")
        module.__dict__["forward"] = _Joint(self, module, module.forward)
        try:
            yield module
        finally:
            del module.__dict__["forward"]
            if own is not None:
                module.__dict__["forward"] = own


ONE_PASS = Passes()
"""The forward pass in eval mode alone."""


class _Joint:
    """A `forward` that runs several passes; within them, the module's `forward` is its own."""

    def __init__(self, passes: Passes, module: nn.Module, forward: Callable[..., Any]) -> None:
        self._passes, self._module, self._forward = passes, module, forward
        self._within = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._within:
            return self._forward(*args, **kwargs)
        self._within = True
        try:
            return self._all(args, kwargs)
        finally:
            self._within = False

    def _all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        others = kwargs.pop(ALSO, None)
        if others is None:  # called with data, which is an input of the first pass
            stored = [one.to(torch.get_default_dtype()) for one in self._passes.also]
            others = [(one.args, one.kwargs) for one in stored]
        outputs = [self._forward(*args, **kwargs)]
        outputs += [self._forward(*more, **named) for more, named in others]
        outputs += [getattr(self._module, name)(*args, **kwargs) for name in self._passes.methods]
        if self._passes.training:
            with _in_training(self._module), _WithoutDropout():
                outputs.append(self._forward(*args, **kwargs))
        return outputs


@contextmanager
def _in_training(module: nn.Module) -> Iterator[None]:
    """Modules with children in training mode: they choose the path; what the leaves do stays as in eval mode."""
    changed = [one for one in module.modules() if not one.training and next(one.children(), None) is not None]
    for one in changed:
        one.training = True
    try:
        yield
    finally:
        for one in changed:
            one.training = False


class _WithoutDropout(TorchFunctionMode):
    """Dropout that model code asks for by a function does nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else named["input"]
        if func is torch.nn.functional.scaled_dot_product_attention:
            if len(args) > 4:
                args = (*args[:4], 0.0, *args[5:])
            elif "dropout_p" in named:
                named["dropout_p"] = 0.0
        return func(*args, **named)
