"""Dead leaves: images of shapes that occlude each other, which have edges and areas as natural images do.

After Lee, Mumford and Huang, "Occlusion models for natural images" (2001); here a few ellipses of random place, size,
tilt and smooth colour on a smooth ground.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor

from rebasin_cli.execution.generated.noise import spectral_noise

ELLIPSES = 12
SMALLEST, LARGEST = 0.05, 0.5
"""Radii, as shares of the longer side; small ones are more frequent."""
ROUGHNESS = 0.25
"""How much of an ellipse's colour varies over it; the ground varies as much."""


def leaf_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Images (count, channels, height, width) with about zero mean and unit variance over all of them."""
    channels, height, width = shape
    side = max(height, width)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")

    def colour() -> Tensor:
        plain = torch.randn(count, channels, 1, 1, generator=generator)
        return plain + ROUGHNESS * spectral_noise(count, shape, generator)

    def drawn() -> Tensor:
        return torch.rand(count, 1, 1, generator=generator)

    image = colour()
    for _ in range(ELLIPSES):
        right, down = x - drawn() * width, y - drawn() * height
        radius = side * (SMALLEST + (LARGEST - SMALLEST) * drawn() ** 3)
        tilt, aspect = pi * drawn(), 0.4 + drawn()
        along = right * tilt.cos() + down * tilt.sin()
        across = down * tilt.cos() - right * tilt.sin()
        inside = ((along / radius).square() + (across / (radius * aspect)).square() < 1)[:, None]
        image = torch.where(inside, colour(), image)
    return image
