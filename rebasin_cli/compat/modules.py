"""`align_modules`: `align` for modules in memory, with the checks that files get."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch, BatchSource
from rebasin_cli.data.ranks import ALONE, Ranks
from rebasin_cli.errors import DataError, ModelError, UsageError, few
from rebasin_cli.execution.closeness import check_finite
from rebasin_cli.execution.data_inputs import PairData
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.model_slot import ModelSlot
from rebasin_cli.execution.pair import Pair
from rebasin_cli.execution.recalibration import Recalibration
from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.execution.scored import WholeNetwork
from rebasin_cli.execution.subject import ModelChoice, Subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.method import Matching, MatchTask
from rebasin_cli.matching.methods import match
from rebasin_cli.matching.plan import Effort
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import ModelFactory
from rebasin_cli.model.in_memory import ModuleSource
from rebasin_cli.model.state import parameter_keys, state_shapes, state_tensors, ties
from rebasin_cli.model.weightless import copied
from rebasin_cli.permutation import Permutations, check_permutation
from rebasin_cli.progress import Silent
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.networks import Networks
from rebasin_cli.verbs.verification import measure, verify_closer, verify_groups

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class ModuleAlignment:
    """A module aligned to another one.

    Attributes:
        module: B with its units in another order: a copy, or B itself.
        spec: the axis groups.
        permutations: by group name.
        match: the search; None where the permutations were given.
        cosine, distance: of the parameters with A's, `{"before", "after"}`.
        check: the verification that the function is unchanged, and that of the axis groups.
    """

    module: nn.Module = field(repr=False)
    spec: PermutationSpec = field(repr=False)
    permutations: Permutations = field(repr=False)
    match: MatchResult | None = field(repr=False)
    cosine: Mapping[str, float]
    distance: Mapping[str, float]
    check: FunctionCheck


def align_modules(
    a: nn.Module,
    b: nn.Module,
    example: Any,
    *,
    method: str = "weight",
    data: Iterable[Any] | None = None,
    permutations: Mapping[str, Tensor] | None = None,
    effort: Effort = "auto",
    max_passes: int | None = None,
    seed: int = 0,
    in_place: bool = False,
) -> ModuleAlignment:
    """Permute the units of `b` to match those of `a`, and verify the result as `rebasin align` verifies files.

    Args:
        a: the reference; not modified.
        b: of the same architecture.
        example: an input of the model, or a tuple of its positional inputs, a mapping of keyword inputs.
        method: a name of `rebasin help methods`: `weight`, `activation` or `learned` (`straight-through`).
        data: a loader with batches `(inputs, targets)`, for methods that run the networks.
        permutations: apply these, by group name, instead of searching.
        effort, max_passes, seed: of the search.
        in_place: change `b`; otherwise the result has a copy.

    Raises:
        UsageError: an unknown method, or one that needs data without data.
        ModelError: the modules have different tensors, or do not run on the example.
        NumericalError: a weight is not finite, or a check failed; then nothing has changed.
    """
    networks = open_module(b, example, seed)
    subject, understood = networks.subject, networks.understood
    ours, theirs = tensors_of(a), tensors_of(b)
    _check_same(ours, theirs)
    found: MatchResult | None = None
    if permutations is None:
        pair = Pair(cast("Any", ours), cast("Any", theirs), subject)  # read like checkpoints: by key
        matching = Matching(
            method, effort, None, None, max_passes, None, seed, "cpu", data=None if data is None else "the loader"
        )
        loader = None if data is None else cast("PairData", LoaderData(_source(data)))
        device = resolve_device("cpu")
        found = match(MatchTask(pair, understood, matching, "the module", device, _ignore, ALONE, data=loader))
        permutations = found.permutations
    else:
        _check_permutations(understood.spec, permutations)
    moved = networks.permuted(theirs, dict(permutations))
    before, after = (measure(ours, one, subject.parameters) for one in (theirs, moved))
    if found is not None and found.method == "weight":
        verify_closer(before, after)
    check = networks.verify(theirs, moved, seed=seed)
    module = b if in_place else copied(b)
    put(module, {key: moved[key] for key in theirs})
    return ModuleAlignment(
        module,
        understood.spec,
        dict(permutations),
        found,
        {"before": before.cosine, "after": after.cosine},
        {"before": before.distance, "after": after.distance},
        check,
    )


def open_module(module: nn.Module, example: Any, seed: int = 0) -> Networks:
    """The axis groups of a module, derived and verified.

    Raises:
        ModelError: the module does not run on the example.
        NumericalError: the groups do not keep the function.
    """
    factory = ModelFactory(ModuleSource(module, as_input(example)), seed=seed)
    bare = factory.build_weightless()
    subject = Subject(factory, bare, state_shapes(bare), ties(bare), parameter_keys(bare), None)
    understood = understand(subject, ModelChoice("the module", seed=seed))
    own = tensors_of(module)
    understood, soundness = verify_groups(subject, understood, own, "the module", seed=seed, cache=False)
    return Networks((), subject, understood, soundness, Silent())


def as_input(example: Any) -> ExampleInput:
    """Positional inputs from a tensor or a tuple, keyword inputs from a mapping; on the CPU."""
    if isinstance(example, ExampleInput):
        return example.to("cpu")
    if isinstance(example, Mapping):
        return ExampleInput((), dict(example)).to("cpu")
    return ExampleInput(tuple(example) if isinstance(example, (list, tuple)) else (example,), {}).to("cpu")


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module by key, on the CPU; not copied where it is there."""
    return {key: tensor.detach().cpu() for key, tensor in state_tensors(module).items()}


