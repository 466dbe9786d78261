"""`--input` and `--input-file`: the user states the example input.

`1,3,224,224` is one float32 tensor of standard normal values; `ids=1,16:int64` is passed by name; `ids=1,16:int64<1000`
draws integers below 1000. Without a bound, integers stay below the number of rows of the model's first embedding, or
below 2 where it has none: an index must be valid in an unknown table.
"""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rebasin_cli.errors import DataError, UsageError, one_line
from rebasin_cli.model.example_input import ExampleInput, Sampler

MAX_ELEMENTS = 2**31
MAX_BYTES = 2**33
ALSO_EXAMPLES = "for example --also-input 'ids=1,16:int64; task=\"b\"'"
EXAMPLES = "for example --input 1,3,224,224 or --input ids=1,16:int64"

_DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool")
} | {"float": torch.float32, "double": torch.float64, "half": torch.float16, "int": torch.int64, "long": torch.int64}

_FORM = re.compile(
    r"(?:(?P<name>[^\W\d]\w*)=)?(?P<dims>\d+(?:[,x]\d+)*[,]?|scalar)(?::(?P<dtype>\w+))?(?:<(?P<bound>\d+))?"
)


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One `--input`: `name` is None for a positional argument; `bound` is exclusive and for integers only."""

    name: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    bound: int | None = None


def parse_input(text: str) -> InputSpec:
    """Read `[name=]d,d,…[:dtype][<bound]`; `scalar` for no dimensions.

    Raises:
        UsageError: the text has another form, an unknown dtype, or asks for more than two thousand million elements.
    """
    match = _FORM.fullmatch(text.replace(" ", ""))
    if match is None:
        raise UsageError(f"--input {text!r} is not [name=]shape[:dtype][<bound]", hint=EXAMPLES)
    dims = match["dims"]
    shape = () if dims == "scalar" else tuple(int(size) for size in re.split("[,x]", dims.rstrip(",")))
    if prod(shape) > MAX_ELEMENTS:
        raise UsageError(f"--input {text!r} asks for {prod(shape)} elements, more than {MAX_ELEMENTS}")
    dtype = _DTYPES.get(match["dtype"] or "float32")
    if dtype is None:
        raise UsageError(f"--input {text!r}: unknown dtype {match['dtype']!r}", hint=f"one of {', '.join(_DTYPES)}")
    bound = None if match["bound"] is None else int(match["bound"])
    if bound is not None and (dtype.is_floating_point or bound < 1):
        raise UsageError(f"--input {text!r}: a bound is for integers, and at least 1", hint=EXAMPLES)
    return InputSpec(match["name"], shape, dtype, bound)


def given_input(
    texts: Sequence[str], file: str | Path | None = None, module: nn.Module | None = None, seed: int = 0
) -> ExampleInput | None:
    """The input from `--input` or `--input-file`; None if neither is given.

    Raises:
        UsageError: both are given, or a text cannot be read.
        DataError: the file cannot.
    """
    if texts and file is not None:
        raise UsageError("--input and --input-file exclude each other")
    if file is not None:
        return read_input_file(file)
    return draw([parse_input(text) for text in texts], module, seed) if texts else None


def draw(
    specs: Sequence[InputSpec], module: nn.Module | None = None, seed: int = 0, *, smallest_table: bool = False
) -> ExampleInput:
    """Random tensors for the specs, from one seed; `module` gives the bound of integers without one.

    That is the number of rows of its first embedding, or with `smallest_table` of its smallest.
    """
    sampler = Sampler(seed)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for spec in specs:
        if spec.dtype.is_floating_point:
            value = sampler.normal(*spec.shape, dtype=spec.dtype)
        elif spec.dtype is torch.bool:
            value = torch.ones(spec.shape, dtype=torch.bool)  # booleans are masks: nothing masked
        else:
            value = sampler.integers(spec.shape, spec.bound or _safe_bound(module, smallest_table), spec.dtype)
        if spec.name is None:
            args.append(value)
        elif spec.name in kwargs:
            raise UsageError(f"--input {spec.name} is given twice")
        else:
            kwargs[spec.name] = value
    return ExampleInput(tuple(args), kwargs)


def further_input(text: str, first: ExampleInput, module: nn.Module | None, seed: int) -> ExampleInput:
    """`--also-input`: the arguments of a further pass, separated by semicolons.

    Each is a tensor as in `--input`, or `name=value`, whose value is JSON or plain text. Where no tensor is given, the
    first input's are taken: `task="b"` calls the model again with another task.

    Raises:
        UsageError: an argument has neither form.
    """
    specs: list[InputSpec] = []
    values: dict[str, Any] = {}
    for part in (piece.strip() for piece in text.split(";")):
        if _FORM.fullmatch(part.replace(" ", "")):
            specs.append(parse_input(part))
            continue
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UsageError(f"--also-input {text!r}: {part!r} is neither a tensor nor name=value", hint=ALSO_EXAMPLES)
        try:
            values[name.strip()] = json.loads(value)
        except ValueError:
            values[name.strip()] = value.strip()
    drawn = draw(specs, module, seed) if specs else first
    return ExampleInput(drawn.args, {**drawn.kwargs, **values})


def _safe_bound(module: nn.Module | None, smallest: bool) -> int:
    children = module.modules() if module is not None else ()
    rows = [child.num_embeddings for child in children if isinstance(child, (nn.Embedding, nn.EmbeddingBag))]
    return (min(rows) if smallest else rows[0]) if rows else 2


def in_unit_range(example: ExampleInput) -> ExampleInput:
    """The example with floating values in (0, 1): standard normal values are mapped by their distribution function."""
    return _changed(
        example, lambda t: torch.special.ndtr(t.double()).clamp(1e-3, 1 - 1e-3).to(t.dtype), torch.is_floating_point
    )


def with_masks_off(example: ExampleInput) -> ExampleInput:
    """The example with all booleans false: for models whose masks state what to leave out."""
    return _changed(example, torch.zeros_like, lambda t: t.dtype is torch.bool)


def _changed(
    example: ExampleInput, change: Callable[[Tensor], Tensor], wanted: Callable[[Tensor], bool]
) -> ExampleInput:
    def changed(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) and wanted(value) else value

    return ExampleInput(
        tuple(changed(value) for value in example.args),
        {name: changed(value) for name, value in example.kwargs.items()},
    )


def read_input_file(path: str | Path) -> ExampleInput:
    """The arrays of an `.npz` file as arguments; see `from_arrays` for which are positional.

    Raises:
        DataError: the file is absent, is something else, or holds Python objects (those are never unpickled).
    """
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{file}: no such file", path=file)
    if not zipfile.is_zipfile(file):
        raise DataError(f"{file}: not an .npz file", path=file, hint="write it with numpy.savez")
    try:
        arrays = _read_npz(file)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{file}: not a readable .npz file: {one_line(error)}", path=file) from error
    if not arrays:
        raise DataError(f"{file}: holds no arrays", path=file)
    return from_arrays(arrays)


def from_arrays(arrays: Mapping[str, Tensor]) -> ExampleInput:
    """Named tensors as arguments: `0`, `arg0`, `arr_0` are positional, by their numbers; all others go by name.

    A tensor that is alone and called `x` or `input` is the one positional argument.
    """
    places = {name: _position(name, len(arrays) == 1) for name in arrays}
    order = sorted((place, name) for name, place in places.items() if place is not None)
    keywords = {name: tensor for name, tensor in arrays.items() if places[name] is None}
    return ExampleInput(tuple(arrays[name] for _, name in order), keywords)


def _position(name: str, alone: bool) -> int | None:
    match = re.fullmatch(r"(?:arr|arg|args|input)?_?(\d+)", name)
    if match:
        return int(match[1])
    return 0 if alone and name in {"x", "input", "inputs"} else None


def _read_npz(file: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(file) as archive:
        claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MAX_BYTES:
        raise DataError(f"{file}: unpacks to {claimed} bytes, more than {MAX_BYTES}", path=file)
    arrays: dict[str, Tensor] = {}
    with np.load(file, allow_pickle=False) as loaded:
        for name in loaded.files:
            try:
                array = loaded[name]
            except ValueError as error:
                raise DataError(
                    f"{file}: array {name!r} cannot be read safely: {one_line(error)}", path=file
                ) from error
            if array.dtype.kind not in "fiub":
                raise DataError(f"{file}: array {name!r} has dtype {array.dtype}, not numbers", path=file)
            arrays[name] = torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return arrays
