"""How a loader moves the elements of a file's tensors to those of a module: a program that can be run on any tensors.

A program consists of steps on *memories* (storages). Views need no step: an argument is a strided region of a memory.
So a step is an operation that writes memory, and replaying the steps on a file's tensors gives the module's, and on
numbers gives the number of the file's element that each element of the module is.

A program falls into parts that share no memory. Only one part's tensors need to be in memory at a time.
"""

from __future__ import annotations

import abc
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._pytree import tree_map_only

from rebasin_cli.tracing.operations import PICK, has

_CONVERSION = ("dtype", "layout", "device", "pin_memory", "non_blocking")
_INDEXED = ("aten.gather", "aten.index_put", "aten.index_copy")


@dataclass(frozen=True, slots=True)
class Region:
    """A strided view of a memory, in elements."""

    memory: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether it holds its elements in row-major order, without gaps."""
        expected = 1
        for length, step in zip(reversed(self.size), reversed(self.stride), strict=True):
            if length != 1 and step != expected:
                return False
            expected *= max(length, 1)
        return True

    @property
    def numel(self) -> int:
        return prod(self.size)

    def of(self, flat: Tensor) -> Tensor:
        return flat.as_strided(self.size, self.stride, self.offset)


@dataclass(frozen=True, slots=True)
class Step:
    """One operation that moves elements.

    Args:
        func: the operation.
        name: its namespace and name (`aten.cat`).
        args, kwargs: of the call, with regions in place of tensors.
        made: the region of each result that lies in new memory.
        reads, writes: memories of the arguments; `writes` has those of results too.
    """

    func: OpOverload
    name: str
    args: Any
    kwargs: Mapping[str, Any]
    made: tuple[Region | None, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


class Part(abc.ABC):
    """Some tensors of the file and some of the module, which share elements with no other part's.

    Attributes:
        file_keys: in the order in which their elements are numbered.
        model_keys: with the shape of each tensor.
    """

    __slots__ = ()

    @property
    @abc.abstractmethod
    def file_keys(self) -> tuple[str, ...]: ...

    @property
    @abc.abstractmethod
    def model_keys(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    @abc.abstractmethod
    def pair(self) -> tuple[str, tuple[str, ...]] | None:
        """The file's and the module's keys if it is one tensor of the file, unchanged, under one place of the module.

        Several keys of the module with one place are tied.
        """

    @abc.abstractmethod
    def renamed(self, names: Mapping[str, str]) -> Part:
        """With other names for the file's tensors."""

    @abc.abstractmethod
    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The module's tensors, in the dtype of the file's, from all of the part's tensors of the file."""

    @abc.abstractmethod
    def numbers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """For each element of the module's tensors, the number of the file's element; 0 if it comes from none.

        The elements of the part's tensors of the file are numbered from 1, in the order of `file_keys`.
        """


@dataclass(frozen=True, slots=True)
class NumberedPart(Part):
    """A part of which only the result is known: the numbers themselves."""

    read: tuple[str, ...]
    found: Mapping[str, Tensor]

    @property
    def file_keys(self) -> tuple[str, ...]:
        return self.read

    @property
    def model_keys(self) -> Mapping[str, tuple[int, ...]]:
        return {key: tuple(numbers.shape) for key, numbers in self.found.items()}

    @property
    def pair(self) -> tuple[str, tuple[str, ...]] | None:
        if len(self.file_keys) != 1 or len(self.found) != 1:
            return None
        key, numbers = next(iter(self.found.items()))
        unchanged = torch.equal(numbers.reshape(-1), torch.arange(1, numbers.numel() + 1, dtype=numbers.dtype))
        return (self.file_keys[0], (key,)) if unchanged else None

    def renamed(self, names: Mapping[str, str]) -> Part:
        return replace(self, read=tuple(names[key] for key in self.file_keys))

    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = _common(tensors[key].dtype for key in self.file_keys)
        flat = torch.cat([torch.zeros(1, dtype=dtype), *(tensors[key].reshape(-1).to(dtype) for key in self.file_keys)])
        return {key: flat[numbers] for key, numbers in self.found.items()}

    def numbers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        return dict(self.found)


