"""Safetensors files: named tensors mapped from the file, and written as a stream.

    8 bytes little-endian length n | n bytes of JSON {key: {dtype, shape, data_offsets}} | tensor bytes without holes

Why not the safetensors package: its reader does not check for duplicate keys or limit the number of tensors (a header
may legally hold a million empty tensors, which takes minutes and gigabytes in any reader that makes an object for
each), and its writer ignores the umask, replaces symlinks, does not fsync and holds the whole model in memory. The
package still decides whether a written file is valid: it must find the same tensors as in the input.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from rebasin_cli.checkpoint.checkpoint import (
    ITEM_SIZES,
    Checkpoint,
    OneFileCheckpoint,
    TensorInfo,
    Transform,
    WholeTransform,
    check_alike,
    raw_bytes,
    torch_dtype,
    transformed,
    untied,
    with_provenance,
)
from rebasin_cli.checkpoint.formats import Format
from rebasin_cli.checkpoint.mapped_file import MappedFile
from rebasin_cli.checkpoint.state_dicts import chosen_prefix
from rebasin_cli.errors import CheckpointError, NumericalError, folded, quoted, size

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_HEADER = 32 << 20
MOST_TENSORS = 200_000
MOST_AXES = 64
_LARGEST = (1 << 63) - 1
_MOST_DIGITS = 20

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32",
    "U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""Names of dtypes in the format -> torch's names."""

_NAMES = {name: dtype for dtype, name in DTYPES.items()}


class SafetensorsFormat(Format):
    """One safetensors file."""

    name = "safetensors"
    help = "a safetensors file"
    suffixes = (".safetensors",)

    def recognises(self, path: Path, head: bytes) -> bool:
        """Eight bytes of little-endian header length, then a JSON object: the format prescribes `{`."""
        return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40

    def open(self, path: Path, *, key: str | None = None, ema: bool = False) -> Checkpoint:
        return SafetensorsCheckpoint(path, key=key, ema=ema)

    creates = True

    def write_new(self, out: BinaryIO, source: Checkpoint, transform: Transform, provenance: Mapping[str, str]) -> None:
        """Ties are recorded in the metadata, as `safetensors.torch.save_model` does: the first key is stored."""
        tied = untied(source)
        stored = [info for key, info in source.infos.items() if key not in tied]
        kept = {key: value for key, value in source.metadata.items() if key not in tied}
        metadata = {"format": "pt", **kept, **tied}
        header = _new_header(stored)
        out.write(build_header(header, with_provenance(metadata, provenance)))
        for entry in sorted(header.entries.values(), key=lambda one: (one.begin, one.end)):
            before = source.tensor(entry.key)
            out.write(raw_bytes(transformed(entry.key, before, transform)))
        for key, first in tied.items():
            check_alike(source, key, first, transform)

    def cannot_hold(self, info: TensorInfo) -> bool:
        return info.dtype_name not in _NAMES

    def misfit(self, head: bytes, nbytes: int) -> str:
        return _header_fault(head, nbytes) or super().misfit(head, nbytes)


FORMAT = SafetensorsFormat()


