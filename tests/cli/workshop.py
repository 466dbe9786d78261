"""Checkpoints built from a few lines of struct and json, good and bad ones, and a small model they belong to."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

NET = """
from torch import nn


def build(width=8, classes=4):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 4, 6), nn.ReLU(), nn.Linear(6, classes),
    )


def tied():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.into = nn.Linear(5, 7, bias=False)
            self.first = nn.Linear(7, 7, bias=False)
            self.second = nn.Linear(7, 7, bias=False)
            self.second.weight = self.first.weight
            self.out = nn.Linear(7, 3)

        def forward(self, x):
            x = self.into(x).relu()
            return self.out(self.second(self.first(x).relu()).relu())

    return Tied()


def a_dict():
    return {"weights": 1}


def broken():
    raise RuntimeError("the user's own words")
"""

MODEL = ["--model", "net.py:build", "--input", "2,1,4,4"]
ALIGN = ["align", "a.safetensors", "b.safetensors", *MODEL]


def state(seed: int) -> dict[str, Tensor]:
    """A state of the small model: random weights, random norm parameters and running statistics."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "0.weight": normal(8, 1, 3, 3),
        "1.weight": normal(8).abs() + 0.5,
        "1.bias": normal(8),
        "1.running_mean": normal(8),
        "1.running_var": normal(8).abs() + 0.5,
        "1.num_batches_tracked": torch.tensor(3),
        "4.weight": normal(6, 32),
        "4.bias": normal(6),
        "6.weight": normal(4, 6),
        "6.bias": normal(4),
    }


def permuted(tensors: Mapping[str, Tensor], channels: Tensor, hidden: Tensor) -> dict[str, Tensor]:
    """The small model's state with its units in another order, written out by hand."""
    moved = dict(tensors)
    for key in ("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var"):
        moved[key] = tensors[key][channels]
    moved["4.weight"] = tensors["4.weight"].view(6, 8, 4)[:, channels].reshape(6, 32)[hidden]
    moved["4.bias"] = tensors["4.bias"][hidden]
    moved["6.weight"] = tensors["6.weight"][:, hidden]
    return moved


_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}


def safetensors_bytes(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file format, written out by hand."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    body = b""
    for key, tensor in tensors.items():
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        header[key] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(raw)],
        }
        body += raw
    return with_header(json.dumps(header).encode(), body)


def with_header(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read back without the code under test."""
    raw = path.read_bytes()
    length = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8 : 8 + length])
    dtypes = {name: dtype for dtype, name in _DTYPES.items()}
    tensors = {}
    for key, entry in header.items():
        if key != "__metadata__":
            begin, end = (8 + length + offset for offset in entry["data_offsets"])
            flat = torch.frombuffer(bytearray(raw[begin:end]), dtype=dtypes[entry["dtype"]])
            tensors[key] = flat.view(entry["shape"])
    return tensors


def furnish(place: Path) -> None:
    """net.py, a.safetensors and b.safetensors."""
    (place / "net.py").write_text(NET)
    for name, seed in (("a", 0), ("b", 1)):
        (place / f"{name}.safetensors").write_bytes(safetensors_bytes(state(seed)))
