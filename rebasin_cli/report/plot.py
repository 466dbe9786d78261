"""The curves of a sweep as a picture: loss and accuracy, before and after alignment, with the barrier shaded.

Readable in print, in grey and in the dark: curves differ in dash and marker besides colour, the background is
transparent, and text and axes are of a grey that stands out from white and from black. Text is large for the picture,
so that it can still be read in a column of a page.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rebasin_cli.errors import OutputError, ResourceError, UsageError
from rebasin_cli.report.interpolate import CURVES
from rebasin_cli.report.verdict import shown

if TYPE_CHECKING:
    from rebasin_cli.verbs.interpolate import InterpolateResult

FORMATS = (".svg", ".png", ".pdf")
STYLES = {
    "naive": {
        "color": "#d1603d",
        "linestyle": "--",
        "marker": "o",
        "zorder": 3.0,
    },  # where both agree, dashes on a line
    "matched": {"color": "#2b7fb8", "linestyle": "-", "marker": "s", "zorder": 2.5},
}
SIZE = (6.2, 3.2)
MOST_MARKERS = 25
LONGEST_NAME = 18
INK = "#767676"
"""Contrast 4.5 : 1 against white and against black alike."""


def check_plot(path: Path, flag: str = "--plot") -> None:
    """Refuse what cannot be drawn before the long work.

    Args:
        flag: the option that names the picture.

    Raises:
        UsageError: an unknown format. ResourceError: matplotlib is absent.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"{flag} {path}: unknown format {path.suffix!r}", hint=f"formats are {', '.join(FORMATS)}")
    require_matplotlib(flag)


def require_matplotlib(flag: str = "--plot") -> Any:
    """The package.

    Raises:
        ResourceError: it is absent.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ResourceError(
            f"{flag} needs the optional package matplotlib, which is not installed",
            hint="pip install 'rebasin-cli[plot]'",
            slug="missing-package",
        ) from error
    return matplotlib


def draw_curves(
    result: InterpolateResult, path: Path, *, force: bool = False, size: tuple[float, float] = SIZE
) -> None:
    """Draw the sweep into a file; whole or not at all, and the same bytes for the same result.

    Args:
        size: width and height in inches.

    Raises:
        OutputError: the file exists (without `force`), or cannot be written.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists", path=path, hint="--force overwrites it", slug="exists")
    write_picture(render(result, path.suffix.lower().removeprefix("."), size), path, force=force)


def write_picture(content: bytes, path: Path, *, force: bool) -> None:
    """Write a picture's bytes, whole or not at all."""
    from rebasin_cli.checkpoint.atomic import commit_file, flush_to_disk, staged_file

    with staged_file(path, bytes_needed=len(content)) as staged:
        staged.handle.write(content)
        flush_to_disk(staged)
        commit_file(staged, path, force=force)


def render(result: InterpolateResult, kind: str, size: tuple[float, float] = SIZE) -> bytes:
    """The picture's bytes in the format `svg`, `png` or `pdf`."""
    return picture_bytes(picture(result, size), kind)


def picture_bytes(figure: Any, kind: str) -> bytes:
    """A matplotlib figure as `svg`, `png` or `pdf`, the same bytes every time."""
    matplotlib = require_matplotlib()
    settings = {"svg.hashsalt": "rebasin", "svg.fonttype": "none", "pdf.fonttype": 42}
    metadata: dict[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})
    buffer = io.BytesIO()
    with matplotlib.rc_context(settings):
        figure.savefig(buffer, format=kind, dpi=200, transparent=True, metadata=metadata)
    return buffer.getvalue()


def picture(result: InterpolateResult, size: tuple[float, float] = SIZE) -> Any:
    """The matplotlib figure: one panel a measure, the curves with their barriers named above them."""
    matplotlib = require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    coloured = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    with matplotlib.rc_context({"font.size": 10, "font.family": "sans-serif", **dict.fromkeys(coloured, INK)}):
        figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(wspace=0.05))
        FigureCanvasAgg(figure)
        fields = [field for field in ("loss", "accuracy") if _measured(result, field)] or ["loss"]
        for place, field in enumerate(fields, 1):
            _draw(figure.add_subplot(1, len(fields), place), result, field)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        look = {"frameon": False, "handlelength": 3.2, "columnspacing": 1.6}  # long enough to show the dashes
        columns = len(labels) if size[0] >= SIZE[0] else 1
        figure.legend(handles, labels, ncols=columns, loc="outside upper center", **look)
    return figure


def _measured(result: InterpolateResult, field: str) -> bool:
    return any(getattr(point, field) is not None for points in result.curves.values() for point in points)


def _draw(axes: Any, result: InterpolateResult, field: str) -> None:
    """One measure over lam; the barrier is the area between a curve and the straight line through its ends."""
    scale = 100.0 if field == "accuracy" else 1.0
    for curve, points in result.curves.items():
        style = STYLES.get(curve, STYLES["naive"])
        x = [point.segment + point.lam for point in points]
        y = [float("nan") if getattr(point, field) is None else scale * getattr(point, field) for point in points]
        every = -(-len(x) // MOST_MARKERS)
        axes.plot(x, y, label=_label(result, curve), markersize=4, linewidth=1.7, markevery=every, **style)
        straight = _straight([(point.segment, point.lam) for point in points], y)
        over = [a > b if field == "loss" else a < b for a, b in zip(y, straight, strict=True)]
        axes.fill_between(x, y, straight, where=over, color=style["color"], alpha=0.18, linewidth=0, interpolate=True)
        axes.plot(x, straight, color=style["color"], linewidth=0.7, linestyle=":")
    axes.set_ylabel("accuracy (%)" if field == "accuracy" else f"loss ({_loss_name(result)})")
    _name_places(axes, len(result.checkpoints))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.5)
    axes.margins(x=0.03)
    if field == "loss":
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _name_places(axes: Any, checkpoints: int) -> None:
    """The horizontal axis: lam between two checkpoints, the checkpoints' numbers on a longer line."""
    if checkpoints == 2:
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", "1"])
        axes.set_xlabel("lam (0: A, 1: B)")
        return
    every = -(-checkpoints // 8)
    axes.set_xticks(range(0, checkpoints, every), [str(place + 1) for place in range(0, checkpoints, every)])
    axes.set_xlabel("checkpoint")


def _label(result: InterpolateResult, curve: str) -> str:
    height = result.barrier[curve]
    name = "" if len(result.curves) == 1 else CURVES.get(curve, curve)
    words = [name] if height.loss is None else [name, f"barrier {shown(height)}"]
    return ": ".join(word for word in words if word)


def _loss_name(result: InterpolateResult) -> str:
    name = result.loss.rpartition(":")[2]
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _straight(places: list[tuple[int, float]], values: list[float]) -> list[float]:
    """The values on the straight line through each segment's ends."""
    at = dict(zip(places, values, strict=True))
    return [(1 - lam) * at[(segment, 0.0)] + lam * at[(segment, 1.0)] for segment, lam in places]
