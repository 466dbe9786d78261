"""`Checkpoint`: named tensors that are read on demand, and a file that can be written again with other tensors.

Formats differ only in where the bytes are; each is a subclass in its own file in `formats/`. Headers are read without
importing torch: a dtype is a name until a tensor is asked for.
"""

from __future__ import annotations

import abc
import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, runtime_checkable

from rebasin_cli.checkpoint.atomic import StagedFile, commit_file, flush_to_disk, staged_file
from rebasin_cli.errors import CheckpointError, ModelError, RebasinError, few, quoted

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from rebasin_cli.checkpoint.formats import Format
    from rebasin_cli.checkpoint.mapped_file import MappedFile

Transform = Callable[[str, "Tensor"], "Tensor"]
"""From a key of the file and its tensor to the tensor to be written: same shape, same dtype."""


@runtime_checkable
class WholeTransform(Protocol):
    """A transform that also changes tensors beside the state dict; those that `beside_paths` lacks are copied."""

    @property
    def beside_paths(self) -> Collection[str]:
        """Paths (`Checkpoint.beside_infos`) of the tensors that `beside` changes."""

    def __call__(self, key: str, tensor: Tensor) -> Tensor:
        """As any transform."""

    def beside(self, path: str, tensor: Tensor) -> Tensor:
        """The tensor to be written at this path beside the state dict: same shape, same dtype."""


PROVENANCE_PREFIX = "rebasin."

ITEM_SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
    "float4_e2m1fn_x2": 1, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1, "bits8": 1, "bits16": 2,
    "bits1x8": 1, "bits2x4": 1, "bits4x2": 1, **{f"{kind}{bits}": 1 for kind in ("int", "uint") for bits in range(1, 8)}
}  # fmt: skip
"""Bytes per element of torch's dtypes, by the names under which torch saves them."""


def torch_dtype(name: str) -> torch.dtype:
    """The dtype of this name.

    Raises:
        CheckpointError: the installed torch does not have it.
    """
    import torch

    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise CheckpointError(f"torch {torch.__version__} has no dtype {name}", hint="install a newer torch")
    return found


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """The header entry of one tensor; `dtype_name` is torch's: `float32`, `bfloat16`, …"""

    key: str
    dtype_name: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def dtype(self) -> torch.dtype:
        """The dtype itself; imports torch."""
        return torch_dtype(self.dtype_name)


@dataclass(frozen=True, slots=True)
class WrittenCopy:
    """A copy that is complete on disk but not yet at its output path; `commit(force)` moves it there."""

    checkpoint: Checkpoint
    commit: Callable[[bool], None]


class Checkpoint(abc.ABC):
    """Named tensors in one or more files.

    Attributes:
        format: the format of the file.
        path: the path that the user gave.
        files: every file the tensors come from, in reading order (for a sharded checkpoint the index comes last).
        others: entries of the file beside the state dict that hold tensors, such as an optimizer's.
        beside: all that the file holds beside the state dict, as `contents.py` describes it.
        beside_infos: header entries of the tensors in it, by path.
        beside_shared: paths of those that lie in the memory of the state dict's tensors, and change with it.
        wrapper: the keys that lead from the file's outermost mapping to the state dict, or None where that is the
            outermost one (for safetensors: the prefix that `key` selected).
        infos: header entries by file key, in file order; nothing else of the tensors has been read.
        metadata: the file's own text metadata.
        ties: keys that are one tensor: they share memory (torch), or the metadata records one as removed in favour of
            the other (safetensors; then only the stored one, which comes first, is in `infos`).
        ambiguity: the error to raise if the tensors are not the model's, where several state dicts were joined.
        notes: what of the file or directory was chosen, skipped or left out, one sentence each.
        versions: what `state_dict()` noted about each module (`_metadata`), which load hooks read; None if the file
            does not have it.
    """

    format: Format
    path: Path
    files: tuple[Path, ...]
    wrapper: tuple[str, ...] | None
    others: tuple[str, ...] = ()
    beside: Any = None
    beside_infos: Mapping[str, TensorInfo] = MappingProxyType({})
    beside_shared: Collection[str] = frozenset()
    infos: Mapping[str, TensorInfo]
    metadata: Mapping[str, str]
    ties: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    ambiguity: CheckpointError | None = None
    versions: Mapping[str, object] | None = None

    @property
    def kind(self) -> str:
        """The name of the format."""
        return self.format.name

    @abc.abstractmethod
    def tensor(self, key: str) -> Tensor:
        """The tensor, mapped from the file (copied only where it is not aligned); it is never written back.

        Raises:
            CheckpointError: no such key, or its bytes fail their checksum (where the format has one).
        """

    def beside_tensor(self, path: str) -> Tensor:
        """The tensor at this path of `beside_infos`, mapped as `tensor` maps it."""
        raise CheckpointError(f"{self.path}: no tensor {quoted(path)} beside the state dict", path=self.path)

    @abc.abstractmethod
    def verify(self) -> None:
        """Check every checksum that the format has, including those of data that is not a tensor."""

    @abc.abstractmethod
    def mapped(self) -> tuple[MappedFile, ...]:
        """The mapped files, in the order of `files`."""

    @abc.abstractmethod
    def staged_copy(
        self, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool
    ) -> contextlib.AbstractContextManager[WrittenCopy]:
        """Write a copy beside `out` with every tensor transformed; it is removed unless it is committed."""

    @abc.abstractmethod
    def write_into(self, directory: Path, transform: Transform, provenance: Mapping[str, str]) -> Path:
        """Write a copy into a directory, under the files' own names, flushed to disk; the path to open it by."""

    @abc.abstractmethod
    def reopen(self, path: Path) -> Checkpoint:
        """Open a copy, by its own path, and select the same state dict."""

    def makes_directory(self, out: Path) -> bool:
        """Whether an output of this name becomes a directory."""
        return self.format.makes_directory(out)

    @abc.abstractmethod
    def write_alone(self, path: Path, keys: Collection[str]) -> None:
        """Write a new checkpoint of the same format that holds these tensors and nothing else, as they are.

        Args:
            path: of the file; of a sharded checkpoint: of the index, beside which the shards are written.
        """

    def check_copy(self, copy: Checkpoint) -> None:  # noqa: B027  (most formats have nothing to check)
        """Raise `NumericalError` if an independent reader of the format finds other tensors in the copy than here."""

    def sha256(self) -> str:
        """SHA-256 of the file's bytes; of a sharded checkpoint: of its shards' in index order, then the index's."""
        digest = hashlib.sha256()
        for file in self.mapped():
            for chunk in file.chunks():
                digest.update(chunk)
        return digest.hexdigest()

    @property
    def file_bytes(self) -> int:
        """Bytes of all files together: the size of a copy, except for a few KiB of provenance."""
        return sum(file.size for file in self.mapped())

    def entries_beside(self) -> tuple[str, ...]:
        """Names of everything in the file that is not in the selected state dict."""
        return ()

    def stored_key(self, key: str) -> str:
        """The key under which a tensor is stored, for one that the metadata records as tied to another."""
        if key in self.infos:
            return key
        return next((tie[0] for tie in self.ties if key in tie), key)

    def copy_bytes(self, out: Path) -> int:
        """Bytes of a copy at `out`."""
        return self.file_bytes

    def notes_on_copy(self, out: Path) -> tuple[str, ...]:
        """What a copy at `out` does not have, or has unchanged, one sentence each."""
        return ()

    def info(self, key: str) -> TensorInfo:
        """The header entry of a key, or a CheckpointError that names the nearest ones."""
        try:
            return self.infos[key]
        except KeyError:
            near = few(sorted(self.infos, key=lambda other: _distance(key, other))[:3])
            raise CheckpointError(f"{self.path}: no tensor {quoted(key)}; there are {near}", path=self.path) from None


