"""What the numbers of a sweep mean, in sentences that go no further than the numbers.

| sentence | condition |
|---|---|
| nothing was evaluated | there are no data |
| on generated inputs | there are no data; nothing is said of a barrier on data |
| without labels | the data have none; nothing is said of barriers in the loss, which was not measured |
| the barrier is unknown: one step | nothing between the checkpoints was evaluated |
| the barrier is unknown: not finite | a value on the line is missing or not finite |
| no better than guessing | the accuracy of an end, less two standard errors, is not above that of the best guess |
| worse than a guess | the cross-entropy of an end is, and its accuracy is below one half |
| no loss barrier | none of these; the barrier is within two standard errors of zero, and its error is known |
| barrier | none of these |
| statistics do not fit | the model has running statistics that were interpolated like weights, and there is a barrier |
| the alignment lowers, does not lower | the two barriers differ by more than two standard errors of their difference |
| the alignment changes by less | they do not |
"""

from __future__ import annotations

import math
from typing import Literal

from rebasin_cli.execution.chance import ADVICE, may_guess, no_better_than_chance
from rebasin_cli.interpolation.sweep import Barrier, SweepPoint
from rebasin_cli.report.text import counted, number, share, with_error
from rebasin_cli.verbs.interpolate_result import InterpolateResult

Finding = Literal["one step", "not finite", "guessing", "none", "there"]
ROUNDING = 1e-6
"""A rise below this share of the ends' mean loss can be rounding in float32, whatever its standard error is."""


def verdict(result: InterpolateResult) -> str:
    """The sentences for this result."""
    if result.data is None:
        return "Nothing was evaluated: --data was not given."
    if result.on_generated:
        return _on_generated(result)
    if not result.labelled:
        return _without_labels(result)
    curve = "matched" if "matched" in result.barrier else "naive"
    found = finding(result, curve)
    if found == "one step":
        if any(point.mixed for point in result.curves[curve]):
            return "There is no barrier of a network with another lam for some tensors: it is not on the line."
        why = "" if result.lam else "with one step, "
        return f"The barrier is unknown: {why}no network between the checkpoints is evaluated."
    if found == "not finite":
        return "The barrier is unknown: values on the line are missing or not finite."
    if found == "guessing":
        return _guessing(result, curve)
    if curve == "naive":
        return _one_curve(result, found)
    return _two_curves(result, found, finding(result, "naive"))


def finding(result: InterpolateResult, curve: str) -> Finding:
    """What the points of one curve say about its barrier."""
    points, barrier = result.curves[curve], result.barrier[curve]
    if not any(point.between for point in points):
        return "one step"
    if barrier.loss is None:
        return "not finite"
    ends = _ends(points)
    if any(_guesses(point, result) for point in ends):
        return "guessing"
    losses = [abs(point.loss) for point in ends if point.loss is not None]
    rounding = ROUNDING * sum(losses) / max(1, len(losses))
    error = barrier.loss_standard_error
    return "none" if error is not None and barrier.loss <= max(2 * error, rounding) else "there"


def _ends(points: tuple[SweepPoint, ...]) -> list[SweepPoint]:
    return [point for point in points if point.at_end]


def _guesses(point: SweepPoint, result: InterpolateResult) -> bool:
    cross_entropy = result.loss == "cross-entropy"
    return may_guess(point) or no_better_than_chance("", point, cross_entropy=cross_entropy) is not None


def _guessing(result: InterpolateResult, curve: str) -> str:
    ends = _ends(result.curves[curve])
    chance, frequent = next((point.chance, point.most_frequent) for point in ends if point.chance is not None)
    if not any(may_guess(point) for point in ends):
        losses = " and ".join(number(point.loss) for point in ends)
        return (
            f"The barrier says nothing: on {_samples(result)} the checkpoints' loss is {losses}, and that of a guess "
            f"is {number(-math.log(chance))}. {ADVICE[0].upper()}{ADVICE[1:]}."
        )
    seen = " and ".join(share(point.accuracy) for point in ends)
    of_class = "" if (frequent or 0.0) <= chance else " the most frequent class"
    guessed = share(max(chance, frequent or 0.0))
    return (
        f"The barrier says nothing: on {_samples(result)} the checkpoints' accuracy is {seen}, and guessing{of_class} "
        f"gives {guessed}. {ADVICE[0].upper()}{ADVICE[1:]}."
    )


