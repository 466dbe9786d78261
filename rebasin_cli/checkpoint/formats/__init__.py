"""The formats of checkpoints, one file each.

A format is a module in this folder, whose name has no leading underscore, with a `Format` in its variable `FORMAT`. To
add one, add its file and its test; nothing else needs to know its name. A file's format is found by its first bytes,
never by its name alone.
"""

from __future__ import annotations

import abc
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import BinaryIO, ClassVar

from rebasin_cli.checkpoint.checkpoint import Checkpoint, OneFileCheckpoint, TensorInfo, Transform
from rebasin_cli.errors import size


class Format(abc.ABC):
    """One checkpoint format.

    Attributes:
        name: for reports; the `kind` of its checkpoints.
        help: what a file of this format is, with an article: `a safetensors file`.
        suffixes: endings of file names that announce this format, the usual one first.
        creates: whether a new file of this format can be made from the tensors of any other.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    creates: ClassVar[bool] = False

    @abc.abstractmethod
    def recognises(self, path: Path, head: bytes) -> bool:
        """Whether a file that begins with `head` has this format; of a directory, `head` is empty."""

    @abc.abstractmethod
    def open(self, path: Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
        """Read and check the header.

        Args:
            key, ema: which state dict of several; see `open_checkpoint`.

        Raises:
            CheckpointError: it cannot be read safely.
        """

    def open_states(self, path: Path) -> OneFileCheckpoint | None:
        """Open a file in which no state dict is looked for: all of it lies beside; None if this format has none."""
        return None

    def announced_by(self, path: Path) -> bool:
        """Whether the file's name announces this format."""
        return path.name.lower().endswith(self.suffixes)

    def misfit(self, head: bytes, nbytes: int) -> str:
        """Why a file of `nbytes` that begins with `head` does not have this format."""
        if not nbytes:
            return f"empty file (0 bytes), not {self.help}"
        return f"not {self.help}: {size(nbytes)} that begin with {head[:8]!r}"

    def suits(self, out: Path) -> bool:
        """Whether an output of this format may have this name, apart from names that announce other formats."""
        return True

    def output_name(self, source: Path) -> str:
        """What to name the output of a checkpoint that was read from `source`, in words."""
        return f"a *{source.suffix or self.suffixes[0]}"

    def write_new(self, out: BinaryIO, source: Checkpoint, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Write the selected tensors of a checkpoint of another format, transformed, one in memory at a time.

        Raises:
            ModelError: tied tensors are transformed differently.
        """
        raise NotImplementedError(f"{self.name} cannot be made from other formats")

    def cannot_hold(self, info: TensorInfo) -> bool:
        """Whether a new file of this format has no name for the tensor's dtype."""
        return False

    def makes_directory(self, out: Path) -> bool:
        """Whether an output of this name becomes a directory."""
        return False


@cache
def all_formats() -> tuple[Format, ...]:
    """Every format in this folder, in the order of the files' names."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))
    return tuple(import_module(f"{__name__}.{name}").FORMAT for name in names)


def announced_formats(path: Path) -> tuple[Format, ...]:
    """The formats that a file's name announces."""
    return tuple(form for form in all_formats() if form.announced_by(path))


_ARCHIVE_SUFFIXES = (".pth.tar", ".pt.tar", ".ckpt.tar")
"""Names under which torch.save was long advised to write; no archive is meant."""


def split_name(path: Path) -> tuple[str, str]:
    """Stem and suffix of a checkpoint's name, whatever the case of its letters.

    Only endings that announce a format are suffixes, the longest first, so that a version number stays in the stem:
    `resnet.v1.5` has none. One of several parts (`.safetensors.index.json`, `.pth.tar`) stays whole.
    """
    every = {*_ARCHIVE_SUFFIXES, *(suffix for form in all_formats() for suffix in form.suffixes)}
    for suffix in sorted(every, key=len, reverse=True):
        if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
            return path.name[: -len(suffix)], path.name[-len(suffix) :]
    return path.name, ""
