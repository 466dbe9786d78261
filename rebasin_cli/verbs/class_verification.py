"""The classes of a model's groups, verified by execution: those of a spec file as they stand, derived ones narrowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from rebasin_cli.errors import ModelError, NumericalError, ResourceError, few, one_line
from rebasin_cli.execution.class_check import has_classes, narrowed, verify_classes
from rebasin_cli.execution.pass_cache import PassCache
from rebasin_cli.execution.soundness import SoundnessCheck
from rebasin_cli.execution.subject import Subject
from rebasin_cli.execution.understanding import Understanding
from rebasin_cli.spec import PermutationSpec


def settle_classes(
    subject: Subject,
    understood: Understanding,
    b: Mapping[str, Tensor] | None,
    source: str,
    *,
    seed: int,
    cache: bool = True,
    narrow: bool = True,
) -> tuple[Understanding, SoundnessCheck | None, tuple[str, ...]]:
    """Check that random elements of every group's class do not change the function.

    The permutations of the groups must have been verified before.

    Args:
        b: a checkpoint's weights, for models whose outputs are not finite on random ones; None where there is none.
        source: names the model, or the file of the spec, in an error.
        narrow: derived groups whose class does not hold are given a smaller one; if not, they are refused.

    Returns:
        The model as understood, `settled`; the check, None where no group has more than permutations; and the names of
        the groups whose derived class did not stand it.

    Raises:
        NumericalError: the classes change the function, and they come from a file or are not to be narrowed.
    """
    spec = understood.classified
    if not has_classes(spec):
        return replace(understood, settled=spec), None, ()
    passes = PassCache(understood.trace, spec, understood.example, subject.module, seed) if cache else None
    kept = None if passes is None else passes.read()
    if kept is not None:
        return replace(understood, settled=spec), kept, ()

    def check(part: PermutationSpec) -> SoundnessCheck:
        with understood.passes.joined(subject.module):
            return verify_classes(subject.weightless, understood.example, part, seed, own=b)

    try:
        found = check(spec)
        if found.ok:
            if passes is not None:
                passes.write(found)
            return replace(understood, settled=spec), found, ()
        smaller, broken = narrowed(spec, lambda part: check(part).ok)
        if not narrow or understood.derivation is None:
            raise _too_large(spec, broken, found, source)
        found = check(smaller)
    except (MemoryError, RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, LookupError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ResourceError(
                "the verification of the classes does not fit in memory",
                hint="give a smaller --input, or a smaller batch in --input-file",
            ) from error
        raise ModelError(f"the forward pass failed: {one_line(error)}") from error
    if not found.ok:  # they hold one by one and not together: permutations, which were verified before, are left
        return replace(understood, settled=understood.spec), None, tuple(group.name for group in spec.groups)
    return replace(understood, settled=smaller), found, broken


def _too_large(spec: PermutationSpec, broken: Sequence[str], check: SoundnessCheck, source: str) -> NumericalError:
    said = [f"{name} (class {spec.by_name[name].symmetry.value})" for name in broken if name in spec.by_name]
    named = few(said, shown=4) if said else "together"
    return NumericalError(
        f"{source}: maps of these classes change the function: {named}: relative error "
        f"{check.max_relative_error:.3g} ({check.floors:.3g} noise floors) on random weights",
        hint="give these groups a smaller class in the spec, such as permutation",
        slug="unsound-class",
    )


def class_warnings(broken: Sequence[str]) -> tuple[str, ...]:
    """What is said of derived classes that did not stand the verification."""
    if not broken:
        return ()
    groups = "1 group" if len(broken) == 1 else f"{len(broken)} groups"
    return (
        f"the classes of {groups} did not stand the verification and were narrowed: {few(list(broken), shown=4)}; "
        "please report it with the model",
    )
