"""Match B to A with maps of all classes: choose the groups, find starts, descend, and say what came out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.errors import NumericalError
from rebasin_cli.execution.activations import LARGEST, can_record, pair_likenesses
from rebasin_cli.execution.closeness import Closeness
from rebasin_cli.execution.stream_products import stream_products
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.freedom import SymmetryClass
from rebasin_cli.maps import Frame, Gauges, GroupMap, Mapped, Maps, frame_of, limited_spec
from rebasin_cli.maps import from_permutations as as_maps
from rebasin_cli.matching.activation_matching import match_activations, sources
from rebasin_cli.matching.method import ALL, PERMUTATION, MatchTask
from rebasin_cli.matching.result import Criterion, MatchResult
from rebasin_cli.matching.search import match_weights
from rebasin_cli.matching.symmetries.forms import Forms
from rebasin_cli.matching.symmetries.search import (
    TOLERANCE,
    Ended,
    SymmetryStart,
    from_ends,
    from_permutations,
    from_products,
    search_maps,
)
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.permutation import is_identity
from rebasin_cli.spec import AxisGroup, PermutationSpec
from rebasin_cli.tracing.capture import OtherPath

CRITERION = "distance in A's gauge"
MAPS, PERMUTATIONS = "maps", "permutations"
SHARE = 0.3
"""Of a time limit, for the search for permutations that one start comes from."""


@dataclass(frozen=True, slots=True)
class Symmetric:
    """What matching over classes needs of a task, prepared once.

    Attributes:
        spec: the groups as they are searched: some may be limited by B's own numbers.
        limited: why, by group.
    """

    spec: PermutationSpec
    limited: Mapping[str, str]
    forms: Forms


def prepared(task: MatchTask) -> Symmetric:
    """The canonical forms of the task's pair."""
    a, b = task.pair.a, task.pair.b
    spec = task.understood.spec
    found: dict[str, str] = {}
    for read in (a.__getitem__, b.__getitem__):
        mixing = [group.name for group in spec.groups if group.symmetry.is_matrix]
        found.update(Gauges(spec, mixing).undivided(read))
    if found:
        beside = {group.name for group in spec.groups if group.parent and group.parent in _parents(spec, found)}
        found.update(dict.fromkeys(beside - set(found), "another block of its group is limited"))
        spec = limited_spec(spec, SymmetryClass.PERMUTATION, frozenset(found))
    return Symmetric(spec, found, Forms(spec, a, b, task.pair.subject.parameters))


def _parents(spec: PermutationSpec, names: Iterable[str]) -> set[object]:
    """The parents of these groups, in all their blocks."""
    groups = {spec.by_name[name].parent.group for name in names if spec.by_name[name].parent is not None}  # type: ignore[union-attr]
    return {group.parent for group in spec.groups if group.parent is not None and group.parent.group in groups}


def match_maps(task: MatchTask) -> MatchResult:
    """Find the maps that bring B closest to A by weights, from all starts.

    Raises:
        ModelError, NumericalError: the pair does not fit the spec, or a similarity is not finite.
        DataError: the data cannot be read, or do not fit the model.
    """
    began = time.monotonic()
    ready = prepared(task)
    ended, permuted = searched_maps(task, ready)
    found = result_of(task, ready, ended.maps, permuted)
    return replace(
        found,
        criterion=Criterion(CRITERION, distance(ready.forms, ended.identity), distance(ready.forms, ended.value)),
        per_pass=ended.per_pass,
        passes=len(ended.per_pass),
        converged=ended.converged,
        start=ended.start if found.start == MAPS else found.start,
        candidates=ended.candidates,
        seconds=time.monotonic() - began,
        timed_out=ended.timed_out,
    )


def searched_maps(task: MatchTask, ready: Symmetric) -> tuple[Ended, MatchResult]:
    """The end of the search over classes, and the search for permutations that was one of its starts."""
    began = time.monotonic()
    permuted = permutations_of(task)
    starts = [*starts_of(task, ready), from_permutations(ready.forms, permuted.permutations)]
    ended = search_maps(
        ready.forms,
        starts,
        seed=task.matching.seed,
        max_passes=task.matching.max_passes,
        time_limit=_left(task, began),
        on_pass=task.on_pass,
    )
    return ended, permuted


def permutations_of(task: MatchTask) -> MatchResult:
    """The result of the search for permutations by weights; a fast one where it is only one start of many."""
    mixes = any(group.symmetry.is_matrix for group in task.understood.spec.groups)
    effort = "fast" if mixes and task.matching.effort == "auto" else task.matching.effort
    limit = task.matching.time_limit
    plain = replace(task.understood, spec=task.understood.spec.permutable)
    share = None if limit is None else SHARE * limit
    return match_weights(
        replace(task, understood=plain, matching=replace(task.matching, time_limit=share, effort=effort))
    )


def starts_of(task: MatchTask, ready: Symmetric) -> list[SymmetryStart]:
    """The starts besides the permutations: identity, the ends of the network, activations on noise and on data."""
    found = [SymmetryStart("identity", {}), from_ends(ready.forms)]
    if can_record(task.pair, task.understood, LARGEST):
        kinds = sources(replace(task, ranks=ALONE))
        found += [_by_activations(task, ready, name, inputs) for name, inputs in kinds.items()]
    return [start for start in found if start is not None]


