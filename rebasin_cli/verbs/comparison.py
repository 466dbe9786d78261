"""The run of `compare`: open, align, compare tensor by tensor, test, and decide on the verdict."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, cast

from torch import Tensor

from rebasin_cli.checkpoint.atomic import write_text_atomically
from rebasin_cli.checkpoint.checkpoint import Checkpoint
from rebasin_cli.checkpoint.copies import without_common_prefix
from rebasin_cli.errors import few
from rebasin_cli.execution.closeness import Closeness, same_bits
from rebasin_cli.execution.device import resolve_device
from rebasin_cli.execution.pair import Pair, Source, check_all_finite, open_pair, open_sources
from rebasin_cli.execution.same_function import SILENT, FunctionCheck, compare_functions
from rebasin_cli.execution.shared_weights import check_heads
from rebasin_cli.matching.common_base import UnitTest, units_in_order, units_matched
from rebasin_cli.progress import Progress
from rebasin_cli.verbs.compare import (
    BeforeAfter,
    CommonBaseTests,
    ComparedModule,
    CompareOptions,
    CompareResult,
    OtherShape,
)
from rebasin_cli.verbs.cost import PhaseClock
from rebasin_cli.verbs.networks import Aligned, Networks, SearchSettings, model_choice

if TYPE_CHECKING:
    from rebasin_cli.matching.plan import Effort

LEVEL = 0.001
"""The p-value up to which a test of a common base counts as significant."""
STRANGERS = 0.3
"""Correlation of matched units up to which two networks are called unrelated."""
CERTAIN = 0.9
"""Correlation in the order of the files that no alignment of networks trained apart reaches."""
ORDERED = 0.5
"""Correlation in the order of the files above which two networks are not called unrelated."""
PERMUTED = 0.25
"""A group counts as permuted where aligning raises the correlation of its units by more than this."""
OURS = "rebasin.sha256.a"
"""Metadata of a file whose units this program has ordered like another network's."""

Tensors = Mapping[str, Tensor]


def compare_files(options: CompareOptions, progress: Progress) -> CompareResult:
    """Compare tensors by their names; a prefix that all names of a file share is ignored."""
    clock = PhaseClock("read")
    progress.phase("reading")
    with clock.phase("read"):
        a, b = open_sources((Source(options.a, *options.state_of_a), Source(options.b, *options.state_of_b)))
        names_a, names_b = without_common_prefix(a.infos), without_common_prefix(b.infos)
        shared = [name for name in names_a if name in names_b]
        shapes = {name: (a.infos[names_a[name]].shape, b.infos[names_b[name]].shape) for name in shared}
        other = tuple(OtherShape(name, *pair) for name, pair in shapes.items() if pair[0] != pair[1])
        apart = {one.key for one in other}
        table = _Table(None)
        for number, name in enumerate(one for one in shared if one not in apart):
            table.add(name, a.tensor(names_a[name]), b.tensor(names_b[name]), None)
            progress.step(number + 1, len(shared) - len(apart))
    only_a = tuple(names_a[name] for name in names_a if name not in names_b)
    only_b = tuple(names_b[name] for name in names_b if name not in names_a)
    same = not (only_a or only_b or other) and table.equal == table.tensors > 0
    return CompareResult(
        a=options.a,
        b=options.b,
        model=None,
        verdict="same-file" if same else "undecided",
        p_value=None,
        cosine=BeforeAfter(_known(table.before, table.before.cosine), None),
        distance=BeforeAfter(_known(table.before, table.before.distance), None),
        modules=table.modules(),
        tensors=table.tensors,
        equal_tensors=table.equal,
        only_in_a=only_a,
        only_in_b=only_b,
        other_shapes=other,
        moved_units=None,
        units=None,
        tests=None,
        function=None,
        aligned_by_this_program=_aligned_here((a, b)),
        seed=options.seed,
        sha256={"a": a.sha256(), "b": b.sha256()},
        seconds=clock.seconds(),
        warnings=(*a.notes, *b.notes, *_unknown(options, table)),
    )


