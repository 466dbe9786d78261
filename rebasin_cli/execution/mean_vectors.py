"""One vector of a network on data: its mean activation, or the mean gradient of its loss.

The output layer is the module with parameters of its own that is called last; everything before it is the encoder. All
vectors are sums over samples in float64, divided by their number, so that processes can share the batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.data import Batch
from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, ModelError, NumericalError, RebasinError, did_you_mean
from rebasin_cli.execution.model_slot import ModelSlot, disable_mha_fastpath
from rebasin_cli.execution.targets import fitted_or_refused
from rebasin_cli.execution.user_score import Score, mean_score


def output_layer(slot: ModelSlot, batch: Batch) -> str:
    """The path of the module with parameters of its own that a pass over the batch calls last.

    Raises:
        ModelError: no such module is called.
    """
    called: list[str] = []
    own = {name: module for name, module in slot.module.named_modules() if module._parameters}
    hooks = [
        module.register_forward_pre_hook(lambda _, __, name=name: called.append(name)) for name, module in own.items()
    ]
    try:
        with disable_mha_fastpath():
            for _ in slot.outputs(batch.rows(0, 1)):
                break
    finally:
        for hook in hooks:
            hook.remove()
    if not called:
        raise ModelError("no layer with parameters is called by the model", hint="give --activation-layer NAME")
    return called[-1]


def check_layer(module: nn.Module, name: str) -> None:
    """Refuse a name that is no module.

    Raises:
        ModelError: naming it, with near names.
    """
    names = [found for found, _ in module.named_modules() if found]
    if name not in names:
        raise ModelError(f"--activation-layer {name}: the model has no such module{did_you_mean(name, names)}")


def mean_activation(
    slot: ModelSlot, batches: Iterable[Batch], layer: str, *, of_input: bool, ranks: Ranks = ALONE
) -> Tensor:
    """The mean of what a layer reads (`of_input`) or returns, for each unit, over samples and positions: (units,).

    Raises:
        DataError: there is no sample, or the layer handles no tensor.
        NumericalError: the mean is not finite.
    """
    module = slot.module.get_submodule(layer)
    sums = _Sum()
    count = 0

    def observe(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal count
        found = inputs[0] if of_input and inputs else output
        found = found[0] if isinstance(found, (tuple, list)) and found else found
        if not isinstance(found, Tensor) or found.dim() < 2:
            raise DataError(f"layer {layer} handles no tensor of activations", hint="give --activation-layer NAME")
        units = _by_unit(found)
        sums.add(units.detach().cpu().double().sum(0))
        count += units.shape[0]

    hook = module.register_forward_hook(observe)

    def run() -> None:
        with disable_mha_fastpath():
            for batch in batches:
                for _ in slot.outputs(batch):
                    pass

    try:
        _together(run, ranks)
    finally:
        hook.remove()
    return _mean(sums, count, ranks, f"the mean activation of {layer}")


def _by_unit(found: Tensor) -> Tensor:
    """Activations as (observations, units): the units are the last axis, or the channels of (n, c, h, w)."""
    return found.movedim(1, -1).reshape(-1, found.shape[1]) if found.dim() > 3 else found.reshape(-1, found.shape[-1])


def mean_gradients(
    slot: ModelSlot, batches: Iterable[Batch], head: str, loss: Score | None, ranks: Ranks = ALONE
) -> tuple[Tensor, Tensor | None]:
    """Mean gradients of the loss, flat: of all parameters before the output layer, and of the input.

    The second is None where the input is not of floating point numbers, or its shape changes from batch to batch.

    Args:
        head: path of the output layer, whose parameters are left out.
        loss: the user's; None for cross-entropy.

    Raises:
        DataError: no sample, or labels that do not fit the outputs.
        NumericalError: a gradient is not finite.
    """
    left_out = {id(parameter) for parameter in slot.module.get_submodule(head).parameters()} if head else set()
    named = dict(slot.module.named_parameters())
    trained = [named[key] for key in sorted(named) if named[key].is_floating_point()]
    chosen = [parameter for parameter in trained if id(parameter) not in left_out] or trained
    weights, inputs = _Sum(), _Sum()
    shapes: set[int | None] = set()
    count = 0

    def run() -> None:
        nonlocal count
        with _trainable(chosen):
            for batch in batches:
                of_weights, of_inputs = _gradients(slot, batch, chosen, loss)
                weights.add(of_weights)
                shapes.add(None if of_inputs is None else of_inputs.numel())
                if of_inputs is not None and len(shapes) == 1:
                    inputs.add(of_inputs)
                count += batch.size

    _together(run, ranks)
    encoder = _mean(weights, count, ranks, "the mean gradient of the weights")
    everywhere = set[int | None]().union(*ranks.gathered(shapes))
    usable = len(everywhere) == 1 and None not in everywhere
    return encoder, _mean(inputs, count, ranks, "the mean gradient of the input") if usable else None


@contextmanager
def _trainable(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(False)


def _gradients(
    slot: ModelSlot, batch: Batch, chosen: Sequence[nn.Parameter], loss: Score | None
) -> tuple[Tensor, Tensor | None]:
    """Sums over the batch's samples of the loss' gradients: of the parameters, and of one sample's input."""
    moved = batch.to(slot.device)
    leaves: list[Tensor] = []

    def leaf(value: Any) -> Any:
        """A copy of a floating-point input, which the model may change in place, through which a leaf is derived."""
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        leaves.append(value.detach().float().requires_grad_())
        return leaves[-1].clone()

    with torch.enable_grad(), disable_mha_fastpath():
        args = tuple(map(leaf, moved.args))
        kwargs = {name: leaf(value) for name, value in moved.kwargs.items()}
        total = _total_loss(slot.module(*args, **kwargs), moved, loss)
        if not total.requires_grad:
            raise DataError(
                "the loss does not depend differentiably on the weights, so it has no gradient",
                hint="leave metrics of gradients out with --metrics, or pass a differentiable --loss",
                slug="loss",
            )
        found = torch.autograd.grad(total, [*chosen, *leaves], allow_unused=True)
    flat = [
        (torch.zeros_like(one) if gradient is None else gradient).detach().reshape(-1).cpu().double()
        for one, gradient in zip(chosen, found, strict=False)
    ]
    of_inputs = (gradient for gradient in found[len(chosen) :] if gradient is not None)
    rows = [gradient.detach().cpu().double().sum(0).reshape(-1) for gradient in of_inputs]
    return torch.cat(flat), torch.cat(rows) if rows else None


