"""An alignment as a report: the axis groups, the similarity, the verification, the files, the next command."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rebasin_cli.execution.same_function import FunctionCheck
from rebasin_cli.matching.weighing import PLAIN
from rebasin_cli.report.guidance import after_align
from rebasin_cli.report.layout import Document, Part, Rows, document, facts, rows, text
from rebasin_cli.report.learning import learning_rows
from rebasin_cli.report.text import counted, number, seconds, share, size
from rebasin_cli.verbs.align import AlignResult, Mapped
from rebasin_cli.verbs.siblings import Sibling


def align_table(result: AlignResult, *, verbose: bool = False, swept: bool = False, plain: bool = False) -> Document:
    """The report; with `verbose`, every group too; `swept` where the report of an interpolation follows.

    Args:
        plain: ASCII, for streams that cannot show blocks.
    """
    entries: list[tuple[str, object]] = [
        ("state", state_in_words(result.state, result.siblings)),
        ("groups", found_groups(result)),
        *_moved(result),
        ("similarity", f"cosine {number(result.cosine.before)} -> {number(result.cosine.after)}"),
        *criterion(result),
        ("distance", f"{number(result.distance.before)} -> {number(result.distance.after)} (L2 norm)"),
        *_groups_verified(result.verified),
        ("function", function_in_words(result.verified)),
        *_data(result),
        ("matching", _search(result)),
        *learning_rows(result.learning, result.settings, plain=plain),
        ("time", f"{seconds(result.seconds['total'])}, peak memory {size(result.peak_rss_bytes)}"),
    ]
    if result.out is not None:
        entries.append(("written", result.out))
        others = [path for path in (result.report, result.permutations, result.spec) if path is not None]
        entries += [("", path) for path in others]
    parts: list[Part | None] = [
        facts(entries),
        text(verdict(result)),
        _tried(result) if result.tried else None,
        _groups(result) if verbose else None,
        None if swept else after_align(result),
    ]
    return document(*parts)


def _moved(result: AlignResult) -> list[tuple[str, object]]:
    """How many units moved, or what became of the groups under maps of larger classes."""
    mapped = result.symmetries
    if mapped is None:
        return [("permuted", f"{result.moved_units:,} of {counted(result.units, 'unit')}")]
    entries: list[tuple[str, object]] = [("moved", mapped_in_words(mapped))]
    if mapped.largest_condition > 1 + 1e-6:
        entries.append(("condition", f"at most {number(mapped.largest_condition)}"))
    if mapped.rounding_error is not None:
        floors = number(mapped.rounding_floors)
        entries.append(
            ("rounded", f"relative error {number(mapped.rounding_error)}, {floors} roundings of B's own numbers")
        )
    return entries


def mapped_in_words(mapped: Mapped) -> str:
    """What became of the groups, those of one size and fate together: `96 units rotated; 4 x 384 units permuted`."""
    counts = Counter((group.kind, group.size) for group in mapped.groups)
    fates = ("rotated", "mapped linearly", "turned in planes", "scaled", "signed", "permuted", "kept")
    said = []
    for kind in fates:
        sizes = [(size, count) for (one, size), count in counts.items() if one == kind]
        if sizes:
            words = {"scaled": "permuted and scaled", "signed": "permuted with signs"}.get(kind, kind)
            listed = ", ".join(f"{count} x {size:,}" if count > 1 else f"{size:,}" for size, count in sizes)
            said.append(f"{listed} units {words}")
    return "; ".join(said) or "nothing"


def state_in_words(state: Mapping[str, Mapping[str, Any]], siblings: Sequence[Sibling]) -> str:
    """Which state dict of each file was taken, and what became of the others of B's."""
    taken = {which: found["found"] for which, found in state.items()}
    if not any(taken.values()):
        said = "the whole file" if len(taken) == 1 else "the whole of both files"
    elif len(taken) == 1:
        said = str(next(iter(taken.values())))
    else:
        said = ", ".join(f"{found or 'the whole file'} of {which.upper()}" for which, found in taken.items())
    return said + siblings_in_words(siblings)


def siblings_in_words(siblings: Sequence[Sibling]) -> str:
    """What was permuted with the weights, and what was not."""
    fates = {
        "permuted with it": [one for one in siblings if one.moved],
        "not permuted": [one for one in siblings if not one.moved and not one.dropped],
        "left out": [one for one in siblings if one.dropped],
    }
    return "".join(f"; {fate}: {_named(some)}" for fate, some in fates.items() if some)