class OneFileCheckpoint(Checkpoint):
    """A checkpoint that is one file and is written as one."""

    @abc.abstractmethod
    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Write this checkpoint with every tensor transformed, one tensor (torch: one storage) in memory at a time."""

    def write_into(self, directory: Path, transform: Transform, provenance: Mapping[str, str]) -> Path:
        path = directory / self.path.name
        with open(path, "x+b") as handle:
            self.write_to(handle, transform, provenance)
            flush_to_disk(StagedFile(path, handle))
        return path

    @contextlib.contextmanager
    def staged_copy(
        self, out: Path, transform: Transform, provenance: Mapping[str, str], *, mkdir: bool
    ) -> Iterator[WrittenCopy]:
        with staged_file(out, bytes_needed=self.file_bytes, mkdir=mkdir) as staged:
            self.write_to(staged.handle, transform, provenance)
            flush_to_disk(staged)
            yield WrittenCopy(self.reopen(staged.path), lambda force: commit_file(staged, out, force=force))


def _distance(wanted: str, other: str) -> int:
    """The number of positions at which two keys differ."""
    shared = sum(1 for mine, theirs in zip(wanted, other, strict=False) if mine == theirs)
    return max(len(wanted), len(other)) - shared


def transformed(key: str, before: Tensor, transform: Transform) -> Tensor:
    """`transform(key, before)`, after checking that shape and dtype are kept."""
    after = transform(key, before)
    if after.shape != before.shape or after.dtype != before.dtype:
        raise RebasinError(
            f"tensor {quoted(key)} would be written as {tuple(after.shape)} {after.dtype}"
            f" in place of {tuple(before.shape)} {before.dtype}"
        )
    return after


def untied(source: Checkpoint) -> dict[str, str]:
    """Key -> key of the tensor that it is tied to, for every key of a tie but its first."""
    return {key: tie[0] for tie in source.ties for key in tie[1:]}


def untied_keys(source: Checkpoint) -> list[str]:
    """The keys, of each tie the first alone: what files of all formats have in common."""
    tied = untied(source)
    return [key for key in source.infos if key not in tied]


def check_alike(source: Checkpoint, key: str, kept: str, transform: Transform) -> None:
    """Check that a tied tensor is transformed like the one that is written in its place.

    Raises:
        ModelError: it is not.
    """
    if key not in source.infos:
        return
    both = (transformed(name, source.tensor(name), transform) for name in (key, kept))
    if len({bytes(raw_bytes(tensor)) for tensor in both}) > 1:
        raise ModelError(
            f"{source.path}: {quoted(kept)} and {quoted(key)} share memory in the file, but are not permuted alike",
            path=source.path,
            hint="save the state dict without the tie: {key: tensor.clone() for key, tensor in …}",
        )


def raw_bytes(tensor: Tensor) -> memoryview:
    """A dense CPU tensor's elements in row-major order; copied only where it is not contiguous."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def with_provenance(metadata: Mapping[str, str], provenance: Mapping[str, str]) -> dict[str, str]:
    """The file's metadata with `rebasin.*` replaced; the values of an earlier run described other bytes."""
    kept = {key: value for key, value in metadata.items() if not key.startswith(PROVENANCE_PREFIX)}
    named = {
        key if key.startswith(PROVENANCE_PREFIX) else PROVENANCE_PREFIX + key: provenance[key] for key in provenance
    }
    return kept | dict(sorted(named.items()))
