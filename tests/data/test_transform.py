"""Images become the tensors that torchvision would make of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rebasin_cli.data.transform import choose_transform, parse_transform, user_transform
from rebasin_cli.errors import UsageError


def picture(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(300, 260), (260, 300), (224, 500)])
def test_the_options_do_what_torchvisions_preset_does(size: tuple[int, int]) -> None:
    ours = parse_transform("resize=256,crop=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225")
    theirs = user_transform("IMAGENET1K_V1", "torchvision:resnet18")
    torch.testing.assert_close(ours(picture(*size)), theirs(picture(*size)), atol=1e-6, rtol=1e-5)


def test_unknown_weights_are_answered_with_the_known() -> None:
    with pytest.raises(UsageError, match="IMAGENET1K_V3") as caught:
        user_transform("IMAGENET1K_V3", "torchvision:resnet50")
    assert "IMAGENET1K_V2" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["resize=big", "mean=1,colour=red", "interpolation=cubism"])
def test_unreadable_options_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        parse_transform(text)


def test_small_images_keep_their_size_unless_an_input_was_stated() -> None:
    assert choose_transform((1, 3, 224, 224), (32, 32), certain=False)(picture(32, 32)).shape == (3, 32, 32)
    assert choose_transform((1, 3, 48, 48), (32, 32))(picture(32, 32)).shape == (3, 48, 48)
    assert choose_transform(None, (500, 400))(picture(400, 500)).shape == (3, 224, 224)
    assert choose_transform((1, 1, 28, 28), (28, 28))(picture(28, 28)).shape == (1, 28, 28)
