"""Planted permutations in networks of the sizes that people use: every group at once, nested ones included.

    python -m tests.benchmarks.planted_zoo [NAME …] [--seeds 1] [--json FILE]

A is random, B is A with a random permutation of every group, the matching sees both; what it brings back must be A, bit
for bit. Each network runs in a process of its own, so that the memory figure is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rebasin_cli.model.names import is_installed
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.planted.nested_cases import FULL
from tests.planted.recovery import plant_and_recover


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(FULL), help=f"of {', '.join(FULL)}")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--child", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(row(options.child[0], int(options.child[1]))))
        return
    print(
        f"{'network':30} {'parameters':>11} {'groups':>6} {'nested':>6} {'units':>7} {'passes':>6}   s  GiB  recovered"
    )
    rows = []
    for name in options.names:
        if FULL[name].needs and not is_installed(FULL[name].needs):
            print(f"{name:30} skipped: the package {FULL[name].needs} is not installed")
            continue
        rows += [_in_a_child(name, seed) for seed in range(options.seeds)]
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    if any(found["wrong"] for found in rows):
        raise SystemExit("not everything that was planted came back")


def _in_a_child(name: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.planted_zoo", "--child", name, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    said = "all of it" if not found["wrong"] else f"{found['wrong']} of {found['tensors']} tensors are wrong"
    print(
        f"{name:30} {found['parameters']:11,d} {found['groups']:6d} {found['nested']:6d} {found['units']:7d} "
        f"{found['passes']:6d} {found['seconds']:3.0f} {found['peak_gib']:4.1f}  {said}",
        flush=True,
    )
    return found


def row(name: str, seed: int) -> dict[str, Any]:
    """One network, one plant."""
    case = FULL[name]
    module, example = case.load()
    spec = derive(trace_model(module, example)).spec
    began = time.perf_counter()
    found = plant_and_recover(spec, module, 100 * seed + 1, half=case.half)
    return {
        "name": name,
        "seed": seed,
        "dtype": "float16" if case.half else "float32",
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "groups": len(spec.groups),
        "nested": sum(1 for group in spec.groups if group.parent is not None),
        "units": spec.units,
        "tensors": found.tensors,
        "planted": len(found.planted),
        "wrong": len(found.wrong),
        "objective_over_perfect": found.result.objective_after / found.bound,
        "passes": found.result.passes,
        "seconds": time.perf_counter() - began,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
