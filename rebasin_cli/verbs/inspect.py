"""`inspect`: what is in a checkpoint, from its header alone, and which model it looks like."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rebasin_cli.checkpoint.read import open_checkpoint
from rebasin_cli.verbs.fingerprint import looks_like


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """One checkpoint; `elements` counts numbers, buffers included, and `dtypes` tensors by their dtype."""

    path: Path
    kind: str
    files: int
    file_bytes: int
    wrapper: str | None
    tensors: int
    elements: int
    dtypes: Mapping[str, int]
    ties: tuple[tuple[str, ...], ...]
    metadata: Mapping[str, str]
    looks_like: tuple[str, ...]
    contents: tuple[TensorLine, ...]


@dataclass(frozen=True, slots=True)
class InspectResult:
    """One entry for each file, in the order asked for."""

    files: tuple[Inspection, ...]


def inspect(paths: Sequence[str | Path], *, key: str | None = None, ema: bool = False) -> InspectResult:
    """Read the headers of checkpoints; no tensor is read.

    Args:
        paths: files, or directories of sharded checkpoints.
        key, ema: which state dict inside the files, as for `align`.

    Raises:
        CheckpointError: a file cannot be read safely.
    """
    return InspectResult(tuple(_inspect(Path(path), key, ema) for path in paths))


def _inspect(path: Path, key: str | None, ema: bool) -> Inspection:
    checkpoint = open_checkpoint(path, key=key, ema=ema)
    infos = checkpoint.infos.values()
    return Inspection(
        path=path,
        kind=checkpoint.kind,
        files=len(checkpoint.files),
        file_bytes=checkpoint.file_bytes,
        wrapper=".".join(checkpoint.wrapper) if checkpoint.wrapper else None,
        tensors=len(infos),
        elements=sum(prod(info.shape) for info in infos),
        dtypes=dict(Counter(info.dtype_name for info in infos)),
        ties=checkpoint.ties,
        metadata=dict(checkpoint.metadata),
        looks_like=looks_like({info.key: info.shape for info in infos}),
        contents=tuple(TensorLine(info.key, info.dtype_name, tuple(info.shape)) for info in infos),
    )
