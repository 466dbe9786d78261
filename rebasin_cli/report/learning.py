"""How a learning went: the held loss as a row of blocks and as a picture, how it ended, and whether more steps pay."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.matching.result import CurvePoint, LearningEnd
from rebasin_cli.report.plot import INK, SIZE, STYLES, picture_bytes, require_matplotlib, write_picture
from rebasin_cli.report.sparkline import sparkline
from rebasin_cli.report.text import counted, number

if TYPE_CHECKING:
    from collections.abc import Mapping

WIDEST = 32
"""Blocks of the row."""
FLAG = "--curve"


def learning_rows(
    learning: LearningEnd | None, settings: Mapping[str, Any], *, plain: bool = False
) -> list[tuple[str, object]]:
    """The rows of a report; none where nothing was learned."""
    if learning is None:
        return []
    losses = f"held-back loss {number(learning.first_loss)} -> {number(learning.best_loss)}"
    judged = counted(learning.held_samples, "sample")
    row = sparkline([point.held_loss for point in thinned(learning.curve)], plain=plain)
    return [
        ("learning", f"{row}  {losses} ({judged}), best after step {learning.best_step:,} of {learning.steps:,}"),
        ("", f"{_ended(learning, settings)}; the last tenth of the steps brought {number(learning.last_tenth)}"),
    ]


def _ended(learning: LearningEnd, settings: Mapping[str, Any]) -> str:
    if learning.stopped == "patience":
        return f"ended: {counted(settings['patience'], 'step')} without an improvement, at three step sizes"
    if learning.stopped == "time":
        return "ended by the time limit"
    return "ended: all steps were taken"


def thinned(curve: Sequence[CurvePoint], most: int = WIDEST) -> list[CurvePoint]:
    """At most so many points of a curve, evenly chosen, the first and the last among them."""
    if len(curve) <= most:
        return list(curve)
    return [curve[round(place * (len(curve) - 1) / (most - 1))] for place in range(most)]


def draw_learning(learning: LearningEnd, path: Path, *, force: bool = False) -> None:
    """Draw the curve into a file; whole or not at all, and the same bytes for the same result.

    Raises:
        OutputError: the file exists (without `force`), or cannot be written.
        ResourceError: matplotlib is absent.
    """
    write_picture(picture_bytes(_picture(learning), path.suffix.lower().removeprefix(".")), path, force=force)


def _picture(learning: LearningEnd) -> Any:
    matplotlib = require_matplotlib(FLAG)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif", **dict.fromkeys(coloured, INK)}):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_subplot(1, 1, 1)
        learned = [point for point in learning.curve if point.train_loss is not None]
        if learned:
            axes.plot(
                [point.step for point in learned],
                [point.train_loss for point in learned],
                label="learned on",
                linewidth=1.2,
                **{**STYLES["naive"], "marker": None},
            )
        axes.plot(
            [point.step for point in learning.curve],
            [point.held_loss for point in learning.curve],
            label="held back",
            linewidth=1.7,
            **{**STYLES["matched"], "marker": None},
        )
        axes.plot([learning.best_step], [learning.best_loss], "o", color=STYLES["matched"]["color"], label="result")
        axes.set_xlabel("step")
        axes.set_ylabel("loss at the midpoint")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.5)
        axes.legend(frameon=False)
    return figure
