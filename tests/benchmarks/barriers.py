"""Barriers of trained pairs, with standard errors: before and after alignment, under each treatment of statistics.

    python tests/benchmarks/barriers.py --shared DIRECTORY [--steps 10] [--limit 2000] [--json FILE]

The directory has the pairs and the images of which its README tells. Each pair is aligned by weights. Then the line is
evaluated as it is, with running statistics re-estimated on training images, and with REPAIR; the ends are treated like
the networks between them. Accuracies are in percent, `ends` as loaded and as treated, `midpoint` before and after
alignment; barriers are of the loss, and their standard errors paired over the images.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAIRS: dict[str, dict[str, Any]] = {"mlp": {}, "resnet20": {}, "vgg": {}, "vit": {"dim": 96}}
WITH_BATCH_NORM = ("resnet20", "vgg")
TREATMENTS = ("as it is", "recalibrated", "REPAIR")
HEADINGS = ("pair", "treatment", "ends as loaded", "ends as treated", "midpoint", "barrier before", "barrier after")
Measured = tuple[float | None, float | None]
"""A barrier and its standard error."""


@dataclass(frozen=True)
class Row:
    """One pair under one treatment; accuracies in [0, 1], of A and B, or of the midpoint before and after alignment."""

    pair: str
    treatment: str
    ends_as_loaded: tuple[float | None, ...]
    ends_as_treated: tuple[float | None, ...] | None
    midpoint: tuple[float | None, ...]
    barriers: Mapping[str, Measured]

    def cells(self) -> list[str]:
        from rebasin_cli.report.text import with_error

        treated = "" if self.ends_as_treated is None else _percents(self.ends_as_treated)
        heights = [with_error(*self.barriers[curve]) for curve in ("naive", "matched")]
        return [self.pair, self.treatment, _percents(self.ends_as_loaded), treated, _percents(self.midpoint), *heights]


def _percents(shares: Sequence[float | None]) -> str:
    return ", ".join("-" if share is None else f"{100 * share:.1f}" for share in shares)


def rows(name: str, shared: Path, images: Path, work: Path, options: argparse.Namespace) -> list[Row]:
    from rebasin_cli.verbs.align import align
    from rebasin_cli.verbs.interpolate import interpolate

    a, b = (shared / "pairs" / f"{name}-{letter}.safetensors" for letter in "ab")
    aligned = align(
        a,
        b,
        model=f"{shared / 'pairs' / 'cifar_models.py'}:{name}",
        model_args=PAIRS[name],
        inputs=["1,3,32,32"],
        out=work / f"{name}.safetensors",
        force=True,
    )
    found = []
    for treatment in TREATMENTS:
        if treatment == "recalibrated" and name not in WITH_BATCH_NORM:
            continue
        treated = treatment != "as it is"
        result = interpolate(
            report=aligned.report,
            data=str(images / "test"),
            steps=options.steps,
            limit=options.limit,
            batch_size=250,
            recalibrate=str(images / "train") if treated else None,
            recalibrate_limit=options.recalibrate_limit,
            recalibration=treated,
            repair=treatment == "REPAIR",
            out=work / f"{name}-{treatment.replace(' ', '-')}.json",
            force=True,
        )
        ends = result.ends
        assert ends is not None
        loaded, both = ends.as_loaded["naive"], ends.as_treated
        row = Row(
            name,
            treatment,
            tuple(point.accuracy for point in loaded),
            None if both is None else tuple(point.accuracy for point in both["naive"]),
            tuple(result.curves[curve][options.steps // 2].accuracy for curve in ("naive", "matched")),
            {curve: (found.loss, found.loss_standard_error) for curve, found in result.barrier.items()},
        )
        print(_line(row.cells()), flush=True)
        found.append(row)
    return found


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--images", type=Path, help="a directory with the images unpacked, test/ and train/")
    parser.add_argument("--steps", type=int, default=10, help="an even number: the middle is shown")
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--recalibrate-limit", type=int, default=2000)
    parser.add_argument("--pair", action="append", choices=list(PAIRS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not (options.shared / "pairs").is_dir():
        print(f"{options.shared}: the trained pairs are not here", file=sys.stderr)
        return 1
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        work, images = Path(folder), options.images
        if images is None:
            images = work / "images"
            for part in ("test", "train"):
                with zipfile.ZipFile(options.shared / f"cifar10-{part}.zip") as archive:
                    archive.extractall(images)
        print(_line(HEADINGS))
        print(_line(["---"] * len(HEADINGS)))
        table = [row for name in options.pair or PAIRS for row in rows(name, options.shared, images, work, options)]
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
