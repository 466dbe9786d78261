"""The header of a safetensors file: read with every check made before anything is allocated, and written.

    8 bytes little-endian length n | n bytes of JSON {key: {dtype, shape, data_offsets}} | tensor bytes without holes

The limits are ours and lower than the format's: a header may legally hold a million empty tensors, which costs minutes
and gigabytes in any reader that builds an object for each.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.sniff import hint_for, identify
from rebasin_cli.checkpoint.wording import one_line, quoted, size
from rebasin_cli.errors import CheckpointError

LONGEST_HEADER = 32 << 20
MOST_TENSORS = 200_000
MOST_AXES = 64
_LARGEST = (1 << 63) - 1
_MOST_DIGITS = 20

_NAMES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
DTYPES: dict[str, torch.dtype] = {name: getattr(torch, attr) for name, attr in _NAMES.items() if hasattr(torch, attr)}


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor's header entry; `begin` and `end` count from the first byte after the header."""

    key: str
    dtype: torch.dtype
    dtype_name: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header that has been checked: entries in the order of the JSON, and where the tensor bytes begin."""

    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(file: MappedFile) -> Header:
    """Read and check a header.

    Raises:
        CheckpointError: the file is too small, something else, truncated, beyond the limits, or its entries are
            malformed, overlap, leave holes or do not add up to the file's size.
    """
    length = _header_length(file)
    parsed = _parse(file, file.read(8, length))
    metadata = _metadata(file, parsed.pop("__metadata__", None))
    entries = {key: _entry(file, key, value) for key, value in parsed.items()}
    _check_cover(file, entries, file.size - 8 - length)
    return Header(entries, metadata, 8 + length)


def build_header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The bytes before the tensors: same keys, order and offsets; other metadata; padded with spaces to eight bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, entry in header.entries.items():
        content[key] = {
            "dtype": entry.dtype_name,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _refuse(file: MappedFile, what: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(f"{file.path}: {what}", path=file.path, hint=hint)


def _header_length(file: MappedFile) -> int:
    if file.size == 0:
        raise _refuse(file, "empty file (0 bytes), not a safetensors file")
    head = file.read(0, 512)
    found = identify(head)
    if found and found != "a safetensors file":
        raise _refuse(file, f"not a safetensors file: it is {found}", hint_for(found))
    if file.size < 8:
        raise _refuse(file, f"too small to be a safetensors file: {size(file.size)}, the header's length alone takes 8")
    length = int.from_bytes(head[:8], "little")
    if length > LONGEST_HEADER:
        seen = f"header length {length:,} exceeds the limit of {size(LONGEST_HEADER)}"
        raise _refuse(file, f"{seen}; not a safetensors file, or corrupt")
    if 8 + length > file.size:
        raise _refuse(file, f"truncated: the header takes {size(8 + length)}, the file has {size(file.size)}")
    if head[8:9] != b"{":
        raise _refuse(file, "not a safetensors file: its header does not begin with '{'")
    return length


def _parse(file: MappedFile, raw: bytes) -> dict[str, Any]:
    if raw.count(b'"data_offsets"') > MOST_TENSORS:
        raise _refuse(file, f"the header names more than {MOST_TENSORS:,} tensors, the limit")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise _refuse(file, f"the header holds the key {quoted(twice)} more than once")
        return found

    def whole(text: str) -> int:
        if len(text) > _MOST_DIGITS:
            raise _refuse(file, f"the header holds the number {text[:_MOST_DIGITS]}…, beyond any size or offset")
        return int(text)

    def no_number(text: str) -> Any:
        raise _refuse(file, f"the header holds {quoted(text)} where only whole numbers may stand")

    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=no_number,
            parse_constant=no_number,
        )
    except (ValueError, RecursionError) as error:
        raise _refuse(file, f"the header is not valid JSON: {one_line(error)}") from error
    if not isinstance(parsed, dict):
        raise _refuse(file, "the header is not a JSON object")
    if len(parsed) > MOST_TENSORS + 1:
        raise _refuse(file, f"the header names {len(parsed):,} tensors, more than the limit of {MOST_TENSORS:,}")
    return parsed


def _metadata(file: MappedFile, found: Any) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise _refuse(file, "the header's __metadata__ is not a mapping from text to text")
    return found


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= _LARGEST for item in value)


def _entry(file: MappedFile, key: str, value: Any) -> Entry:
    name = quoted(key)
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise _refuse(file, f"tensor {name}: the header entry lacks dtype, shape or data_offsets")
    dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
        raise _refuse(file, f"tensor {name}: unknown dtype {quoted(dtype_name)}", f"known are {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > MOST_AXES:
        raise _refuse(file, f"tensor {name}: shape {one_line(shape, longest=80)} is not a list of sizes")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _refuse(file, f"tensor {name}: data offsets {one_line(offsets, longest=80)} are not [begin, end]")
    if math.prod(max(1, length) for length in shape) > _LARGEST:
        raise _refuse(file, f"tensor {name}: shape {one_line(shape, longest=80)} overflows")
    dtype = DTYPES[dtype_name]
    needed, given = math.prod(shape) * dtype.itemsize, offsets[1] - offsets[0]
    if needed != given:
        seen = f"shape {shape} of {dtype_name} takes {size(needed)}, its offsets {offsets} give {size(given)}"
        raise _refuse(file, f"tensor {name}: {seen}")
    return Entry(key, dtype, dtype_name, tuple(shape), offsets[0], offsets[1])


def _check_cover(file: MappedFile, entries: Mapping[str, Entry], available: int) -> None:
    """The tensors' segments must tile `[0, available)`: neither overlap nor hole, nor bytes that nobody explains."""
    reached, previous = 0, ""
    for entry in sorted(entries.values(), key=lambda one: (one.begin, one.end)):
        where = f"tensor {quoted(entry.key)}: data offsets [{entry.begin}, {entry.end}]"
        if entry.begin < reached:
            raise _refuse(file, f"{where} overlap those of {quoted(previous)}, which end at {reached}")
        if entry.begin > reached:
            raise _refuse(file, f"{where} leave a hole after byte {reached}")
        reached, previous = entry.end, entry.key
    start = file.size - available
    if reached > available:
        raise _refuse(
            file,
            f"truncated: the header describes {size(start + reached)}, the file has {size(file.size)}",
            "the copy or download was not finished; fetch the file again",
        )
    if reached < available:
        seen = f"the header describes {size(start + reached)}, the file has {size(file.size)}"
        raise _refuse(file, f"{available - reached:,} unexplained bytes after the last tensor: {seen}")