def put(module: nn.Module, tensors: Tensors) -> None:
    """Copy tensors into the module's own, which stay the same objects, so that optimizers keep them."""
    own = state_tensors(module)
    with torch.no_grad():
        for key, tensor in tensors.items():
            if own[key].data_ptr() != tensor.data_ptr() or own[key].is_meta:
                own[key].copy_(tensor)


def first_input(source: BatchSource | None) -> ExampleInput:
    """The inputs of the first batch that holds samples.

    Raises:
        DataError: there is none.
    """
    batch = next((batch for batch in source.batches() if batch.size), None) if source is not None else None
    if batch is None:
        raise DataError("the loader has no batches")
    return ExampleInput(batch.args, dict(batch.kwargs))


@dataclass(frozen=True)
class LoaderData:
    """A loader in the place of a data set; what matching methods ask of one."""

    source: BatchSource

    def open(self, *, shuffle: bool = False) -> BatchSource:
        """The loader's batches, in its own order."""
        return self.source

    def batches(self, *, shuffle: bool = False, ranks: Ranks = ALONE) -> Iterator[Batch]:
        """The batches that hold samples, in the loader's own order."""
        return (batch for batch in self.source.batches(rank=ranks.rank, world=ranks.world) if batch.size)


def _source(data: Iterable[Any]) -> BatchSource:
    from rebasin_cli.compat.lines import loader_source

    return loader_source(data, "the loader")


def recalibrate(module: nn.Module, source: BatchSource) -> None:
    """Re-estimate the running statistics of a module in place: the cumulative average over all batches.

    Raises:
        DataError: a batch does not fit the model.
    """
    network = WholeNetwork("module", tensors_of(module), adjusted=True)
    first = next(iter(module.state_dict().values()), torch.empty(0))
    slot = ModelSlot(copied(module), first.device)
    found = Recalibration(slot, source, [network], repair=False).run(RunningSums()).get(network.name)
    if found is not None:
        put(module, {key: found.apply(key, old) for key, old in network.tensors.items() if found.changes(key)})


def _check_same(a: Tensors, b: Tensors) -> None:
    odd = set(a) ^ set(b)
    if odd:
        raise ModelError(f"the modules differ in the tensors {few(sorted(odd))}", slug="keys")
    for key, tensor in a.items():
        if tensor.shape != b[key].shape:
            raise ModelError(f"{key}: A has shape {tuple(tensor.shape)}, B has {tuple(b[key].shape)}", slug="shapes")
    from pathlib import Path

    for name, tensors in (("A", a), ("B", b)):
        for key, tensor in tensors.items():
            check_finite(tensor, key, Path(name))


def _check_permutations(spec: PermutationSpec, permutations: Mapping[str, Tensor]) -> None:
    for name, perm in permutations.items():
        if name not in spec.by_name:
            raise UsageError(f"permutations name a group {name!r} that the model does not have")
        check_permutation(perm, spec.by_name[name].size, name)


def _ignore(_: object) -> None:
    return None