class SafetensorsCheckpoint(OneFileCheckpoint):
    """One safetensors file.

    Args:
        path: the file.
        key: read only the tensors under this prefix (`model_ema` for `model_ema.…`); the others are written back as is.
        ema: likewise, with the first prefix that names averaged weights.

    Raises:
        CheckpointError: see `read_header`; or nothing lies under the prefix.
    """

    format = FORMAT

    def __init__(self, path: Path, *, key: str | None = None, ema: bool = False) -> None:
        self.path = path
        self.files = (path,)
        self._file = MappedFile(path)
        self._header = read_header(self._file)
        self._key, self._ema = key, ema
        self.metadata = self._header.metadata
        prefix = chosen_prefix(path, self._header.entries, key=key, ema=ema)
        self.wrapper = None if prefix is None else (prefix,)
        start = "" if prefix is None else f"{prefix}."
        self.infos: Mapping[str, TensorInfo] = {
            entry.key: TensorInfo(entry.key, DTYPES[entry.dtype], entry.shape, entry.end - entry.begin)
            for entry in self._header.entries.values()
            if entry.key.startswith(start)
        }
        self.ties = _recorded_ties(self.metadata, self.infos)
        self.beside_infos = {
            entry.key: TensorInfo(entry.key, DTYPES[entry.dtype], entry.shape, entry.end - entry.begin)
            for entry in self._header.entries.values()
            if entry.key not in self.infos
        }
        self.beside = dict(self.beside_infos)
        self.others = tuple(dict.fromkeys(key.split(".", 1)[0] for key in self.beside_infos))

    def beside_tensor(self, path: str) -> Tensor:
        return (
            self._mapped_tensor(self._header.entries[path])
            if path in self.beside_infos
            else super().beside_tensor(path)
        )

    def tensor(self, key: str) -> Tensor:
        key = self.stored_key(key)
        self.info(key)
        return self._mapped_tensor(self._header.entries[key])

    def verify(self) -> None:
        """The format has no checksums; its sizes were checked on opening."""

    def mapped(self) -> tuple[MappedFile, ...]:
        return (self._file,)

    def write_to(self, out: BinaryIO, transform: Transform, provenance: Mapping[str, str]) -> None:
        out.write(build_header(self._header, with_provenance(self.metadata, provenance)))
        for entry in sorted(self._header.entries.values(), key=lambda one: (one.begin, one.end)):
            self._write_tensor(out, entry, transform)

    def write_alone(self, path: Path, keys: Collection[str]) -> None:
        at, entries = 0, {}
        for key, entry in sorted(self._header.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if key in keys:
                entries[key] = replace(entry, begin=at, end=at + entry.end - entry.begin)
                at = entries[key].end
        with open(path, "xb") as out:
            out.write(build_header(Header(entries, self.metadata, 0), self.metadata))
            for key in entries:
                out.write(raw_bytes(self._mapped_tensor(self._header.entries[key])))

    def reopen(self, path: Path) -> SafetensorsCheckpoint:
        return SafetensorsCheckpoint(path, key=self._key, ema=self._ema)

    def check_copy(self, copy: Checkpoint) -> None:
        check_package_reads(self.path, copy.files[0])

    def entries_beside(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(key.split(".", 1)[0] for key in self._header.entries if key not in self.infos))

    def _write_tensor(self, out: BinaryIO, entry: HeaderEntry, transform: Transform) -> None:
        """A separate function, so that each result is freed before the next is made."""
        before = self._mapped_tensor(entry)
        change: Transform | None = None
        if entry.key in self.infos:
            change = transform
        elif isinstance(transform, WholeTransform) and entry.key in transform.beside_paths:
            change = transform.beside
        out.write(raw_bytes(before if change is None else transformed(entry.key, before, change)))

    def _mapped_tensor(self, entry: HeaderEntry) -> Tensor:
        dtype = torch_dtype(DTYPES[entry.dtype])
        count = (entry.end - entry.begin) // dtype.itemsize
        return self._file.elements(self._header.data_start + entry.begin, dtype, count).reshape(entry.shape)


def _recorded_ties(metadata: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> tuple[tuple[str, ...], ...]:
    """Ties that `safetensors.torch.save_model` wrote down: metadata `{removed key: key it is the same as}`."""
    groups: dict[str, list[str]] = {}
    for removed, kept in metadata.items():
        if kept in infos and removed not in infos and not removed.startswith("rebasin.") and removed != "format":
            groups.setdefault(kept, [kept]).append(removed)
    return tuple(tuple(group) for group in groups.values())


def check_package_reads(before: Path, after: Path) -> None:
    """Check that the safetensors package finds the same tensors in a written file as in the one it was made from.

    Raises:
        NumericalError: it does not. Nothing is checked if it cannot read the first file either.
    """
    keys = package_keys(before)
    if keys is not None and package_keys(after) != keys:
        raise NumericalError(
            f"{after}: the safetensors package does not find the tensors of {before} in the written file",
            path=after,
            hint="a bug of rebasin or a faulty disk; the output was not kept",
            slug="verification",
        )


def package_keys(path: Path) -> frozenset[str] | None:
    """The tensors that the safetensors package finds in a file; None if it cannot read the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return frozenset(file.keys())
    except (SafetensorError, OSError):
        return None


@dataclass(frozen=True, slots=True)
class HeaderEntry:
    """One tensor in the header; dtype as in the file; `begin` and `end` count from the first byte after the header."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: entries in the order of the JSON; the tensor bytes begin at `data_start`."""

    entries: Mapping[str, HeaderEntry]
    metadata: Mapping[str, str]
    data_start: int


def read_header(file: MappedFile) -> Header:
    """Read and check a header.

    Raises:
        CheckpointError: the file is too small, something else, truncated, beyond the limits, or its entries are
            malformed, overlap, leave holes or do not match the file's size.
    """
    length = _header_length(file)
    parsed = _parse(file, file.read(8, length))
    metadata = _metadata(file, parsed.pop("__metadata__", None))
    entries = {key: _entry(file, key, value) for key, value in parsed.items()}
    _check_cover(file, entries, file.size - 8 - length)
    return Header(entries, metadata, 8 + length)


def _new_header(infos: Iterable[TensorInfo]) -> Header:
    """A header for dense tensors in their order; wide dtypes come first in the file, so that all are aligned."""
    every = list(infos)
    begins, at = {}, 0
    for info in sorted(every, key=lambda one: -ITEM_SIZES[one.dtype_name]):
        begins[info.key] = at
        at += info.nbytes
    entries = {
        one.key: HeaderEntry(one.key, _NAMES[one.dtype_name], one.shape, begins[one.key], begins[one.key] + one.nbytes)
        for one in every
    }
    return Header(entries, {}, 0)


def build_header(header: Header, metadata: Mapping[str, str]) -> bytes:
    """The bytes before the tensors: same keys, order and offsets; other metadata; padded with spaces to eight bytes."""
    content: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for key, entry in header.entries.items():
        content[key] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [entry.begin, entry.end],
        }
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _refuse(file: MappedFile, what: str, hint: str | None = None) -> CheckpointError:
    return CheckpointError(f"{file.path}: {what}", path=file.path, hint=hint)


def _header_length(file: MappedFile) -> int:
    head = file.read(0, 16)
    fault = _header_fault(head, file.size)
    if fault is not None:
        raise _refuse(file, fault)
    length = int.from_bytes(head[:8], "little")
    if 8 + length > file.size:
        raise _refuse(file, f"truncated: the header takes {size(8 + length)}, the file has {size(file.size)}")
    return length


def _header_fault(head: bytes, nbytes: int) -> str | None:
    """Why a file of `nbytes` that begins with `head` cannot be a safetensors file; None if nothing is wrong so far."""
    if nbytes == 0:
        return "empty file (0 bytes), not a safetensors file"
    if nbytes < 8:
        return f"too small to be a safetensors file: {size(nbytes)}, the header's length alone takes 8"
    length = int.from_bytes(head[:8], "little")
    if length > LONGEST_HEADER:
        seen = f"header length {length:,} exceeds the limit of {size(LONGEST_HEADER)}"
        return f"{seen}; not a safetensors file, or corrupt"
    if nbytes > 8 and head[8:9] != b"{":
        return "not a safetensors file: its header does not begin with '{'"
    return None


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
        raise _refuse(file, f"the header holds {quoted(text)} where only whole numbers are allowed")

    try:
        parsed = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=whole,
            parse_float=no_number,
            parse_constant=no_number,
        )
    except (ValueError, RecursionError) as error:
        raise _refuse(file, f"the header is not valid JSON: {folded(error)}") from error
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


