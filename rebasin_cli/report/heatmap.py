"""A matrix of metrics as a heat map: an SVG without further packages, other formats with matplotlib.

Readable in print and in grey: every cell has its number, and the colour goes from light to dark with closeness.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from rebasin_cli.errors import OutputError, UsageError
from rebasin_cli.report.plot import FORMATS, INK, require_matplotlib, write_picture
from rebasin_cli.report.text import number, printable
from rebasin_cli.task_vectors.metrics import all_metrics
from rebasin_cli.verbs.metrics import MetricsResult

FIRST = "task_vector_cosine_similarity"
CELL, TITLE, FONT = 58, 34, 13
LIGHT, DARK = (235, 242, 248), (24, 82, 130)


def check_heatmap(path: Path) -> None:
    """Refuse what cannot be drawn before the long work.

    Raises:
        UsageError: an unknown format. ResourceError: a format that needs matplotlib, which is absent.
    """
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"--plot {path}: unknown format {path.suffix!r}", hint=f"formats are {', '.join(FORMATS)}")
    if path.suffix.lower() != ".svg":
        require_matplotlib()


def drawn_metrics(result: MetricsResult) -> list[str]:
    """The cosine of the task vectors where all metrics were measured, else each metric that was."""
    names = [metric.name for metric in all_metrics() if metric.name in result.metrics]
    return [FIRST] if FIRST in names and len(names) > 4 else names


def draw_heatmap(result: MetricsResult, path: Path, *, force: bool = False) -> None:
    """Draw the matrices into a file; whole or not at all, and the same bytes for the same result.

    Raises:
        OutputError: the file exists (without `force`), or cannot be written.
    """
    if path.exists() and not force:
        raise OutputError(f"{path}: exists", path=path, hint="--force overwrites it", slug="exists")
    kind = path.suffix.lower().removeprefix(".")
    content = svg(result).encode("utf-8") if kind == "svg" else _by_matplotlib(result, kind)
    write_picture(content, path, force=force)


def _square(result: MetricsResult, name: str) -> list[list[float | None]]:
    """The symmetric matrix; the diagonal is empty."""
    upper = result.metrics[name]["matrix"]
    count = len(upper)
    return [[upper[min(i, j)][max(i, j)] if i != j else None for j in range(count)] for i in range(count)]


def _shades(name: str, matrix: list[list[float | None]]) -> list[list[float | None]]:
    """Closeness of every pair from 0 (farthest) to 1 (closest) within the matrix."""
    values = [value for row in matrix for value in row if value is not None]
    low, high = (min(values), max(values)) if values else (0.0, 0.0)
    lower = next(metric.closer for metric in all_metrics() if metric.name == name) == "lower"

    def shade(value: float | None) -> float | None:
        if value is None:
            return None
        part = (value - low) / (high - low) if high > low else 0.5
        return 1 - part if lower else part

    return [[shade(value) for value in row] for row in matrix]


def svg(result: MetricsResult) -> str:
    """All drawn matrices below each other."""
    labels = [printable(label) for label in result.datasets]
    margin = 16 + max(len(label) for label in labels) * FONT * 0.62
    width = margin + CELL * len(labels) + 16
    height = TITLE + margin + CELL * len(labels) + 12
    names = drawn_metrics(result)
    parts = [_panel(result, name, labels, margin, place * height) for place, name in enumerate(names)]
    width = max(width, 20 + max(len(name) for name in names) * FONT * 0.62)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height * len(names):.0f}" '
        f'font-family="sans-serif" font-size="{FONT}">\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(result: MetricsResult, name: str, labels: list[str], margin: float, top: float) -> str:
    matrix = _square(result, name)
    shades = _shades(name, matrix)
    left, down = margin, top + TITLE + margin
    lines = [f'<text x="10" y="{top + 20:.1f}" fill="{INK}">{escape(name)}</text>']
    for i, label in enumerate(labels):
        middle = down + CELL * (i + 0.5)
        lines.append(
            f'<text x="{left - 8:.1f}" y="{middle + 4:.1f}" text-anchor="end" fill="{INK}">{escape(label)}</text>'
        )
        x, y = left + CELL * (i + 0.5), down - 8
        lines.append(
            f'<text x="{x + 4:.1f}" y="{y:.1f}" transform="rotate(-90 {x + 4:.1f} {y:.1f})" fill="{INK}">'
            f"{escape(label)}</text>"
        )
        for j, value in enumerate(matrix[i]):
            lines.append(_cell(left + CELL * j, down + CELL * i, value, shades[i][j], diagonal=i == j))
    return "\n".join(line for line in lines if line)


def _cell(x: float, y: float, value: float | None, shade: float | None, *, diagonal: bool) -> str:
    if diagonal:
        return ""
    fill = (
        "none"
        if shade is None
        else "#" + "".join(f"{round(a + (b - a) * shade):02x}" for a, b in zip(LIGHT, DARK, strict=True))
    )
    ink = INK if shade is None else ("#ffffff" if shade > 0.55 else "#1a1a1a")
    shown = "" if value is None else f"{value:.2g}" if 0 < abs(value) < 1e-3 or abs(value) >= 1e4 else f"{value:.3f}"
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{CELL - 2}" height="{CELL - 2}" fill="{fill}" stroke="{INK}" '
        f'stroke-width="0.5"><title>{number(value)}</title></rect><text x="{x + CELL / 2 - 1:.1f}" '
        f'y="{y + CELL / 2 + 4:.1f}" text-anchor="middle" fill="{ink}">{shown}</text>'
    )


def _by_matplotlib(result: MetricsResult, kind: str) -> bytes:
    matplotlib = require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    names, labels = drawn_metrics(result), list(result.datasets)
    side = 1.6 + 0.6 * len(labels)
    figure = Figure(figsize=(side, side * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    ends = [tuple(part / 255 for part in colour) for colour in (LIGHT, DARK)]
    colours = LinearSegmentedColormap.from_list("closeness", ends)
    for place, name in enumerate(names, 1):
        axes: Any = figure.add_subplot(len(names), 1, place)
        matrix, shades = _square(result, name), _shades(name, _square(result, name))
        axes.imshow([[float("nan") if s is None else s for s in row] for row in shades], cmap=colours, vmin=0, vmax=1)
        axes.set_xticks(range(len(labels)), labels, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        axes.set_title(name, fontsize=10)
        for i, row in enumerate(matrix):
            for j, value in enumerate(row):
                dark = (shades[i][j] or 0.0) > 0.55
                if value is not None:
                    axes.text(j, i, f"{value:.3g}", ha="center", va="center", color="white" if dark else "#1a1a1a")
    buffer = io.BytesIO()
    metadata: dict[str, Any] = {"pdf": {"CreationDate": None}}.get(kind, {})
    with matplotlib.rc_context({"pdf.fonttype": 42}):
        figure.savefig(buffer, format=kind, dpi=150, transparent=True, metadata=metadata)
    return buffer.getvalue()
