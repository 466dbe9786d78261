"""The classes of a spec are verified by running the model: every group undergoes a random element of its class at once.

As in `soundness`, everything runs in float64 on random weights, and differences are measured in noise floors. What is
mapped is given back in the frame of another random network, whose norm gains, layer scales and means differ: so a gauge
that is claimed and is none shows too. A wrong class, one that is larger than the operations allow, is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from torch import Tensor, nn

from rebasin_cli.execution.forward import Changed, State
from rebasin_cli.execution.narrowing import without_groups
from rebasin_cli.execution.noise import Comparison
from rebasin_cli.execution.soundness import Check, Setting, SoundnessCheck
from rebasin_cli.execution.widening import Rounding
from rebasin_cli.freedom import SymmetryClass
from rebasin_cli.maps import Gauges, Mapped, frame_of, limited_spec, random_maps
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.state import ties
from rebasin_cli.spec import AxisGroup, PermutationSpec

ONE_SETTING = 20_000_000
"""Parameters above which one random element of every class is tried, on one setting of weights and input."""

DRAWS = 2
"""Random elements of every class, in each of two settings."""

KEPT = 4
"""Mapped tensors that are kept for the next time that they are asked for."""

MOST_CHECKS = 100
"""Verifications that are spent on finding the groups whose class is wrong."""

OTHER_SEED = 500_000
"""Added to the seed: of the network whose frame the mapped one is given."""


def has_classes(spec: PermutationSpec) -> bool:
    """Whether any group allows more than permutations."""
    return any(group.symmetry is not SymmetryClass.PERMUTATION for group in spec.groups)


def verify_classes(
    build: Callable[[], nn.Module],
    example: ExampleInput,
    spec: PermutationSpec,
    seed: int = 0,
    *,
    own: State | None = None,
) -> SoundnessCheck:
    """Map every group at once by random elements of their classes, and compare the outputs.

    Args:
        build: makes the model; its parameters may have no memory, they are filled here.
        example: one input.
        spec: the claim.
        seed: of weights and maps.
        own: a checkpoint of the model, for models that give no numbers on random weights.

    Raises:
        ModelError: the spec treats the names of one tensor differently; or the forward pass fails.
    """
    check = Check(build().eval(), example, spec, seed)
    large = check.numbers > ONE_SETTING
    check.choose_weights(own)
    perturbed = check.run(check.first.state, example, Rounding(seed + 2))
    check.comparison.add(check.first.base, perturbed, check.first.base)
    settings = [check.first]
    if not large:
        settings += check.other_settings()[:1]
    drawn = 0
    for place, setting in enumerate(settings):
        for draw in range(1 if large else DRAWS):
            if check.comparison.result().within():
                _compare(check, setting, _mapped(check, setting, spec, seed + 1 + 100 * place + draw))
                drawn += 1
    return check.summary(drawn)


def _compare(check: Check, setting: Setting, moved: State) -> None:
    """Add what a mapped network gives; as maps stretch, the noise floor is also that of the mapped network."""
    found = check.run(moved, setting.example)
    trial = Comparison(floors=dict(check.comparison.floors))
    trial.add(setting.base, setting.base, found)
    noisy = setting.base
    if not trial.result().within():
        again = check.run(moved, setting.example, Rounding(check.seed + 2))
        noisy = [
            base + (one - other) if one.is_floating_point() and one.shape == other.shape == base.shape else base
            for base, one, other in zip(setting.base, again, found, strict=False)
        ]
    check.comparison.add(setting.base, noisy, found)


def _mapped(check: Check, setting: Setting, spec: PermutationSpec, seed: int) -> State:
    """The setting's network under random maps, in the frame of other random weights."""
    maps = random_maps(spec, seed)
    mixing = [name for name, one in maps.items() if one.matrix is not None]
    other = check.state(OTHER_SEED + seed)
    frame = frame_of(Gauges(spec, mixing), other.__getitem__)
    mapped = Mapped(setting.state, spec, maps, frame, ties(check.module), rounded=False)
    last: dict[str, Tensor] = {}  # a module reads its weight several times in a row

    def move(key: str, tensor: Tensor) -> Tensor:
        if key not in last:
            while len(last) >= KEPT:
                del last[next(iter(last))]
            last[key] = mapped.of(key, tensor)
        return last[key]

    return Changed(setting.state, move)


