"""What understanding a model costs: as a multiple of importing torch, and in memory beside the weights it never makes.

    python -m tests.benchmarks.trace_cost [--fresh] [--only PATTERN] [--json FILE]

- For every classification model of torchvision: processor seconds from a module without weights to its groups, over
  those that importing torch takes (the median of three processes in the same run). PyTorch's own tracing machinery is
  imported at the first trace of a process, which is told apart. With `--fresh`, each model has a process of its own,
  as it has on the command line; torchvision has then imported that machinery for itself.
- For an 8-billion-parameter Llama and the U-Net of SDXL: the same, and the peak resident memory of the whole process.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

LARGE = ("transformers:llama, 8 billion", "diffusers:U-Net of SDXL")
MOST_IMPORTS = 1.0
MOST_GB = 3.0
_IMPORT = "import time; began = time.process_time(); import torch; print(time.process_time() - began)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a pattern of names, for example 'torchvision:resnet*'")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--fresh", action="store_true", help="each model in a process of its own")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        children = {"small": partial(small, options.only), "fresh": partial(seconds_of, options.only)}
        print(json.dumps(children.get(options.child, partial(large, options.child))()))
        return
    unit = statistics.median(float(_output("-c", _IMPORT)) for _ in range(3))
    print(f"importing torch: {unit:.2f} s of processor time, the unit of what follows")
    figures: dict[str, Any] = {"import_seconds": unit}
    seconds = _each_alone(options.only) if options.fresh else _child("small", options.only)
    figures["small"] = {name: taken / unit for name, taken in seconds.items()}
    _tell(figures["small"])
    figures["large"] = {name: _large(name, unit) for name in LARGE if fnmatchcase(name, options.only)}
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def _tell(ratios: dict[str, float]) -> None:
    ratios = dict(sorted(ratios.items(), key=lambda item: item[1]))
    first = ratios.pop("once", None)
    beside = "" if first is None else f"once for each process: {first:.2f}; then "
    for name, ratio in ratios.items():
        print(f"{name:40} {ratio:5.2f}{'' if ratio <= MOST_IMPORTS else '  longer than the import'}")
    if ratios:
        kept = sum(ratio <= MOST_IMPORTS for ratio in ratios.values())
        median = statistics.median(ratios.values())
        print(f"{beside}a median of {median:.2f}, {kept} of {len(ratios)} at most 1")


def _each_alone(pattern: str) -> dict[str, float]:
    from tests.benchmarks.zoo_table import classification_models

    names = [f"torchvision:{name}" for name in classification_models()]
    return {name: _child("fresh", name)["seconds"] for name in names if fnmatchcase(name, pattern)}


def _large(name: str, unit: float) -> dict[str, float]:
    found: dict[str, float] = _child(name, "*")
    found["over_import"] = found["seconds"] / unit
    verdict = "kept" if found["peak_gb"] < MOST_GB else "EXCEEDED"
    print(
        f"{name:40} {found['over_import']:5.2f}; peak {found['peak_gb']:.2f} GB beside {found['weights_gb']:.1f} GB of "
        f"float32 weights (under {MOST_GB:g}: {verdict})",
        flush=True,
    )
    return found


def _child(what: str, only: str) -> dict[str, float]:
    command = ["-W", "ignore", "-m", "tests.benchmarks.trace_cost", "--child", what, "--only", only]
    found: dict[str, float] = json.loads(_output(*command).splitlines()[-1])
    return found


def _output(*arguments: str) -> str:
    return subprocess.run([sys.executable, *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def small(pattern: str) -> dict[str, float]:
    """Processor seconds to trace and derive each of torchvision's classification models, by name."""
    from torch import nn

    from rebasin_cli.model.example_input import ExampleInput, Sampler
    from rebasin_cli.symmetry.derive import derive
    from rebasin_cli.tracing.tracer import trace_model
    from tests.benchmarks.zoo_table import classification_models

    taken: dict[str, float] = {}
    began = time.process_time()
    derive(trace_model(nn.Linear(2, 2), ExampleInput((Sampler(0).normal(1, 2),))))
    taken["once"] = time.process_time() - began
    for name in (f"torchvision:{name}" for name in classification_models()):
        if fnmatchcase(name, pattern):
            taken[name] = seconds_of(name)["seconds"]
    return taken


def seconds_of(name: str) -> dict[str, float]:
    """Processor seconds from one model without weights to its groups."""
    from rebasin_cli.model.factory import load_factory
    from tests.benchmarks.zoo_table import derive_model

    factory = load_factory(name)
    module = factory.build_weightless()
    began = time.process_time()
    derive_model(factory, module)
    return {"seconds": time.process_time() - began}


def large(name: str) -> dict[str, float]:
    """One model of the coverage ledger, from its configuration to its groups."""
    from rebasin_cli.symmetry.derive import derive
    from rebasin_cli.tracing.tracer import trace_model
    from tests.coverage.entries import entries

    entry = next(entry for entry in entries() if entry.name == name)
    module = entry.weightless()
    example = entry.example(module)
    began = time.process_time()
    found = derive(trace_model(module, example, with_numbers=entry.build))
    return {
        "seconds": time.process_time() - began,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "weights_gb": found.parameters * 4 / 1e9,
        "groups": len(found.spec.groups),
    }


if __name__ == "__main__":
    main()
