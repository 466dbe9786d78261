"""Nothing is written that was not proved: what must hold of a permuted checkpoint before it gets its name.

1. Every tensor of the file is B's, rearranged as the permutations say, bit for bit.
2. B and the file compute the same function.
3. The file lies no farther from A than B did.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from rebasin_cli.errors import NumericalError
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.verify import verify_by_execution
from rebasin_cli.verbs.closeness import Closeness, same_bits
from rebasin_cli.verbs.same_function import LARGE, SILENT, FunctionCheck, compare_functions
from rebasin_cli.verbs.weights import Weights

SLACK = 1e-7
"""Relative rounding that a sum over millions of float32 products may show without anything having fallen."""


def prove_rearranged(source: Weights, written: Weights, transform: Callable[[str, Tensor], Tensor]) -> None:
    """Check that every tensor of the written file is its source's, transformed, bit for bit; one tensor at a time.

    Raises:
        NumericalError: naming the first tensor that is not.
    """
    before, after = source.checkpoint, written.checkpoint
    if list(before.infos) != list(after.infos):
        raise NumericalError(f"{after.path}: does not hold the tensors of {before.path}, in their order", slug="proof")
    for key in before.infos:
        if not same_bits(transform(key, before.tensor(key)), after.tensor(key)):
            raise NumericalError(
                f"{after.path}: tensor {key!r} is not the rearranged one of {before.path}",
                path=after.path,
                hint="the disk or this program is at fault; nothing was kept",
                slug="proof",
            )


def measure(a: Mapping[str, Tensor], b: Mapping[str, Tensor], parameters: Collection[str]) -> Closeness:
    """Cosine and distance over the parameters that both hold."""
    closeness = Closeness()
    for key in parameters:
        if key in a and key in b:
            closeness.add(a[key], b[key])
    return closeness


def prove_closer(before: Closeness, after: Closeness) -> None:
    """Check that the similarity to A has not fallen.

    Raises:
        NumericalError: it has.
    """
    scale = (before.square_a * before.square_b) ** 0.5
    if after.dot < before.dot - SLACK * scale:
        raise NumericalError(
            f"the matching lowered the similarity from {before.dot:.6g} to {after.dot:.6g}",
            hint="this is a bug: please report it with the output of 'rebasin env'",
            slug="proof",
        )


def prove_same_function(
    build_weightless: Callable[[], nn.Module],
    example: ExampleInput,
    b: Mapping[str, Tensor],
    written: Mapping[str, Tensor],
    *,
    spec: PermutationSpec,
    seed: int,
) -> FunctionCheck:
    """Check that B and the written file compute the same on sample inputs; of a large model, on its example input.

    Where B's outputs are zero throughout, its groups are proved on random weights instead.

    Raises:
        NumericalError: they do not, or B's own outputs are not finite.
    """
    samples = 1 if sum(tensor.numel() for tensor in b.values()) > LARGE else None
    check = compare_functions(build_weightless, example, b, written, samples=samples, seed=seed)
    if check.same is False:
        if check.max_relative_error is None:
            raise NumericalError(
                "B's own outputs on sample inputs are not finite, so it cannot be shown that its function is kept",
                hint="give an input that the model is meant for with --input-file",
                slug="non-finite",
            )
        raise NumericalError(
            f"the reordered network computes something else than B: relative error {check.max_relative_error:.3g} "
            f"in {check.precision}; nothing was written",
            hint="a spec edited by hand may be wrong, or this is a bug worth reporting",
            slug="proof",
        )
    return _proved_on_random_weights(build_weightless, example, spec, seed, check) if check.note == SILENT else check


def _proved_on_random_weights(
    build_weightless: Callable[[], nn.Module],
    example: ExampleInput,
    spec: PermutationSpec,
    seed: int,
    check: FunctionCheck,
) -> FunctionCheck:
    soundness = verify_by_execution(build_weightless, example, spec, seed)
    if not soundness.ok:
        raise NumericalError(
            f"reordering by these groups changes the function: relative error {soundness.max_relative_error:.3g} on "
            "random weights, because B's own outputs are all zero; nothing was written",
            hint="a spec edited by hand may be wrong, or this is a bug worth reporting",
            slug="proof",
        )
    words = f"B's outputs are all zero; on random weights the relative error is {soundness.max_relative_error:.3g}"
    if soundness.silent:
        words = (
            "B's outputs are all zero, and on random weights too: that the function is kept was not shown by running"
        )
    return replace(check, note=words)
