"""What verification costs, as the ratio of the report's `seconds.verify` to that of another version of this program.

    python -m tests.benchmarks.verify_cost OTHER [--models resnet50,vit_b_16] [--rounds 3] [--json FILE]

`OTHER` is a folder with the other version's source (`git archive COMMIT | tar x -C OTHER`). Two random initialisations
are aligned at `fast` by either version in turn: the other one; this one, which has not verified the model before; and
this one again, which takes the verification of the groups from its cache. Smallest of the rounds each.
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

import torch

from rebasin_cli.model.torchvision_import import import_torchvision

ROOT = Path(__file__).resolve().parents[2]


def pair(name: str, folder: Path) -> tuple[Path, Path]:
    """Two random initialisations of a torchvision model, as files."""
    files = (folder / f"{name}-a.pt", folder / f"{name}-b.pt")
    for seed, file in enumerate(files):
        torch.manual_seed(seed)
        torch.save(getattr(import_torchvision("models"), name)().state_dict(), file)
    return files


def seconds(tree: Path, name: str, files: tuple[Path, Path], cache: Path) -> dict[str, float]:
    """The report's seconds of one alignment by the version in `tree`, with a cache directory of its own."""
    command = [
        sys.executable, "-m", "rebasin_cli", "align", *map(str, files), "--model", f"torchvision:{name}",
        "--effort", "fast", "-o", str(files[0].parent / "out.pt"), "--force", "--json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tree), "XDG_CACHE_HOME": str(cache)}
    done = subprocess.run(command, cwd=files[0].parent, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout)["data"]["seconds"]
    return found


def measure(other: Path, name: str, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        files = pair(name, folder)
        verify: dict[str, list[float]] = {"other": [], "first": [], "cached": []}
        for number in range(rounds):
            cache = folder / f"cache-{number}"
            for kind, tree in (("other", other), ("first", ROOT), ("cached", ROOT)):
                verify[kind].append(seconds(tree, name, files, cache)["verify"])
    base = min(verify["other"])
    return {
        "model": name,
        "first_over_other": round(min(verify["first"]) / base, 2),
        "cached_over_other": round(min(verify["cached"]) / base, 2),
        "seconds": verify,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--models", default="resnet50,vit_b_16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = [measure(options.other.resolve(), name, options.rounds) for name in options.models.split(",")]
    for row in rows:
        print(
            f"{row['model']:16} seconds.verify over the other version's: {row['first_over_other']:.2f} the first time, "
            f"{row['cached_over_other']:.2f} from the cache"
        )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
