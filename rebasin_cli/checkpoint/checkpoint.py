"""What a checkpoint is to the rest of the program: named tensors, read when asked for, and a file to be rewritten.

Formats differ in where the bytes lie, not in what can be asked of them; each format is one subclass in its own file.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from rebasin_cli.checkpoint.wording import few, quoted
from rebasin_cli.errors import CheckpointError, RebasinError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rebasin_cli.checkpoint.mapped_file import MappedFile

Transform = Callable[[str, "Tensor"], "Tensor"]
"""From a key of the file and its tensor to the tensor to be written: same shape, same dtype."""

PROVENANCE_PREFIX = "rebasin."


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What the header says of one tensor."""

    key: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    nbytes: int

    @property
    def dtype_name(self) -> str:
        """`float32`, `bfloat16`, …"""
        return str(self.dtype).removeprefix("torch.")


class Checkpoint(abc.ABC):
    """Named tensors in one or more files.

    Attributes:
        path: what the user named.
        files: every file the tensors come from, in reading order (for a sharded checkpoint the index comes last).
        kind: `safetensors`, `sharded-safetensors`, `torch` or `torch-legacy`.
        wrapper: the keys that lead from the file's outermost mapping to the state dict, or None where that is the
            outermost one (for safetensors: the prefix that `key` selected).
        infos: header entries by file key, in file order; nothing else of the tensors has been read.
        metadata: the file's own text metadata.
        ties: keys that are one tensor: they share memory (torch), or the metadata records one as removed in favour of
            the other (safetensors; then only the stored one, which comes first, is in `infos`).
    """

    path: Path
    files: tuple[Path, ...]
    kind: str
    wrapper: tuple[str, ...] | None
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]

    @abc.abstractmethod
    def tensor(self, key: str) -> Tensor:
        """The tensor, mapped from the file (not copied where alignment allows it); never written back to the file.

        Raises:
            CheckpointError: no such key, or its bytes fail their checksum (where the format has one).
        """

    @abc.abstractmethod
    def verify(self) -> None:
        """Check every checksum the format has, also of what is not a tensor."""

    @abc.abstractmethod
    def mapped(self) -> tuple[MappedFile, ...]:
        """The mapped files, in the order of `files`."""

    @abc.abstractmethod
    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Write this checkpoint with every tensor transformed, one tensor (torch: one storage) in memory at a time."""

    @abc.abstractmethod
    def reopen(self, path: Path) -> Checkpoint:
        """Open a file of the same format, choosing the same state dict."""

    def sha256(self) -> str:
        """SHA-256 of the file's bytes; of a sharded checkpoint: of its shards' in index order, then the index's."""
        digest = hashlib.sha256()
        for file in self.mapped():
            for chunk in file.chunks():
                digest.update(chunk)
        return digest.hexdigest()

    @property
    def file_bytes(self) -> int:
        """Bytes of all files together: what writing one like it needs, but for a few KiB of provenance."""
        return sum(file.size for file in self.mapped())

    def info(self, key: str) -> TensorInfo:
        """The header entry of a key, or a CheckpointError that names the nearest ones."""
        try:
            return self.infos[key]
        except KeyError:
            near = few(sorted(self.infos, key=lambda other: _distance(key, other))[:3])
            raise CheckpointError(f"{self.path}: no tensor {quoted(key)}; there are {near}", path=self.path) from None


def _distance(wanted: str, other: str) -> int:
    """Fewer is nearer: characters that are not in a common ending or beginning."""
    shared = sum(1 for mine, theirs in zip(wanted, other, strict=False) if mine == theirs)
    return max(len(wanted), len(other)) - shared


def transformed(key: str, before: Tensor, transform: Transform) -> Tensor:
    """`transform(key, before)`, held to the promise that a rewritten tensor keeps shape and dtype."""
    after = transform(key, before)
    if after.shape != before.shape or after.dtype != before.dtype:
        raise RebasinError(
            f"tensor {quoted(key)} would be written as {tuple(after.shape)} {after.dtype}"
            f" in place of {tuple(before.shape)} {before.dtype}"
        )
    return after


def raw_bytes(tensor: Tensor) -> memoryview:
    """A dense CPU tensor's elements in row-major order, without a copy where it is contiguous already."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def with_provenance(metadata: Mapping[str, str], provenance: Mapping[str, str]) -> dict[str, str]:
    """The file's metadata with `rebasin.*` set anew; what an earlier run had set there described other bytes."""
    kept = {key: value for key, value in metadata.items() if not key.startswith(PROVENANCE_PREFIX)}
    named = {
        key if key.startswith(PROVENANCE_PREFIX) else PROVENANCE_PREFIX + key: provenance[key] for key in provenance
    }
    return kept | dict(sorted(named.items()))
