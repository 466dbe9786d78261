"""Verifications that a spec passed, kept in the user's cache directory so that a repeated alignment need not pay again.

Only passes are kept. The key is a hash of all that decides the outcome: the recorded operations with their arguments
and constants, the spec, the input, the source of the model's classes, the seed, and the versions of this program and of
PyTorch. A file that cannot be read counts as absent, and one that cannot be written is left out.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli import __version__
from rebasin_cli.execution.power import Power
from rebasin_cli.execution.soundness import SoundnessCheck
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.tracing.graph import Trace

FORMAT = 2


def cache_directory() -> Path:
    """`$XDG_CACHE_HOME/rebasin`, by default `~/.cache/rebasin` (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "rebasin"


class PassCache:
    """The place of one verification. Nothing is kept where there is no trace (the spec came from a file)."""

    def __init__(
        self, trace: Trace | None, spec: PermutationSpec, example: ExampleInput, module: nn.Module, seed: int
    ) -> None:
        self._path: Path | None = None
        if trace is not None:
            try:
                self._path = cache_directory() / "verified" / f"{_digest(trace, spec, example, module, seed)}.json"
            except (OSError, RuntimeError):  # no home directory, a source that cannot be read
                self._path = None

    def read(self) -> SoundnessCheck | None:
        """The verification that an earlier run passed; None where there is none."""
        if self._path is None:
            return None
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            power = kept.pop("power")
            kept["one_step"] = tuple(kept["one_step"])
            made = Power(tuple((str(group), str(key)) for group, key in power["unseen"]), power["unknown"])
            check = SoundnessCheck(**{**kept, "power": made, "cached": True})
            return check if check.ok else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, check: SoundnessCheck) -> None:
        """Keep a pass; the file appears whole or not at all."""
        if self._path is None or not check.ok:
            return
        text = json.dumps(asdict(replace(check, cached=False)))
        partial = self._path.with_suffix(f".{os.getpid()}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self._path)
        except OSError:
            partial.unlink(missing_ok=True) if partial.parent.is_dir() else None


def _digest(trace: Trace, spec: PermutationSpec, example: ExampleInput, module: nn.Module, seed: int) -> str:
    made = hashlib.sha256()
    for part in _parts(trace, spec, example, module, seed):
        made.update(len(part).to_bytes(8, "little"))
        made.update(part)
    return made.hexdigest()


def _parts(trace: Trace, spec: PermutationSpec, example: ExampleInput, module: nn.Module, seed: int) -> Iterator[bytes]:
    yield f"{FORMAT} {__version__} {torch.__version__} {sys.version_info[:2]} {seed}".encode()
    yield json.dumps(spec.to_json(), sort_keys=True).encode()
    for value in trace.values:
        yield f"{value.shape} {value.dtype}".encode()
    for call in trace.calls:
        yield f"{call.overload} {call.scope} {call.results}".encode()
        for name, argument in call.arguments.items():
            yield from _argument(name, argument)
    yield repr((sorted(trace.state.items()), trace.inputs, trace.outputs)).encode()
    for place, numbers in sorted(trace.constants.items()):
        yield str(place).encode()
        yield tensor_bytes(numbers)
    for name, tensor in example.tensors():
        yield name.encode()
        yield tensor_bytes(tensor)
    yield from (path.encode() + Path(path).read_bytes() for path in source_files(module))


def _argument(name: str, argument: Any) -> Iterator[bytes]:
    if isinstance(argument, Tensor):
        yield name.encode()
        yield tensor_bytes(argument)
    else:
        yield f"{name}={argument!r}".encode()


def tensor_bytes(tensor: Tensor) -> bytes:
    """Shape, dtype and numbers of a tensor, for a hash."""
    if tensor.is_meta:
        return f"meta {tuple(tensor.shape)} {tensor.dtype}".encode()
    plain = tensor.detach()
    plain = (plain.to_dense() if plain.layout is not torch.strided else plain).cpu().contiguous()
    head = f"{tuple(plain.shape)} {plain.dtype} ".encode()
    return head + (plain.reshape(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b"")


def source_files(module: nn.Module) -> list[str]:
    """The files in which the model's classes are written, PyTorch's own left out: its version stands for them."""
    files: set[str] = set()
    for kind in {type(owner) for owner in module.modules()}:
        if not kind.__module__.startswith("torch."):
            try:
                files.add(inspect.getfile(kind))
            except (TypeError, OSError):
                continue
    return sorted(file for file in files if os.path.isfile(file))
