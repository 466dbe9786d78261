"""Pairs of checkpoints for benchmarks, of any size: drawn and written tensor by tensor, never whole in memory.

A's tensors are drawn at random, each from a seed of its own. B is one of

- `random`: drawn from other seeds: nothing in common;
- `planted`: A under random permutations of all its groups, with noise;
- `tuned`: A with a little noise, as fine-tuning leaves it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from torch import Tensor

from rebasin_cli import permutation
from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import state_tensors
from rebasin_cli.spec import PermutationSpec

NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
Draw = Callable[[str], Tensor]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two files, and the spec of their model."""

    a: Path
    b: Path
    spec: PermutationSpec
    parameters: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of one checkpoint."""
        files = self.a.parent.glob(f"{self.a.parent.name}-*") if self.a.suffix == ".json" else [self.a]
        return sum(file.stat().st_size for file in files)


def make_pair(
    folder: Path,
    model: str,
    kind: str,
    *,
    model_args: Mapping[str, Any] | None = None,
    inputs: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    noise: float = 0.1,
    shards: int = 1,
) -> Pair:
    """Write `a` and `b` of a model into a folder.

    Args:
        kind: `random`, `planted` or `tuned`.
        noise: standard deviations of each tensor, for the latter two.
        shards: files that each checkpoint is cut into.
    """
    choice = ModelChoice(model, dict(model_args or {}), inputs)
    subject = open_subject(choice)
    spec = understand(subject, choice).spec
    reference = state_tensors(load_factory(model, choice.args).build_weightless())
    hidden = permutation.random(spec, 1)

    def first(key: str) -> Tensor:
        return drawn(key, reference[key], 0).to(dtype_of(reference[key], dtype))

    def second(key: str) -> Tensor:
        if kind == "random" or not reference[key].is_floating_point():
            return drawn(key, reference[key], 1).to(dtype_of(reference[key], dtype))
        tensor = drawn(key, reference[key], 0)
        if tensor.dim() > 1:
            tensor += noise * deviation(reference[key]) * torch.randn(tensor.shape, generator=seeded(key, 2))
        steps = permutation.gathers(spec, hidden, key, tensor.shape) if kind == "planted" else []
        return permutation.permute_tensor(tensor, steps).to(dtype)

    shapes = {key: (dtype_of(tensor, dtype), tuple(tensor.shape)) for key, tensor in reference.items()}
    keys = [key for key in shapes if key not in subject.ties]
    files = [write(folder, name, {key: shapes[key] for key in keys}, draw, shards)
             for name, draw in (("a", first), ("b", second))]  # fmt: skip
    return Pair(files[0], files[1], spec, subject.parameters)


def dtype_of(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if tensor.is_floating_point() else tensor.dtype


def seeded(key: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(crc32(f"{seed} {key}".encode()))  # 32 bits are all that count


def deviation(tensor: Tensor) -> float:
    return sqrt(1.0 / max(1, prod(tensor.shape[1:])))


def drawn(key: str, like: Tensor, seed: int) -> Tensor:
    """Weights as initialisation gives them: matrices at random, scales one, shifts zero; index tables as they are."""
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype) if like.is_meta else like.detach().contiguous()
    if like.dim() > 1:
        return torch.randn(like.shape, generator=seeded(key, seed)) * deviation(like)
    shift = key.endswith("bias") or "mean" in key
    return torch.zeros(like.shape) if shift else torch.ones(like.shape)


def write(
    folder: Path, name: str, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], draw: Draw, shards: int
) -> Path:
    """A safetensors file, or so many with their index in a folder of their own."""
    if shards == 1:
        write_file(folder / f"{name}.safetensors", shapes, draw)
        return folder / f"{name}.safetensors"
    (folder / name).mkdir()
    keys = list(shapes)
    cut = [keys[number * len(keys) // shards : (number + 1) * len(keys) // shards] for number in range(shards)]
    names = [f"{name}-{number:05d}-of-{shards:05d}.safetensors" for number in range(1, shards + 1)]
    for file, part in zip(names, cut, strict=True):
        write_file(folder / name / file, {key: shapes[key] for key in part}, draw)
    index = folder / name / f"{name}.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {k: f for f, part in zip(names, cut, strict=True) for k in part}}))
    return index


def write_file(path: Path, shapes: Mapping[str, tuple[torch.dtype, tuple[int, ...]]], draw: Draw) -> None:
    header, end = {}, 0
    for key, (dtype, shape) in shapes.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[key] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key in shapes:
            file.write(draw(key).contiguous().reshape(-1).view(torch.uint8).numpy().data)
