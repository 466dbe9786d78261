"""Facts of an alignment for its report: classes that were searched, what moved, what comes next."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rebasin_cli.execution.recalibration import batch_norms
from rebasin_cli.maps import Frame
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.starts.identity import START as IDENTITY
from rebasin_cli.matching.symmetries.match import kind_of, moved_in, searched_spec
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.align import Architecture, Mapped, MappedGroup, MovedGroup
from rebasin_cli.verbs.class_verification import class_warnings, settle_classes
from rebasin_cli.verbs.verification import RoundingCheck, narrows

if TYPE_CHECKING:
    from rebasin_cli.execution.understanding import Understanding
    from rebasin_cli.verbs.alignment import Alignment

PERFECT = 1e-12
"""How near to 1 a cosine must be for the weights to be equal, up to scale."""


def searched_groups(run: Alignment) -> Understanding:
    """The model as understood, its groups with the classes that are searched, after these were verified."""
    options = run.options
    understood, _, broken = settle_classes(
        run.pair.subject,
        run.understood,
        run.pair.b,
        str(options.spec or options.model),
        seed=run.matching.seed,
        cache=options.cache,
        narrow=narrows(options),
    )
    for sentence in class_warnings(broken):
        run.progress.note(sentence)
    return replace(understood, spec=searched_spec(understood, options.symmetries))


def mapped(match: MatchResult, spec: PermutationSpec, searched: str, rounding: RoundingCheck | None) -> Mapped | None:
    """What maps did, where more than permutations were searched.

    Args:
        searched: the value of `--symmetries`.
    """
    if match.maps is None:
        return None
    groups = tuple(
        MappedGroup(
            group.name,
            group.size,
            group.symmetry.value,
            kind_of(group, match.maps.get(group.name)),
            match.maps[group.name].condition if group.name in match.maps else 1.0,
        )
        for group in (match.searched or spec).groups
    )
    return Mapped(
        searched=searched,
        groups=groups,
        largest_condition=max((group.condition for group in groups), default=1.0),
        kept_gains=dict((match.frame or Frame()).kept),
        limited=dict(match.limited),
        rounding_error=None if rounding is None else rounding.relative,
        rounding_floors=None if rounding is None else rounding.noise_floors,
    )


def moved_groups(match: MatchResult, spec: PermutationSpec) -> tuple[MovedGroup, ...]:
    """Every group, and how many of its units do not stay as they are."""
    spec = match.searched or spec
    if match.maps is not None:
        moved = {name: moved_in(one, spec.by_name[name].size) for name, one in match.maps.items()}
    else:
        moved = {
            name: sum(1 for place, unit in enumerate(perm.tolist()) if place != unit)
            for name, perm in match.permutations.items()
        }
    return tuple(MovedGroup(group.name, group.size, moved.get(group.name, 0)) for group in spec.groups)


def warnings_of(match: MatchResult) -> list[str]:
    """What limited the maps: gains of A that are nearly zero, and groups that B's or A's numbers hold."""
    said = []
    for key, units in (match.frame or Frame()).kept.items():
        gains = "1 gain of A is" if len(units) == 1 else f"{len(units)} gains of A are"
        said.append(f"{key}: {gains} nearly zero: there B keeps its own")
    return said + [f"group {name} was permuted only: {reason}" for name, reason in match.limited.items()]


def architecture_of(run: Alignment) -> Architecture:
    """What of the network decides which command comes next."""
    traced = run.understood.trace
    called = set() if traced is None else {call.name.removeprefix("aten._") for call in traced.calls}
    nested = any(group.parent is not None for group in run.understood.spec.groups)
    attention = any("scaled_dot_product" in name for name in called) or ("softmax" in called and nested)
    classes = run.understood.classified.groups if attention else ()
    return Architecture(
        running_statistics=len(batch_norms(run.pair.subject.module)),
        attention=attention,
        larger_classes=any(group.symmetry.is_matrix for group in classes),
    )


def already_aligned(run: Alignment) -> bool:
    """Whether a converged search, free to move every group, found nothing more similar to A than B as it is.

    A descent from B's own order that finds nothing shows a local optimum only: another start must have converged
    too. Where the cosine is 1, no permutation can be more similar.
    """
    match = run.match
    by_similarity = match.criterion.name == PLAIN and match.converged and match.passes > 0 and not match.timed_out
    elsewhere = any(one.start != IDENTITY.name and one.converged for one in match.candidates)
    free = not run.options.pins and bool(run.understood.spec.groups)
    return match.already_aligned and by_similarity and free and (elsewhere or match.cosine_before >= 1 - PERFECT)
