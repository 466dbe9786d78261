"""A memory-mapped checkpoint file, opened read-only, so that tensors take no memory until they are read.

The mapping is private and copy-on-write, so tensors can be ordinary writable ones: writing into one changes a private
page and never the file. Header and tensors are read through one descriptor. If the file is replaced on disk meanwhile
(even by this program's own output), the mapping keeps the old contents.

If the process has a limit on its data memory (`ulimit -d`), the mapping is read-only: a writable private mapping counts
against that limit in full, although no page of it has been written, and larger checkpoints could not be opened.
"""

from __future__ import annotations

import mmap
import os
import platform
import stat
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rebasin_cli.errors import CheckpointError, folded, quoted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

_CHUNK = 1 << 20


def _no_reserve() -> int:
    """The flag that permits a mapping larger than memory; the `mmap` module has it only since Python 3.12."""
    usual = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64"}
    return int(getattr(mmap, "MAP_NORESERVE", 0x4000 if usual else 0))


def _map(descriptor: int, read_only: bool) -> mmap.mmap:
    if sys.platform == "win32":
        return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
    protection = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
    return mmap.mmap(descriptor, 0, flags=mmap.MAP_PRIVATE | _no_reserve(), prot=protection)


def data_memory_is_limited() -> bool:
    """Whether RLIMIT_DATA is set; then the tensors of a file are read-only."""
    try:
        import resource
    except ImportError:  # no such module on Windows
        return False
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


class MappedFile:
    """A regular file, mapped.

    Args:
        path: the file; symlinks are followed.

    Raises:
        CheckpointError: absent, not a regular file (a FIFO or a device would block or never end), or not readable.
    """

    __slots__ = ("_map", "_read_only", "path", "size")

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read_only = data_memory_is_limited()
        try:
            # O_NONBLOCK: opening a FIFO that has no writer would otherwise block.
            descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except FileNotFoundError as error:
            raise CheckpointError(f"{path}: no such file", path=path, slug="not-found") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or folded(error)
            raise CheckpointError(f"{path}: cannot be opened: {reason}", path=path) from error
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise CheckpointError(f"{path}: not a regular file", path=path)
            self.size = status.st_size
            self._map: mmap.mmap | None = _map(descriptor, self._read_only) if self.size else None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be mapped: {folded(error)}", path=path) from error
        finally:
            os.close(descriptor)

    def read(self, start: int, length: int) -> bytes:
        """`length` bytes from `start`, fewer where the file ends."""
        return b"" if self._map is None else self._map[start : start + length]

    def chunks(self, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` on, one MiB at a time."""
        end = self.size if length is None else start + length
        for position in range(start, end, _CHUNK):
            yield self.read(position, min(_CHUNK, end - position))

    def buffer(self) -> mmap.mmap | bytes:
        """All bytes, read where they are asked for."""
        return b"" if self._map is None else self._map

    def rfind(self, needle: bytes, start: int, end: int | None = None) -> int:
        """The last position of `needle` in `[start, end)`, or -1."""
        if self._map is None:
            return -1
        return self._map.rfind(needle, start, self.size if end is None else end)

    def elements(self, start: int, dtype: torch.dtype, count: int) -> Tensor:
        """`count` elements of `dtype` from byte `start`, as a one-dimensional tensor.

        Zero-copy where `start` is a multiple of the element size; otherwise one private copy, because an unaligned
        tensor is undefined behaviour in vectorised kernels.
        """
        import torch

        if count == 0 or self._map is None:
            return torch.empty(0, dtype=dtype)
        nbytes = count * dtype.itemsize
        if start + nbytes > self.size:
            raise CheckpointError(f"{quoted(self.path)}: bytes {start}+{nbytes} are outside the file", path=self.path)
        if start % dtype.itemsize == 0:
            return self._view(start, dtype, count)
        return self._view(start, torch.uint8, nbytes).clone().view(dtype)

    def _view(self, start: int, dtype: torch.dtype, count: int) -> Tensor:
        import torch

        if not self._read_only:
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            return torch.frombuffer(self._map, dtype=dtype, count=count, offset=start)
