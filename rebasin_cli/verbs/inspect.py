"""`inspect`: the contents of checkpoints, from their headers alone, and the model they look like. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from rebasin_cli.checkpoint import open_checkpoint
from rebasin_cli.options import AnyPaths, argument, options_class, verb
from rebasin_cli.verbs.document import Result
from rebasin_cli.verbs.fingerprint import looks_like
from rebasin_cli.verbs.shared_options import StateChoice


@dataclass(frozen=True, slots=True)
class TensorLine:
    """One tensor of the file."""

    key: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """One checkpoint: `elements` of all tensors including buffers; `dtypes` counts tensors by dtype."""

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
class InspectResult(Result):
    """One entry for each file, in the order of the arguments."""

    files: tuple[Inspection, ...]


@options_class
class InspectOptions(StateChoice):
    """The options of `inspect`."""

    files: AnyPaths = argument(
        "Checkpoints, or directories of sharded ones. Only headers are read.", metavar="FILE ...", kw_only=False
    )


def run_inspect(options: InspectOptions) -> InspectResult:
    """Read the headers of checkpoints; no tensor is read.

    Raises:
        CheckpointError: a file cannot be read safely.
    """
    return InspectResult(tuple(_inspect(path, options.key, options.ema) for path in options.files))


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


inspect = verb(InspectOptions, run_inspect)
