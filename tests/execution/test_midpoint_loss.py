"""The loss of a merged network: finite and differentiable for every model of the small zoo, zero between equals."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch
from rebasin_cli.errors import DataError
from rebasin_cli.execution.midpoint_loss import CROSS_ENTROPY, DISTANCE, DIVERGENCE, MidpointLoss
from rebasin_cli.matching.learning.straight_through import between
from rebasin_cli.model.state import parameter_keys, ties
from rebasin_cli.permutation import identity
from rebasin_cli.spec import PermutationSpec
from tests.symmetry.small_zoo import load, zoo_names

NOTHING = PermutationSpec(())
CPU = torch.device("cpu")


def state(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Numbers for all its tensors but those that are tied to another."""
    generator = torch.Generator().manual_seed(seed)
    found: Mapping[str, Tensor] = module.state_dict()
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running" not in key
        else value.clone()
        for key, value in found.items()
        if key not in ties(module)
    }


@pytest.mark.parametrize("name", zoo_names())
def test_every_model_can_be_learned_on(name: str) -> None:
    torch.manual_seed(0)
    model = load(name)
    module, example = model.module.build(), model.example()
    a, b = state(module, 1), state(module, 2)
    loss = MidpointLoss(module, (a, b), CPU)
    batch = Batch(0, example.args, dict(example.kwargs), size=2)
    network = between(NOTHING, a, b, identity(NOTHING), 0.5, learned=parameter_keys(module))
    learned = [tensor for tensor in network.values() if tensor.requires_grad]
    value = loss.of(network, batch)
    gradients = torch.autograd.grad(value, learned, allow_unused=True)
    assert float(value.detach()) > 0
    assert sum(float(gradient.abs().sum()) for gradient in gradients if gradient is not None) > 0
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients if gradient is not None)


def test_the_vectors_of_a_spectral_norm_are_those_of_the_weight_between() -> None:
    module = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3)))
    a, b = state(module, 1), state(module, 2)
    middle = between(NOTHING, a, b, identity(NOTHING), 0.5)
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0, 1, 2])
    key = "0.parametrizations.weight.original"
    exact = middle[key].double() / torch.linalg.matrix_norm(middle[key].double(), 2)
    wanted = nn.functional.cross_entropy(x.double() @ exact.T + middle["0.bias"].double(), y)
    found = MidpointLoss(module, (a, b), CPU).of(middle, Batch(0, (x,), target=y, size=6))
    assert float(found) == pytest.approx(float(wanted), rel=1e-5)


def test_between_equals_there_is_no_distance() -> None:
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    a = state(module, 0)
    loss = MidpointLoss(module, (a, a), CPU)
    assert float(loss.of(a, Batch(0, (torch.randn(6, 4),), size=6))) == pytest.approx(0.0, abs=1e-12)


def test_statistics_of_the_batch_leave_the_networks_alone() -> None:
    module = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3 * 36, 2))
    a = state(module, 0)
    before = {key: value.clone() for key, value in a.items()}
    loss = MidpointLoss(module, (a, a), CPU)
    images = torch.randn(5, 1, 8, 8) * 10 + 3
    scores = loss.of(a, Batch(0, (images,), target=torch.tensor([0, 1, 0, 1, 1]), size=5))
    assert all(torch.equal(a[key], before[key]) for key in a)
    x = nn.functional.conv2d(images, a["0.weight"], a["0.bias"])
    x = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    x = x * a["1.weight"].view(1, 3, 1, 1) + a["1.bias"].view(1, 3, 1, 1)
    logits = nn.functional.linear(x.flatten(1), a["3.weight"], a["3.bias"])
    assert float(scores) == pytest.approx(
        float(nn.functional.cross_entropy(logits, torch.tensor([0, 1, 0, 1, 1]))), rel=1e-4
    )


def test_inputs_that_do_not_fit_are_a_fault_of_the_data() -> None:
    module = nn.Linear(4, 5)
    loss = MidpointLoss(module, (state(module, 0), state(module, 1)), CPU)
    with pytest.raises(DataError, match="does not accept the data"):
        loss.of(state(module, 0), Batch(0, (torch.randn(2, 3),), size=2))


def logits(shape: tuple[int, ...], seed: int) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def divergence(scores: Tensor, a: Tensor, b: Tensor, lam: float) -> Tensor:
    """By its definition, in float64, for each sample or token."""
    p, q = (value.double().softmax(-1) for value in ((1 - lam) * a + lam * b, scores))
    return (p * (p.log() - q.log())).sum(-1)