def compare_networks(options: CompareOptions, progress: Progress) -> CompareResult:
    """Align B to A, compare them tensor by tensor and test for a common base."""
    clock = PhaseClock("read", "trace", "verify", "match")
    pair, networks = _opened(options, progress, clock)
    device = resolve_device(options.device)
    settings = SearchSettings(cast("Effort", options.effort), seed=options.seed, device=options.device)
    a, b = pair.a, pair.b
    equal = not pair.mismatches and set(a) == set(b) and all(same_bits(a[key], b[key]) for key in a)
    beside = _Beside.of(pair)
    identical = equal and beside.equal
    progress.phase("matching")
    with clock.phase("match"):
        aligned = None if equal else networks.align(a, b, settings)
    other = tuple(OtherShape(one.key, one.in_a, one.in_b) for one in pair.mismatches)
    apart = {one.key for one in other}
    table = _Table(frozenset(networks.subject.parameters), networks.subject.ties)
    for key in (key for key in a if key in b and key not in apart):
        table.add(key, a[key], b[key], b[key] if aligned is None else aligned.tensors[key])
    judged = _Judged(pair, networks, aligned, table)
    function = None
    if not (identical or judged.permuted_copy or other):
        progress.phase("verifying")
        with clock.phase("verify"):
            function = _functions(networks, a, b, options.seed)
    tests = None
    if not (identical or judged.permuted_copy or _same(function)):
        progress.phase("testing for a common base")
        with clock.phase("match"):
            tests = judged.tests(settings, device)
    if options.save_spec is not None:
        text = json.dumps(networks.understood.spec.to_json(), indent=1) + "\n"
        write_text_atomically(options.save_spec, text, options.force)
    found = [one for one in (tests.in_order, tests.matched) if one is not None] if tests is not None else []
    return CompareResult(
        a=options.a,
        b=options.b,
        model=options.model,
        verdict=judged.verdict(identical, function, tests),
        p_value=min(1.0, len(found) * min(one.p_value for one in found)) if found else None,
        cosine=BeforeAfter(*(_known(one, one.cosine) for one in (table.before, table.after))),
        distance=BeforeAfter(*(_known(one, one.distance) for one in (table.before, table.after))),
        modules=table.modules(),
        tensors=table.tensors,
        equal_tensors=table.equal,
        only_in_a=beside.only_in_a,
        only_in_b=beside.only_in_b,
        other_shapes=other,
        moved_units=0 if aligned is None else aligned.match.moved_units,
        units=networks.understood.spec.units,
        tests=tests,
        function=function,
        aligned_by_this_program=_aligned_here((pair.a.checkpoint, pair.b.checkpoint)),
        seed=options.seed,
        sha256={"a": pair.a.checkpoint.sha256(), "b": pair.b.checkpoint.sha256()},
        seconds=clock.seconds(),
        warnings=_warnings(pair, networks, aligned),
    )


def _opened(options: CompareOptions, progress: Progress, clock: PhaseClock) -> tuple[Pair, Networks]:
    progress.phase("reading")
    with clock.phase("read"):
        pair = open_pair(
            Source(options.a, *options.state_of_a),
            Source(options.b, *options.state_of_b),
            model_choice(options),
            ignore_extra=options.ignore_extra,
            ignore_mismatched_sizes=options.ignore_mismatched_sizes,
        )
        check_all_finite(pair, progress)
    networks = Networks.of((pair.a, pair.b), pair.subject, options, progress, clock, shaped_like=1)
    check_heads(pair.mismatches, networks.understood.spec, pair.a.checkpoint)
    return pair, networks


def _functions(networks: Networks, a: Tensors, b: Tensors, seed: int) -> FunctionCheck:
    """How the outputs of the two compare on sample inputs."""
    with networks.understood.passes.joined(networks.subject.module):
        return compare_functions(networks.subject.weightless, networks.understood.example, a, b, seed=seed)


def _same(function: FunctionCheck | None) -> bool:
    """Whether the outputs show that the functions are the same; outputs that are all zero show nothing."""
    return function is not None and function.same is True and SILENT not in (function.note or "")


