"""How much memory an alignment takes beyond its imports, against the size of one checkpoint.

    python -m tests.benchmarks.memory [--model SPEC] [--input SPEC] [--kind planted] [--dtype float32] [-o FILE.json]

By default a transformer of 1.1 billion parameters. The pair is made on disk, then aligned in a process of its own, in
which the peak of anonymous resident memory over what the imports take is watched, under a limit on data memory
(RLIMIT_DATA) set, after the imports, to what is in use plus 0.75 of a checkpoint (`--share`; 0: no limit). Files stay
mapped, read-only where there is a limit, and so are not data. Needs Linux, and disk for three checkpoints.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHARE = 0.75
GPT = str(Path(__file__).with_name("nets") / "gpt.py") + ":build"
IDS = ("ids=1,16:int64",)


def main() -> None:
    options = arguments()
    if options.child:
        print(json.dumps(align_here(json.loads(options.child))))
        return
    figures = measure(options, json.loads(options.model_args))
    print(json.dumps(figures, indent=1))
    if options.output:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")


def measure(options: argparse.Namespace, args: dict[str, Any]) -> dict[str, Any]:
    """Make the pair, align it in a process of its own, and put what it took into proportion."""
    import torch

    from tests.benchmarks.pairs import make_pair

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        pair = make_pair(
            folder, options.model, options.kind, model_args=args, inputs=tuple(options.input), noise=options.noise,
            dtype=getattr(torch, options.dtype), shards=options.shards,
        )  # fmt: skip
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) // 2
        task = {
            "a": str(pair.a), "b": str(pair.b), "model": options.model, "model_args": args, "inputs": options.input,
            "out": str(folder / ("out" if options.shards > 1 else "out.safetensors")), "effort": options.effort,
        }  # fmt: skip
        figures = child({**task, "limit": int(options.share * size) or None})
    return {
        "model": options.model, "model_args": args, "kind": options.kind, "dtype": options.dtype,
        "shards": options.shards, "checkpoint_bytes": size, "limit_over_checkpoint": options.share or None,
        "anonymous_over_checkpoint": figures.pop("anonymous") / size, **figures,
    }  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=GPT)
    parser.add_argument("--model-args", default="{}", help="a JSON object")
    parser.add_argument("--input", action="append", default=[])
    parser.add_argument("--kind", default="planted", choices=("random", "planted", "tuned"))
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--effort", default="auto")
    parser.add_argument("--share", type=float, default=SHARE, help="of a checkpoint: the limit on data memory")
    parser.add_argument("--folder", help="where the pair is made")
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not options.input and options.model == GPT:
        options.input = list(IDS)
    return options


def child(task: dict[str, Any]) -> dict[str, Any]:
    """Run one alignment in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ})
    if done.returncode:
        raise SystemExit(f"the alignment failed with exit code {done.returncode}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def align_here(task: dict[str, Any]) -> dict[str, Any]:
    from rebasin_cli.verbs.align import align
    from rebasin_cli.verbs.cost import release_freed_memory
    from tests.benchmarks.cost import AnonymousPeak

    everything_imported()
    for name in task.get("imports", ()):
        importlib.import_module(name)
    release_freed_memory()
    if task["limit"] is not None:
        limit = data_bytes() + task["limit"]
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    loud = Loud()
    began = time.process_time()
    with AnonymousPeak() as memory:
        result = align(
            task["a"], task["b"], model=task["model"], model_args=task["model_args"], inputs=task["inputs"],
            out=task["out"], effort=task["effort"], force=True, progress=loud,
        )  # fmt: skip
    return {
        "anonymous": memory.grown, "cpu_seconds": time.process_time() - began, "seconds": dict(result.seconds),
        "cosine": [result.cosine.before, result.cosine.after], "passes": result.passes,
        "converged": result.converged, "verified": result.verified.same, "left_out": result.verified.left_out,
        "peak_rss_bytes": result.peak_rss_bytes, "passes_seen": loud.passes,
    }  # fmt: skip


def everything_imported() -> None:
    """Align something tiny once, so that all modules, thread pools and kernels that a run needs are there."""
    from rebasin_cli.verbs.align import align
    from tests.benchmarks.pairs import make_pair

    args = {"vocabulary": 8, "width": 8, "hidden": 8, "layers": 1, "heads": 2, "shared": 1}
    with tempfile.TemporaryDirectory() as folder:
        pair = make_pair(Path(folder), GPT, "planted", model_args=args, inputs=IDS)
        align(pair.a, pair.b, model=GPT, model_args=args, inputs=IDS, out=Path(folder) / "out.safetensors")


def data_bytes() -> int:
    """What counts against RLIMIT_DATA at present."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData:")) * 1024


class Loud:
    """Says on stderr where the work is, and remembers what every pass took."""

    def __init__(self) -> None:
        self.passes: list[dict[str, Any]] = []
        self._last = time.process_time(), time.perf_counter()

    def phase(self, name: str) -> None:
        self._last = time.process_time(), time.perf_counter()
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)

    def step(self, done: float, total: float | None, detail: str = "") -> None:
        if total is None:
            now = time.process_time(), time.perf_counter()
            cpu, wall = (round(here - before, 2) for here, before in zip(now, self._last, strict=True))
            self._last = now
            self.passes.append({"pass": detail, "cpu_seconds": cpu, "wall_seconds": wall})
            print(f"{time.strftime('%H:%M:%S')} {detail}, {cpu} s of CPU", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
