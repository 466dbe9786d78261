"""Detectors without their choice of boxes: all that their parameters compute, on boxes that are given.

With random weights a detector rarely finds anything, and comparing two empty lists of boxes proves nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput

SIDE = 320
_PARTS = ("backbone", "head", "rpn", "roi_heads")
_BRANCHES = ("box", "mask", "keypoint")


class DetectorHeads(nn.Module):
    """One of torchvision's detectors, of one stage or two; its modules keep their names."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        for name, part in detector.named_children():
            if name in _PARTS:
                self.add_module(name, part)

    def forward(self, image: Tensor) -> list[object]:
        features = self.backbone(image)
        named = {"0": features} if isinstance(features, Tensor) else features
        maps = list(named.values())
        if not hasattr(self, "roi_heads"):
            return [self.head(maps)]
        boxes = torch.tensor([[8, 8, 200, 120], [30, 60, 310, 300], [100, 10, 150, 50]], dtype=image.dtype)
        found: list[object] = [self.rpn.head(maps)]
        for branch in _BRANCHES:
            pool, head, predictor = (
                getattr(self.roi_heads, f"{branch}_{part}", None) for part in ("roi_pool", "head", "predictor")
            )
            if pool is not None and head is not None and predictor is not None:
                found.append(predictor(head(pool(named, [boxes], [(SIDE, SIDE)]))))
        return found


def detector_input() -> ExampleInput:
    return ExampleInput((torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)),))