@dataclass(frozen=True, slots=True)
class _Beside:
    """The tensors of two files that the model does not have: names in one file only, and whether all others agree."""

    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    equal: bool

    @classmethod
    def of(cls, pair: Pair) -> _Beside:
        a, b = (
            {name: key for name, key in without_common_prefix(one.checkpoint.infos).items() if key in set(extra)}
            for one, extra in ((pair.a, pair.a.keys_in_file.extra), (pair.b, pair.b.keys_in_file.extra))
        )
        only_a, only_b = (tuple(x[name] for name in x if name not in y) for x, y in ((a, b), (b, a)))
        same = all(same_bits(pair.a.checkpoint.tensor(a[n]), pair.b.checkpoint.tensor(b[n])) for n in a if n in b)
        return cls(only_a, only_b, same and not only_a and not only_b)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Two networks, and B aligned to A; None where the two are equal."""

    pair: Pair
    networks: Networks
    aligned: Aligned | None
    table: _Table

    @property
    def permuted_copy(self) -> bool:
        """Whether some unit of B was moved, and then every tensor is A's, bit for bit."""
        whole = not self.pair.mismatches and set(self.pair.a) == set(self.pair.b)
        moved = self.aligned is not None and not self.aligned.tensors.moves_nothing
        return whole and moved and self.table.equal == self.table.tensors

    def tests(self, settings: SearchSettings, device: object) -> CommonBaseTests:
        """The tests; the second is left out where the first is beyond doubt."""
        spec, subject = self.networks.understood.spec, self.networks.subject
        a, b = self.pair.a, self.pair.b
        in_order = units_in_order(spec, a, b, parameters=subject.parameters, seed=settings.seed)
        matched = None
        if in_order is not None and not _certain(in_order):
            matched = units_matched(
                spec,
                a,
                b,
                parameters=subject.parameters,
                ties=subject.ties,
                effort=settings.effort,
                seed=settings.seed,
                device=str(device),
            )
        return CommonBaseTests(in_order, matched, LEVEL, self._permuted_groups(in_order, settings.seed))

    def _permuted_groups(self, before: UnitTest | None, seed: int) -> tuple[str, ...]:
        """The groups whose units correlate much more after aligning."""
        if before is None or self.aligned is None or self.aligned.tensors.moves_nothing:
            return ()
        spec, subject = self.networks.understood.spec, self.networks.subject
        after = units_in_order(spec, self.pair.a, self.aligned.tensors, parameters=subject.parameters, seed=seed)
        assert after is not None
        was = {group.name: group.correlation for group in before.groups}
        return tuple(group.name for group in after.groups if group.correlation - was.get(group.name, 0.0) > PERMUTED)

    def verdict(self, identical: bool, function: FunctionCheck | None, tests: CommonBaseTests | None) -> str:
        """The strongest verdict whose condition holds."""
        if identical:
            return "same-file"
        if self.permuted_copy:
            return "permuted-copy"
        if _same(function):
            return "same-function"
        return "undecided" if tests is None else base_verdict(tests)


def base_verdict(tests: CommonBaseTests) -> str:
    """What the tests of a common base show.

    In the order of the files, units may correlate because they were aligned to each other's: below `CERTAIN` the test
    on matched units, in which that order has no part, must agree.
    """
    in_order, matched = tests.in_order, tests.matched
    if in_order is None:
        return "undecided"
    significant = matched is not None and matched.p_value <= tests.level / 2
    if _certain(in_order) or (significant and in_order.p_value <= tests.level / 2):
        return "permuted-fine-tuned" if tests.permuted_groups else "fine-tuned"
    if significant:
        return "permuted-fine-tuned"
    strange = matched is not None and matched.interior and matched.correlation <= STRANGERS
    if strange and matched is not None and matched.p_below <= tests.level and in_order.correlation <= ORDERED:
        return "unrelated"
    return "undecided"


def _certain(in_order: UnitTest) -> bool:
    return in_order.interior and in_order.correlation >= CERTAIN and in_order.p_value <= LEVEL / 2


