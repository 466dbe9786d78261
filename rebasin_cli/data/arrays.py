"""`.npz` files with arrays `x` and `y`; headers are checked before anything is read, and pickles never are."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rebasin_cli.data.transform import Transform
from rebasin_cli.errors import DataError


class ArrayDataset:
    """Samples `(x[i], y[i])`; uint8 images are scaled to [0, 1], channels are put first where they come last."""

    def __init__(self, x: np.ndarray, y: np.ndarray, transform: Transform | None) -> None:
        self.x = x
        self.y = y
        self.transform = transform

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.input(index), torch.as_tensor(self.y[index])

    def input(self, index: int) -> Tensor:
        value = torch.as_tensor(np.array(self.x[index]))
        if value.dtype == torch.uint8:
            value = value.to(torch.float32) / 255
            if value.dim() == 3 and value.shape[-1] in (1, 3) and value.shape[0] not in (1, 3):
                value = value.permute(2, 0, 1).contiguous()
        if value.dtype == torch.float64:
            value = value.to(torch.float32)
        return value if self.transform is None else self.transform.normalize(value)


def read_arrays(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """The arrays `x` (samples first) and `y` of an `.npz` file; labels that are whole numbers come as int64.

    Raises:
        DataError: not such a file, an array is missing or holds Python objects, or the lengths differ.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in ("x", "y"):
                _check_header(archive, path, name)
        with np.load(path, allow_pickle=False) as arrays:
            x, y = arrays["x"], arrays["y"]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable .npz file: {reason}", path=path) from error
    if x.ndim == 0 or y.ndim == 0 or len(x) != len(y):
        sizes = f"x holds {len(x) if x.ndim else 1} samples and y {len(y) if y.ndim else 1} labels"
        raise DataError(f"{path}: {sizes}; the lengths must be equal", path=path, slug="length_mismatch")
    if not len(x):
        raise DataError(f"{path}: x and y are empty", path=path)
    return x, y.astype(np.int64) if y.dtype.kind in "iu" else y


def _check_header(archive: zipfile.ZipFile, path: Path, name: str) -> None:
    """Refuse, from the header alone, pickled objects and arrays larger than what the file can hold."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        present = ", ".join(sorted(entry.removesuffix(".npy") for entry in archive.namelist())) or "nothing"
        raise DataError(
            f"{path}: no array {name!r} in this file; it holds {present}",
            path=path,
            hint="save with numpy.savez(path, x=inputs, y=labels)",
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
