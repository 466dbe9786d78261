"""Noise and dead leaves: what a user sees on the sheet is what the statistics say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rebasin_cli.execution.generated.leaves import leaf_images
from rebasin_cli.execution.generated.noise import noise_images, spectral_noise

Draw = Callable[[int, tuple[int, int, int], torch.Generator], Tensor]


def drawn(draw: Draw, count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    return draw(count, shape, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("draw", [noise_images, leaf_images])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (2, 12, 20), (12, 16, 9)])
def test_any_size_and_number_of_channels(draw: Draw, shape: tuple[int, int, int]) -> None:
    images = drawn(draw, 40, shape)
    assert images.shape == (40, *shape)
    assert bool(torch.isfinite(images).all())
    assert abs(float(images.mean())) < 0.3
    assert 0.7 < float(images.std()) < 1.5


@pytest.mark.parametrize("draw", [noise_images, leaf_images])
def test_a_seed_decides_every_pixel(draw: Draw) -> None:
    shape = (3, 16, 16)
    assert torch.equal(drawn(draw, 4, shape), drawn(draw, 4, shape))
    assert not torch.equal(drawn(draw, 4, shape), drawn(draw, 4, shape, seed=1))


def test_noise_has_a_spectrum_of_one_over_f() -> None:
    images = drawn(spectral_noise, 200, (1, 32, 32))
    amplitude = torch.fft.fft2(images[:, 0]).abs().square().mean(0).sqrt()
    assert float(amplitude[0, 2] / amplitude[0, 8]) == pytest.approx(4, rel=0.1)
    assert float(amplitude[4, 0] / amplitude[12, 0]) == pytest.approx(3, rel=0.1)


def test_leaves_have_areas_and_edges() -> None:
    """Most neighbours are alike, and some differ much: heavier tails than noise of the same variance has."""

    def kurtosis(images: Tensor) -> float:
        steps = images.diff(dim=3).flatten()
        return float((steps.square().square().mean()) / steps.square().mean().square())

    assert kurtosis(drawn(leaf_images, 50, (1, 32, 32))) > 2 * kurtosis(drawn(noise_images, 50, (1, 32, 32)))