def _by_activations(
    task: MatchTask, ready: Symmetric, name: str, inputs: Callable[[], Iterable[ExampleInput]]
) -> SymmetryStart | None:
    """The start at activations on some inputs; None where they say nothing."""
    mixing = {
        group.name: group
        for group in ready.spec.groups
        if group.symmetry.is_matrix and group.symmetry is not SymmetryClass.PLANES and group.parent is None
    }
    try:
        products = stream_products(task.pair, task.understood, mixing, inputs()) if mixing else {}
        if products:
            return from_products(ready.forms, products, name)
        return _by_correlations(task, ready, name, inputs)
    except (NumericalError, OtherPath):  # noise may drive a network out of range; then there is nothing to start from
        return None


def _by_correlations(
    task: MatchTask, ready: Symmetric, name: str, inputs: Callable[[], Iterable[ExampleInput]]
) -> SymmetryStart | None:
    """Activation matching, for networks in which no group along a sum mixes units; blind to scales, and to signs."""
    assert task.understood.derivation is not None
    taps = task.understood.derivation.taps
    correlations: list[Tensor] = pair_likenesses(task.pair, task.understood, inputs(), "correlation")
    signed = {group.name for group in ready.spec.groups if any(one.sign != "positive" for one in group.scales)}
    seen = [
        matrix.abs() if any(group in signed for group, _ in tap.sites) else matrix
        for tap, matrix in zip(taps, correlations, strict=True)
    ]
    perms = match_activations(ready.spec.permutable, taps, seen, seed=task.matching.seed)
    return replace(from_permutations(ready.forms, perms), name=name)


def result_of(task: MatchTask, ready: Symmetric, found: Maps, permuted: MatchResult) -> MatchResult:
    """The result with these maps; the permutations where these maps do not bring B closer to A as the files have them.

    Args:
        permuted: the search for permutations, whose facts it keeps where they are not of the maps.
    """
    b, subject = task.pair.b, task.pair.subject
    maps = {name: one for name, one in found.items() if one.moves}
    frame, start = frame_for(task, ready.spec, maps), MAPS
    before = closeness(task, b)
    after = closeness(task, Mapped(b, ready.spec, maps, frame, subject.ties))
    if after.distance > before.distance:
        maps, frame, start = as_maps(permuted.permutations), Frame(), PERMUTATIONS
        after = closeness(task, Mapped(b, ready.spec, maps, frame, subject.ties))
    moved = moved_units(ready.spec, maps)
    return replace(
        permuted,
        permutations={group: one.perm for group, one in maps.items() if one.perm is not None},
        objective_before=before.dot,
        objective_after=after.dot,
        start=start,
        already_aligned=not moved,
        relative_tolerance=TOLERANCE,
        cosine_before=before.cosine,
        cosine_after=after.cosine,
        distance_before=before.distance,
        distance_after=after.distance,
        moved_units=moved,
        stopped=None,
        maps=maps,
        frame=frame,
        searched=ready.spec,
        limited=dict(ready.limited),
    )


def distance(forms: Forms, value: float) -> float:
    """The L2 distance of the canonical forms where the objective has this value."""
    squares = sum(forms.square_a.values()) + sum(forms.square_b.values())
    return float(max(0.0, squares - 2 * value) ** 0.5)


def frame_for(task: MatchTask, spec: PermutationSpec, maps: Mapping[str, GroupMap]) -> Frame:
    """A's frame for these maps of B."""
    gauges = Gauges(spec, [name for name, one in maps.items() if one.matrix is not None])
    return frame_of(gauges, task.pair.a.__getitem__, task.pair.b.__getitem__)


def closeness(task: MatchTask, b: Mapping[str, Tensor]) -> Closeness:
    """How close a network is to A, over the parameters."""
    found = Closeness()
    for key in task.pair.subject.parameters:
        if key in task.pair.a and key in b:
            found.add(task.pair.a[key], b[key])
    return found


def moved_units(spec: PermutationSpec, maps: Maps) -> int:
    """Units that do not stay: in another place, scaled, or mixed with others."""
    return sum(moved_in(one, spec.by_name[name].size) for name, one in maps.items())


def searched_spec(understood: Understanding, symmetries: str) -> PermutationSpec:
    """The groups with the classes that `--symmetries` asks for."""
    found = understood.classified
    if symmetries == PERMUTATION:
        return found.permutable
    return found if symmetries == ALL else limited_spec(found, SymmetryClass.SIGNED)


def kind_of(group: AxisGroup, one: GroupMap | None) -> str:
    """What became of the units of a group, in words."""
    if one is None or not one.moves:
        return "kept"
    if one.matrix is not None:
        if group.symmetry is SymmetryClass.PLANES:
            return "turned in planes"
        return "mapped linearly" if group.symmetry is SymmetryClass.LINEAR else "rotated"
    changed = [scale for scale in one.scales if bool((scale != 1).any())]
    if not changed:
        return "permuted"
    return "signed" if one.exact else "scaled"


def moved_in(one: GroupMap, size: int) -> int:
    """Of one group."""
    if one.matrix is not None:
        return size
    moved = (
        set()
        if one.perm is None or is_identity(one.perm)
        else {place for place, unit in enumerate(one.perm.tolist()) if place != unit}
    )
    for scale in one.scales:
        moved |= set((scale != 1).nonzero().reshape(-1).tolist())
    return len(moved)


def _left(task: MatchTask, began: float) -> float | None:
    limit = task.matching.time_limit
    return None if limit is None else max(0.0, limit - (time.monotonic() - began))
