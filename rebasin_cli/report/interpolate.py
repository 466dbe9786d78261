"""A sweep as a report: the barrier first, then the curves as a table and as sparklines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rebasin_cli.interpolation.sweep import Barrier, Best, SweepPoint
from rebasin_cli.report.guidance import after_interpolate
from rebasin_cli.report.language import language_facts, language_table
from rebasin_cli.report.layout import Document, Facts, Part, Rows, document, facts, rows, text
from rebasin_cli.report.sparkline import sparkline
from rebasin_cli.report.text import counted, number, printable, share, with_error
from rebasin_cli.report.verdict import shown, verdict
from rebasin_cli.verbs.interpolate_result import InterpolateResult

CURVES = {"naive": "before alignment", "matched": "after alignment"}
SHORT = {"naive": "before", "matched": "after"}
ERRORS = {"loss": "loss_standard_error", "accuracy": "accuracy_standard_error"}


def interpolate_table(result: InterpolateResult, *, verbose: bool = False, plain: bool = False) -> Document:
    """The report; with `verbose`, top-5 accuracy; `plain` for streams that cannot show block characters."""
    entries: list[tuple[str, object]] = [("checkpoints", _line(result))]
    if result.aligned is not None:
        entries.append(("aligned", result.aligned))
    networks = f"lam {', '.join(map(str, result.lam))}" if result.lam else counted(result.steps, "step")
    entries.append(("networks", f"{networks}, {result.mode}"))
    if result.data is not None:
        entries.append(("data", result.data))
    entries += _treatment(result)
    entries += [
        (_named("barrier", curve, result), _barrier(barrier, result)) for curve, barrier in result.barrier.items()
    ]
    entries += language_facts(result)
    if any(point.batch_means for points in result.curves.values() for point in points):
        entries.append(("standard errors", "over batches: the loss gives no values of single samples"))
    best = result.best
    if best is not None and result.labelled and not result.on_generated:
        values = f"loss {number(best.loss)}{_accuracy_word(best.accuracy)}"
        entries.append((f"best by {result.best_by}", f"{_place(result, best)}: {values}"))
    parts: list[Part | None] = [
        facts(entries),
        _curves(result, verbose) if result.curves else None,
        language_table(result),
        _sparks(result, plain),
        text(verdict(result)),
        facts([("written", path) for path in (result.out, *result.saved) if path is not None]),
        after_interpolate(result),
    ]
    return document(*parts)


def _named(what: str, curve: str, result: InterpolateResult, names: Mapping[str, str] = CURVES) -> str:
    """The quantity with the curve's name, where there is more than one curve."""
    return what if len(result.curves) == 1 else f"{what} {names.get(curve, curve)}"


def _line(result: InterpolateResult) -> str:
    return " -> ".join(printable(path) for path in result.checkpoints)


def _place(result: InterpolateResult, best: Best) -> str:
    """The position of the best network; a checkpoint by its name."""
    if best.lam in (0.0, 1.0) and not best.mixed:
        reached = best.segment + int(best.lam)
        last = reached == len(result.checkpoints) - 1
        path = result.aligned if best.curve == "matched" and last else result.checkpoints[reached]
        return printable(path)
    where = (
        f"lam {best.lam:g}"
        + (" (others for some tensors)" if best.mixed else "")
        + (f" of {_segment(result, best.segment)}" if _many(result) else "")
    )
    return where if len(result.curves) == 1 else f"{where} {CURVES.get(best.curve, best.curve)}"


def _treatment(result: InterpolateResult) -> list[tuple[str, object]]:
    """What was done about the networks' statistics, and the checkpoints as loaded and as treated."""
    entries: list[tuple[str, object]] = []
    if result.recalibration is not None:
        how = f"{result.recalibration['method']}, estimated on {result.recalibration['data']}"
        entries.append(("statistics", how))
    elif result.running_statistics:
        entries.append(("statistics", "interpolated like the weights"))
    if result.spectral_norms:
        weights = counted(result.spectral_norms, "weight")
        entries.append(("spectral norm", f"u and v computed from each network's {weights}"))
    ends = result.ends
    for name, curves in (
        ()
        if ends is None or ends.as_treated is None
        else (("as loaded", ends.as_loaded), ("as treated", ends.as_treated))
    ):
        entries += [
            (_named(f"ends {name}", curve, result), "; ".join(_end(point, result) for point in points))
            for curve, points in (curves or {}).items()
        ]
    return entries


def _end(point: SweepPoint, result: InterpolateResult) -> str:
    accuracy = "" if point.accuracy is None else f", {_measure('accuracy', result)} {share(point.accuracy)}"
    return f"{_measure('loss', result)} {number(point.loss)}{accuracy}"


def _barrier(barrier: Barrier, result: InterpolateResult) -> str:
    loss = f"{_measure('loss', result)} {shown(barrier)}"
    if barrier.accuracy is None:
        return loss
    drop = (
        f"{100 * barrier.accuracy:.1f}"
        if barrier.accuracy_standard_error is None
        else with_error(barrier.accuracy, barrier.accuracy_standard_error, scale=100)
    )
    return f"{loss}, {_measure('accuracy', result)} {drop} points"


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
    errors = [field for field in measured if field in ERRORS and _has_errors(points, field)]
    lines, exact, printed = [], [], []
    for across in zip(*points, strict=True):
        lead = [_segment(result, across[0].segment)] if _many(result) else []
        cells = [_value(point, field, places[field]) for field in measured for point in across]
        lam = "mixed" if across[0].mixed else f"{across[0].lam:.{fine}f}"
        lines.append([*lead, lam, *cells])
        full = [getattr(point, field) for field in measured for point in across]
        full += [getattr(point, ERRORS[field]) for field in errors for point in across]
        exact.append(
            [*lead, "mixed" if across[0].mixed else across[0].lam, *("" if value is None else value for value in full)]
        )
        cells = [_with_error(point, field, places[field]) for field in measured for point in across]
        printed.append([*lead, lam, *cells])
    more = [
        _named(f"{_measure(field, result)} standard error", name, result, SHORT) for field in errors for name in names
    ]
    numbers = range(int(_many(result)), len(headings))
    return rows(headings, lines, numbers=numbers, exact=exact, exact_headings=[*headings, *more], printed=printed)


def _has_errors(points: Sequence[Sequence[SweepPoint]], field: str) -> bool:
    return any(getattr(point, ERRORS[field]) is not None for row in points for point in row)


def _with_error(point: SweepPoint, field: str, decimals: int | None) -> str:
    """The value with its standard error, for a page or a paper."""
    value, error = getattr(point, field), getattr(point, ERRORS[field]) if field in ERRORS else None
    if value is None or error is None:
        return _value(point, field, decimals)
    return f"({with_error(value, error, scale=100)}) %" if field == "accuracy" else with_error(value, error)


def _measure(field: str, result: InterpolateResult) -> str:
    """What a field of a point is called: without labels, it is no loss and no accuracy."""
    names = {"top5": "top-5"} if result.labelled else {"loss": "distance", "accuracy": "agreement"}
    if result.labelled and result.on_generated:  # sampled text has no right answers
        names = {"accuracy": "next token", "top5": "next token in 5"}
    return names.get(field, field)


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
