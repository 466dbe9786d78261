"""Whether assignments in threads beside the products pay: wall clock of a matching, one group at a time over several.

    python -m tests.benchmarks.beside [--threads 2] [--rounds 3] [-o FILE.json]

Both ways take turns in one process, and the medians are compared; the results must be the same to the last bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from rebasin_cli.matching import frank_wolfe, polish
from rebasin_cli.matching.assignment import MOST, at_a_time
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.matching.search import search
from tests.benchmarks.matching_specs import Tensors, mlp, random_tensors

CASES = {"resnet50": "torchvision:resnet50", "vit_b_16": "torchvision:vit_b_16"}
WIDE = (512, 2048, 64, 2048, 64, 2048, 64, 2048, 10)
"""Wide groups that do not touch each other: all that could be won by this."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report: dict[str, Any] = {"threads": options.threads, "at_a_time": at_a_time(torch.device("cpu"))}
    for name in (*CASES, "wide"):
        report[name] = compared(name, options.rounds)
        print(f"{name:10} one at a time over {report['at_a_time']}: {report[name]['ratio']:.2f}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def compared(name: str, rounds: int) -> dict[str, Any]:
    """Seconds of wall clock each way, and their ratio."""
    spec, a, b = wide() if name == "wide" else zoo(CASES[name])
    seconds: dict[int, list[float]] = {1: [], MOST: []}
    ends: dict[int, MatchResult] = {}
    for _ in range(rounds):
        for most, taken in seconds.items():
            most = min(most, at_a_time(torch.device("cpu")))
            with (
                patch.object(polish, "at_a_time", return_value=most),
                patch.object(frank_wolfe, "at_a_time", return_value=most),
            ):
                began = time.perf_counter()
                ends[most] = search(spec, a, b, parameters=tuple(a), effort="fast")
                taken.append(time.perf_counter() - began)
    first, *others = ends.values()
    assert all(first.per_pass == other.per_pass for other in others), "the results differ"
    one, many = (statistics.median(taken) for taken in seconds.values())
    return {"one": one, "many": many, "ratio": one / many, "cosine": first.cosine_after, "passes": first.passes}


def wide() -> tuple[Any, Tensors, Tensors]:
    spec, shapes = mlp(WIDE)
    return spec, random_tensors(shapes, 0), random_tensors(shapes, 1)


def zoo(name: str) -> tuple[Any, Tensors, Tensors]:
    from rebasin_cli.model.factory import load_factory
    from rebasin_cli.symmetry.derive import derive
    from rebasin_cli.tracing.tracer import trace_model

    factory = load_factory(name)
    module = factory.build_weightless()
    spec = derive(trace_model(module, factory.example_input(module))).spec
    shapes = {key: tuple(parameter.shape) for key, parameter in module.named_parameters()}
    return spec, random_tensors(shapes, 0), random_tensors(shapes, 1)


if __name__ == "__main__":
    main()
