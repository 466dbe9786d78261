"""A sweep as a report: the barrier first, then the curves as a table and as sparklines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rebasin_cli.execution.agreement import DISTANCE
from rebasin_cli.interpolation.sweep import Barrier, Best, SweepPoint
from rebasin_cli.report.language import language_facts, language_table
from rebasin_cli.report.layout import Document, Facts, Part, Rows, document, facts, rows, text
from rebasin_cli.report.sparkline import sparkline
from rebasin_cli.report.text import counted, number, printable, share
from rebasin_cli.verbs.interpolate import InterpolateResult

NO_BARRIER = 0.01
"""A rise of the loss below this share of the ends' mean loss is reported as no barrier."""
CURVES = {"naive": "before alignment", "matched": "after alignment"}
SHORT = {"naive": "before", "matched": "after"}


def interpolate_table(result: InterpolateResult, *, verbose: bool = False, plain: bool = False) -> Document:
    """The report; with `verbose`, top-5 accuracy; `plain` for streams that cannot show block characters."""
    entries: list[tuple[str, object]] = [("checkpoints", _line(result))]
    if result.aligned is not None:
        entries.append(("aligned", result.aligned))
    entries += [("steps", f"{result.steps}, {result.mode}"), ("data", result.data), ("statistics", _treatment(result))]
    entries += [
        (_named("barrier", curve, result), _barrier(barrier, result)) for curve, barrier in result.barrier.items()
    ]
    entries += language_facts(result)
    best = result.best
    if best is not None and result.loss != DISTANCE:
        entries.append(("best", f"{_place(result, best)}: loss {number(best.loss)}{_accuracy_word(best.accuracy)}"))
    parts: list[Part | None] = [
        facts(entries),
        _curves(result, verbose),
        language_table(result),
        _sparks(result, plain),
        text(verdict(result)),
        facts([("written", path) for path in (result.out, *result.saved)]),
    ]
    return document(*parts)


def verdict(result: InterpolateResult) -> str:
    """What the numbers mean, in one sentence; it goes no further than they do."""
    if result.loss == DISTANCE:
        return _without_labels(result)
    naive, matched = result.barrier["naive"].loss, result.barrier.get("matched", Barrier(None, None)).loss
    if naive is None and matched is None:
        if result.steps < 2:
            return "The barrier is unknown: with one step, no network between the checkpoints is evaluated."
        return "The barrier is unknown: values on the line are missing or not finite."
    if matched is None:
        return (
            f"No loss barrier: on {_samples(result)}, the loss between the checkpoints does not rise above the line "
            f"between their losses by more than {NO_BARRIER:.0%}."
            if _flat(result, "naive")
            else f"Barrier: the loss rises by {number(naive)} above the line between the checkpoints' losses."
        )
    if _flat(result, "matched"):
        if naive is not None and _flat(result, "naive"):
            return f"No loss barrier on {_samples(result)}, before or after alignment."
        return f"After alignment there is no loss barrier on {_samples(result)}."
    if naive is None:
        return f"After alignment the barrier is {number(matched)}."
    if matched < naive:
        return f"The alignment lowers the barrier from {number(naive)} to {number(matched)}."
    return f"The alignment does not lower the barrier: it was {number(naive)} and is {number(matched)}."


def _without_labels(result: InterpolateResult) -> str:
    """Nothing is said of barriers in the loss, which was not measured."""
    said = []
    for curve, points in result.curves.items():
        known = [point.accuracy for point in points if point.accuracy is not None and point.lam not in (0.0, 1.0)]
        if known:
            said.append(f"{_named('', curve, result).strip()} {share(min(known))}".strip())
    if not said:
        return "Without labels, only distances between the outputs are known."
    return f"Without labels: between the ends, the least agreement with their predictions is {', '.join(said)}."


def _flat(result: InterpolateResult, curve: str) -> bool:
    height = result.barrier[curve].loss
    ends = [point.loss for point in result.curves[curve] if point.lam in (0.0, 1.0) and point.loss is not None]
    return height is not None and bool(ends) and height <= NO_BARRIER * max(sum(ends) / len(ends), 1e-6)


def _samples(result: InterpolateResult) -> str:
    return counted(result.n, "sample")


def _named(what: str, curve: str, result: InterpolateResult, names: Mapping[str, str] = CURVES) -> str:
    """The quantity with the curve's name, where there is more than one curve."""
    return what if len(result.curves) == 1 else f"{what} {names.get(curve, curve)}"


def _line(result: InterpolateResult) -> str:
    return " -> ".join(printable(path) for path in result.checkpoints)


