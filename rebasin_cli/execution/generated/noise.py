"""Random images with the amplitude spectrum 1/f of natural ones (Field, "Relations between the statistics of natural
images and the response properties of cortical cells", 1987)."""

from __future__ import annotations

import torch
from torch import Tensor

CONTRAST = (0.5, 1.5)
"""Images differ in contrast: the standard deviation of each is drawn from this range."""


def spectral_noise(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Noise (count, channels, height, width), of zero mean and unit variance for every image and channel."""
    channels, height, width = shape
    white = torch.randn(count, channels, height, width, generator=generator)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None, :]
    frequency = (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width))
    shaped: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(height, width))
    shaped = shaped - shaped.mean((2, 3), keepdim=True)
    return shaped / shaped.square().mean((2, 3), keepdim=True).sqrt().clamp_min(1e-6)


def noise_images(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """Noise images (count, channels, height, width): each with a contrast and a mean colour of its own."""
    low, high = CONTRAST
    contrast = low + (high - low) * torch.rand(count, 1, 1, 1, generator=generator)
    colour = 0.5 * torch.randn(count, shape[0], 1, 1, generator=generator)
    return spectral_noise(count, shape, generator) * contrast + colour
