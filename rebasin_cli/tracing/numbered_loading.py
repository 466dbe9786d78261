"""Running a loader on numbers, where it decides by the values of the file's tensors and cannot run on fake ones.

Every element of the file is its number, and the loader runs twice, with two numberings. Where the results agree on an
element, it was moved; where both are equal, it comes from no file; where they do not agree, it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn

from rebasin_cli.model.loading import Loaded, Tensors
from rebasin_cli.model.state import state_tensors
from rebasin_cli.tracing.load_program import NumberedPart, Part
from rebasin_cli.tracing.loading import Header, LoadProgram, with_versions

MOST_ELEMENTS = 1 << 26
"""Numbers are float64, so a file of this size takes half a gigabyte, and the module as much."""


def numbered_loading(
    headers: Mapping[str, Header],
    load: Callable[[Tensors, Callable[[nn.Module], None]], Loaded],
    keys: Sequence[str],
    versions: Mapping[str, object] | None = None,
) -> LoadProgram:
    """What a loader does with the elements of a file of at most `MOST_ELEMENTS`; see `record_loading`."""
    total = sum(prod(header.shape) for header in headers.values())
    order = torch.randperm(total, generator=torch.Generator().manual_seed(0))
    first = torch.arange(1, total + 1, dtype=torch.float64)
    second = first[order] + total  # no element has the same number twice
    one, loaded = _loaded(headers, load, keys, first, versions)
    two, _ = _loaded(headers, load, keys, second, versions)
    places = {key: _places(one[key], two[key], second) for key in one if key in two}
    computed = {key: "arithmetic" for key, found in places.items() if found is None}
    moved = {key: found for key, found in places.items() if found is not None and bool(found.any())}
    made = tuple(key for key in places if key not in computed and key not in moved)
    parts = _parts(headers, moved)
    used = {key for part in parts for key in part.file_keys}
    return LoadProgram(
        parts=parts,
        computed=computed,
        made=made,
        missing=loaded.missing,
        parameters=frozenset(key for key, value in state_tensors(loaded.module).items() if _is_parameter(value)),
        values={key: one[key] for key in made},
        unused=tuple(key for key in headers if key not in used),
        unexpected=loaded.unexpected,
    )


def _is_parameter(value: Tensor) -> bool:
    return isinstance(value, nn.Parameter)


def _loaded(
    headers: Mapping[str, Header],
    load: Callable[[Tensors, Callable[[nn.Module], None]], Loaded],
    keys: Sequence[str],
    numbers: Tensor,
    versions: Mapping[str, object] | None,
) -> tuple[dict[str, Tensor], Loaded]:
    given, start = {}, 0
    for key, header in headers.items():
        count = prod(header.shape)
        dtype = torch.float64 if header.dtype.is_floating_point else torch.int64
        given[key] = numbers[start : start + count].clone().view(header.shape).to(dtype)
        start += count
    loaded = load(with_versions(given, versions), _with_wide_parameters)
    state = state_tensors(loaded.module)
    return {key: state[key].detach().double() for key in keys if key in state and not state[key].is_meta}, loaded


def _with_wide_parameters(module: nn.Module) -> None:
    """Parameters without memory get some, in float64, which holds every number exactly."""
    made: dict[int, nn.Parameter] = {}
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta:
                wide = torch.zeros(parameter.shape, dtype=torch.float64)
                owner._parameters[name] = made.setdefault(id(parameter), nn.Parameter(wide, requires_grad=False))
        for name, buffer in owner._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                owner._buffers[name] = buffer.double()


def _places(one: Tensor, two: Tensor, second: Tensor) -> Tensor | None:
    """The number of the file's element for each; 0 for those that come from no file; None if any was computed."""
    if one.shape != two.shape:
        return None
    known = (one >= 1) & (one <= len(second)) & (one == one.round())
    index = torch.where(known, one, torch.ones_like(one)).long() - 1
    from_file = known & (second[index] == two)
    if not bool((from_file | (one == two)).all()):
        return None
    return torch.where(from_file, index + 1, torch.zeros_like(index))


def _parts(headers: Mapping[str, Header], moved: Mapping[str, Tensor]) -> tuple[Part, ...]:
    """The tensors of the module, together where they read one tensor of the file."""
    names = list(headers)
    starts = torch.tensor([0, *(prod(headers[key].shape) for key in names)]).cumsum(0)
    groups: list[tuple[set[int], list[str]]] = []
    for key, places in moved.items():
        read = set((torch.bucketize(places[places > 0], starts) - 1).tolist())
        met = [group for group in groups if group[0] & read]
        groups = [group for group in groups if group not in met]
        groups.append((read.union(*(group[0] for group in met)), [*(k for group in met for k in group[1]), key]))
    return tuple(_part(names, starts, sorted(read), {key: moved[key] for key in keys}) for read, keys in groups)


def _part(names: Sequence[str], starts: Tensor, read: Sequence[int], places: Mapping[str, Tensor]) -> Part:
    """With the elements of its own tensors of the file numbered from 1."""
    found = {key: torch.zeros_like(numbers) for key, numbers in places.items()}
    before = 0
    for number in read:
        start, end = int(starts[number]), int(starts[number + 1])
        for key, numbers in places.items():
            own = (numbers > start) & (numbers <= end)
            found[key] = torch.where(own, numbers - start + before, found[key])
        before += end - start
    return NumberedPart(tuple(names[number] for number in read), found)