@dataclass(slots=True)
class _Table:
    """What is summed up while tensors are compared one by one: over all, and for each module.

    Args:
        parameters: the keys that count in cosines and distances; None for all tensors of floating-point numbers.
        ties: further names of tensors, which do not count again.
    """

    parameters: Collection[str] | None
    ties: Mapping[str, str] = field(default_factory=dict)
    before: Closeness = field(default_factory=Closeness)
    after: Closeness = field(default_factory=Closeness)
    tensors: int = 0
    equal: int = 0
    _modules: dict[str, _Sums] = field(default_factory=dict)

    def add(self, key: str, a: Tensor, b: Tensor, aligned: Tensor | None) -> None:
        """Count one tensor.

        Args:
            aligned: B's after alignment; None where nothing is aligned.
        """
        if key in self.ties:
            return
        counts = self.parameters is None or key in self.parameters
        equal = same_bits(a, b if aligned is None else aligned)
        sums = self._modules.setdefault(key.rpartition(".")[0], _Sums())
        sums.tensors += 1
        sums.equal += equal
        self.tensors += 1
        self.equal += equal
        if not counts:
            return
        for whole, part, other in ((self.before, sums.before, b), (self.after, sums.after, aligned)):
            if other is not None:
                one = Closeness()
                one.add(a, other)
                _extend(whole, one)
                _extend(part, one)

    def not_finite(self, module: str) -> bool:
        """Whether a value of the module is NaN or infinite, in A or in B as it is."""
        sums = self._modules[module].before
        return not isfinite(sums.square_a + sums.square_b)

    def modules(self) -> tuple[ComparedModule, ...]:
        """Each module's part, in the order of the tensors."""
        return tuple(sums.module(name) for name, sums in self._modules.items())


@dataclass(slots=True)
class _Sums:
    """Of one module."""

    before: Closeness = field(default_factory=Closeness)
    after: Closeness = field(default_factory=Closeness)
    tensors: int = 0
    equal: int = 0

    def module(self, name: str) -> ComparedModule:
        return ComparedModule(
            name,
            BeforeAfter(*(_known(one, one.cosine) for one in (self.before, self.after))),
            BeforeAfter(*(_known(one, one.distance) for one in (self.before, self.after))),
            BeforeAfter(*(_relative(one) for one in (self.before, self.after))),
            self.equal < self.tensors,
            self.tensors,
            self.equal,
        )


def _extend(total: Closeness, part: Closeness) -> None:
    total.dot += part.dot
    total.square_a += part.square_a
    total.square_b += part.square_b
    total.square_difference += part.square_difference


def _known(closeness: Closeness, value: float) -> float | None:
    """The value, where a number was compared that is not zero on both sides, and all numbers are finite."""
    return value if 0 < closeness.square_a + closeness.square_b < inf else None


def _relative(closeness: Closeness) -> float | None:
    known = 0 < closeness.square_a < inf and closeness.square_b < inf
    return closeness.distance / closeness.square_a**0.5 if known else None


def _unknown(options: CompareOptions, table: _Table) -> tuple[str, ...]:
    """Why the two have no cosine and no distance, where they have none."""
    if not table.tensors:
        return (f"{options.a} and {options.b} share no tensor of one name and shape: nothing was compared",)
    damaged = [one.name for one in table.modules() if one.distance.before is None and table.not_finite(one.name)]
    return (f"cosine and distance are unknown: NaN or infinite values in {few(damaged)}",) if damaged else ()


def _aligned_here(checkpoints: Sequence[Checkpoint]) -> tuple[Path, ...]:
    """The files that say in their metadata that this program permuted them."""
    return tuple(one.path for one in checkpoints if OURS in one.metadata)


def _warnings(pair: Pair, networks: Networks, aligned: Aligned | None) -> tuple[str, ...]:
    said: list[str] = [*pair.a.checkpoint.notes, *pair.b.checkpoint.notes]
    if networks.subject.note:
        said.append(networks.subject.note)
    for weights in (pair.a, pair.b):
        if weights.note:
            said.append(f"{weights.checkpoint.path}: {weights.note}")
        if weights.keys_in_file.extra:
            unknown = few(weights.keys_in_file.extra, shown=8)
            said.append(f"{weights.checkpoint.path}: not compared, because the model does not have them: {unknown}")
    if pair.mismatches:
        said.append(f"not compared, because their shapes differ: {', '.join(map(str, pair.mismatches))}")
    if not networks.understood.spec.groups:
        said.append("no axis of this model can be permuted without changing its function: nothing was aligned")
    if aligned is not None and not aligned.match.converged:
        said.append("the matching stopped without converging")
    return tuple(said)
