"""Does the search end when it is done? Permuted copies with noise, the default against `fast`.

    python -m tests.benchmarks.planted_stop [--net NAME] … [--noise 0.3] … [-o FILE.json]

B is A as it is initialised, with noise in deviations of each tensor, and every group permuted at random. A row has the
CPU time of the default effort relative to that of `fast`, in one process one after the other, why each ended, and
whether every parameter came back bit for bit. Tracing is not counted.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.search import search
from rebasin_cli.permutation import apply, random

NETS = Path(__file__).with_name("nets")
MODELS: dict[str, tuple[str, tuple[str, ...]]] = {
    "dense residual super-resolution": (f"{NETS / 'dense_residual.py'}:build", ("1,3,8,8",)),
    "GPT": (f"{NETS / 'gpt.py'}:build", ("ids=1,16:int64",)),
    "diffusion transformer": (f"{NETS / 'diffusion_transformer.py'}:build", ("x=1,3,16,16", "time=1,16")),
    "ResNet-50": ("torchvision:resnet50", ()),
}
ARGS: dict[str, dict[str, int]] = {
    "dense residual super-resolution": {"growth": 16},
    "GPT": {"layers": 3, "width": 32, "hidden": 96, "heads": 4, "shared": 2, "vocabulary": 64},
}


def row(name: str, noise: float, seed: int = 0) -> dict[str, Any]:
    """One planted pair, searched at both efforts."""
    model, inputs = MODELS[name]
    choice = ModelChoice(model, ARGS.get(name, {}), inputs)
    subject = open_subject(choice)
    spec = understand(subject, choice).spec
    torch.manual_seed(seed)
    module = subject.factory.build()
    a = {key: value.detach() for key, value in module.state_dict().items() if value.is_floating_point()}
    noisy = {key: _noised(value, noise) for key, value in a.items()}
    b = apply(spec, random(spec, seed + 1), noisy)
    keys = [key for key, _ in module.named_parameters()]
    found, seconds = {}, {}
    for effort in ("fast", "auto"):
        began = time.process_time()
        found[effort] = search(spec, a, b, parameters=keys, seed=seed, effort=effort)
        seconds[effort] = time.process_time() - began
    back = {effort: apply(spec, one.permutations, b) for effort, one in found.items()}
    exact = {effort: all(torch.equal(one[key], noisy[key]) for key in keys) for effort, one in back.items()}
    return {
        "net": name,
        "noise": noise,
        "units": spec.units,
        "auto to fast": round(seconds["auto"] / seconds["fast"], 2),
        "stopped": {effort: one.stopped for effort, one in found.items()},
        "exact": exact,
    }


def _noised(value: Tensor, noise: float) -> Tensor:
    return value + noise * value.std(correction=0) * torch.randn(value.shape) if value.dim() > 1 else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", choices=list(MODELS))
    parser.add_argument("--noise", action="append", type=float)
    parser.add_argument("-o", "--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in options.net or MODELS:
        for noise in options.noise or (0.0, 0.3):
            rows.append(row(name, noise))
            print(json.dumps(rows[-1]), flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
