"""The checks that a permuted checkpoint must pass before it is written under its name.

1. The spec: random permutations of its groups do not change the model's function, on random weights.
2. Every tensor of the file is B's, permuted as the permutations say, bit for bit; under maps that compute with
   numbers, it is what these make of B's, within a rounding.
3. B and the file compute the same function, within rounding. Where numbers are rounded to the file's types, the maps
   are checked in float64 first, and then the file: it may differ as B does when its own numbers are rounded once more.
4. The file is no farther from A than B is.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from rebasin_cli.checkpoint.checkpoint import Checkpoint, WholeTransform, untied_keys
from rebasin_cli.errors import ModelError, NumericalError, ResourceError, few, one_line
from rebasin_cli.execution.closeness import Closeness, same_bits
from rebasin_cli.execution.forward import Changed, run
from rebasin_cli.execution.narrowing import TooManyChecks, breaking_groups, without_groups
from rebasin_cli.execution.noise import Comparison
from rebasin_cli.execution.pass_cache import PassCache
from rebasin_cli.execution.same_function import LARGE, SILENT, FunctionCheck, SpecCheck, compare_functions
from rebasin_cli.execution.sample_inputs import sample_inputs
from rebasin_cli.execution.soundness import SoundnessCheck, verify_by_execution
from rebasin_cli.execution.subject import Subject
from rebasin_cli.execution.understanding import NOT_VERIFIED, Understanding, free_fraction
from rebasin_cli.execution.weights import Weights
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.verbs.class_verification import settle_classes
from rebasin_cli.verbs.shared_options import Derivation

SLACK = 1e-7
"""Relative rounding error that a sum over millions of float32 products may have."""


def same_numbers(a: Tensor, b: Tensor, *, exact: bool) -> bool:
    """Whether two tensors agree bit for bit or, if not `exact`, within a rounding of their largest number."""
    if exact or same_bits(a, b) or a.dtype != b.dtype or a.shape != b.shape or not a.is_floating_point():
        return same_bits(a, b)
    one, other = a.to(torch.float64), b.to(torch.float64)
    most = float(one.abs().max()) if one.numel() else 0.0
    return bool(((one - other).abs() <= torch.finfo(a.dtype).eps * (one.abs() + 1e-3 * most)).all())


def verify_permuted(
    source: Weights, written: Weights, transform: Callable[[str, Tensor], Tensor], *, exact: bool = True
) -> None:
    """Check that every tensor of the written file is the source's, transformed; one tensor at a time.

    Args:
        exact: bit for bit; otherwise within a rounding.

    Raises:
        NumericalError: naming the first tensor that differs.
    """
    before, after = source.checkpoint, written.checkpoint
    same = before.format is after.format
    if (list(before.infos) != list(after.infos)) if same else (untied_keys(before) != untied_keys(after)):
        raise NumericalError(
            f"{after.path}: does not have the tensors of {before.path} in their order", slug="verification"
        )
    for key in before.infos:
        if not same_numbers(transform(key, before.tensor(key)), after.tensor(key), exact=exact):
            raise NumericalError(
                f"{after.path}: tensor {key!r} is not the permuted tensor of {before.path}",
                path=after.path,
                hint="the disk failed, or this is a bug; the output was removed",
                slug="verification",
            )


def verify_loaded(
    source: Weights, written: Weights, permute: Callable[[str, Tensor], Tensor], *, exact: bool = True
) -> None:
    """Check that what the model's loader rearranges is loaded from the written file as it should be.

    The file was written by the inverse of loading; this goes the other way.

    Raises:
        NumericalError: naming the first tensor of the model that differs.
    """
    for key in source.rearranged:
        if not same_numbers(permute(key, source[key]), written[key], exact=exact):
            raise NumericalError(
                f"{written.checkpoint.path}: {key!r} would not be loaded as the permuted tensor of"
                f" {source.checkpoint.path}",
                hint="this is a bug; the output was removed",
                slug="verification",
            )


def verify_beside(before: Checkpoint, after: Checkpoint, transform: WholeTransform) -> None:
    """Check that what lies beside the weights is the source's, and bit for bit transformed where it should be.

    Raises:
        NumericalError: naming the first tensor that differs.
    """
    moved = set(transform.beside_paths)
    for path in before.beside_infos:
        if path in before.beside_shared and path not in moved:
            continue  # it lies in the memory of weights that are verified themselves
        wanted = before.beside_tensor(path)
        wanted = transform.beside(path, wanted) if path in moved else wanted
        if path not in after.beside_infos or not same_bits(wanted, after.beside_tensor(path)):
            how = "the permuted tensor" if path in moved else "the tensor"
            raise NumericalError(
                f"{after.path}: tensor {path!r} beside the weights is not {how} of {before.path}",
                path=after.path,
                hint="the disk failed, or this is a bug; the output was removed",
                slug="verification",
            )


def measure(a: Mapping[str, Tensor], b: Mapping[str, Tensor], parameters: Collection[str]) -> Closeness:
    """Cosine and distance over the parameters that both hold."""
    closeness = Closeness()
    for key in parameters:
        if key in a and key in b:
            closeness.add(a[key], b[key])
    return closeness


def verify_closer(before: Closeness, after: Closeness) -> None:
    """Check that the similarity to A has not fallen.

    Raises:
        NumericalError: it has.
    """
    scale = (before.square_a * before.square_b) ** 0.5
    if after.dot < before.dot - SLACK * scale:
        raise NumericalError(
            f"the matching lowered the similarity from {before.dot:.6g} to {after.dot:.6g}",
            hint="this is a bug: please report it with the output of 'rebasin env'",
            slug="verification",
        )


def verify_not_farther(before: Closeness, after: Closeness) -> None:
    """Check that the distance to A has not grown, for maps that may change norms.

    Raises:
        NumericalError: it has.
    """
    if after.distance > before.distance * (1 + SLACK) + 1e-30:
        raise NumericalError(
            f"the matching raised the distance to A from {before.distance:.6g} to {after.distance:.6g}",
            hint="this is a bug: please report it with the output of 'rebasin env'",
            slug="verification",
        )


@dataclass(frozen=True, slots=True)
class RoundingCheck:
    """What rounding the mapped numbers to the file's types does to the outputs, in float64.

    Args:
        relative: the largest difference, relative to the largest magnitude of its output.
        noise_floors: the same in units of what rounding B's own numbers once more does.
    """

    relative: float
    noise_floors: float


def verify_rounded(
    build_weightless: Callable[[], nn.Module],
    example: ExampleInput,
    b: Mapping[str, Tensor],
    written: Mapping[str, Tensor],
    *,
    seed: int,
) -> RoundingCheck:
    """Check that the written file differs from B no more than roundings explain.

    Raises:
        NumericalError: it does.
    """
    module = build_weightless().eval()
    comparison = Comparison()
    for sample in sample_inputs(example, 2, seed).inputs:
        reference, rounded, candidate = (
            run(module, state, sample, seed=seed)
            for state in (b, Changed(b, partial(_rounded_once_more, seed + 3)), written)
        )
        comparison.add(reference, rounded, candidate)
    found = comparison.result()
    if not found.within():
        raise NumericalError(
            f"the rounded network differs from B by a relative error of {found.relative:.3g}, {found.floors:.3g} times "
            "what rounding B's own numbers does; nothing was written",
            hint="convert B to float32 first, or use --symmetries signed, which rounds nothing",
            slug="verification",
        )
    return RoundingCheck(found.relative, found.floors)


def _rounded_once_more(seed: int, key: str, tensor: Tensor) -> Tensor:
    """Every number multiplied by 1 + eps or 1 - eps of its type, at random, in float64."""
    if not tensor.is_floating_point():
        return tensor
    generator = torch.Generator().manual_seed(seed + zlib.crc32(key.encode()))
    signs = torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1
    return tensor.to(torch.float64) * (1 + torch.finfo(tensor.dtype).eps * signs)


def verify_spec(
    subject: Subject,
    understood: Understanding,
    b: Mapping[str, Tensor] | None,
    source: str,
    *,
    seed: int,
    cache: bool = True,
) -> SoundnessCheck:
    """Check that random permutations of the groups do not change the function, on random weights and at two sizes.

    With `cache`, a verification that an earlier run passed is read from the user's cache directory.

    Args:
        b: a checkpoint's weights, for models whose outputs are not finite on random ones; None where there is none.
        source: names the model, or the file of the spec, in an error.

    Raises:
        NumericalError: they change it, at the traced size or at another one; or the outputs are not finite.
    """
    passes = PassCache(understood.trace, understood.spec, understood.example, subject.module, seed) if cache else None
    kept = None if passes is None else passes.read()
    if kept is not None:
        return kept
    try:
        with understood.passes.joined(subject.module):
            check = verify_by_execution(
                subject.weightless,
                understood.example,
                understood.spec,
                seed,
                own=b,
                sizes=True,
                power=True,
            )
    except (MemoryError, RuntimeError, ValueError, IndexError, TypeError, ArithmeticError, LookupError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise ResourceError(
                "the verification of the groups does not fit in memory",
                hint="give a smaller --input, or a smaller batch in --input-file",
            ) from error
        raise ModelError(
            f"the forward pass failed: {one_line(error)}", hint="give an input that the model accepts with --input-file"
        ) from error
    if not check.ok:
        raise _unsound(check, understood, source)
    if passes is not None:
        passes.write(check)
    return check


def narrows(options: Derivation) -> bool:
    """Whether groups that break the verification are given up: not under `--strict`, nor where a rule of the user's own
    may be the cause, which they want to mend."""
    return not options.strict and not options.rules


def verify_groups(
    subject: Subject,
    understood: Understanding,
    b: Mapping[str, Tensor] | None,
    source: str,
    *,
    seed: int,
    cache: bool = True,
    narrow: bool = True,
) -> tuple[Understanding, SoundnessCheck]:
    """`verify_spec`; of derived groups that break the check only those are given up, and the rest is verified again.

    Args:
        narrow: if not, the spec is refused as a whole.

    Raises:
        NumericalError: as for `verify_spec`, where the groups come from a file, or those that break it were not found.
    """
    try:
        found = verify_spec(subject, understood, b, source, seed=seed, cache=cache)
        if understood.given is not None:
            understood = settle_classes(subject, understood, b, source, seed=seed, cache=cache)[0]
        return understood, found
    except NumericalError as error:
        known = error.slug in ("unsound", "traced-size-only") and understood.derivation is not None
        if not known or not narrow:
            raise
        size_only = error.slug == "traced-size-only"

        def holds(part: PermutationSpec) -> bool:
            with understood.passes.joined(subject.module):
                return verify_by_execution(
                    subject.weightless, understood.example, part, seed, own=b, sizes=size_only
                ).ok

        try:
            broken = breaking_groups(understood.spec, holds)
        except TooManyChecks:
            raise error from None
    reason = "valid for the size of the traced input only" if size_only else NOT_VERIFIED
    spec = without_groups(understood.spec, broken, reason)
    narrowed = replace(understood, spec=spec, free_fraction=free_fraction(spec, subject), given_up=broken)
    return narrowed, verify_spec(subject, narrowed, b, source, seed=seed, cache=cache)


def _unsound(check: SoundnessCheck, understood: Understanding, source: str) -> NumericalError:
    if check.only_traced is not None:
        larger = str(check.larger)
        typed = larger.replace("x", ",") if larger.replace("x", "").isdigit() else "…"
        why = "; a recurrent network needs at least two time steps" if check.one_step else ""
        return NumericalError(
            f"{source}: the groups are valid for the traced input {check.traced} only: on {larger} permuting them "
            f"changes the outputs by {check.only_traced:.3g} noise floors",
            hint=f"trace the model on a larger input: --input {typed}{why}",
            slug="traced-size-only",
        )
    if not check.finite:
        return NumericalError(
            f"{source}: the outputs are not finite on the input {check.traced}, so nothing can be verified",
            hint="give an input that the model is meant for with --input-file",
            slug="non-finite",
        )
    hint = "a symmetry rule is wrong for this model: please report it with the model"
    return NumericalError(
        f"{source}: permuting the groups changes the function: relative error {check.max_relative_error:.3g} "
        f"({check.floors:.3g} noise floors) on random weights",
        hint="the spec's groups do not fit this model" if understood.derivation is None else hint,
        slug="unsound",
    )


def spec_summary(check: SoundnessCheck) -> SpecCheck:
    """The verification of the spec, as the report states it."""
    return SpecCheck(
        draws=check.draws,
        max_relative_error=check.max_relative_error,
        max_in_noise_floors=check.floors,
        noise_floor=check.noise_floor,
        sizes=tuple(size for size in (check.traced, check.larger) if size is not None),
        weights=check.weights,
    )


def with_spec(check: FunctionCheck, soundness: SoundnessCheck) -> FunctionCheck:
    """The check of the result together with that of the spec, with notes on both."""
    notes = [check.note] if check.note else []
    if check.note == SILENT:
        notes = [
            "B's outputs are all zero, also on random weights: running the networks shows nothing"
            if soundness.silent
            else f"B's outputs are all zero; on random weights the relative error is {soundness.max_relative_error:.3g}"
        ]
    return replace(
        check,
        note="; ".join(notes) or None,
        spec=spec_summary(soundness),
        without_power=soundness.power.groups,
        power_unknown=soundness.power.unknown,
    )


def spec_warnings(soundness: SoundnessCheck, given_up: Sequence[str] = ()) -> tuple[str, ...]:
    """Warnings about the verification of the spec.

    Args:
        given_up: names of derived groups that did not stand it.
    """
    said = []
    if given_up:
        groups = "1 group" if len(given_up) == 1 else f"{len(given_up)} groups"
        said.append(
            f"{groups} did not stand the verification and keep their order: {few(given_up, shown=4)}; "
            "a symmetry rule is wrong for them at this or another input size: please report it with the model"
        )
    if soundness.one_step:
        said.append(
            f"{soundness.one_step[0]} ran for one time step only, so its recurrent weights were never applied twice: "
            "give an input with at least two steps, such as --input 1,2,8 for (batch, time, features)"
        )
    if soundness.larger is None:
        said.append(f"{soundness.no_larger}, so the groups were verified at {soundness.traced} only")
    unseen = len(soundness.power.groups)
    if unseen:
        counted = "1 group" if unseen == 1 else f"{unseen} groups"
        said.append(
            f"in {counted} leaving one tensor unpermuted has no visible effect, because the "
            f"outputs do not depend on it: {_listed(soundness.power.unseen)}"
        )
    if soundness.power.unknown:
        said.append(f"whether the verification could see every tensor: {soundness.power.unknown}")
    if soundness.silent:
        said.append("all outputs are zero on random weights, so the groups cannot be verified")
    return tuple(said)


def _listed(unseen: Sequence[tuple[str, str]], most: int = 3) -> str:
    keys = list(dict.fromkeys(key for _, key in unseen))
    return ", ".join(keys[:most]) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def verify_same_function(
    build_weightless: Callable[[], nn.Module],
    example: ExampleInput,
    b: Mapping[str, Tensor],
    written: Mapping[str, Tensor],
    *,
    seed: int,
    data: Sequence[ExampleInput] = (),
) -> FunctionCheck:
    """Check that B and the written file compute the same function on sample inputs; for a large model on its example.

    Raises:
        NumericalError: they do not, or B's own outputs are not finite.
    """
    samples = 1 if sum(tensor.numel() for tensor in b.values()) > LARGE else None
    if data and samples == 1:
        samples = 2
    check = compare_functions(build_weightless, example, b, written, samples=samples, seed=seed, data=data)
    if check.same is False:
        if check.max_relative_error is None:
            raise NumericalError(
                "B's own outputs on sample inputs are not finite, so its function cannot be compared",
                hint="give an input that the model is meant for with --input-file",
                slug="non-finite",
            )
        raise NumericalError(
            f"the permuted network does not compute what B computes: relative error {check.max_relative_error:.3g}, "
            f"{check.max_in_noise_floors:.3g} noise floors; nothing was written",
            hint="a spec edited by hand may be wrong; otherwise this is a bug: please report it",
            slug="verification",
        )
    return check