def _place(result: InterpolateResult, best: Best) -> str:
    """The position of the best network; a checkpoint by its name."""
    if best.lam in (0.0, 1.0):
        reached = best.segment + int(best.lam)
        last = reached == len(result.checkpoints) - 1
        path = result.aligned if best.curve == "matched" and last else result.checkpoints[reached]
        return printable(path)
    where = f"lam {best.lam:g}" + (f" of {_segment(result, best.segment)}" if _many(result) else "")
    return where if len(result.curves) == 1 else f"{where} {CURVES.get(best.curve, best.curve)}"


def _treatment(result: InterpolateResult) -> str:
    if result.recalibration is None:
        return "interpolated like the weights"
    return f"{result.recalibration['method']}, estimated on {result.recalibration['data']}"


def _barrier(barrier: Barrier, result: InterpolateResult) -> str:
    accuracy = (
        "" if barrier.accuracy is None else f", {_measure('accuracy', result)} {100 * barrier.accuracy:.1f} points"
    )
    return f"{_measure('loss', result)} {number(barrier.loss)}{accuracy}"


def _accuracy_word(accuracy: float | None) -> str:
    return "" if accuracy is None else f", accuracy {share(accuracy)}"


def _many(result: InterpolateResult) -> bool:
    return len(result.checkpoints) > 2


def _segment(result: InterpolateResult, number: int) -> str:
    """A segment of a longer line, by the names of the checkpoints at its ends; with directories where names repeat."""
    names = [path.name for path in result.checkpoints]
    shown = names if len(set(names)) == len(names) else [str(path) for path in result.checkpoints]
    return " -> ".join(map(printable, shown[number : number + 2]))


def _curves(result: InterpolateResult, verbose: bool) -> Rows:
    """One row for each value of lam, with the loss and accuracy of every curve."""
    names = list(result.curves)
    points = [result.curves[name] for name in names]
    measured = ["loss"]
    if any(point.accuracy is not None for row in points for point in row):
        measured.append("accuracy")
    if verbose and any(point.top5 is not None for row in points for point in row):
        measured.append("top5")
    if any(point.metric is not None for row in points for point in row):
        measured.append("metric")
    headings = (["between"] if _many(result) else []) + ["lam"]
    headings += [_named(_measure(field, result), name, result, SHORT) for field in measured for name in names]
    places = {field: _decimals([getattr(point, field) for row in points for point in row]) for field in measured}
    fine = max(len(f"{point.lam:.3g}".partition(".")[2]) for point in points[0])
    lines, exact = [], []
    for across in zip(*points, strict=True):
        lead = [_segment(result, across[0].segment)] if _many(result) else []
        cells = [_value(point, field, places[field]) for field in measured for point in across]
        lines.append([*lead, f"{across[0].lam:.{fine}f}", *cells])
        full = [getattr(point, field) for field in measured for point in across]
        exact.append([*lead, across[0].lam, *("" if value is None else value for value in full)])
    return rows(headings, lines, numbers=range(int(_many(result)), len(headings)), exact=exact)


def _heading(field: str) -> str:
    return {"top5": "top-5"}.get(field, field)


def _measure(field: str, result: InterpolateResult) -> str:
    """What a field of a point is called: without labels, it is no loss and no accuracy."""
    names = {"loss": "distance", "accuracy": "agreement"} if result.loss == DISTANCE else {}
    return names.get(field, _heading(field))


def _decimals(values: Sequence[float | None]) -> int | None:
    """Decimals for four figures of the largest, so that a column lines up; None where small ones would vanish."""
    sizes = [abs(value) for value in values if value]
    if not sizes or max(sizes) >= 1e4 or min(sizes) < max(sizes) / 100 or max(sizes) < 1e-3:
        return None
    return 3 - math.floor(math.log10(max(sizes)))


def _value(point: SweepPoint, field: str, decimals: int | None) -> str:
    value = getattr(point, field)
    if value is None and not point.finite and field in ("loss", "metric"):
        return "not finite"
    if value is None:
        return number(None)
    if field in ("accuracy", "top5"):
        return share(value)
    return number(value) if decimals is None else f"{value:.{decimals}f}"


def _sparks(result: InterpolateResult, plain: bool) -> Facts:
    """All curves of one measure on one scale, so that they can be compared."""
    lines: list[tuple[str, object]] = []
    for field in ("loss", "accuracy"):
        everything = [getattr(point, field) for row in result.curves.values() for point in row]
        known = [value for value in everything if value is not None]
        if known:
            low, high = min(known), max(known)
            scale = f"{share(low)} to {share(high)}" if field == "accuracy" else f"{number(low)} to {number(high)}"
            for name, row in result.curves.items():
                line = sparkline([getattr(point, field) for point in row], low=low, high=high, plain=plain)
                lines.append((_named(_measure(field, result), name, result), f"{line}  {scale}"))
    return facts(lines, for_terminal=True)