def _named(siblings: Sequence[Sibling], most: int = 6) -> str:
    names = [one.path if one.kind in one.path else f"{one.path} ({one.kind})" for one in siblings]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def found_groups(result: AlignResult) -> str:
    return (
        f"{counted(len(result.groups), 'axis group')}, {counted(result.units, 'unit')}, in "
        f"{share(result.free_fraction)} of {counted(result.parameters, 'parameter')}"
    )


def verdict(result: AlignResult) -> str:
    """What the numbers mean, in one sentence; it goes no further than they do."""
    if not result.groups:
        return "There is no axis group to permute: the output equals B."
    if result.moved_units == 0:
        return _unmoved(result)
    if result.distance.after <= 1e-6 * max(result.distance.before, 1e-30):
        copy = "a permuted copy of A" if result.symmetries is None else "A under maps that keep its function"
        return f"B is {copy}: after alignment the two agree."
    return "B is aligned to A; its function is unchanged."


def _unmoved(result: AlignResult) -> str:
    """Why B is as it was, no more certain than the search was."""
    if result.already_aligned:
        return "No search, from several starts, found an order in which B is more similar to A: its units keep theirs."
    if result.criterion.name == PLAIN and result.converged:
        return "The search found no order of the units in which B is more similar to A: the output equals B."
    if result.criterion.name == PLAIN:
        return "The search stopped before it found a permutation that makes B more similar to A: the output equals B."
    return f"No permutation was found with a better {result.criterion.name} than B as it is: the output equals B."


def criterion(result: AlignResult) -> list[tuple[str, object]]:
    """The criterion that the result was chosen by, where it is not the similarity above."""
    by = result.criterion
    if by.name == "plain":
        return []
    start = "" if by.weight_matching is None else f" (weight matching: {number(by.weight_matching)})"
    return [("chosen by", f"{by.name} {number(by.before)} -> {number(by.after)}{start}")]


def function_in_words(check: FunctionCheck) -> str:
    """Unchanged, and by which measure; or why the model was not run."""
    if check.left_out is not None:
        return f"every tensor is B's, permuted; the model was not run: {check.left_out}"
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
    """How the axis groups were verified, where they were."""
    if check.spec is None:
        return []
    weights = "random weights" if check.spec.weights == "random" else "B's weights, varied at random"
    words = f"groups on {weights}: {counted(check.spec.draws, 'draw')}, input {' and '.join(check.spec.sizes)}"
    return [("verified", words)]


def _search(result: AlignResult) -> str:
    if result.tried:
        return (
            f"{result.method}: {result.start}, the best of {len(result.tried)}{_settings(result)}; seed {result.seed}"
        )
    if result.criterion.name == "midpoint loss":
        learned = (
            f"learned for {counted(result.passes, 'step')} from the best candidate"
            if result.learning is not None
            else "best candidate"
        )
        return f"{result.method}: {learned} ({result.start}){_settings(result)}; seed {result.seed}"
    end = "converged" if result.converged else "stopped before convergence"
    passes = counted(result.passes, "pass", "passes")
    start = f"({result.start}){_settings(result)}; seed {result.seed}"
    return f"{result.method}: {end} after {passes} from the best start {start}"


def _data(result: AlignResult) -> list[tuple[str, object]]:
    """What the networks were run on, and what was learned from it."""
    if result.data is None:
        return []
    learned = result.data["learned_on"]
    return [("data", result.data["description"]), *([("learned by", learned)] if learned is not None else [])]


def _settings(result: AlignResult) -> str:
    """The settings that the method worked with."""
    said = []
    if result.method == "activation" and result.settings["mix"] < 1:
        said.append(f"mix {result.settings['mix']:g}")
    if result.method == "learned":
        said.append(f"rate {result.settings['learning_rate']:g}")
    if result.method != "activation" or result.settings.get("mix", 1.0) < 1:
        said.append(f"effort {result.settings['effort']}")
    if result.timed_out:
        said.append("time ran out")
    if result.stopped == "margin":
        said.append("ended early (two starts found the same order, every unit by a wide margin)")
    return "".join(f", {words}" for words in said)


def _tried(result: AlignResult) -> Rows:
    """The methods that were compared, and the one that was kept."""
    lines = [
        (
            one.method,
            "not finite" if one.loss is None else number(one.loss),
            "" if one.accuracy is None else share(one.accuracy),
            "kept" if one.kept else "",
        )
        for one in result.tried
    ]
    return rows(("method", "midpoint loss", "accuracy", ""), lines, numbers=(1, 2))


def _groups(result: AlignResult) -> Rows:
    lines = [(group.name, f"{group.size:,}", f"{group.moved:,}") for group in result.groups]
    return rows(("group", "units", "moved"), lines, numbers=(1, 2))
