"""Does another version of the code write the same bytes, and how long does it take?

    python -m tests.benchmarks.identical OTHER [--pairs DIR] [--rounds 1] [--only NAME]

OTHER is a checkout of another version. `rebasin align` runs with both versions, one after the other, on two small pairs
(trained in seconds), and with `--pairs` on the pairs `mlp`, `resnet20`, `vit` and `vgg` of that directory. Prints for
each pair whether the outputs are byte-identical, and the median time of this version over that of the other.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.small_pairs import KINDS, load_images, trained

ROOT = Path(__file__).resolve().parents[2]
SMALL = ("digits MLP", "digits plain, BatchNorm")
LARGE = {"mlp": (), "resnet20": (), "vit": ("--model-arg", "dim=96"), "vgg": ()}


def small(folder: Path) -> dict[str, list[str]]:
    """The arguments of `align` for the small pairs, by name."""
    found = {}
    for kind in KINDS:
        if kind.name in SMALL:
            train, _ = load_images(kind.data, folder, folder)
            a, b = (trained(kind, seed, train, folder) for seed in (0, 1))
            side, channels = kind.model_args["side"], kind.model_args["channels"]
            args = [word for name, value in kind.model_args.items() for word in ("--model-arg", f"{name}={value}")]
            found[kind.name] = [str(a), str(b), "--model", kind.model, "--input", f"1,{channels},{side},{side}", *args]
    return found


def large(pairs: Path) -> dict[str, list[str]]:
    found = {}
    for name, more in LARGE.items():
        a, b = (next(iter(sorted(pairs.glob(f"{name}-{end}.*")))) for end in "ab")
        found[name] = [str(a), str(b), "--model", f"{pairs / 'cifar_models.py'}:{name}", *more]
    return found


def aligned(code: Path, words: list[str], out: Path) -> tuple[str, float]:
    """SHA-256 of the output, and seconds."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "rebasin_cli", "align", *words, "-o", str(out), "-q", "-f", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(code)}
    subprocess.run(command, check=True, env=environment, capture_output=True, cwd=out.parent)
    return hashlib.sha256(out.read_bytes()).hexdigest(), time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path)
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        jobs = {**small(folder), **({} if options.pairs is None else large(options.pairs.resolve()))}
        for name, words in jobs.items():
            if options.only not in (None, name):
                continue
            out = folder / f"out{Path(words[1]).suffix}"
            both = [
                [aligned(code.resolve(), words, out) for code in (options.other, ROOT)] for _ in range(options.rounds)
            ]
            same = len({digest for pair in both for digest, _ in pair}) == 1
            ratio = statistics.median(after[1] / before[1] for before, after in both)
            print(f"{name}: {'identical' if same else 'DIFFERENT'}, time {ratio:.2f}", flush=True)


if __name__ == "__main__":
    main()