def test_without_labels_scores_of_classes_are_drawn_to_those_of_the_ends() -> None:
    module = nn.Linear(4, 5)
    a, b, between = (state(module, seed) for seed in (1, 2, 3))
    x = logits((7, 4), 0)
    loss = MidpointLoss(module, (a, b), CPU)
    ya, yb, y = (x @ one["weight"].T + one["bias"] for one in (a, b, between))
    batch = Batch(0, (x,), size=7)
    assert loss.kind(batch) == DIVERGENCE
    for lam in (0.5, 0.42):
        wanted = divergence(y, ya, yb, lam).mean()
        assert float(loss.of(between, batch, lam)) == pytest.approx(float(wanted), rel=1e-5)
    same = MidpointLoss(module, (a, a), CPU)
    assert float(same.of(a, batch)) == pytest.approx(0.0, abs=1e-6)


def test_labels_are_ignored_where_that_is_asked_for() -> None:
    module = nn.Linear(4, 5)
    a, b = (state(module, seed) for seed in (1, 2))
    x = logits((7, 4), 0)
    labelled, bare = Batch(0, (x,), target=torch.arange(7) % 5, size=7), Batch(0, (x,), size=7)
    without = MidpointLoss(module, (a, b), CPU, labels=False)
    assert MidpointLoss(module, (a, b), CPU).kind(labelled) == CROSS_ENTROPY
    assert without.kind(labelled) == DIVERGENCE
    assert torch.equal(without.of(a, labelled), without.of(a, bare))


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.head(self.table(ids))


def test_tokens_are_compared_where_the_text_has_some() -> None:
    """The last two tokens of the second sample are padding."""
    module = Language()
    a, b, between = (state(module, seed) for seed in (1, 2, 3))
    ids = torch.randint(11, (2, 5), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    ya, yb, y = (one["table.weight"][ids] @ one["head.weight"].T + one["head.bias"] for one in (a, b, between))
    each = divergence(y, ya, yb, 0.5)
    loss = MidpointLoss(module, (a, b), CPU)
    everywhere = loss.of(between, Batch(0, (ids,), size=2))
    assert float(everywhere) == pytest.approx(float(each.mean()), rel=1e-5)
    masked = loss.of(between, Batch(0, (), {"ids": ids, "attention_mask": mask}, size=2))
    assert float(masked) == pytest.approx(float(each[mask.bool()].mean()), rel=1e-5)
    marked = Batch(0, (ids,), target=ids.roll(-1, 1).masked_fill(mask == 0, -100), size=2)
    left_out = MidpointLoss(module, (a, b), CPU, labels=False).of(between, marked)
    assert float(left_out) == pytest.approx(float(each[mask.bool()].mean()), rel=1e-5)


def test_outputs_that_are_no_scores_are_compared_by_their_distance() -> None:
    """Images, and real numbers that the data say are such."""
    picture = nn.Conv2d(1, 3, 3)
    a, b = (state(picture, seed) for seed in (1, 2))
    assert MidpointLoss(picture, (a, b), CPU).kind(Batch(0, (logits((2, 1, 6, 6), 0),), size=2)) == DISTANCE
    module = nn.Linear(4, 5)
    a, b, between = (state(module, seed) for seed in (1, 2, 3))
    x = logits((7, 4), 0)
    batch = Batch(0, (x,), target=logits((7, 5), 1), size=7)
    loss = MidpointLoss(module, (a, b), CPU)
    assert loss.kind(batch) == DISTANCE
    ya, yb, y = ((x @ one["weight"].T + one["bias"]).double() for one in (a, b, between))
    mean = 0.6 * ya + 0.4 * yb
    wanted = (y - mean).square().sum() / mean.square().sum()
    assert float(loss.of(between, batch, 0.4)) == pytest.approx(float(wanted), rel=1e-5)


def test_in_bfloat16_the_loss_is_nearly_the_same() -> None:
    module = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 5))
    a, b, between = (state(module, seed) for seed in (1, 2, 3))
    batch = Batch(0, (logits((64, 4), 0),), size=64)
    exact, rough = (MidpointLoss(module, (a, b), CPU, amp=amp).of(between, batch) for amp in (False, True))
    assert rough.dtype == torch.float32
    assert float(rough) == pytest.approx(float(exact), rel=0.05)
    assert float(rough) != float(exact)
