"""What the network between two is worth on test images: as it is, with recalibrated, and repaired.

The ends see the same images, so differences have standard errors that are smaller than those of the accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.data import DataOptions, open_data
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import model_transform
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.model_slot import NO_ADJUSTMENT, Adjustment, ModelSlot
from rebasin_cli.execution.recalibration import Recalibration
from rebasin_cli.interpolation.line import Line, NetworkOnLine, SweepNetworks, grid, sweep_networks

Tensors = Mapping[str, Tensor]
TREATMENTS = ("as it is", "recalibrated", "repaired")


class Judge:
    """Test images, and training images to measure statistics on, for networks of one kind.

    Args:
        images: a folder with `test` and `train`.
        limit: test images; None for all.
        measured_on: training images.
    """

    def __init__(self, module: nn.Module, model: str, images: Path, limit: int | None, measured_on: int) -> None:
        self.slot = ModelSlot(module, torch.device("cpu"))
        self.has_norms = any(isinstance(one, nn.BatchNorm2d) for one in module.modules())
        transform, names = model_transform(model, module)
        view = ModelView(lambda batch: 10, names, transform, (1, 3, 32, 32), False)
        test = open_data(str(images / "test"), DataOptions(limit, 0, 250), view)
        found = list(test.batches())
        self.images = torch.cat([batch.args[0] for batch in found])
        self.labels = torch.cat([batch.target for batch in found])
        self.train = open_data(str(images / "train"), DataOptions(measured_on, 0, 250, shuffle=True), view)

    @torch.no_grad()
    def end(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        """Losses and hits by image, float64."""
        return self._score(_networks(tensors, tensors).first, NO_ADJUSTMENT)

    @torch.no_grad()
    def midpoint(
        self, a: Tensors, moved: Tensors, ends: list[tuple[Tensor, Tensor]], treatments: Sequence[str] = TREATMENTS
    ) -> dict[str, Any]:
        """Accuracy in per cent; barriers of accuracy, in points, and loss, with standard errors; by treatment."""
        found: dict[str, Any] = {}
        networks = _networks(a, moved)
        (middle,) = networks.inner
        for title in treatments:
            if title == "recalibrated" and not self.has_norms:
                continue
            adjustment = NO_ADJUSTMENT if title == "as it is" else self._adjustment(networks, title == "repaired")
            losses, hits = self._score(middle, adjustment)
            misses = 100 * (sum(end[1] for end in ends) / 2 - hits)
            rise = losses - sum(end[0] for end in ends) / 2
            found[title] = {
                "accuracy": 100 * float(hits.mean()),
                "accuracy barrier": float(misses.mean()),
                "its error": float(misses.std()) / len(hits) ** 0.5,
                "loss barrier": float(rise.mean()),
            }
        return found

    def _adjustment(self, networks: SweepNetworks, repair: bool) -> Adjustment:
        made = Recalibration(self.slot, self.train, networks.all, repair=repair).run(RunningSums())
        (only,) = made.values()
        return only

    def _score(self, network: NetworkOnLine, adjustment: Adjustment) -> tuple[Tensor, Tensor]:
        self.slot.load(network, adjustment)
        logits = torch.cat([self.slot.module(batch) for batch in self.images.split(500)])
        losses = F.cross_entropy(logits, self.labels, reduction="none").double()
        return losses, (logits.argmax(1) == self.labels).double()


def _networks(a: Tensors, b: Tensors) -> SweepNetworks:
    """A, B and their midpoint."""
    return sweep_networks({"line": Line([a, b])}, grid(2, 2))


def accuracies(ends: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Of the ends, in per cent."""
    return [100 * mean(hits.tolist()) for _, hits in ends]