def _on_generated(result: InterpolateResult) -> str:
    """What was seen on inputs that the networks made; that is never a finding about data."""
    only = "These inputs are no data: whether there is a barrier on data is not known."
    if not result.labelled:
        return f"{_without_labels(result)} {only}"
    known = {curve: one for curve, one in result.barrier.items() if one.loss is not None}
    if not known:
        return only
    when = {"naive": " before alignment", "matched": " after alignment"} if len(result.curves) > 1 else {}
    said = " and ".join(f"{shown(one)}{when.get(curve, '')}" for curve, one in known.items())
    return f"On text that the networks sampled, the loss exceeds that of the line between its ends by {said}. {only}"


def _without_labels(result: InterpolateResult) -> str:
    least = {}
    for curve, points in result.curves.items():
        known = [point.accuracy for point in points if point.accuracy is not None and point.between]
        if known:
            least[curve] = share(min(known))
    if not least:
        return "Without labels, only distances between the outputs are known."
    when = {"naive": " before alignment", "matched": " after alignment"} if len(result.curves) > 1 else {}
    said = " and ".join(f"{value}{when.get(curve, '')}" for curve, value in least.items())
    return f"Without labels: between the ends, the least agreement with their predictions is {said}."


def _one_curve(result: InterpolateResult, found: Finding) -> str:
    height = result.barrier["naive"]
    if found == "none":
        return f"No loss barrier on {_samples(result)}: {shown(height)}, within two standard errors of zero."
    return (
        f"Barrier: the loss rises by {shown(height)} above the line between the checkpoints' losses."
        f"{_doubt(height)}{_statistics(result)}"
    )


def _two_curves(result: InterpolateResult, found: Finding, before: Finding) -> str:
    naive, matched = result.barrier["naive"], result.barrier["matched"]
    if found == "none":
        zero = f"{shown(matched)}, within two standard errors of zero"
        if before == "none":
            return f"No loss barrier on {_samples(result)}, before or after alignment: after it, {zero}."
        was = f" Before, it is {shown(naive)}." if before == "there" else ""
        return f"After alignment there is no loss barrier on {_samples(result)}: {zero}.{was}"
    if before not in ("none", "there"):
        return f"After alignment the barrier is {shown(matched)}.{_doubt(matched)}{_statistics(result)}"
    if _statistics(result):
        return f"The barrier is {shown(naive)} before alignment and {shown(matched)} after it.{_statistics(result)}"
    rise, error = (matched.loss or 0.0) - (naive.loss or 0.0), _error_of_difference(naive, matched)
    if abs(rise) <= 2 * error:
        return (
            "The alignment changes the barrier by less than two standard errors: "
            f"it was {shown(naive)} and is {shown(matched)}."
        )
    if rise < 0:
        return f"The alignment lowers the barrier from {shown(naive)} to {shown(matched)}.{_doubt(matched)}"
    return f"The alignment does not lower the barrier: it was {shown(naive)} and is {shown(matched)}."


def shown(barrier: Barrier) -> str:
    """The height with its standard error, where that is known."""
    return with_error(barrier.loss, barrier.loss_standard_error)


def _error_of_difference(naive: Barrier, matched: Barrier) -> float:
    """As if the two were independent; on the same samples the true one is usually smaller."""
    return math.hypot(naive.loss_standard_error or 0.0, matched.loss_standard_error or 0.0)


def _doubt(barrier: Barrier) -> str:
    return " Its standard error is unknown." if barrier.loss_standard_error is None else ""


def _statistics(result: InterpolateResult) -> str:
    """Why a barrier of networks with interpolated running statistics is no finding about their weights."""
    if not result.running_statistics or result.recalibration is not None:
        return ""
    layers = counted(result.running_statistics, "layer")
    return (
        f" It is that of networks whose running statistics ({layers}) were interpolated and do not fit their weights: "
        "re-estimate them with --recalibrate TRAINING_DATA before you judge the weights or the alignment."
    )


def _samples(result: InterpolateResult) -> str:
    return counted(result.n, "sample")
