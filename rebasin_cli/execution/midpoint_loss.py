"""What a network between A and B is worth on data: its loss, differentiable in its parameters.

BatchNorm layers normalise by the batch, because their running statistics belong to A or to B and to nothing between;
the vectors of spectral norms are computed from the weights; everything else runs in eval mode. The loss is

- the user's, where there is one;
- cross-entropy, where the data have class numbers that fit the outputs, and labels are used;
- without labels, where the outputs are scores of classes (n, classes), or of tokens (n, tokens, vocabulary) at each
  token of the input: the Kullback-Leibler divergence of the network's softmax from that of the ends,
  `KL(softmax((1 - lam) a + lam b) | softmax(y))` with the ends' outputs a and b;
- else the distance of the outputs from those of the ends, `|y - (1 - lam) a - lam b|^2 / |(1 - lam) a + lam b|^2`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from rebasin_cli.data import Batch
from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.outputs import logits_of
from rebasin_cli.errors import DataError, one_line
from rebasin_cli.execution.evaluation import Measure
from rebasin_cli.execution.gradient_checkpointing import checkpoint_blocks
from rebasin_cli.execution.scores import FIELDS, Values, values
from rebasin_cli.execution.spectral_norm import spectral_sites
from rebasin_cli.execution.targets import fitted
from rebasin_cli.execution.user_score import Score, mean_score
from rebasin_cli.model.foreign_code import own_line

Tensors = Mapping[str, Tensor]

CROSS_ENTROPY = "cross-entropy"
DIVERGENCE = "KL divergence from the mean of A's and B's logits (no labels)"
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
        labels: class numbers are used where the data have them.
        checkpointing: the activations inside the model's blocks are computed again in the backward pass.
        amp: run the networks in bfloat16 where PyTorch considers it safe; losses are computed in float32.
    """

    def __init__(
        self,
        module: nn.Module,
        ends: tuple[Tensors, Tensors],
        device: torch.device,
        loss: Score | None = None,
        *,
        labels: bool = True,
        checkpointing: bool = False,
        amp: bool = False,
    ) -> None:
        self._loss, self._labels, self._amp = loss, labels, amp
        self._module, self._ends, self.device = module.eval().requires_grad_(False), ends, device
        self._by_batch = [one for one in module.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
        self._spectral = spectral_sites(module, ends)
        self._synchronised = [one for one in self._by_batch if isinstance(one, nn.SyncBatchNorm)]
        self.checkpointed = checkpoint_blocks(module) if checkpointing else ()

    def fits(self, batch: Batch) -> bool:
        """Whether something can be learned from this batch: statistics of one sample are none."""
        return batch.size > 1 or (batch.size == 1 and not self._by_batch)

    def of(self, network: Tensors, batch: Batch, lam: float = 0.5) -> Tensor:
        """The mean loss of a network over a batch, float32 ().

        Args:
            lam: where the network lies between A (0) and B (1).

        Raises:
            DataError: the model does not accept the inputs, or gives nothing that could be compared.
        """
        batch = batch.to(self.device)
        output = self._run(network, batch, between=True)
        if self._loss is not None:
            return _differentiable(mean_score(self._loss, output, batch))
        pair = fitted(output, batch) if self._labels else None
        if pair is not None:
            return F.cross_entropy(pair.scores.float(), pair.target, ignore_index=IGNORED)
        with torch.no_grad():
            wanted = [self._run(end, batch, between=False) for end in self._ends_on_device]
        scores = _class_scores(output, batch)
        if scores is not None:
            with torch.no_grad():
                a, b = (_class_scores(one, batch) for one in wanted)
            if a is not None and b is not None:
                return _divergence(scores, torch.lerp(a.float(), b.float(), lam), _counting(batch, scores))
        return _distance(output, wanted, lam)

    @cached_property
    def _ends_on_device(self) -> tuple[Tensors, ...]:
        """A and B where networks run: without labels, every batch needs their outputs."""
        return tuple({key: tensor.to(self.device) for key, tensor in end.items()} for end in self._ends)

    def _run(self, network: Tensors, batch: Batch, *, between: bool) -> Any:
        """The outputs; `between`: of a network that is neither A nor B, so that its statistics are none of theirs."""
        state = {key: tensor.to(self.device) for key, tensor in network.items()}
        for layer in self._by_batch:
            layer.train(between and layer not in self._synchronised)
        for site in self._spectral if between else ():
            found = site.vectors(state.__getitem__, [end[site.u] for end in self._ends])
            state |= {key: new.reshape(state[key].shape).to(state[key]) for key, new in found.items()}
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._amp):
                return functional_call(self._module, _own_buffers(self._module, state), batch.args, dict(batch.kwargs))
        except Exception as error:  # the model is the user's code: what it says is told in its words
            raise DataError(
                f"the model does not accept the data: {one_line(error)}{own_line(error)}", slug="input_shape"
            ) from error

    def kind(self, batch: Batch) -> str:
        """What is learned from data such as this batch: the user's loss, cross-entropy, a divergence, or a distance.

        Raises:
            DataError: as `of` does; labels that do not fit the model among them.
        """
        with torch.no_grad():
            self.of(self._ends[0], batch)
            if self._loss is not None:
                return LOSS
            moved = batch.to(self.device)
            output = self._run(self._ends[0], moved, between=False)
            if self._labels and fitted(output, moved) is not None:
                return CROSS_ENTROPY
            return DISTANCE if _class_scores(output, moved) is None else DIVERGENCE

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


