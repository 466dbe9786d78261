"""What the network between two is worth on test images: as it is, with BatchNorm measured anew, and repaired.

The ends see the same images, so differences have standard errors that are smaller than those of the accuracies.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli.data import DataOptions, open_data
from rebasin_cli.data.source import ModelView
from rebasin_cli.data.transform import model_transform
from rebasin_cli.interpolation.adjustment import NOTHING, Adjustment
from rebasin_cli.interpolation.body import Body
from rebasin_cli.interpolation.ledger import Ledger
from rebasin_cli.interpolation.path import Line, Point, grid
from rebasin_cli.interpolation.places import lay_out
from rebasin_cli.interpolation.recalibrate import Recalibration

Tensors = Mapping[str, Tensor]
TREATMENTS = ("as it is", "recalibrated", "repaired")
MIDDLE = Point(0, 0.5)


class Judge:
    """Test images, and training images to measure statistics on, for networks of one kind.

    Args:
        images: a folder with `test` and `train`.
        limit: test images; None for all.
        measured_on: training images.
    """

    def __init__(self, module: nn.Module, model: str, images: Path, limit: int | None, measured_on: int) -> None:
        self.body = Body(module, torch.device("cpu"))
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
        return self._score(Line([tensors, tensors]), Point(0, 0.0), NOTHING)

    @torch.no_grad()
    def midpoint(self, a: Tensors, moved: Tensors, ends: list[tuple[Tensor, Tensor]]) -> dict[str, Any]:
        """Accuracy in per cent; barriers of accuracy, in points, and loss, with standard errors; by treatment."""
        found: dict[str, Any] = {}
        line = Line([a, moved])
        for title in TREATMENTS:
            if title == "recalibrated" and not self.has_norms:
                continue
            adjustment = NOTHING if title == "as it is" else self._adjustment(line, title == "repaired")
            losses, hits = self._score(line, MIDDLE, adjustment)
            misses = 100 * (sum(end[1] for end in ends) / 2 - hits)
            rise = losses - sum(end[0] for end in ends) / 2
            found[title] = {
                "accuracy": 100 * float(hits.mean()),
                "accuracy barrier": float(misses.mean()),
                "its error": float(misses.std()) / len(hits) ** 0.5,
                "loss barrier": float(rise.mean()),
            }
        return found

    def _adjustment(self, line: Line, repair: bool) -> Adjustment:
        made = Recalibration(self.body, self.train, lay_out({"line": line}, grid(2, 2)), repair=repair).run(Ledger())
        (only,) = made.values()
        return only

    def _score(self, line: Line, point: Point, adjustment: Adjustment) -> tuple[Tensor, Tensor]:
        self.body.place(line, point, adjustment)
        logits = torch.cat([self.body.module(batch) for batch in self.images.split(500)])
        losses = F.cross_entropy(logits, self.labels, reduction="none").double()
        return losses, (logits.argmax(1) == self.labels).double()


def accuracies(ends: list[tuple[Tensor, Tensor]]) -> list[float]:
    """Of the ends, in per cent."""
    return [100 * mean(hits.tolist()) for _, hits in ends]
