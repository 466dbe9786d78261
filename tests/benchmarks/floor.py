"""What an alignment costs over the least that it must do, in CPU time of one process.

    python -m tests.benchmarks.floor [--model torchvision:resnet50 …] [--standard] [-o FILE.json]

The floor: read both files, one full set of products (for every group, `A_s B_s^T` over all its sites `s`, plainly), and
write a file of B's size. Above it stands the whole of `align` (reading, checksums, tracing, matching, the proofs,
writing), without imports. Pairs: two random initialisations at `fast` (and `standard`), and B = A plus small noise.
The floor is measured before and after each, and the smaller taken: the machine may be shared.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

LIMITS = {"fast": 4.0, "standard": 25.0, "tuned": 2.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["torchvision:resnet50", "torchvision:vit_b_16"])
    parser.add_argument("--standard", action="store_true", help="also at standard effort")
    parser.add_argument("--only", choices=tuple(LIMITS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(options.threads)
    wanted = [options.only] if options.only else [*LIMITS] if options.standard else ["fast", "tuned"]
    report = {model: measure(model, wanted) for model in options.model}
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def cpu_seconds() -> float:
    """Of this process and of children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = cpu_seconds()
    return run(), cpu_seconds() - began


def measure(model: str, wanted: list[str]) -> dict[str, Any]:
    from rebasin_cli.verbs.align import align
    from tests.benchmarks.memory import everything_imported
    from tests.benchmarks.pairs import make_pair

    everything_imported()
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for kind, names in (("random", ("fast", "standard")), ("tuned", ("tuned",))):
            folder = Path(name) / kind
            folder.mkdir()
            pair = make_pair(folder, model, kind, noise=0.01)
            out = folder / "out.safetensors"
            for which in [one for one in names if one in wanted]:
                first = timed(lambda pair=pair, out=out: floor(pair, out))[1]
                effort = "fast" if which == "tuned" else which
                result, seconds = timed(
                    lambda pair=pair, out=out, effort=effort: align(
                        pair.a, pair.b, model=model, out=out, effort=effort, force=True
                    )
                )
                least = min(first, timed(lambda pair=pair, out=out: floor(pair, out))[1])
                report[which] = {
                    "floor_seconds": least, "seconds": seconds, "over_floor": seconds / least,
                    "at_most": LIMITS[which], "phases": dict(result.seconds), "passes": result.passes,
                    "start": result.start, "cosine": result.cosine.after, "converged": result.converged,
                }  # fmt: skip
    return report


def floor(pair: Any, out: Path) -> None:
    """Read both files, make all products once, write one."""
    from safetensors.torch import load_file, save_file

    from tests.benchmarks.cost import similarity_pass

    a, b = load_file(pair.a), load_file(pair.b)
    similarity_pass(pair.spec, a, b)
    save_file(b, out)


if __name__ == "__main__":
    main()
