"""A comparison as a report: the verdict and why, then what differs, module by module."""

from __future__ import annotations

from collections.abc import Mapping

from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.matching.common_base import UnitTest
from rebasin_cli.report.layout import Document, Part, Rows, document, facts, rows, text
from rebasin_cli.report.text import counted, number, printable, seconds, share
from rebasin_cli.verbs.compare import BeforeAfter, ComparedModule, CompareResult

MOST_MODULES = 20
"""Modules that are listed where not all were asked for: those that differ most."""

HEADINGS = ("module", "cosine before", "after", "relative distance before", "after", "tensors equal")

VERDICTS: Mapping[str, str] = {
    "same-file": "Every tensor of B is equal to A's, bit for bit.",
    "permuted-copy": "B is A with its units in another order: permuted, every tensor is equal to A's, bit for bit.",
    "same-function": "A and B compute the same function, as far as sample inputs show, and the files differ.",
    "fine-tuned": (
        "A and B have a common base: their units are the same, in the same order, and their weights have changed "
        "(fine-tuned, pruned, quantized or the like)."
    ),
    "permuted-fine-tuned": (
        "A and B have a common base: their units are the same, in another order, and their weights have changed "
        "(fine-tuned, pruned, quantized or the like)."
    ),
    "unrelated": (
        "No sign of a common base: matched units of A and B are no more alike than those of networks trained apart."
    ),
    "undecided": "Whether A and B have a common base is undecided.",
}


def compare_table(result: CompareResult, *, verbose: bool = False) -> Document:
    """The report; with `verbose`, every module."""
    parts: list[Part | None] = [
        text(f"Verdict: {result.verdict}. {VERDICTS[result.verdict]}", *reasons(result)),
        facts(list(summary(result))),
        module_rows(result, None if verbose else MOST_MODULES),
    ]
    return document(*parts)


def reasons(result: CompareResult) -> list[str]:
    """Why the verdict is no other, where that is not plain."""
    said = []
    if result.model is None and result.verdict == "undecided":
        said.append("Without a model nothing is aligned, so tensors that differ decide nothing: give --model.")
    tests = result.tests
    if result.model is not None and result.verdict == "undecided":
        if tests is None or tests.in_order is None:
            said.append("There are no groups with enough units to test.")
        elif tests.matched is not None and not tests.matched.interior:
            said.append("All weights lie at inputs or outputs, where networks trained apart are alike too.")
        else:
            said.append("The units are more alike than those of most networks trained apart, or too few to tell.")
    if (
        tests is not None
        and result.verdict in ("unrelated", "undecided")
        and _ordered_alike(tests.in_order, tests.level)
    ):
        said.append("The order of the units is no accident: one was aligned to the other, or they have a common base.")
    if result.aligned_by_this_program:
        files = ", ".join(printable(path) for path in result.aligned_by_this_program)
        said.append(f"Permuted by 'rebasin', as its metadata says: {files}.")
    return said


def _ordered_alike(in_order: UnitTest | None, level: float) -> bool:
    return in_order is not None and in_order.p_order <= level


def summary(result: CompareResult) -> list[tuple[str, object]]:
    """The figures that belong to the whole."""
    entries: list[tuple[str, object]] = [("A", result.a), ("B", result.b)]
    if result.p_value is not None:
        entries.append(("p-value", f"{number(result.p_value)} (hypothesis: no common base)"))
    tests = result.tests
    if tests is not None and tests.in_order is not None:
        entries.append(("units in order", _test(tests.in_order)))
    if tests is not None and tests.matched is not None:
        entries.append(("units matched", _test(tests.matched)))
    if tests is not None and result.verdict == "permuted-fine-tuned" and tests.permuted_groups:
        entries.append(("in another order", counted(len(tests.permuted_groups), "axis group")))
    if result.moved_units is not None:
        entries.append(("permuted", f"{result.moved_units:,} of {counted(result.units or 0, 'unit')}"))
    entries.append(("similarity", f"cosine {_change(result.cosine)}"))
    entries.append(("distance", f"{_change(result.distance)} (L2 norm)"))
    if result.function is not None:
        entries.append(("function", _function(result.function)))
    entries.append(
        ("tensors", f"{result.equal_tensors:,} of {result.tensors:,} are equal bit for bit{_aligned(result)}")
    )
    for name, keys in (("only in A", result.only_in_a), ("only in B", result.only_in_b)):
        if keys:
            entries.append((name, f"{counted(len(keys), 'tensor')}: {_listed(keys)}"))
    if result.other_shapes:
        listed = [f"{one.key} ({list(one.a)} in A, {list(one.b)} in B)" for one in result.other_shapes]
        entries.append(("other shapes", _listed(listed)))
    entries.append(("time", seconds(result.seconds["total"])))
    return entries


def _test(test: UnitTest) -> str:
    how = "on the half of the weights that the matching did not see" if test.held_out else "as the files have them"
    return (
        f"correlation {number(test.correlation)} over {counted(test.units, 'unit')}, {how}; "
        f"above {test.limit:g}: p = {number(test.p_value)}"
    )


def _function(check: FunctionCheck) -> str:
    if check.left_out is not None:
        return f"not compared: {check.left_out}"
    agreement = "" if check.argmax_agreement is None else f", argmax agreement {share(check.argmax_agreement)}"
    floors = "" if check.max_in_noise_floors is None else f" ({number(check.max_in_noise_floors)} noise floors)"
    word = "the same" if check.same else "different"
    return (
        f"{word}: largest relative difference {number(check.max_relative_error)}{floors}{agreement} "
        f"({counted(check.samples, 'input')}, {check.precision})"
    )


def _change(pair: BeforeAfter) -> str:
    return number(pair.before) if pair.after is None else f"{number(pair.before)} -> {number(pair.after)}"


def _aligned(result: CompareResult) -> str:
    return "" if result.model is None else " after alignment"


def _listed(names: tuple[str, ...] | list[str], most: int = 4) -> str:
    rest = len(names) - most
    return ", ".join(map(printable, names[:most])) + (f" and {rest:,} more" if rest > 0 else "")


def module_rows(result: CompareResult, most: int | None) -> Rows | None:
    """A line for each module, in the order of the model; of many, those that differ most."""
    modules = result.modules
    if most is not None:
        modules = tuple(one for one in modules if one.changed)
        if len(modules) > most:
            chosen = sorted(modules, key=difference, reverse=True)[:most]
            modules = tuple(one for one in modules if one in chosen)
    if not modules:
        return None
    return rows(
        HEADINGS,
        [(name_of(one), *(number(value) for value in figures(one)), equal_of(one)) for one in modules],
        numbers=range(1, len(HEADINGS)),
        exact=[(one.name, *("" if v is None else v for v in figures(one)), one.equal_tensors) for one in modules],
    )


def name_of(module: ComparedModule) -> str:
    return module.name or "(the model)"


def equal_of(module: ComparedModule) -> str:
    return f"{module.equal_tensors} of {module.tensors}"


def figures(module: ComparedModule) -> tuple[float | None, ...]:
    """Cosine and relative distance, each before and after alignment."""
    cosine, distance = module.cosine, module.relative_distance
    return cosine.before, cosine.after, distance.before, distance.after


def difference(module: ComparedModule) -> float:
    """The relative distance, after alignment where there was one."""
    distance = module.relative_distance
    return (distance.before if distance.after is None else distance.after) or 0.0
