"""One tensor of a torch.save file as a window on its storage, checked against the bytes that are there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rebasin_cli.checkpoint.pickle_file import StorageRef, TensorRef
from rebasin_cli.checkpoint.wording import quoted, size
from rebasin_cli.checkpoint.zip_directory import Record
from rebasin_cli.errors import CheckpointError

_HARMLESS = 1 << 20
"""A tensor with a stride of zero may claim this many bytes however few there are: small expanded buffers are honest."""


@dataclass(frozen=True, slots=True)
class View:
    """Element `i` of the tensor is element `offset + i · stride` of the storage, whose bytes are `record`."""

    record: Record
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor as a dense one."""
        count = self.dtype.itemsize
        for length in self.shape:
            count *= length
        return count

    @property
    def is_whole(self) -> bool:
        """Whether it is all of its storage in row-major order."""
        step, dense = 1, True
        for length, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            dense = dense and (length == 1 or stride == step)
            step *= length
        return dense and self.offset == 0 and self.nbytes == self.record.size

    @property
    def overlaps_itself(self) -> bool:
        """Whether two positions may be one element; exact where strides nest, as in any honest tensor."""
        steps = sorted((step, length) for step, length in zip(self.stride, self.shape, strict=True) if length > 1)
        reach = 0
        for step, length in steps:
            if step <= reach:
                return True
            reach += step * (length - 1)
        return False

    def within(self, flat: Tensor) -> Tensor:
        """This window on a storage's elements, without a copy."""
        if self.nbytes == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        return flat.as_strided(self.shape, self.stride, self.offset)


def view_of(path: Path, key: str, ref: TensorRef, storages: Mapping[str, Record]) -> View:
    """Check one tensor of the description against its storage.

    Raises:
        CheckpointError: not dense, without data, reaching outside its storage, or claiming far more than there is.
    """
    name = f"{path}: tensor {quoted(key)}"
    if ref.trouble or (ref.dtype is not None and not isinstance(ref.dtype, torch.dtype)):
        raise CheckpointError(f"{name} is not a dense tensor ({ref.trouble or 'unknown dtype'})", path=path)
    storage = ref.storage
    if not isinstance(storage, StorageRef):
        raise CheckpointError(f"{name} has no data", path=path)
    record = storages.get(storage.key)
    if record is None:
        raise CheckpointError(
            f"{name}: truncated or corrupt: its data record {quoted(storage.key)} is absent", path=path
        )
    dtype = ref.dtype or torch.uint8
    width = storage.dtype.itemsize if storage.dtype is not None else 1
    if storage.numel * width != record.size:
        seen = f"claims {size(storage.numel * width)}, record {quoted(record.name)} has {size(record.size)}"
        raise CheckpointError(f"{name}: truncated or corrupt: its storage {seen}", path=path)
    view = View(record, dtype, ref.offset + storage.offset, ref.shape, ref.stride)
    _check_bounds(path, name, view)
    return view


def _check_bounds(path: Path, name: str, view: View) -> None:
    if view.nbytes > max(view.record.size, _HARMLESS):
        seen = f"claims {size(view.nbytes)}, its storage has {size(view.record.size)}"
        raise CheckpointError(
            f"{name} {seen}: refusing (shape {list(view.shape)}, strides {list(view.stride)})", path=path
        )
    if view.nbytes == 0:
        return
    last = view.offset + sum(step * (length - 1) for step, length in zip(view.stride, view.shape, strict=True))
    if (last + 1) * view.dtype.itemsize > view.record.size:
        seen = f"element {last:,} of a storage of {size(view.record.size)}"
        raise CheckpointError(f"{name}: truncated or corrupt: it reaches {seen}", path=path)
