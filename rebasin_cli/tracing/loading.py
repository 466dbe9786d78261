"""Recording what a loader does with a file's tensors, without reading one: they are fake.

The loader runs as it is. Every operation on memory that holds elements of the file is recorded, in order; all others
(building the module, constants, initialisation) run natively and leave their values. At the end each tensor of the
module is a region of some memory, and the steps that led to it are its part of the program.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_map_only

from rebasin_cli.model.loading import Loaded, Tensors
from rebasin_cli.model.state import state_tensors
from rebasin_cli.tracing.dispatch import OperationMode, Operator, operator, tensors_in
from rebasin_cli.tracing.fake_tensors import fake_like, fake_mode
from rebasin_cli.tracing.load_program import Part, RecordedPart, Region, Step
from rebasin_cli.tracing.operations import COPY, MOVES, OVERWRITES, PICK, SHAPE_ONLY, VIEW, has


@dataclass(frozen=True, slots=True)
class Header:
    """What is known of a file's tensor without reading it."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class LoadProgram:
    """What a loader did.

    Attributes:
        parts: of the program; every tensor of the module that holds elements of the file is in one.
        computed: key of the module -> what was computed from the file's elements for it.
        made: keys of the module that hold no element of the file.
        missing: those of `made` that the loader reports as missing; None if it does not report.
        parameters: keys of the module that are parameters.
        values: tensors that the loader made, as far as it gave them values.
        unused: names of the file of which no element arrived in the module.
        unexpected: names that the loader reports as unexpected; None if it does not report.
    """

    parts: tuple[Part, ...]
    computed: Mapping[str, str]
    made: tuple[str, ...]
    missing: frozenset[str] | None
    parameters: frozenset[str]
    values: Mapping[str, Tensor]
    unused: tuple[str, ...]
    unexpected: frozenset[str] | None


def record_loading(
    headers: Mapping[str, Header],
    load: Callable[[Tensors, Callable[[nn.Module], None]], Loaded],
    keys: Sequence[str],
    same: Mapping[str, str] | None = None,
    versions: Mapping[str, object] | None = None,
) -> LoadProgram:
    """Run a loader on fake tensors and return what it did with them.

    Args:
        headers: the file's tensors, by the names under which the loader gets them.
        load: the loader; it calls its second argument on a module before tensors are loaded into that.
        keys: those of the module's state dict that are wanted.
        same: further names -> names in `headers` of the same tensor.
        versions: the file's `_metadata`.

    Raises:
        Whatever the loader raises; an exception of `NUMBERS_NEEDED` if it asks for values of the file's tensors.
    """
    mode = fake_mode()
    recorder = LoadRecorder(mode)
    fakes = {
        key: fake_like(torch.empty(header.shape, dtype=header.dtype, device="meta"), mode)
        for key, header in headers.items()
    }
    for fake in fakes.values():
        recorder.read_from_file(fake)
    given = with_versions(fakes | {name: fakes[key] for name, key in (same or {}).items()}, versions)
    made: dict[int, Tensor] = {}
    with recorder:
        loaded = load(given, lambda module: _with_fake_parameters(module, mode, made))
        state = state_tensors(loaded.module)
        found = {key: recorder.region(state[key]) for key in keys if key in state}
    own = {name for name, parameter in state.items() if isinstance(parameter, nn.Parameter)}
    file = {key: recorder.region(fake).memory for key, fake in fakes.items()}
    return recorder.program(file, found, state, own, loaded)


def with_versions(tensors: Tensors, versions: Mapping[str, object] | None) -> Tensors:
    """A state dict as `torch.load` returns it, with what load hooks read from it."""
    state: Any = OrderedDict(tensors)
    if isinstance(versions, Mapping):
        state._metadata = OrderedDict(versions)
    return state  # type: ignore[no-any-return]


