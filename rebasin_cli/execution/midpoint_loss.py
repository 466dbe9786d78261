"""What a network between A and B is worth on data: its loss, differentiable in its parameters.

BatchNorm layers normalise by the batch, because their running statistics belong to A or to B and to nothing between;
the vectors of spectral norms are computed from the weights; everything else runs in eval mode. The user's loss where
there is one; cross-entropy where the data have class numbers that fit the outputs; elsewhere, for data without labels
or with real numbers as targets, the distance of the outputs from the mean of A's and B's, in units of their own spread,
which needs no labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from rebasin_cli.data import Batch
from rebasin_cli.data.contract import IGNORED
from rebasin_cli.errors import DataError, one_line
from rebasin_cli.execution.evaluation import Measure
from rebasin_cli.execution.scores import FIELDS, Values, values
from rebasin_cli.execution.spectral_norm import spectral_sites
from rebasin_cli.execution.targets import fitted
from rebasin_cli.execution.user_score import Score, mean_score
from rebasin_cli.model.foreign_code import own_line

Tensors = Mapping[str, Tensor]

CROSS_ENTROPY = "cross-entropy"
DISTANCE = "distance from the mean of A's and B's outputs (no labels)"
LOSS = "the given loss"


def _differentiable(value: Tensor) -> Tensor:
    if torch.is_grad_enabled() and not value.requires_grad:
        raise DataError(
            "--loss: its value does not depend differentiably on the output, so that nothing can be learned from it",
            hint="use torch's operations, without detach(), item() or argmax",
            slug="user_function",
        )
    return value


class MidpointLoss:
    """Losses of networks given by their tensors.

    Args:
        module: built for this alone; its own weights are not looked at.
        ends: the tensors of A and of B by state-dict key, float32.
        device: where networks run.
        loss: the user's, `f(output, target)`; it must be differentiable.
    """

    def __init__(
        self, module: nn.Module, ends: tuple[Tensors, Tensors], device: torch.device, loss: Score | None = None
    ) -> None:
        self._loss = loss
        self._module, self._ends, self.device = module.eval().requires_grad_(False), ends, device
        self._by_batch = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        self._spectral = spectral_sites(module, ends)
        self._synchronised = [one for one in self._by_batch if isinstance(one, nn.SyncBatchNorm)]

    def fits(self, batch: Batch) -> bool:
        """Whether something can be learned from this batch: statistics of one sample are none."""
        return batch.size > 1 or (batch.size == 1 and not self._by_batch)

    def of(self, network: Tensors, batch: Batch) -> Tensor:
        """The mean loss of a network over a batch, float32 ().

        Raises:
            DataError: the model does not accept the inputs, or gives nothing that could be compared.
        """
        batch = batch.to(self.device)
        output = self._run(network, batch, between=True)
        if self._loss is not None:
            return _differentiable(mean_score(self._loss, output, batch))
        pair = fitted(output, batch)
        if pair is not None:
            return F.cross_entropy(pair.scores.float(), pair.target, ignore_index=IGNORED)
        with torch.no_grad():
            wanted = [self._run(end, batch, between=False) for end in self._ends]
        return _distance(output, wanted)

    def _run(self, network: Tensors, batch: Batch, *, between: bool) -> Any:
        """The outputs; `between`: of a network that is neither A nor B, so that its statistics are none of theirs."""
        state = {key: tensor.to(self.device) for key, tensor in network.items()}
        for layer in self._by_batch:
            layer.train(between and layer not in self._synchronised)
        for site in self._spectral if between else ():
            found = site.vectors(state.__getitem__, [end[site.u] for end in self._ends])
            state |= {key: new.reshape(state[key].shape).to(state[key]) for key, new in found.items()}
        try:
            return functional_call(self._module, _own_buffers(self._module, state), batch.args, dict(batch.kwargs))
        except Exception as error:  # the model is the user's code: what it says is told in its words
            raise DataError(
                f"the model does not accept the data: {one_line(error)}{own_line(error)}", slug="input_shape"
            ) from error

    def kind(self, batch: Batch) -> str:
        """What is learned from data such as this batch: the user's loss, cross-entropy, or a distance.

        Raises:
            DataError: as `of` does; labels that do not fit the model among them.
        """
        with torch.no_grad():
            self.of(self._ends[0], batch)
            if self._loss is not None:
                return LOSS
            output = self._run(self._ends[0], batch.to(self.device), between=False)
            return DISTANCE if fitted(output, batch.to(self.device)) is None else CROSS_ENTROPY

    def score(self, end: int, batches: Sequence[Batch]) -> Values | None:
        """The cross-entropy and accuracy of A (0) or B (1); None where the data have no class numbers."""
        total = torch.zeros(len(FIELDS), dtype=torch.float64)
        with torch.no_grad():
            for batch in batches:
                moved = batch.to(self.device)
                output = self._run(self._ends[end], moved, between=False)
                if fitted(output, moved) is None:
                    return None
                total += Measure().sums(output, moved)
        return values(total)


def _own_buffers(module: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with copies of the buffers, which a layer in training mode may write to."""
    for name, buffer in module.named_buffers():
        if name in state:
            state[name] = state[name].clone()
        elif not buffer.is_meta:
            state[name] = buffer.clone()
    return state


def _distance(output: Any, wanted: list[Any]) -> Tensor:
    """Mean square distance of all floating outputs from the mean of `wanted`, over the mean square of that mean."""
    ours, *theirs = ([leaf for leaf in tree_leaves(one) if _is_number(leaf)] for one in (output, *wanted))
    if not ours or any([leaf.shape for leaf in one] != [leaf.shape for leaf in ours] for one in theirs):
        raise DataError("the model gives no floating-point outputs to compare", slug="loss")
    means = [sum(leaves) / len(theirs) for leaves in zip(*theirs, strict=True)]
    apart = sum(((leaf - mean).square().sum() for leaf, mean in zip(ours, means, strict=True)), torch.zeros(()))
    size = sum(float(mean.square().sum()) for mean in means)
    return apart / max(size, torch.finfo(torch.float32).tiny)


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
