"""Pairs in half precision against the same pair in float32: CPU seconds of whole alignments, in one run.

python -m tests.benchmarks.half [--model torchvision:resnet50] [--dtypes bfloat16 float16] [-o FILE.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.floor import timed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16", "float16"])
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    import torch

    from rebasin_cli.verbs.align import align
    from tests.benchmarks.memory import everything_imported
    from tests.benchmarks.pairs import make_pair

    torch.set_num_threads(1)
    everything_imported()
    report: dict[str, Any] = {"model": options.model}
    with tempfile.TemporaryDirectory() as name:
        for dtype in ("float32", *options.dtypes):
            folder = Path(name) / dtype
            folder.mkdir()
            pair = make_pair(folder, options.model, "random", dtype=getattr(torch, dtype))
            result, seconds = timed(
                lambda pair=pair, folder=folder: align(
                    pair.a, pair.b, model=options.model, out=folder / "out.safetensors", effort="fast"
                )
            )
            passes = {"passes": result.passes, "cosine": result.cosine.after, "phases": dict(result.seconds)}
            report[dtype] = {"cpu_seconds": seconds, **passes}
            report[dtype]["over_float32"] = seconds / report["float32"]["cpu_seconds"]
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
