"""Kernels in plain PyTorch for two operators of torchvision's extension, where that does not load beside this PyTorch.

Detectors call `nms` and `roi_align`; without them no forward pass of theirs can be seen. The operators keep their
names, so the rules under test are those that meet the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.model.torchvision_import import import_torchvision

_libraries: list[Any] = []

ROI_ALIGN = (
    "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
    "int sampling_ratio, bool aligned) -> Tensor"
)


def _uncompiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The function without the compiler that torchvision runs it through, which takes seconds and a C++ compiler."""

    def run(*args: Any) -> Tensor:
        with torch.compiler.set_stance("force_eager"):
            return function(*args)

    return run


def provide_kernels() -> bool:
    """Make detectors run; False where torchvision's own kernels are there and nothing was needed."""
    extension = import_torchvision("extension")
    if extension._has_ops() or _libraries:
        return bool(_libraries)
    library: Any = torch.library.Library("torchvision", "FRAGMENT")
    library.define(ROI_ALIGN)
    library.impl("nms", _nms, "CPU")
    library.impl("roi_align", _uncompiled(import_torchvision("ops.roi_align")._roi_align), "CPU")
    _libraries.append(library)
    for name in ("ops.boxes", "ops.roi_align"):
        module: Any = import_torchvision(name)
        module._assert_has_ops = lambda: None
    import_torchvision("ops.roi_align")._has_ops = lambda: True  # type: ignore[attr-defined]
    return True


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Boxes by falling score, without those that overlap a better one by more than the threshold."""
    order = scores.argsort(descending=True, stable=True)
    iou = import_torchvision("ops.boxes").box_iou(boxes, boxes)
    kept: list[int] = []
    for candidate in order.tolist():
        if all(float(iou[candidate, better]) <= iou_threshold for better in kept):
            kept.append(candidate)
    return torch.tensor(kept, dtype=torch.int64)
