"""The memory of a step of learning, with and without gradient checkpointing.

    python -m tests.benchmarks.learned_memory [--model vit_b_16] [--batch 16]

For each of the two, a process of its own builds a torchvision model with random weights, takes one step of the loss
between two networks and its gradients, and prints its peak memory and the part of it beyond the weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from rebasin_cli.data import Batch
from rebasin_cli.execution.midpoint_loss import MidpointLoss
from rebasin_cli.model.state import parameter_keys, state_tensors
from rebasin_cli.model.torchvision_import import import_torchvision


def peak_bytes() -> int:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def step(name: str, size: int, checkpointing: bool) -> dict[str, float]:
    """One step: bytes before it, at its peak, and seconds."""
    torch.manual_seed(0)
    module = getattr(import_torchvision("models"), name)(weights=None)
    network = {key: tensor.detach().clone() for key, tensor in state_tensors(module).items()}
    leaves = [network[key].requires_grad_() for key in parameter_keys(module)]
    loss = MidpointLoss(module, (network, network), torch.device("cpu"), checkpointing=checkpointing)
    batch = Batch(0, (torch.randn(size, 3, 224, 224),), target=torch.arange(size), size=size)
    before, began = peak_bytes(), time.perf_counter()
    torch.autograd.grad(loss.of(network, batch), leaves)
    return {"before": before, "peak": peak_bytes(), "seconds": time.perf_counter() - began}


def main() -> None:
    """Both, in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b_16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--one", choices=("plain", "checkpointing"), help="measure this one here")
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(step(options.model, options.batch, options.one == "checkpointing")))
        return
    found = {}
    for way in ("plain", "checkpointing"):
        words = ["--model", options.model, "--batch", str(options.batch), "--one", way]
        command = [sys.executable, "-m", "tests.benchmarks.learned_memory", *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[way] = json.loads(done.stdout)
    print(f"{options.model}, a batch of {options.batch}")
    print("| | peak memory, GiB | beyond the weights and the batch, GiB | time, ratio |")
    print("|---|---|---|---|")
    for way, one in found.items():
        peak, more = one["peak"] / 2**30, (one["peak"] - one["before"]) / 2**30
        print(f"| {way} | {peak:.2f} | {more:.2f} | {one['seconds'] / found['plain']['seconds']:.2f} |")


if __name__ == "__main__":
    main()
