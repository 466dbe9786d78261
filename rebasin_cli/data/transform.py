"""From an image to the model's input: the model's own preprocessing, options, or the user's function.

Options are written `resize=256,crop=224,mean=0.485/0.456/0.406,std=0.229/0.224/0.225,interpolation=bicubic`; steps that
are left out are skipped. `resize` is the shorter side, or both as `HxW`; values are scaled to [0, 1] before `mean` and
`std`. `raw` takes the values as they are. Images from files, data sets and arrays all go through one `ImageTransform`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_cli.errors import UsageError, did_you_mean
from rebasin_cli.model import published_source

RAW = "raw"
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
MNIST = ((0.1307,), (0.3081,))
SMALL = 96
"""Images up to this height and width are assumed to have their intended size."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_LUMA = np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
"""Shares of red, green and blue in a grey value, as PIL has them."""

RESAMPLING = {"nearest": 0, "bilinear": 2, "bicubic": 3, "lanczos": 1}


@dataclass(frozen=True, slots=True)
class ImageTransform:
    """How images become inputs: built-in steps, or `function`, which takes the PIL image and does everything.

    Attributes:
        guess: what was assumed for want of a statement, such as `CIFAR-10 mean and std`.
        raw: neither scale nor normalise.
    """

    text: str
    channels: int = 3
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bilinear"
    function: Callable[[Any], Any] | None = None
    guess: str | None = None
    raw: bool = False

    def __call__(self, image: Any) -> Tensor:
        """A float32 tensor (channels, height, width) from a PIL image."""
        image = as_eight_bits(image).convert(_MODES[self.channels])
        if self.function is not None:
            return torch.as_tensor(self.function(image))
        image = self._sized(image)
        pixels = np.array(image, dtype=np.float32, copy=True) / (1 if self.raw else 255)
        tensor = torch.from_numpy(pixels if pixels.ndim == 3 else pixels[:, :, None]).permute(2, 0, 1)
        return self.normalize(tensor).contiguous()

    def of_floats(self, pixels: np.ndarray) -> Tensor:
        """The same for an image of floats in [0, 1], (height, width, channels) float32, which is not rounded to 8 bits.

        There must be no `function`: that takes a PIL image.
        """
        from PIL import Image

        if pixels.shape[2] != self.channels:
            pixels = pixels @ _LUMA if self.channels == 1 else np.repeat(pixels[:, :, :1], self.channels, axis=2)
        planes = [
            np.array(self._sized(Image.fromarray(np.ascontiguousarray(pixels[:, :, channel], dtype=np.float32))))
            for channel in range(self.channels)
        ]
        return self.normalize(torch.from_numpy(np.stack(planes))).contiguous()

    def _sized(self, image: Any) -> Any:
        return _crop(_resize(image, self.resize, RESAMPLING[self.interpolation]), self.crop)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Subtract each channel's mean and divide by its deviation; pixels (…, channels, height, width) in [0, 1]."""
        if self.mean is not None:
            pixels = pixels - torch.tensor(self.mean).view(-1, 1, 1)
        return pixels if self.std is None else pixels / torch.tensor(self.std).view(-1, 1, 1)


def as_eight_bits(image: Any) -> Any:
    """An image with 8 bits a channel; PIL's own conversion cuts larger values off.

    Raises:
        ValueError: the pixels are floats of an unknown range.
    """
    from PIL import Image

    if image.mode != "F" and not image.mode.startswith("I"):
        return image
    pixels = np.array(image)
    if image.mode == "F":
        if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 255):
            raise ValueError("floating-point pixels outside 0 to 255")
        scale = 255.0 if pixels.max() <= 1 else 1.0
    else:
        scale = 1 / 257 if image.mode.startswith("I;16") or pixels.max() > 255 else 1.0
    return Image.fromarray(np.clip(np.rint(pixels * scale), 0, 255).astype(np.uint8))


