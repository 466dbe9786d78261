"""Files for these tests, good and bad, from a few lines of struct and json."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from rebasin_cli.errors import RebasinError


def safetensors_bytes(header: dict[str, Any] | str, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[int], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def one_line(info: pytest.ExceptionInfo[RebasinError]) -> str:
    """Everything the error says, after checking that it is one line and never torch's dangerous advice."""
    error = info.value
    text = f"{error.message} {error.hint or ''}"
    assert "\n" not in text
    assert "weights_only=False" not in text.replace(" ", "")
    return text