def narrowed(
    spec: PermutationSpec, holds: Callable[[PermutationSpec], bool], smaller: Sequence[Narrowing] | None = None
) -> tuple[PermutationSpec, tuple[str, ...]]:
    """The spec with smaller classes for the groups whose own does not hold, and the names of those that got one.

    Groups are tried by halves, as in `narrowing`, all others with their permutations alone. Each that breaks the check
    is given the first of the other classes that holds; the last one is permutations, or nothing for planes.

    Args:
        spec: one whose classes do not hold together, and whose permutations do.
        holds: whether a part of the claim does.
        smaller: what to try instead, in order.
    """
    names = [group.name for group in spec.groups if group.symmetry is not SymmetryClass.PERMUTATION]
    claimed = {group.name: group.symmetry for group in spec.groups}
    asked = 0

    def does_hold(kept: Sequence[str], part: PermutationSpec) -> bool:
        nonlocal asked
        asked += 1
        return asked <= MOST_CHECKS and holds(_with_classes(part, kept))

    kept: list[str] = []
    broken: list[str] = []

    def look(part: Sequence[str]) -> None:
        if does_hold([*kept, *part], spec):
            kept.extend(part)
        elif len(part) == 1:
            broken.extend(part)
        else:
            look(part[: len(part) // 2])
            look(part[len(part) // 2 :])

    for start in (names[: len(names) // 2], names[len(names) // 2 :]) if len(names) > 1 else (names,):
        if start:
            look(start)
    for narrow in smaller if smaller is not None else (other_planes, signed):
        trial = PermutationSpec(
            tuple(narrow(group) if group.name in broken else group for group in spec.groups), spec.pinned
        )
        found = [name for name in broken if trial.by_name[name] != spec.by_name[name]]
        good = [name for name in found if does_hold([*kept, name], trial)]
        if good and does_hold([*kept, *good], trial):
            spec = PermutationSpec(
                tuple(trial.by_name[group.name] if group.name in good else group for group in spec.groups), spec.pinned
            )
            kept += good
            broken = [name for name in broken if name not in good]
    made = _with_classes(spec, kept)
    return made, tuple(
        name for name in names if name not in made.by_name or made.by_name[name].symmetry is not claimed[name]
    )


Narrowing = Callable[[AxisGroup], AxisGroup]
"""From a group to the same one with a smaller, or another, class."""


def signed(group: AxisGroup) -> AxisGroup:
    """Its permutations and signs; planes, which have no permutations, as they are."""
    if group.pairing is not None:
        return group
    alone = PermutationSpec((replace(group, parent=None),))
    found = limited_spec(alone, SymmetryClass.SIGNED, [group.name]).groups[0]
    reason = f"{found.symmetry.value}: the verification of {group.symmetry.value} failed"
    return replace(found, parent=group.parent, class_reason=reason)


def other_planes(group: AxisGroup) -> AxisGroup:
    """Planes of the other pairs of units; any other group as it is."""
    if group.pairing is None:
        return group
    return replace(group, pairing="adjacent" if group.pairing == "halves" else "halves")


def _with_classes(spec: PermutationSpec, names: Sequence[str]) -> PermutationSpec:
    """The spec in which only the groups of these names have more than permutations; planes of others are left out."""
    kept = set(names)
    left_out = {group.name for group in spec.groups if not group.symmetry.permutable and group.name not in kept}
    groups = tuple(
        group if group.name in kept or group.symmetry is SymmetryClass.PERMUTATION else _permuted(group)
        for group in without_groups(spec, left_out, "").groups
    )
    return PermutationSpec(groups, spec.pinned)


def _permuted(group: AxisGroup) -> AxisGroup:
    return replace(group.permuted(), class_reason=f"permutation: the verification of {group.symmetry.value} failed")