def _resize(image: Any, size: int | tuple[int, int] | None, resampling: int) -> Any:
    if size is None:
        return image
    width, height = image.size
    if isinstance(size, int):
        short = min(width, height)
        target = (size * width // short, size * height // short)
    else:
        target = (size[1], size[0])
    return image if target == (width, height) else image.resize(target, resampling)


def _crop(image: Any, size: tuple[int, int] | None) -> Any:
    """The centre; a smaller image is padded with black."""
    if size is None or (size[1], size[0]) == image.size:
        return image
    left = round((image.size[0] - size[1]) / 2)
    top = round((image.size[1] - size[0]) / 2)
    return image.crop((left, top, left + size[1], top + size[0]))


def parse_transform(text: str) -> ImageTransform:
    """Read a transform's options.

    Raises:
        UsageError: an unknown option or an unreadable value.
    """
    if text == RAW:
        return ImageTransform(text="raw values", raw=True)
    options: dict[str, Any] = {}
    for part in filter(None, (piece.strip() for piece in text.split(","))):
        name, _, value = part.partition("=")
        try:
            if name == "resize":
                options[name] = _size(value) if "x" in value else int(value)
            elif name == "crop":
                options[name] = _size(value)
            elif name in ("mean", "std"):
                options[name] = tuple(float(number) for number in value.split("/"))
            elif name == "channels" and value in ("1", "3", "4"):
                options[name] = int(value)
            elif name == "interpolation" and value in RESAMPLING:
                options[name] = value
            else:
                raise ValueError(part)
        except ValueError as error:
            raise UsageError(
                f"--transform: cannot read {part!r}",
                hint="options are resize=256 or HxW, crop=224 or HxW, mean=a/b/c, std=a/b/c, channels=1|3|4, "
                f"interpolation={'|'.join(RESAMPLING)}; or raw, a torchvision preset's name, or file.py:function",
            ) from error
    if "channels" not in options and len(options.get("mean", (0, 0, 0))) == 1:
        options["channels"] = 1
    return ImageTransform(text=text, **options)


def _size(value: str) -> tuple[int, int]:
    height, _, width = value.partition("x")
    return int(height), int(width or height)


def choose_transform(
    input_shape: Sequence[int] | None, first_image: tuple[int, int] | None, *, certain: bool = True
) -> ImageTransform:
    """The transform for a model that has none of its own.

    Args:
        input_shape: shape (n, channels, height, width) of the model's example input, where there is one.
        first_image: height and width of an image of the data.
        certain: whether the user or the zoo stated the input shape. If it was guessed, the size of the images decides,
            because a convolutional network runs on almost any shape.

    Small images of a model whose input shape is not stated keep their size. All others get the size of the input (224 x
    224 if there is none): scaled to 256/224 of it and cropped, as on ImageNet, or, under 64 pixels, scaled to it. Mean
    and deviation are a guess from the size and the number of channels.
    """
    stated = input_shape if input_shape is not None and len(input_shape) == 4 else None
    channels = stated[1] if stated is not None else _channels_of_flat(input_shape, first_image)
    size = None if stated is None else (int(stated[2]), int(stated[3]))
    if first_image is not None and max(first_image) <= SMALL and (size is None or not certain):
        size = first_image
    size = size or (224, 224)
    channels = channels if channels in _MODES else 3
    mean: tuple[float, ...]
    std: tuple[float, ...]
    if channels == 1:
        (mean, std), name = MNIST, "MNIST"
    elif channels == 3:
        (mean, std), name = (CIFAR, "CIFAR-10") if max(size) <= 32 else (IMAGENET, "ImageNet")
    else:
        (mean, std), name = ((0.5,) * 4, (0.5,) * 4), "symmetric"
    guess = f"{name} mean and std"
    made = ImageTransform(text="", channels=channels, mean=mean, std=std, guess=guess)
    if min(size) < 64:
        return replace(made, resize=size, text=f"resize {size[0]}x{size[1]}, guessed {guess}")
    resize = math.ceil(max(size) * 256 / 224)
    return replace(made, resize=resize, crop=size, text=f"resize {resize}, crop {size[0]}x{size[1]}, guessed {guess}")


def _channels_of_flat(input_shape: Sequence[int] | None, image: tuple[int, int] | None) -> int:
    """Channels of the images of a model that takes them flattened."""
    if input_shape is None or image is None or len(input_shape) != 2:
        return 3
    count, rest = divmod(int(input_shape[1]), image[0] * image[1])
    return count if not rest and count in _MODES else 3


def model_transform(
    model: str, module: nn.Module | None, weights: str | None = None
) -> tuple[ImageTransform | None, tuple[str, ...] | None]:
    """The transform and the class names that a zoo states for its model; (None, None) if there are none.

    Args:
        weights: a published set of weights; by default the newest.
    """
    source = published_source(model)
    stated = None if source is None else source.preprocessing(module, weights)
    if stated is None:
        return None, None
    return ImageTransform(text=stated.text, function=stated.function), stated.class_names


def user_transform(text: str, model: str) -> ImageTransform:
    """The transform that `--transform` names: `file.py:function`, published weights of the model, or options.

    Raises:
        UsageError: it is none of these.
        DataError: the user's function cannot be loaded.
    """
    if text.partition(":")[0].endswith(".py"):
        from rebasin_cli.data.batch_sources import load_callable

        return ImageTransform(text=text, function=load_callable(text))
    if "=" in text or text in ("", RAW):
        return parse_transform(text)
    source = published_source(model)
    known = () if source is None else source.weights()
    found = model_transform(model, None, text)[0] if text in known else None
    if found is None:
        raise UsageError(
            f"--transform: {model} has no weights {text!r}{did_you_mean(text, known)}",
            hint=f"its weights are {', '.join(known)}" if known else "give options such as resize=256,crop=224",
        )
    return found