def _entry(file: MappedFile, key: str, value: Any) -> HeaderEntry:
    name = quoted(key)
    if not isinstance(value, dict) or not {"dtype", "shape", "data_offsets"} <= value.keys():
        raise _refuse(file, f"tensor {name}: the header entry lacks dtype, shape or data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise _refuse(file, f"tensor {name}: unknown dtype {quoted(dtype)}", f"known dtypes: {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > MOST_AXES:
        raise _refuse(file, f"tensor {name}: shape {folded(shape, longest=80)} is not a list of sizes")
    if not _whole_numbers(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _refuse(file, f"tensor {name}: data offsets {folded(offsets, longest=80)} are not [begin, end]")
    if math.prod(max(1, length) for length in shape) > _LARGEST:
        raise _refuse(file, f"tensor {name}: shape {folded(shape, longest=80)} overflows")
    needed, given = math.prod(shape) * ITEM_SIZES[DTYPES[dtype]], offsets[1] - offsets[0]
    if needed != given:
        seen = f"shape {shape} of {dtype} takes {size(needed)}, its offsets {offsets} give {size(given)}"
        raise _refuse(file, f"tensor {name}: {seen}")
    return HeaderEntry(key, dtype, tuple(shape), offsets[0], offsets[1])


def _check_cover(file: MappedFile, entries: Mapping[str, HeaderEntry], available: int) -> None:
    """The tensors' segments must tile `[0, available)`, without overlap, hole or rest."""
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
            "the copy or download is incomplete; fetch the file again",
        )
    if reached < available:
        seen = f"the header describes {size(start + reached)}, the file has {size(file.size)}"
        raise _refuse(file, f"{available - reached:,} unexplained bytes after the last tensor: {seen}")


def pack(tensors: Mapping[str, Tensor]) -> bytes:
    """A small file of tensors that belongs to another one; equal tensors give equal bytes."""
    from safetensors.torch import save

    content: bytes = save({name: tensors[name].contiguous() for name in sorted(tensors)})
    return content


def unpack(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors of such a file.

    Raises:
        CheckpointError: it is damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        found: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged: {error}", path=path) from error
    return found
