"""Arrays of a file as inputs: `.npz` with `x` and, where there are labels, `y`; `.npy` with inputs alone.

What the numbers are is decided once for the whole array, from its dtype, its range and the input of the model, and said
in words: pixels are transformed like images of a folder, floats that are no pixels are taken as they are. Headers are
checked before anything is read, and pickled objects are never loaded.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data.transform import ImageTransform
from rebasin_cli.errors import DataError, NumericalError, few, folded

CHANNELS = ((1, 3), (4,))
"""Lengths that an axis of channels has, the usual ones first."""
BRIGHT = 16
"""Floats from 0 that exceed this, and not 255, are pixels: normalised inputs have negative values or are small."""
SCAN = 1 << 24
"""Numbers that are looked at together for the range of an array."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """The arrays of a file: inputs, labels (whole numbers as int64) or None, and names of arrays that are not used."""

    x: np.ndarray
    y: np.ndarray | None
    unused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How the samples of an array become inputs.

    Attributes:
        words: for the user, such as `uint8, channels last`.
        channels_last: samples are images with the channels last, or without such an axis.
        transform: for pixels; None for other numbers.
        scale: what numbers are divided by: by it, pixels are in [0, 1].
        dtype: of the input.
    """

    words: str
    channels_last: bool = False
    transform: ImageTransform | None = None
    scale: float = 1.0
    dtype: torch.dtype = torch.float32

    def __call__(self, sample: np.ndarray) -> Tensor:
        """One sample as the input of the model."""
        if self.transform is None:
            value = torch.as_tensor(np.array(sample)).to(self.dtype)
            value = value / self.scale if self.scale != 1 else value
            if not self.channels_last:
                return value
            return value.permute(2, 0, 1).contiguous() if value.dim() == 3 else value.unsqueeze(0)
        pixels = sample if self.channels_last or sample.ndim == 2 else np.moveaxis(sample, 0, -1)
        pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
        if self.scale == 255 and np.array_equal(pixels, np.rint(pixels)):
            return self.transform(_picture(pixels.astype(np.uint8)))
        return self.transform.of_floats(pixels.astype(np.float32) / np.float32(self.scale))


def _picture(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels))


class ArrayDataset:
    """Samples `(x[i], y[i])`, or `(x[i],)` without labels."""

    def __init__(self, arrays: Arrays, reading: Reading) -> None:
        self.arrays, self.reading = arrays, reading

    def __len__(self) -> int:
        return len(self.arrays.x)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        value = self.reading(self.arrays.x[index])
        return (value,) if self.arrays.y is None else (value, torch.as_tensor(self.arrays.y[index]))


