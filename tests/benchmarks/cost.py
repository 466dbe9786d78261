"""What tracing and aligning cost, as ratios that hold on any machine.

    python -m tests.benchmarks.cost [--trace-model SPEC] [--align-model SPEC] [--json FILE]

- Tracing: the peak resident memory of `rebasin trace --no-verify` as a process of its own, in GB.
- Aligning two differently initialised networks: the seconds of everything but reading, writing and importing, over the
  seconds of one full similarity pass (for every group, all its products, once) timed in the same process; and the peak
  of anonymous memory beyond what the imports need, over the size of one checkpoint.

Memory is read from `/proc`, so the memory figures need Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

LIMITS = {
    "trace_peak_gb": 1.5,
    "align_over_similarity_pass": 8.0,
    "align_anonymous_over_checkpoint": 1.5,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="print what tracing and aligning cost")
    parser.add_argument("--trace-model", default="torchvision:vit_h_14")
    parser.add_argument("--align-model", default="torchvision:resnet50")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--child", nargs=3, metavar=("MODEL", "A", "B"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(align_in_this_process(*options.child)))
        return
    figures = {**tracing(options.trace_model), **aligning(options.align_model)}
    for name, value in figures.items():
        limit = LIMITS.get(name)
        verdict = "" if limit is None else f"  (at most {limit}: {'kept' if value <= limit else 'EXCEEDED'})"
        print(f"{name:34} {value:10.3f}{verdict}")
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def tracing(model: str) -> dict[str, float]:
    """Seconds and peak resident memory of the command."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "rebasin_cli", "trace", "--model", model, "--no-verify", "--json"]
    done = output_of(command)
    took = time.perf_counter() - began
    data = json.loads(done)["data"]
    return {
        "trace_seconds": took,
        "trace_peak_gb": data["peak_rss_bytes"] / 1e9,
        "trace_weights_gb": data["parameters"] * 4 / 1e9,
    }


def aligning(model: str) -> dict[str, float]:
    """Makes two networks, aligns them in a process of its own, and puts its figures into proportion."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [make(model, Path(folder) / f"{name}.safetensors", seed) for seed, name in enumerate("ab")]
        command = [sys.executable, "-m", "tests.benchmarks.cost", "--child", model, *map(str, paths)]
        done = output_of(command)
        size = paths[0].stat().st_size
    child = json.loads(done.splitlines()[-1])
    seconds: Mapping[str, float] = child["seconds"]
    work = seconds["total"] - seconds["read"] - seconds["write"]
    figures = {f"align_seconds_{phase}": spent for phase, spent in seconds.items()}
    figures["similarity_pass_seconds"] = child["pass_seconds"]
    figures["align_over_similarity_pass"] = work / child["pass_seconds"]
    figures["matching_over_similarity_pass"] = seconds["match"] / child["pass_seconds"]
    if child["anonymous_bytes"] is not None:
        figures["align_anonymous_over_checkpoint"] = child["anonymous_bytes"] / size
    return figures


def output_of(command: list[str]) -> str:
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}  # as the command-line program sets it
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return done.stdout


def make(model: str, path: Path, seed: int) -> Path:
    """A freshly initialised network as a checkpoint."""
    import torch
    from safetensors.torch import save_file

    from rebasin_cli.model.factory import load_factory

    torch.manual_seed(seed)
    module = load_factory(model, seed=seed).build()
    save_file({key: tensor.contiguous() for key, tensor in module.state_dict().items()}, path)
    return path


def align_in_this_process(model: str, a: str, b: str) -> dict[str, Any]:
    """Aligns, watching memory; then times one similarity pass over the same two files."""
    from safetensors.torch import load_file

    from rebasin_cli.model.factory import load_factory
    from rebasin_cli.verbs.align import align
    from tests.benchmarks.zoo_table import derive_model

    factory = load_factory(model)
    module = factory.build_weightless()
    spec = derive_model(factory, module).spec  # everything is imported now
    with AnonymousPeak() as memory:
        result = align(a, b, model=model)
    tensors = load_file(a), load_file(b)
    return {
        "seconds": dict(result.seconds),
        "pass_seconds": similarity_pass(spec, *tensors),
        "anonymous_bytes": memory.grown,
    }


def similarity_pass(spec: Any, a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Seconds for the products of all groups: `A_s B_s^T` for every site `s`, plainly."""
    import torch

    began = time.perf_counter()
    for group in spec.groups:
        total = torch.zeros(group.size, group.size)
        for site in group.sites:
            left, right = (_units(side[site.key], site, group.size) for side in (a, b))
            total.addmm_(left, right.t())
    return time.perf_counter() - began


def _units(tensor: Any, site: Any, size: int) -> Any:
    """The part of a tensor at a site as a matrix with a row for every unit."""
    import torch

    merged = tensor.flatten(site.axis, site.axis + site.span - 1).movedim(site.axis, 0).float()
    if site.positions is not None:
        return merged[torch.tensor(site.positions)].reshape(size, -1)
    segment = merged[site.offset : site.offset + site.outer * size * site.inner]
    parts = segment.reshape(site.outer, size, site.inner, prod(merged.shape[1:]))
    return parts.transpose(0, 1).reshape(size, -1)


class AnonymousPeak:
    """Watches this process's anonymous resident memory every few milliseconds; None where `/proc` does not tell."""

    def __enter__(self) -> AnonymousPeak:
        self._start = self._peak = anonymous_bytes()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            now = anonymous_bytes()
            if now is not None and self._peak is not None:
                self._peak = max(self._peak, now)

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def grown(self) -> int | None:
        return None if self._peak is None or self._start is None else self._peak - self._start


def anonymous_bytes() -> int | None:
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")]
    return int(found[0]) * 1024 if found else None


if __name__ == "__main__":
    main()
