"""A merge as a report: what was aligned and how, each checkpoint with its part in the result, and what it scores."""

from __future__ import annotations

from rebasin_cli.data.generated_kinds import is_generated
from rebasin_cli.report.align import function_in_words
from rebasin_cli.report.guidance import after_merge
from rebasin_cli.report.layout import Document, Rows, document, facts, rows
from rebasin_cli.report.text import counted, number, seconds, share, size, with_error
from rebasin_cli.verbs.merge import MergedPoint, MergeInput, MergeResult

ALIGNED = {
    "reference": "each to {reference}",
    "merge-many": "each to the mean of the others in turn (merge-many)",
    "cycle-consistent": "all through one common order (cycle-consistent)",
    "none": "not aligned",
}


def merge_table(result: MergeResult) -> Document:
    """The report."""
    entries: list[tuple[str, object]] = [("alignment", ALIGNED[result.align].format(reference=result.reference))]
    if result.base is not None:
        entries.append(("base", result.base))
    if result.align != "none" and result.expected is None:
        moved = sum(one.moved_units > 0 for one in result.inputs)
        entries.append(("permuted", f"{moved} of {counted(len(result.inputs), 'checkpoint')}"))
        entries.append(("cycles", _cycles(result)))
    entries.append(("method", _method(result)))
    if result.verified is not None:
        entries.append(("function", function_in_words(result.verified)))
    if result.recalibration is not None:
        entries.append(("statistics", result.recalibration))
    elif result.running_statistics:
        entries.append(("statistics", "averaged like the weights"))
    if result.data is not None:
        entries.append(("data", result.data))
    entries += _costs(result)
    return document(facts(entries), _inputs(result), facts(_written(result)), after_merge(result))


def _cycles(result: MergeResult) -> str:
    if not result.cycles:
        return "consistent: along every cycle of checkpoints the permutations compose to the identity"
    return f"along one cycle of checkpoints {result.cycles:,} of {counted(result.units, 'unit')} do not come back"


def _method(result: MergeResult) -> str:
    given = {name: result.settings[name] for name in ("density", "scale") if result.settings.get(name) is not None}
    lam = f", lam {', '.join(map(str, result.settings['lam']))}" if result.settings["lam"] else ""
    return result.method + "".join(f", {name} {value:g}" for name, value in given.items()) + lam


def _costs(result: MergeResult) -> list[tuple[str, object]]:
    if result.expected is not None:
        expected = result.expected
        time = "none" if expected.seconds is None else f"at most {seconds(expected.seconds)} for the alignment"
        return [
            ("memory", f"{size(expected.memory_bytes)} expected, beyond the program's own"),
            ("time", time),
            ("output", size(expected.out_bytes)),
        ]
    return [("time", f"{seconds(result.seconds['total'])}, peak memory {size(result.peak_rss_bytes)}")]


def _written(result: MergeResult) -> list[tuple[str, object]]:
    if result.out is None:
        return [("written", "nothing (dry run)")]
    return [("written", result.out), ("recipe", result.recipe)]


def _inputs(result: MergeResult) -> Rows:
    """One row for each checkpoint, and one for the result where it was evaluated."""
    measured = result.ends is not None
    accuracies = measured and any(
        point.accuracy is not None for point in (*(result.ends or ()), result.result) if point
    )
    headings = ["checkpoint", "weight", "moved units", "shares a base", "distance to result"]
    loss, accuracy = ("loss", "accuracy") if result.labelled else ("output distance", "agreement")
    if result.labelled and is_generated(str(result.given.get("data"))):  # sampled text has no right answers
        accuracy = "next token"
    headings += ([loss] if measured else []) + ([accuracy] if accuracies else [])
    lines, exact = [], []
    for place, one in enumerate(result.inputs):
        point = None if result.ends is None else result.ends[place]
        lines.append([*_cells(one, result), *_scores(point, accuracies)])
        exact.append(
            [one.path, one.weight, one.moved_units, one.shares_base, _known(one.distance), *_exact(point, accuracies)]
        )
    if result.result is not None:
        lines.append(["result", "", "", "", "", *_scores(result.result, accuracies)])
        exact.append(["result", "", "", "", "", *_exact(result.result, accuracies)])
    numbers = (1, 2, 4, *range(5, len(headings)))
    return rows(headings, lines, numbers=numbers, exact=exact)


def _cells(one: MergeInput, result: MergeResult) -> list[object]:
    shares = "not checked" if one.shares_base is None else "yes" if one.shares_base else "no"
    moved = f"{one.moved_units:,} of {result.units:,}" if result.units else "0"
    if result.expected is not None and result.align != "none":
        moved = "-"  # a dry run aligns nothing
    return [one.path, f"{one.weight:.4g}", moved, shares, number(one.distance)]


def _scores(point: MergedPoint | None, accuracies: bool) -> list[object]:
    if point is None:
        return []
    loss = with_error(point.loss, point.loss_standard_error) if point.finite else "not finite"
    return [loss, *([share(point.accuracy)] if accuracies else [])]


def _exact(point: MergedPoint | None, accuracies: bool) -> list[object]:
    return [] if point is None else [_known(point.loss), *([_known(point.accuracy)] if accuracies else [])]


def _known(value: float | None) -> object:
    return "" if value is None else value
