"""An alignment in words: what was understood, how far B came, that it is still B, where it is, what to type next."""

from __future__ import annotations

from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.report.layout import cell, facts, rows, stacked
from rebasin_cli.report.text import counted, number, seconds, share, shell, size
from rebasin_cli.verbs.align_result import AlignResult


def align_table(result: AlignResult, *, verbose: bool = False, swept: bool = False) -> Group:
    """The table a person wants first; with `verbose`, every group too; `swept` says that the line follows."""
    entries: list[tuple[str, object]] = [
        ("understood", understood(result)),
        ("moved", f"{result.moved_units:,} of {counted(result.units, 'unit')}"),
        ("similarity", f"cosine {number(result.cosine.before)} -> {number(result.cosine.after)}"),
        *criterion(result),
        ("distance", f"{number(result.distance.before)} -> {number(result.distance.after)} (L2 over the parameters)"),
        *_groups_verified(result.verified),
        ("function", function_in_words(result.verified)),
        ("matching", _search(result)),
        ("took", f"{seconds(result.seconds['total'])}, at most {size(result.peak_rss_bytes)} of memory"),
    ]
    if result.out is not None:
        entries.append(("written", result.out))
        others = [path for path in (result.report, result.permutations, result.spec) if path is not None]
        entries += [("", path) for path in others]
    parts: list[RenderableType | None] = [
        facts(entries),
        Text(verdict(result)),
        _groups(result) if verbose else None,
        None if swept else _next(result),
    ]
    return stacked(*parts)


def understood(result: AlignResult) -> str:
    return (
        f"{counted(len(result.groups), 'group')} of {counted(result.units, 'unit')}, which move"
        f" {share(result.free_fraction)} of {counted(result.parameters, 'parameter')}"
    )


def verdict(result: AlignResult) -> str:
    """What the numbers mean, in one sentence."""
    if not result.groups:
        return "Nothing in this model can be reordered without changing its function: the output equals B."
    if result.already_aligned:
        return "B already lies in A's basin: no reordering brings it closer, so its units keep their order."
    if result.distance.after <= 1e-6 * max(result.distance.before, 1e-30):
        return "B is A with its units reordered: put back in order, the two agree."
    return "B was brought closer to A; it computes what it computed before."


def criterion(result: AlignResult) -> list[tuple[str, object]]:
    """What decided, where it is not the similarity above it."""
    by = result.criterion
    if by.name == "plain":
        return []
    start = "" if by.weight_matching is None else f" (weight matching: {number(by.weight_matching)})"
    return [("chosen by", f"{by.name} {number(by.before)} -> {number(by.after)}{start}")]


def function_in_words(check: FunctionCheck) -> str:
    """Unchanged, and by which measure; or why nobody looked."""
    if check.left_out is not None:
        return f"every tensor is B's, reordered; not run: {check.left_out}"
    if check.samples == 0:
        return f"unchanged: {check.note}"
    floors = "" if check.max_in_noise_floors is None else f", {number(check.max_in_noise_floors)} noise floors"
    agreement = "" if check.argmax_agreement is None else f", argmax agreement {share(check.argmax_agreement)}"
    word = "unchanged" if check.same else "CHANGED"
    note = "" if check.note is None else f"; {check.note}"
    return (
        f"{word}: largest error {number(check.max_absolute_error)}, relative {number(check.max_relative_error)}"
        f"{floors}{agreement} ({counted(check.samples, 'input')}, {check.precision}){note}"
    )


def _groups_verified(check: FunctionCheck) -> list[tuple[str, object]]:
    """How the groups were verified, where they were."""
    if check.spec is None:
        return []
    weights = "random weights" if check.spec.weights == "random" else "B's weights, varied at random"
    words = f"verified on {weights}: {counted(check.spec.draws, 'draw')}, input {' and '.join(check.spec.sizes)}"
    return [("groups", words)]


def _search(result: AlignResult) -> str:
    if result.criterion.name == "midpoint loss":
        return f"learned for {counted(result.passes, 'step')} from the best start ({result.start}); seed {result.seed}"
    end = "converged" if result.converged else "stopped before it converged"
    passes = counted(result.passes, "pass", "passes")
    return f"{end} after {passes} from the best start ({result.start}); seed {result.seed}"


def _groups(result: AlignResult) -> RenderableType:
    lines = [(group.name, f"{group.size:,}", f"{group.moved:,}") for group in result.groups]
    return rows(("group", "units", "moved"), lines, numbers=(1, 2))


def _next(result: AlignResult) -> Text | None:
    """The command that answers the next question."""
    if result.out is None:
        return Text("Nothing was written (dry run).")
    words: list[object] = ["rebasin", "interpolate"]
    if result.report is not None and result.report.parent.resolve() != Path.cwd():
        words += ["--report", result.report]
    words += ["--steps", 10, "--data", "DATA"]
    return cell(f"next: {shell(words)}")
