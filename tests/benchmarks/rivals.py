"""Against other tools, on one pair, one thread, in CPU seconds from models in memory to a reordered model in memory.

    python -m tests.benchmarks.rivals [--model torchvision:resnet50] [--snimu PYTHON] [--standard] [-o FILE.json]

- `plain`: our restatement of coordinate descent as the known tools do it (`matching_plain`): identity start, all
  products made anew. It is given our groups, and converges.
- `snimu`: the registry's package `rebasin` 0.0.47, in the interpreter that `--snimu` names, made by
  `python -m venv V && V/bin/pip install --no-deps rebasin==0.0.47 torchview graphviz tqdm` with torch, torchvision,
  pandas and scipy added; as many iterations as `--iterations` says.
- ours at `fast` (and `standard`): the time of the whole, and the time until the objective of each rival was reached.

The pair: two initialisations of the model. Objectives are cosines
over all parameters, computed in the same way for all.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--snimu", help="an interpreter that has the package")
    parser.add_argument("--iterations", type=int, default=12)
    parser.add_argument("--standard", action="store_true")
    parser.add_argument("--no-plain", action="store_true")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(RUNS[options.child](options.model, options.iterations)))
        return
    report: dict[str, Any] = {"model": options.model}
    rivals = [] if options.no_plain else ["plain"]
    for name in [*rivals, *(["snimu"] if options.snimu else [])]:
        report[name] = child(name, options.snimu if name == "snimu" else sys.executable, options)
    for name in ["fast", *(["standard"] if options.standard else [])]:
        found = report[name] = child(name, sys.executable, options)
        for rival in (one for one in ("plain", "snimu") if one in report):
            reached = [seconds for seconds, cosine in found["on_the_way"] if cosine >= report[rival]["cosine"]]
            found[f"ends_above_{rival}"] = found["cosine"] >= report[rival]["cosine"]
            found[f"{rival}_over_whole"] = report[rival]["seconds"] / found["seconds"]
            if reached:
                found[f"{rival}_over_time_to_its_objective"] = report[rival]["seconds"] / reached[0]
    print(json.dumps(report, indent=1))
    if options.output:
        options.output.write_text(json.dumps(report, indent=1) + "\n")


def child(name: str, python: str, options: argparse.Namespace) -> dict[str, Any]:
    command = [python, "-m", "tests.benchmarks.rivals", "--child", name, "--model", options.model]
    command += ["--iterations", str(options.iterations)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads}, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def models(name: str) -> tuple[Any, Any, Any]:
    """Both models and the example's positional inputs."""
    from rebasin_cli.model.factory import load_factory

    made = [load_factory(name, seed=seed).build() for seed in (0, 1)]
    return made[0], made[1], load_factory(name).example_input(made[0])


def cosine(one: Any, other: Any) -> float:
    import torch

    def dot(x: Any, y: Any) -> float:
        pairs = zip(x.parameters(), y.parameters(), strict=True)
        return sum(float((p.detach().double() * q.detach().double()).sum()) for p, q in pairs)

    with torch.no_grad():
        return dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5


def run_plain(name: str, _: int) -> dict[str, Any]:
    from rebasin_cli.model.state import load_state, parameter_keys
    from rebasin_cli.permutation import apply
    from rebasin_cli.symmetry.derive import derive
    from rebasin_cli.tracing.tracer import trace_model
    from tests.benchmarks.matching_plain import plain_coordinate_descent

    a, b, example = models(name)
    spec = derive(trace_model(b, example)).spec
    ours, theirs = (dict(side.state_dict()) for side in (a, b))
    before = cosine(a, b)
    began = time.process_time()
    perms, passes = plain_coordinate_descent(spec, ours, theirs, parameter_keys(b))
    load_state(b, apply(spec, perms, theirs))
    seconds = time.process_time() - began
    return {"seconds": seconds, "before": before, "cosine": cosine(a, b), "passes": passes, "groups": len(spec.groups)}


def run_snimu(name: str, iterations: int) -> dict[str, Any]:
    from rebasin_cli.model.torchvision_import import import_torchvision

    import_torchvision()  # mends its import where that is broken
    from rebasin import PermutationCoordinateDescent

    a, b, example = models(name)
    before = cosine(a, b)
    began = time.process_time()
    PermutationCoordinateDescent(a, b, example.args[0]).rebasin(iterations)
    seconds = time.process_time() - began
    return {"seconds": seconds, "before": before, "cosine": cosine(a, b), "iterations": iterations}


def run_ours(name: str, effort: str) -> dict[str, Any]:
    from rebasin_cli.matching.search import search
    from rebasin_cli.model.state import load_state, parameter_keys
    from rebasin_cli.permutation import apply
    from rebasin_cli.symmetry.derive import derive
    from rebasin_cli.tracing.tracer import trace_model

    a, b, example = models(name)
    before = cosine(a, b)
    ours, theirs = (dict(side.state_dict()) for side in (a, b))
    scale = (sum(float(p.detach().double().square().sum()) for p in a.parameters())
             * sum(float(p.detach().double().square().sum()) for p in b.parameters())) ** 0.5  # fmt: skip
    way: list[tuple[float, float]] = []
    began = time.process_time()
    spec = derive(trace_model(b, example)).spec
    found = search(
        spec, ours, theirs, parameters=parameter_keys(b), effort=effort,  # type: ignore[arg-type]
        on_pass=lambda report: way.append((time.process_time() - began, report.objective / scale)),
    )  # fmt: skip
    load_state(b, apply(spec, found.permutations, theirs))
    seconds = time.process_time() - began
    return {
        "seconds": seconds, "before": before, "cosine": cosine(a, b), "start": found.start, "passes": found.passes,
        "converged": found.converged, "groups": len(spec.groups), "on_the_way": way,
    }  # fmt: skip


RUNS = {
    "plain": run_plain,
    "snimu": run_snimu,
    "fast": lambda model, _: run_ours(model, "fast"),
    "standard": lambda model, _: run_ours(model, "standard"),
}


if __name__ == "__main__":
    main()
