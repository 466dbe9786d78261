"""Every kind of layer that normalises by running statistics is found, and gets those that PyTorch would track."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.compat.lines import LineOfModels, loader_source
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.moments import instance_moments, merged
from rebasin_cli.execution.recalibration import Recalibration, batch_norms


class Own(nn.Module):
    """A user's norm over the last axis, with names of its own but for the statistics."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.register_buffer("running_mean", torch.randn(width))
        self.register_buffer("running_var", torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * (x - self.running_mean) / (self.running_var + 1e-5).sqrt()


KINDS = {
    "1d": (lambda: nn.BatchNorm1d(6), (6, 9)),
    "2d": (lambda: nn.BatchNorm2d(6), (6, 5, 3)),
    "3d": (lambda: nn.BatchNorm3d(6), (6, 3, 2, 2)),
    "synchronised": (lambda: nn.SyncBatchNorm(6), (6, 5, 3)),
    "instances 1d": (lambda: nn.InstanceNorm1d(6, track_running_stats=True), (6, 9)),
    "instances 2d": (lambda: nn.InstanceNorm2d(6, affine=True, track_running_stats=True), (6, 5, 3)),
    "own": (lambda: Own(6), (4, 6)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_statistics_are_those_that_training_would_track(kind: str) -> None:
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    models = [nn.Sequential(make()).eval() for _ in range(2)]
    data = [(3 * torch.randn(8, *shape) + 1, torch.zeros(8, dtype=torch.int64)) for _ in range(4)]
    line = LineOfModels(models, None, "lerp", 2)
    assert list(batch_norms(line.slot.module)) == ["0"]
    recalibration = Recalibration(line.slot, loader_source(data, "data"), line.networks.all, repair=False)
    line.adjustments = recalibration.run(RunningSums())
    ours = dict(line.load("line, lam 0.5").named_buffers())
    if kind in ("own", "synchronised"):  # which PyTorch does not track here
        values = torch.stack([x for x, _ in data])
        values = values.movedim(2, -1) if kind == "synchronised" else values
        flat = values.reshape(4, -1, 6)
        mean, variance = flat.mean(1).mean(0), flat.var(1).mean(0)
    else:
        theirs = copy.deepcopy(models[0])
        layer = theirs[0]
        assert isinstance(layer, nn.modules.batchnorm._NormBase)
        layer.reset_running_stats()
        layer.momentum = None
        layer.train()
        if isinstance(layer, nn.modules.instancenorm._InstanceNorm):  # it has no cumulative average
            means, variances = [], []
            for x, _ in data:
                layer.momentum = 1.0
                layer(x)
                assert layer.running_mean is not None
                assert layer.running_var is not None
                means.append(layer.running_mean.clone())
                variances.append(layer.running_var.clone())
            mean, variance = torch.stack(means).mean(0), torch.stack(variances).mean(0)
        else:
            for x, _ in data:
                layer(x)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, variance = layer.running_mean, layer.running_var
    torch.testing.assert_close(ours["0.running_mean"], mean, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ours["0.running_var"], variance, atol=1e-4, rtol=1e-4)


def test_instances_that_do_not_fit_in_memory_at_once_give_the_same_averages() -> None:
    x = torch.randn(10, 3, 7)
    whole, parts = instance_moments(x), merged([instance_moments(x[:4]), instance_moments(x[4:])])
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(parts.variance, whole.variance)
    assert (parts.count, parts.instances) == (7, 10)


def test_layers_without_statistics_are_left_alone() -> None:
    module = nn.Sequential(
        nn.BatchNorm2d(3, track_running_stats=False), nn.InstanceNorm2d(3), nn.GroupNorm(1, 3), nn.LayerNorm(4)
    )
    assert not batch_norms(module)
