"""Peak anonymous memory of a merge, by the number of checkpoints.

    python -m tests.benchmarks.merge_memory [--counts 3,10] [--width 1024] [--depth 3] [-o FILE.json]

Permuted and noised copies of a stack of linear layers are merged, each number of them by each alignment in a process of
its own, in which the peak of anonymous resident memory over what the imports take is watched. Files stay mapped.
Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MLP = str(Path(__file__).with_name("nets") / "mlp.py") + ":build"
ALIGNS = ("reference", "merge-many", "cycle-consistent")
SHAPE = ("2,32",)


def write_copies(folder: Path, count: int, args: dict[str, int]) -> list[str]:
    """Write so many copies; their paths."""
    import torch
    from safetensors.torch import save_file

    from rebasin_cli.execution.subject import ModelChoice, open_subject
    from rebasin_cli.execution.understanding import understand
    from rebasin_cli.model.factory import load_factory
    from rebasin_cli.permutation import apply, random

    choice = ModelChoice(MLP, args, SHAPE)
    spec = understand(open_subject(choice), choice).spec
    torch.manual_seed(0)
    original = {key: value.detach() for key, value in load_factory(MLP, args).build().state_dict().items()}
    paths = []
    for number in range(count):
        noised = {key: value + 0.3 * value.std() * torch.randn_like(value) for key, value in original.items()}
        path = folder / f"copy-{number}.safetensors"
        save_file(apply(spec, random(spec, number), noised), path)
        paths.append(str(path))
    return paths


def merge_here(task: dict[str, Any]) -> dict[str, Any]:
    """Merge once what is small, so that all that a run imports is there, then the copies, watched."""
    from rebasin_cli import merge
    from rebasin_cli.verbs.cost import release_freed_memory
    from tests.benchmarks.cost import AnonymousPeak

    def run(files: list[str], args: dict[str, int], out: str) -> Any:
        return merge(
            files, model=MLP, model_args=args, inputs=SHAPE, align=task["align"], out=out, effort="fast", force=True
        )

    with tempfile.TemporaryDirectory() as name:
        small = {"width": 8, "depth": 2}
        run(write_copies(Path(name), 3, small), small, f"{name}/out.safetensors")
    release_freed_memory()
    with AnonymousPeak() as memory:
        result = run(task["files"], task["args"], task["out"])
    return {"anonymous": memory.grown, "seconds": result.seconds["total"], "moved": result.inputs[-1].moved_units}


def measured(files: list[str], args: dict[str, int], align: str, out: Path) -> dict[str, Any]:
    """One merge in a process of its own."""
    task = {"files": files, "args": args, "align": align, "out": str(out)}
    command = [sys.executable, "-m", "tests.benchmarks.merge_memory", "--child", json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={"OMP_WAIT_POLICY": "PASSIVE", **os.environ})
    if done.returncode:
        raise SystemExit(f"the merge failed with exit code {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="3,10")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=3)
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(merge_here(json.loads(options.child))))
        return
    args, counts = {"width": options.width, "depth": options.depth}, list(map(int, options.counts.split(",")))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        files = write_copies(Path(name), max(counts), args)
        size = Path(files[0]).stat().st_size
        for align in ALIGNS:
            for count in counts:
                found = measured(files[:count], args, align, Path(name) / "out.safetensors")
                rows.append({"align": align, "checkpoints": count, "checkpoint_bytes": size, **found})
                share = found["anonymous"] / size
                print(f"{align}, {count} checkpoints: {found['anonymous'] / 2**20:.1f} MiB, {share:.2f} checkpoints,"
                      f" {found['seconds']:.1f} s", flush=True)  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