@dataclass(frozen=True, slots=True)
class Range:
    """The numbers of an array: the least, the largest, whether all are whole."""

    low: float
    high: float
    whole: bool

    @property
    def words(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


def range_of(x: np.ndarray, where: str) -> Range:
    """Look at every number of an array.

    Raises:
        NumericalError: one is NaN or infinite.
    """
    low, high, whole = np.inf, -np.inf, True
    step = max(1, SCAN // max(1, prod(x.shape[1:])))
    for start in range(0, len(x), step):
        part = x[start : start + step]
        if x.dtype.kind == "f" and not np.isfinite(part).all():
            sample = start + int(np.flatnonzero(~np.isfinite(part).reshape(len(part), -1).all(1))[0])
            raise NumericalError(
                f"{where}: x is non-finite: NaN or infinite numbers, first in sample {sample}",
                path=where,
                hint="remove such samples from the data",
                slug="data_nan",
            )
        low, high = min(low, float(part.min())), max(high, float(part.max()))
        whole = whole and (x.dtype.kind != "f" or bool((part == np.rint(part)).all()))
    return Range(low, high, whole)


def reading_of(
    x: np.ndarray,
    where: str,
    *,
    input_shape: tuple[int, ...] | None,
    integers: bool | None,
    asked: ImageTransform | None,
    transform_for: Any,
) -> Reading:
    """How these samples become inputs of the model.

    Args:
        x: samples first.
        input_shape: of the model's example input, where it has one tensor.
        integers: whether that tensor holds integers; None where unknown.
        asked: the transform that the user named.
        transform_for: the transform for images of a (height, width), where none was named.

    Raises:
        DataError: the numbers do not fit the model, or the axis of the channels cannot be told.
    """
    kind = x.dtype.name
    if x.dtype.kind not in "biuf":
        raise DataError(f"{where}: x is an array of {kind}; inputs are numbers", path=where)
    if integers:
        return _indices(x, where, asked)
    raw = asked is not None and asked.raw
    last = _channels_last(x, where, input_shape)
    if last is None:
        if asked is not None and not raw:
            raise DataError(
                f"{where}: --transform is for images, and x holds samples of shape {x.shape[1:]}",
                path=where,
                hint="leave it out",
                slug="transform",
            )
        if x.dtype == np.uint8 and not raw:
            return Reading("uint8, divided by 255", scale=255.0)
        return Reading(f"{kind}, as they are")
    found = range_of(x, where)
    layout = "channels last" if last else "channels first" if x.ndim == 4 else "without an axis of channels"
    scale = _scale_of_pixels(x, found, asked)
    if raw or scale is None:
        if asked is not None and not raw:
            raise DataError(
                f"{where}: --transform is for pixels from 0 to 1 or 0 to 255, and x goes from {found.words}",
                path=where,
                hint="leave it out if x is normalised already",
                slug="transform",
            )
        _refuse_other_channels(x, where, last, input_shape)
        return Reading(f"{kind} from {found.words}, as they are, {layout}", last)
    extent = x.shape[1:3] if last or x.ndim == 3 else x.shape[2:4]
    transform = asked or transform_for((int(extent[0]), int(extent[1])))
    if transform.function is not None and not (scale == 255 and found.whole):
        raise DataError(
            f"{where}: the transform ({transform.text}) takes images of 8 bits, and x is {kind} from {found.words}",
            path=where,
            hint="save x as uint8, or give --transform resize=…,mean=…,std=…, or --transform raw",
            slug="transform",
        )
    span = {255.0: "0 to 255", 1.0: "0 to 1", 65535.0: "0 to 65535"}[scale]
    return Reading(f"{kind}, pixels from {span}, {layout}", last, transform, scale)


def _indices(x: np.ndarray, where: str, asked: ImageTransform | None) -> Reading:
    if x.dtype.kind == "f":
        raise DataError(
            f"{where}: x is {x.dtype.name}, and the model takes integers",
            path=where,
            hint="save x as int64",
            slug="input_dtype",
        )
    if asked is not None:
        raise DataError(f"{where}: --transform is for images, and the model takes integers", path=where)
    return Reading(f"{x.dtype.name}, as integers", dtype=torch.int64)


def _scale_of_pixels(x: np.ndarray, found: Range, asked: ImageTransform | None) -> float | None:
    """What divides pixels into [0, 1]; None for numbers that are no pixels, or that may be normalised already."""
    if x.dtype == np.uint8:
        return 255.0
    if found.low < 0 or x.dtype.kind == "b":
        return None
    if x.dtype == np.uint16 and found.high > 255:
        return 65535.0
    if BRIGHT < found.high <= 255:
        return 255.0
    return 1.0 if x.dtype.kind == "f" and found.high <= 1 and asked is not None else None


def _channels_last(x: np.ndarray, where: str, input_shape: tuple[int, ...] | None) -> bool | None:
    """Whether the samples are images with the channels last; None where they are no images."""
    if x.ndim == 3:
        return True if input_shape is not None and len(input_shape) == 4 else None
    if x.ndim != 4:
        return None
    wanted = input_shape[1] if input_shape is not None and len(input_shape) == 4 else None
    first, last = x.shape[1], x.shape[3]
    if wanted is None:
        if input_shape is not None and (len(input_shape) != 2 or prod(x.shape[1:]) != input_shape[1]):
            return None
        return _by_length(first, last)
    if first == wanted and last == wanted:
        if input_shape is not None and tuple(x.shape[1:]) == tuple(input_shape[1:]):
            return False
        raise DataError(
            f"{where}: which axis of {x.shape[1:]} has the channels cannot be told",
            path=where,
            hint="save x with the channels first and state the shape with --input",
            slug="layout",
        )
    if first == wanted or last == wanted:
        return bool(last == wanted)
    return _by_length(first, last)


def _by_length(first: int, last: int) -> bool | None:
    """Whether the last axis is more likely that of the channels; None where neither is."""
    for lengths in CHANNELS:
        if first in lengths or last in lengths:
            return first not in lengths
    return None


def _refuse_other_channels(x: np.ndarray, where: str, last: bool, input_shape: tuple[int, ...] | None) -> None:
    """Numbers that are no pixels are not converted between grey and colour."""
    if input_shape is None or len(input_shape) != 4:
        return
    channels = 1 if x.ndim == 3 else x.shape[3] if last else x.shape[1]
    if channels != input_shape[1]:
        raise DataError(
            f"{where}: x has {channels} channels, and the model takes {input_shape[1]}", path=where, slug="input_shape"
        )


def read_arrays(path: Path) -> Arrays:
    """The arrays `x` (samples first) and `y` of an `.npz` file, or the one of an `.npy` file.

    Raises:
        DataError: not such a file, `x` is missing or holds Python objects, or the lengths differ.
    """
    y, unused = None, tuple[str, ...]()
    try:
        if path.suffix == ".npy":
            x = np.load(path, mmap_mode="r", allow_pickle=False)
        else:
            with zipfile.ZipFile(path) as archive:
                names = sorted(entry.removesuffix(".npy") for entry in archive.namelist())
                wanted = ["x", "y"] if "y" in names else ["x"]
                for name in wanted:
                    _check_header(archive, path, name, names)
            unused = tuple(name for name in names if name not in wanted)
            with np.load(path, allow_pickle=False) as arrays:
                x, y = arrays["x"], arrays["y"] if "y" in names else None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        pickled = "allow_pickle" in str(error)
        said = "it holds pickled Python objects, which are never loaded" if pickled else folded(error)
        raise DataError(f"{path}: not a readable {path.suffix} file: {said}", path=path) from error
    if x.ndim == 0 or (y is not None and (y.ndim == 0 or len(x) != len(y))):
        labels = 0 if y is None else len(y) if y.ndim else 1
        sizes = f"x holds {len(x) if x.ndim else 1} samples and y {labels} labels"
        raise DataError(f"{path}: {sizes}; the lengths must be equal", path=path, slug="length_mismatch")
    if not len(x):
        raise DataError(f"{path}: x is empty", path=path)
    return Arrays(x, y.astype(np.int64) if y is not None and y.dtype.kind in "iu" else y, unused)


def _check_header(archive: zipfile.ZipFile, path: Path, name: str, present: list[str]) -> None:
    """Refuse, from the header alone, pickled objects and arrays larger than what the file can hold."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise DataError(
            f"{path}: no array {name!r} in this file; it holds {few(present) if present else 'nothing'}",
            path=path,
            hint="save with numpy.savez(path, x=inputs, y=labels), or x alone where there are no labels",
        ) from None
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read: Any = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise DataError(
            f"{path}: array {name!r} holds pickled Python objects, which are never loaded",
            path=path,
            hint="save plain numeric arrays of one shape",
            slug="object_array",
        )
    if prod(shape) * dtype.itemsize > info.file_size:
        claimed = prod(shape) * dtype.itemsize
        raise DataError(
            f"{path}: array {name!r} claims {claimed} bytes, but the file holds {info.file_size}", path=path
        )