def _total_loss(output: Any, batch: Batch, loss: Score | None) -> Tensor:
    """The loss summed over samples; each sample's own loss is the mean over its elements."""
    if loss is not None:
        return mean_score(loss, output, batch) * batch.size
    fit = fitted_or_refused(output, batch)
    each = F.cross_entropy(fit.scores.float(), fit.target, reduction="none", ignore_index=IGNORED)
    counted = (fit.target != IGNORED).flatten(1).sum(1) if fit.target.dim() > 1 else (fit.target != IGNORED)
    return ((each.flatten(1).sum(1) if each.dim() > 1 else each) / counted.clamp_min(1)).sum()


def _together(run: Any, ranks: Ranks) -> None:
    """Run this process's share; an error of one process is that of all."""
    error: RebasinError | None = None
    try:
        run()
    except RebasinError as caught:
        error = caught
    ranks.agree(error)


class _Sum:
    """A running sum of float64 vectors of one length; None before the first."""

    def __init__(self) -> None:
        self.total: Tensor | None = None

    def add(self, vector: Tensor) -> None:
        self.total = vector if self.total is None else self.total.add_(vector)


def _mean(sums: _Sum, count: int, ranks: Ranks, what: str) -> Tensor:
    total = sums.total
    length = 0 if total is None else total.numel()
    if ranks.world > 1:
        length = max(ranks.gathered(length))
        count = sum(ranks.gathered(count))
        if length:
            total = ranks.total(torch.zeros(length, dtype=torch.float64) if total is None else total)
    if total is None or not count:
        raise DataError(f"there is no sample for {what}")
    if not bool(torch.isfinite(total).all()):
        raise NumericalError(f"{what} is not finite", hint="check the range of the data, and --transform")
    return total / count