def _with_fake_parameters(module: nn.Module, mode: FakeTensorMode, made: dict[int, Tensor]) -> None:
    """Parameters on the meta device become fakes, which can be assigned to and copied into as real ones."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None and parameter.is_meta and not isinstance(parameter, FakeTensor):
                if id(parameter) not in made:
                    made[id(parameter)] = fake_like(parameter, mode)
                    made[-id(parameter)] = parameter  # kept, so that its id stays its own
                owner._parameters[name] = made[id(parameter)]  # type: ignore[assignment]


class LoadRecorder(OperationMode):  # type: ignore[no-untyped-call]
    """Records operations on memory that holds elements of the file."""

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self._mode = mode
        self._memories: dict[int, int] = {}
        self._storages: list[torch.UntypedStorage] = []  # kept, so that addresses stay their own
        self._itemsize: list[int] = []
        self._dtype: list[torch.dtype] = []
        self._held: set[int] = set()
        self._computed: dict[int, str] = {}
        self._steps: list[Step] = []
        self._filled: dict[Region, Tensor] = {}

    def read_from_file(self, tensor: Tensor) -> None:
        """The tensor's memory holds elements of the file from now on."""
        self._held.add(self.region(tensor).memory)

    def region(self, tensor: Tensor) -> Region:
        """Where a tensor lies."""
        return Region(self._memory(tensor), int(tensor.storage_offset()), tuple(tensor.shape), tuple(tensor.stride()))

    def _memory(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._memories:
            self._memories[storage._cdata] = len(self._storages)
            self._storages.append(storage)
            self._itemsize.append(tensor.element_size())
            self._dtype.append(tensor.dtype)
        return self._memories[storage._cdata]

    def operation(self, func: OpOverload, args: Any, kwargs: dict[str, Any]) -> Any:
        tensors = [tensor for tensor in tensors_in((args, kwargs)) if tensor.layout is torch.strided]
        if func.namespace == "prim" or not tensors:
            return func(*args, **kwargs)
        held = any(self._memory(tensor) in self._held for tensor in tensors if self._known(tensor))
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not held and not fake:
            return func(*args, **kwargs)
        form = operator(func)
        if has(form.name, SHAPE_ONLY):  # a constant: it is made natively, of untouched memory
            args, kwargs = tree_map_only(FakeTensor, _unread, (args, kwargs))
            return func(*args, **kwargs)
        before = {id(tensor): self.region(tensor) for tensor in tensors}
        out = self._run(form, func, args, kwargs, fake=fake)
        if form.name == "aten.copy" and not held and not isinstance(args[1], FakeTensor):
            self._filled[before[id(args[0])]] = args[1].expand(args[0].shape)
        if held:
            self._record(form, func, args, kwargs, before, out)
        return out

    def _known(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage()._cdata in self._memories

    def _run(self, form: Operator, func: OpOverload, args: Any, kwargs: dict[str, Any], *, fake: bool) -> Any:
        """The operation itself; elements that a file's would be written over in real memory stay as they are."""
        if not fake:
            return func(*args, **kwargs)
        if form.written:
            bound = form.bind(args, kwargs)
            target = next(iter(tensors_in(bound[form.written[0]])))
            if not isinstance(target, FakeTensor):
                return target
        with self._mode:
            return func(*args, **kwargs)

    def _record(
        self, form: Operator, func: OpOverload, args: Any, kwargs: dict[str, Any], before: dict[int, Region], out: Any
    ) -> None:
        reads = tuple(dict.fromkeys(region.memory for region in before.values()))
        results = out if isinstance(out, (tuple, list)) else (out,)
        made = tuple(self._made(one, reads) for one in results)
        fresh = tuple(region.memory for region in made if region is not None)
        bound = form.bind(args, kwargs)
        written = [tensor for name in form.written for tensor in tensors_in(bound[name])]
        changed = tuple(dict.fromkeys(before[id(tensor)].memory for tensor in written))
        if not fresh and not changed:  # a view, or numbers for the loader's own code
            return
        sources = [memory for memory in reads if memory in self._held]
        reason = next((self._computed[memory] for memory in sources if memory in self._computed), None)
        if reason is None and not self._moves(form, bound, [*tensors_in((args, kwargs)), *tensors_in(out)]):
            reason = form.name
        constant = has(form.name, OVERWRITES) and not has(form.name, MOVES)
        for memory in (*fresh, *changed):
            if not constant:
                self._held.add(memory)
            if reason is not None:
                self._computed.setdefault(memory, reason)
        args, kwargs = tree_map_only(Tensor, lambda tensor: before[id(tensor)], (args, kwargs))
        self._steps.append(Step(func, form.name, args, kwargs, made, reads, (*fresh, *changed)))

    def _made(self, result: Any, reads: Sequence[int]) -> Region | None:
        if not isinstance(result, Tensor):
            return None
        region = self.region(result)
        return None if region.memory in reads else region

    def _moves(self, form: Operator, bound: Mapping[str, Any], tensors: list[Tensor]) -> bool:
        """Whether the operation only moves elements: no arithmetic, no rounding to whole numbers, no bytes."""
        if any(tensor.element_size() != self._itemsize[self._memory(tensor)] for tensor in tensors):
            return False
        if has(form.name, PICK):
            chosen = [t for name, value in bound.items() if name != "self" for t in tensors_in(value)]
            return not any(self._memory(tensor) in self._held for tensor in chosen)
        if bound.get("accumulate"):
            return False
        if form.name == "aten.constant_pad_nd":
            return bool(bound["value"] == 0)
        if form.name in ("aten._to_copy", "aten.copy"):
            source = next(tensors_in(bound["src"] if "src" in bound else bound["self"]))
            target = bound.get("dtype") or self._dtype_of_target(form, bound, source)
            return not source.is_floating_point() or target.is_floating_point
        return has(form.name, COPY | MOVES | OVERWRITES | VIEW)

    @staticmethod
    def _dtype_of_target(form: Operator, bound: Mapping[str, Any], source: Tensor) -> torch.dtype:
        return next(tensors_in(bound["self"])).dtype if form.name == "aten.copy" else source.dtype

    def program(
        self,
        file: Mapping[str, int],
        found: Mapping[str, Region],
        state: Mapping[str, Tensor],
        parameters: set[str],
        loaded: Loaded,
    ) -> LoadProgram:
        """The recorded steps, as far as they lead to tensors of the module, in parts."""
        arrived = {key: region for key, region in found.items() if region.memory in self._held}
        computed = {
            key: self._computed[region.memory] for key, region in arrived.items() if region.memory in self._computed
        }
        moved = {key: region for key, region in arrived.items() if key not in computed}
        steps = self._live({region.memory for region in moved.values()})
        parts = self._parts(file, moved, steps)
        used = {key for part in parts for key in part.file_keys}
        made = tuple(key for key in found if key not in arrived)
        return LoadProgram(
            parts=parts,
            computed=computed,
            made=made,
            missing=loaded.missing,
            parameters=frozenset(parameters),
            values={key: value for key in made if (value := self._value(state[key])) is not None},
            unused=tuple(key for key in file if key not in used),
            unexpected=loaded.unexpected,
        )

    def _value(self, tensor: Tensor) -> Tensor | None:
        """What the loader gave a tensor without the file: what it copied there, or what it made."""
        if tensor.is_meta or isinstance(tensor, FakeTensor):
            return self._filled.get(self.region(tensor))
        return tensor.detach()

    def _live(self, wanted: set[int]) -> list[Step]:
        live, kept = set(wanted), []
        for step in reversed(self._steps):
            if not live.isdisjoint(step.writes):
                kept.append(step)
                live.update(step.reads)
        return kept[::-1]

    def _parts(self, file: Mapping[str, int], found: Mapping[str, Region], steps: list[Step]) -> tuple[Part, ...]:
        root: dict[int, int] = {}

        def find(memory: int) -> int:
            while root.setdefault(memory, memory) != memory:
                root[memory] = memory = root[root[memory]]
            return memory

        for step in steps:
            first, *rest = [memory for memory in (*step.writes, *step.reads) if memory in self._held]
            for memory in rest:
                root[find(memory)] = find(first)
        groups: dict[int, tuple[dict[str, int], dict[str, Region], list[Step]]] = {}
        for key, region in found.items():
            groups.setdefault(find(region.memory), ({}, {}, []))[1][key] = region
        for key, memory in file.items():
            if find(memory) in groups:
                groups[find(memory)][0][key] = memory
        for step in steps:
            groups[find(next(memory for memory in (*step.writes, *step.reads) if memory in self._held))][2].append(step)
        return tuple(self._part(*group) for group in groups.values())

    def _part(self, file: dict[str, int], found: dict[str, Region], steps: list[Step]) -> RecordedPart:
        known = set(file.values())
        constants: dict[int, Tensor | None] = {}
        for step in steps:
            for memory in step.reads:
                if memory not in known:
                    constants[memory] = self._constant(memory)
            known.update(step.writes)
        return RecordedPart(
            sources=file,
            targets=found,
            steps=tuple(steps),
            constants=constants,
            sizes={memory: self._storages[memory].nbytes() // self._itemsize[memory] for memory in constants},
            changed=frozenset(memory for step in steps for memory in step.writes) & set(file.values()),
        )

    def _constant(self, memory: int) -> Tensor | None:
        storage = self._storages[memory]
        if storage.device.type == "meta":
            return None
        return torch.empty(0, dtype=self._dtype[memory]).set_(storage)


def _unread(fake: FakeTensor) -> Tensor:
    return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype)