@dataclass(frozen=True, slots=True)
class RecordedPart(Part):
    """Steps that share memory with no other part's, from some tensors of the file to some of the module.

    Args:
        sources: memory of each tensor of the file.
        targets: region of each tensor of the module.
        steps: in order.
        constants: contents of memories that come from no file, by memory; None where they are unknown.
        changed: memories of the file's tensors that a step writes into.
        sizes: number of elements of the constants.
    """

    sources: Mapping[str, int]
    targets: Mapping[str, Region]
    steps: tuple[Step, ...]
    constants: Mapping[int, Tensor | None]
    sizes: Mapping[int, int]
    changed: frozenset[int]

    @property
    def file_keys(self) -> tuple[str, ...]:
        return tuple(self.sources)

    @property
    def model_keys(self) -> Mapping[str, tuple[int, ...]]:
        return {key: region.size for key, region in self.targets.items()}

    @property
    def pair(self) -> tuple[str, tuple[str, ...]] | None:
        if len(self.sources) != 1 or len(set(self.targets.values())) != 1:
            return None
        whole = dict.fromkeys(self.sources.values(), True)
        for step in self.steps:
            if not _copies_whole(step, whole):
                return None
        region = next(iter(self.targets.values()))
        if not whole.get(region.memory) or region.offset or not region.contiguous:
            return None
        return next(iter(self.sources)), tuple(self.targets)

    def renamed(self, names: Mapping[str, str]) -> Part:
        return replace(self, sources={names[key]: memory for key, memory in self.sources.items()})

    def values(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        dtype = _common(tensors[key].dtype for key in self.file_keys)
        return self._run({key: tensors[key].to(dtype) for key in self.file_keys}, dtype, numbers=False)

    def numbers(self, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
        counts = {key: prod(shapes[key]) for key in self.file_keys}
        dtype = torch.int32 if sum(counts.values()) < 2**31 - 1 else torch.int64
        given, first = {}, 1
        for key, count in counts.items():
            given[key] = torch.arange(first, first + count, dtype=dtype).view(shapes[key])
            first += count
        return self._run(given, dtype, numbers=True)

    def _run(self, given: Mapping[str, Tensor], dtype: torch.dtype, *, numbers: bool) -> dict[str, Tensor]:
        memories: dict[int, Tensor] = {}
        last_use = {memory: place for place, step in enumerate(self.steps) for memory in (*step.reads, *step.writes)}
        kept = {region.memory for region in self.targets.values()}
        for key, memory in self.sources.items():
            flat = given[key].detach().contiguous().view(-1)
            memories[memory] = flat.clone() if memory in self.changed else flat
        for place, step in enumerate(self.steps):
            for memory in step.reads:
                if memory not in memories:
                    memories[memory] = self._constant(memory, step, dtype, numbers=numbers)
            _perform(step, memories, numbers=numbers)
            for memory in {*step.reads, *step.writes} - kept:
                if last_use[memory] == place:
                    memories.pop(memory, None)
        return {key: region.of(memories[region.memory]) for key, region in self.targets.items()}

    def _constant(self, memory: int, step: Step, dtype: torch.dtype, *, numbers: bool) -> Tensor:
        known = self.constants[memory]
        indexes = (has(step.name, PICK) or step.name in _INDEXED) and memory not in step.writes
        if known is not None and (indexes or not numbers) and not known.is_floating_point():
            return known.clone()
        if known is None or numbers:
            return torch.zeros(self.sizes[memory], dtype=dtype)
        return known.to(dtype, copy=True)


def _perform(step: Step, memories: dict[int, Tensor], *, numbers: bool) -> None:
    args, kwargs = tree_map_only(Region, lambda region: region.of(memories[region.memory]), (step.args, step.kwargs))
    if numbers and step.name in ("aten.fill", "aten.zero"):
        args[0].zero_()
        return
    kept = {name: value for name, value in kwargs.items() if name not in _CONVERSION}
    results = step.func(*args, **kept)
    results = results if isinstance(results, (tuple, list)) else (results,)
    for region, result in zip(step.made, results, strict=True):
        if region is not None:
            memories[region.memory] = _flat(region, result)


def _flat(region: Region, result: Tensor) -> Tensor:
    """The memory of a result, laid out as when it was recorded."""
    if result.stride() != region.stride or result.storage_offset() != region.offset:
        laid_out = torch.empty_strided(region.size, region.stride, dtype=result.dtype)
        result = laid_out.copy_(result)
    return result.as_strided((result.untyped_storage().nbytes() // result.element_size(),), (1,), 0)


def _copies_whole(step: Step, whole: dict[int, bool]) -> bool:
    """Follow copies of a whole memory into another; False for any other step."""
    regions = [leaf for leaf in _leaves((step.args, step.kwargs)) if isinstance(leaf, Region)]
    if step.name in ("aten.clone", "aten._to_copy", "aten.lift_fresh_copy") and step.made[0] is not None:
        source, target = regions[0], step.made[0]
    elif step.name == "aten.copy" and len(regions) == 2 and regions[0].memory not in whole:
        target, source = regions
    else:
        return False
    fits = source.numel == target.numel and not source.offset and not target.offset
    if not (fits and source.contiguous and target.contiguous and whole.get(source.memory)):
        return False
    whole[target.memory] = True
    return True


def _leaves(nested: Any) -> Iterable[Any]:
    if isinstance(nested, (tuple, list)):
        for item in nested:
            yield from _leaves(item)
    elif isinstance(nested, dict):
        yield from _leaves(list(nested.values()))
    else:
        yield nested


def _common(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    found: torch.dtype | None = None
    for dtype in dtypes:
        found = dtype if found is None or found == dtype else torch.promote_types(found, dtype)
    assert found is not None
    return found