def _class_scores(output: Any, batch: Batch) -> Tensor | None:
    """The scores of classes or tokens in an output, their classes last; None where the output is something else.

    Real targets say that the outputs are no scores. Outputs of three dimensions are scores of tokens where a named
    part of the output says so, or the input is one row of integers for each sample.
    """
    scores = logits_of(output)
    if scores is None or not scores.is_floating_point() or scores.shape[-1] < 2:
        return None
    if isinstance(batch.target, Tensor) and (batch.target.is_floating_point() or batch.target.is_complex()):
        return None
    if scores.dim() == 2:
        return scores
    tokens = next((one for one in (*batch.args, *batch.kwargs.values()) if isinstance(one, Tensor)), None)
    by_token = tokens is not None and tokens.dim() == 2 and not tokens.is_floating_point()
    fits = tokens is not None and scores.dim() == 3 and scores.shape[:2] == tokens.shape[:2]
    return scores if by_token and fits else None


def _counting(batch: Batch, scores: Tensor) -> Tensor | None:
    """Which places count, bool (n, tokens): not those that the batch masks, or whose target is left out."""
    if scores.dim() != 3:
        return None
    found = [
        given.bool()
        for given in (batch.kwargs.get("attention_mask"), _kept(batch.target))
        if isinstance(given, Tensor) and given.shape == scores.shape[:2]
    ]
    return None if not found else torch.stack([one.to(scores.device) for one in found]).all(0)


def _kept(target: Any) -> Tensor | None:
    return target != IGNORED if isinstance(target, Tensor) and not target.is_floating_point() else None


def _divergence(scores: Tensor, wanted: Tensor, counting: Tensor | None) -> Tensor:
    """Mean over samples, and tokens that count, of `KL(softmax(wanted) | softmax(scores))`, in nats."""
    each = F.kl_div(scores.float().log_softmax(-1), wanted.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    if counting is None:
        return each.mean()
    return (each * counting).sum() / counting.sum().clamp(min=1)


def _distance(output: Any, wanted: list[Any], lam: float) -> Tensor:
    """Mean square distance of all floating outputs from those of the line between `wanted`, over their mean square."""
    ours, *theirs = ([leaf for leaf in tree_leaves(one) if _is_number(leaf)] for one in (output, *wanted))
    if not ours or any([leaf.shape for leaf in one] != [leaf.shape for leaf in ours] for one in theirs):
        raise DataError("the model gives no floating-point outputs to compare", slug="loss")
    means = [torch.lerp(a.float(), b.float(), lam) for a, b in zip(*theirs, strict=True)]
    apart = sum(((leaf.float() - mean).square().sum() for leaf, mean in zip(ours, means, strict=True)), torch.zeros(()))
    size = sum(float(mean.square().sum()) for mean in means)
    return apart / max(size, torch.finfo(torch.float32).tiny)


def _is_number(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
