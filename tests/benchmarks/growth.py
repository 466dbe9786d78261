"""How time and memory grow with width and with depth: CPU seconds and peak anonymous memory of whole alignments.

    python -m tests.benchmarks.growth [--widths 64 128 …] [--depths 10 30 …] [-o FILE.json] [--plot FILE.svg]

Stacks of linear layers, two random initialisations, `--effort fast`: width at depth 3, depth at width 64.
Each point is a process of its own; memory is that beyond the imports. An exponent is the slope of a straight line
through the logarithms of the upper half of the points, where constants no longer count.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from math import log
from pathlib import Path
from typing import Any

from tests.benchmarks.memory import child

WIDTHS = (64, 128, 256, 512, 1024, 2048, 4096)
DEPTHS = (10, 30, 100, 300, 1000)
NET = str(Path(__file__).with_name("nets") / "mlp.py") + ":build"
MEASURES = {"cpu_seconds": "CPU seconds", "anonymous": "MB beyond the imports"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="*", default=WIDTHS)
    parser.add_argument("--depths", type=int, nargs="*", default=DEPTHS)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--from", dest="earlier", type=Path, help="plot the figures of this file, measure nothing")
    options = parser.parse_args()
    if options.earlier:
        report = json.loads(options.earlier.read_text())
    else:
        report = {
            "width": series([{"width": width, "depth": 3} for width in options.widths], "width"),
            "depth": series([{"width": 64, "depth": depth} for depth in options.depths], "depth"),
        }
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    if options.plot:
        draw(report, options.plot)


def series(shapes: list[dict[str, int]], along: str) -> dict[str, Any]:
    points = [{along: shape[along], **point(shape)} for shape in shapes]
    upper = points[len(points) // 2 :]
    slopes = {measure: slope([(one[along], one[measure]) for one in upper]) for measure in MEASURES}
    return {"points": points, "exponents": slopes}


def point(shape: dict[str, int]) -> dict[str, Any]:
    from tests.benchmarks.pairs import make_pair

    with tempfile.TemporaryDirectory() as name:
        inputs = ["4,32"]
        pair = make_pair(Path(name), NET, "random", model_args=shape, inputs=tuple(inputs))
        figures = child({
            "a": str(pair.a), "b": str(pair.b), "model": NET, "model_args": shape, "inputs": inputs,
            "out": str(Path(name) / "out.safetensors"), "effort": "fast", "limit": None,
        })  # fmt: skip
        size = pair.a.stat().st_size
    kept = ("cpu_seconds", "anonymous", "passes", "converged")
    return {**{name: figures[name] for name in kept}, "checkpoint_bytes": size}


def slope(points: list[tuple[float, float]]) -> float | None:
    """Least squares through the logarithms."""
    if len(points) < 2:
        return None
    xs, ys = [log(x) for x, _ in points], [log(max(y, 1.0e-3)) for _, y in points]
    middle, height = sum(xs) / len(xs), sum(ys) / len(ys)
    over = sum((x - middle) * (y - height) for x, y in zip(xs, ys, strict=True))
    return over / sum((x - middle) ** 2 for x in xs)


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    pyplot.rcParams.update({"svg.hashsalt": "rebasin", "svg.fonttype": "none"})
    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6.5), layout="constrained")
    for row, (measure, words) in zip(axes, MEASURES.items(), strict=True):
        for axis, along in zip(row, ("width", "depth"), strict=True):
            points, exponent = report[along]["points"], report[along]["exponents"][measure]
            unit = 1e6 if measure == "anonymous" else 1.0
            axis.loglog([one[along] for one in points], [one[measure] / unit for one in points], "o-", color="#0072b2")
            told = "" if exponent is None else f"; exponent {exponent:.2f}"
            axis.set_xlabel(("units in a group" if along == "width" else "groups") + told)
            axis.set_ylabel(words)
            axis.grid(True, alpha=0.3)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    main()
