"""What matching costs, in units of one full pass (every product of every group once), measured in one run.

    python -m tests.benchmarks.matching_speed [--width 64] [--plain] [--standard] [-o FILE.json]

The pair is two randomly initialised networks of ResNet-50's shape (stem width `--width`); `--plain` also runs the plain
restatement of coordinate descent to its end.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.matching.search import search
from rebasin_cli.spec import PermutationSpec
from tests.benchmarks.matching_plain import objective, plain_coordinate_descent
from tests.benchmarks.matching_specs import Tensors, resnet50, resnet50_tensors


def full_pass(problem: Problem) -> float:
    """Seconds for all products of all groups once; the better of two."""
    seconds = []
    for _ in range(2):
        similarity = problem.similarity(Arrangement(problem.families))
        began = time.perf_counter()
        for cluster in problem.clusters:
            similarity.of(cluster)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return run(), time.perf_counter() - began


def measure(spec: PermutationSpec, a: Tensors, b: Tensors, *, plain: bool, standard: bool) -> dict[str, Any]:
    keys = [key for key in a if "running" not in key]
    problem = prepare(spec, a, b, keys)
    unit = full_pass(problem)
    scale = problem.norms.scale
    report: dict[str, Any] = {"full_pass_seconds": unit, "cosine_before": problem.identity / scale}

    def add(name: str, cosine: float, seconds: float, **more: Any) -> None:
        report[name] = {"cosine": cosine, "seconds": seconds, "full_passes": seconds / unit, **more}

    found, seconds = timed(lambda: weight_matching(spec, a, b, parameters=keys))
    add("identity and forward", found.cosine_after, seconds, passes=found.passes, converged=found.converged)
    nearly = {key: value + 0.01 * value.std() * b[key] for key, value in a.items()}
    found, seconds = timed(lambda: search(spec, a, nearly, parameters=keys))
    add("fine-tuned pair", found.cosine_after, seconds, already_aligned=found.already_aligned)
    if standard:
        found, seconds = timed(lambda: search(spec, a, b, parameters=keys))
        add("standard effort", found.cosine_after, seconds, start=found.start)
    if plain:
        (perms, passes), seconds = timed(lambda: plain_coordinate_descent(spec, a, b, keys))
        add("plain coordinate descent", objective(spec, perms, a, b, keys) / scale, seconds, passes=passes)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--standard", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    spec = resnet50(options.width)
    a, b = (resnet50_tensors(options.width, seed) for seed in (0, 1))
    report = measure(spec, a, b, plain=options.plain, standard=options.standard)
    print(json.dumps(report, indent=2))
    if options.output:
        options.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
