"""Recalibration is BatchNorm's cumulative average; REPAIR reaches its targets and is folded without loss."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.compat.lines import LineOfModels, loader_source
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.execution.moments import moments
from rebasin_cli.execution.recalibration import Recalibration
from rebasin_cli.execution.repair import Correction, hook_projection, projection_moments
from rebasin_cli.interpolation.sweep import summarize
from tests.interpolation.digits import batches, trained

MIDDLE = "line, lam 0.5"


def middle_of(kind: str, *, repair: bool) -> tuple[LineOfModels, Recalibration]:
    line = LineOfModels([trained(kind, 0), trained(kind, 1)], None, "lerp", 2)
    source = loader_source(batches(0, 1200, 100), "train")
    recalibration = Recalibration(line.slot, source, line.networks.all, repair=repair)
    line.adjustments = recalibration.run(RunningSums(chunk=5))
    return line, recalibration


def test_the_statistics_are_pytorchs_cumulative_average() -> None:
    line, _ = middle_of("norm", repair=False)
    ours = copy.deepcopy(line.load(MIDDLE))
    line.adjustments = {}
    theirs = copy.deepcopy(line.load(MIDDLE))
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for x, _ in batches(0, 1200, 100):
            theirs(x)
    for (name, one), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        if "num_batches" not in name:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "first"), [("norm", "norm 1"), ("plain", "site 1")])
def test_batches_that_do_not_fit_give_the_moments_of_whole_ones(kind: str, first: str) -> None:
    """Exactly in the first layer; those behind it see inputs that were normalised or corrected piece by piece."""

    def sums(fits: int) -> tuple[dict[str, Tensor], list[int]]:
        line = LineOfModels([trained(kind, 0), trained(kind, 1)], None, "lerp", 2)
        sizes: list[int] = []

        def too_large(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            sizes.append(len(inputs[0]))
            if len(inputs[0]) > fits:
                raise torch.OutOfMemoryError("out of memory")

        list(line.slot.module.children())[-1].register_forward_pre_hook(too_large)
        source = loader_source(batches(0, 600, 100), "train")
        recalibration = Recalibration(line.slot, source, line.networks.all, repair=kind == "plain")
        running = RunningSums()
        recalibration.run(running)
        return recalibration._averages.means(running.sums[MIDDLE]), sizes

    (whole, _), (pieces, sizes) = sums(100), sums(30)
    assert {25, 100} <= set(sizes)
    torch.testing.assert_close(pieces[first], whole[first], rtol=1e-5, atol=1e-6)
    for name, rows in whole.items():
        torch.testing.assert_close(pieces[name], rows, rtol=0.2, atol=0.1 * float(rows.abs().max()))


def test_the_ends_keep_their_own_statistics() -> None:
    line, _ = middle_of("norm", repair=True)
    for name, network in (("checkpoint 0", trained("norm", 0)), ("checkpoint 1", trained("norm", 1))):
        for one, other in zip(line.load(name).state_dict().values(), network.state_dict().values(), strict=True):
            assert torch.equal(one, other)


def hidden(network: nn.Module, index: str, data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    seen: list[Tensor] = []
    handle = network.get_submodule(index).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        for x, _ in data:
            network(x)
    handle.remove()
    found = moments(torch.cat(seen), 1)
    return found.mean, found.variance.sqrt()


@pytest.mark.parametrize(("kind", "site"), [("plain", "1"), ("plain", "3"), ("norm", "1"), ("norm", "4")])
def test_repaired_units_have_the_moments_between_the_ends(kind: str, site: str) -> None:
    line, recalibration = middle_of(kind, repair=True)
    assert site in [found.name for found in recalibration.sites]
    data = batches(0, 1200, 100)
    network = copy.deepcopy(line.load(MIDDLE))
    a, b = (hidden(trained(kind, seed), site, data) for seed in (0, 1))
    mean, std = hidden(network, site, data)
    tolerance = 0.05 * float((a[1] + b[1]).mean())
    torch.testing.assert_close(mean, (a[0] + b[0]) / 2, atol=tolerance, rtol=0)
    torch.testing.assert_close(std, (a[1] + b[1]) / 2, atol=tolerance, rtol=0)
    line.adjustments = {}
    _, collapsed = hidden(line.load(MIDDLE), site, data)
    assert float(collapsed.mean()) < 0.95 * float(std.mean()) or kind == "norm"


def test_the_sites_leave_out_the_classifier_and_what_feeds_a_batch_norm() -> None:
    _, plain = middle_of("plain", repair=True)
    assert [site.name for site in plain.sites] == ["1", "3"]
    _, norm = middle_of("norm", repair=True)
    assert [site.name for site in norm.sites] == ["1", "4"]


def test_repair_lifts_the_middle_of_a_plain_network() -> None:
    line, _ = middle_of("plain", repair=True)
    source = loader_source(batches(1200, 1797, 100), "test")

    def accuracy(adjusted: bool) -> float:
        changes = line.adjustments if adjusted else None
        sums = evaluate(line.slot, source, line.networks.all, Measure(), RunningSums(), adjustments=changes)
        return summarize(line.networks, sums).curves["line"][1].accuracy or 0.0

    assert accuracy(True) > accuracy(False) + 0.1


def test_a_layer_without_bias_is_rescaled_only() -> None:
    def network(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 8, bias=False), nn.ReLU(), nn.Linear(8, 10)).eval()

    line = LineOfModels([network(0), network(1)], None, "lerp", 2)
    recalibration = Recalibration(line.slot, loader_source(batches(0, 600, 60), "t"), line.networks.all, repair=True)
    adjustment = recalibration.run(RunningSums())[MIDDLE]
    assert list(adjustment.affine) == ["1.weight"]
    assert adjustment.affine["1.weight"].shift is None


def encoder(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True)
    nn.init.normal_(layer.self_attn.in_proj_bias)
    stack = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    return nn.Sequential(nn.Flatten(1, 2), stack, nn.Flatten(), nn.Linear(64, 10)).eval()


def test_attention_is_repaired_at_its_projections() -> None:
    line = LineOfModels([encoder(0), encoder(1)], None, "lerp", 2)
    recalibration = Recalibration(line.slot, loader_source(batches(0, 600, 60), "t"), line.networks.all, repair=True)
    names = [site.name for site in recalibration.sites]
    assert names == [
        f"1.layers.0.{name}" for name in ("self_attn.in_proj", "self_attn", "norm1", "linear1", "linear2", "norm2")
    ]
    changed = recalibration.run(RunningSums())[MIDDLE].affine
    for key in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"):
        assert f"1.layers.0.self_attn.{key}" in changed


def test_queries_keys_and_values_get_the_moments_between_the_ends() -> None:
    def packed(network: nn.Module, data: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        attention = network.get_submodule("1.layers.0.self_attn")
        assert isinstance(attention, nn.MultiheadAttention)
        x = torch.cat([x for x, _ in data]).flatten(1, 2)
        found = projection_moments(attention, (x, x), {"value": x})
        return found.mean, found.variance.sqrt()

    ends, data = (encoder(0), encoder(1)), batches(0, 600, 60)
    line = LineOfModels(ends, None, "lerp", 2)
    blended = copy.deepcopy(line.load(MIDDLE))
    recalibration = Recalibration(line.slot, loader_source(data, "t"), line.networks.all, repair=True)
    line.adjustments = recalibration.run(RunningSums(chunk=3))
    with torch.no_grad():
        (mean_a, std_a), (mean_b, std_b) = (packed(network, data) for network in ends)
        mean, std = packed(line.load(MIDDLE), data)
        collapsed = packed(blended, data)[1]
    torch.testing.assert_close(mean, (mean_a + mean_b) / 2, atol=0.01, rtol=0)
    torch.testing.assert_close(std, (std_a + std_b) / 2, atol=0.01, rtol=0.02)
    assert float(collapsed.mean()) < 0.9 * float(std.mean())


def test_a_projection_is_put_back_also_after_a_run_that_failed() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).requires_grad_(False)
    before = {key: value.clone() for key, value in attention.state_dict().items()}
    handles = hook_projection(attention, lambda found: Correction(2 * torch.ones(24), torch.ones(24)))
    x = torch.randn(3, 5, 8)
    with torch.inference_mode():
        attention(x, x, x)
        with pytest.raises((RuntimeError, AssertionError)):
            attention(x, x, x, key_padding_mask=torch.zeros(7, 7, dtype=torch.bool))
    for handle in handles:
        handle.remove()
    assert all(torch.equal(value, before[key]) for key, value in attention.state_dict().items())


def test_shared_weights_and_repeated_modules_are_left_alone() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.tied, self.once = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 64)
            self.also, self.head = nn.Linear(64, 64), nn.Linear(64, 10)
            self.also.weight = self.tied.weight

        def forward(self, x: Tensor) -> Tensor:
            x = self.inner(self.inner(x.flatten(1)).relu()).relu()
            return self.head(self.once(self.also(self.tied(x))).relu())  # type: ignore[no-any-return]

    line = LineOfModels([Twice(), Twice()], None, "lerp", 2)
    source = loader_source(batches(0, 100, 50), "t")
    assert [s.name for s in Recalibration(line.slot, source, line.networks.all, repair=True).sites] == ["once"]
