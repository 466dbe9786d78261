"""The table of the documentation: the line between the trained pairs, naive and matched, under each treatment.

    python tests/benchmarks/interpolation_table.py [--shared ../shared/data] [--limit 3000] [--json table.json]

Each pair is aligned by weights; then the line is evaluated before and after, as it is, with BatchNorm recalibrated on
training images, and with REPAIR. Accuracies are of the midpoint, in per cent; barriers are of the loss.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PAIRS: dict[str, dict[str, Any]] = {"mlp": {}, "resnet20": {}, "vgg": {}, "vit": {"dim": 96}}
TREATMENTS: dict[str, dict[str, bool]] = {
    "as it is": {},
    "recalibrated": {"data": True},
    "repaired": {"data": True, "repair": True},
}


@dataclass(frozen=True)
class Row:
    """One pair under one treatment; None where a network has no BatchNorm to recalibrate."""

    pair: str
    treatment: str
    ends: tuple[float, float]
    naive_accuracy: float
    matched_accuracy: float
    naive_barrier: float | None
    matched_barrier: float | None


def rows(name: str, shared: Path, images: Path, work: Path, limit: int, recalibrate_limit: int) -> list[Row]:
    from rebasin_cli.verbs.align import align
    from rebasin_cli.verbs.interpolate import interpolate

    model, args = f"{shared / 'pairs' / 'cifar_models.py'}:{name}", PAIRS[name]
    a, b = (shared / "pairs" / f"{name}-{letter}.safetensors" for letter in "ab")
    aligned = align(
        a, b, model=model, model_args=args, inputs=["1,3,32,32"], out=work / f"{name}.safetensors", force=True
    )
    assert aligned.report is not None
    found = []
    for treatment, chosen in TREATMENTS.items():
        if treatment == "recalibrated" and name in ("mlp", "vit"):
            continue  # no BatchNorm
        result = interpolate(
            report=aligned.report,
            data=str(images / "test"),
            steps=10,
            limit=limit,
            batch_size=250,
            recalibrate=str(images / "train") if chosen.get("data") else None,
            recalibrate_limit=recalibrate_limit,
            repair=chosen.get("repair", False),
            out=work / f"{name}-{treatment.replace(' ', '-')}.json",
            force=True,
        )
        naive, matched = result.curves["naive"], result.curves["matched"]
        found.append(
            Row(
                name,
                treatment,
                (_percent(naive[0].accuracy), _percent(naive[-1].accuracy)),
                _percent(naive[5].accuracy),
                _percent(matched[5].accuracy),
                result.barrier["naive"].loss,
                result.barrier["matched"].loss,
            )
        )
        print(_line(found[-1]), flush=True)
    return found


def _percent(share: float | None) -> float:
    return float("nan") if share is None else round(100 * share, 1)


def _line(row: Row) -> str:
    barriers = (
        f"{value:.3f}" if value is not None else "not finite" for value in (row.naive_barrier, row.matched_barrier)
    )
    naive, matched = barriers
    ends = f"{row.ends[0]}, {row.ends[1]}"
    cells = (row.pair, ends, row.treatment, row.naive_accuracy, row.matched_accuracy, naive, matched)
    return f"| {' | '.join(map(str, cells))} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--images", type=Path, help="a directory with the images unpacked, test/ and train/")
    parser.add_argument("--limit", type=int, default=3000)
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
        print(
            "| pair | ends | networks between | naive midpoint | matched midpoint | naive barrier | matched barrier |"
        )
        print("|---|---|---|---|---|---|---|")
        table = [
            row
            for name in options.pair or PAIRS
            for row in rows(name, options.shared, images, work, options.limit, options.recalibrate_limit)
        ]
    if options.json is not None:
        options.json.write_text(json.dumps([asdict(row) for row in table], indent=2) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
