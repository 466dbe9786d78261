"""Trained weights that packages ship: a permuted, noised copy is brought back, written in its own format, and loaded.

    python -m tests.benchmarks.shipped_checkpoints [NAME …] [--packages DIR]

Each package is installed in a scratch directory (`pip install --no-deps --target`), or in DIR, where it stays. Every
weight of its file gets noise of a tenth of its tensor's standard deviation, and every group of units a random
permutation, with the optimizer's moments where the file has them. `align` must bring back the noised file bit for bit,
with its keys, dtypes and other contents, and the package's own loader must compute the same from it.
"""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
import tempfile
from pathlib import Path

from rebasin_cli.model.names import is_installed
from tests.loading.shipped_checkpoints import SHIPPED, Shipped, recover


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(SHIPPED), help=f"of {', '.join(SHIPPED)}")
    parser.add_argument("--packages", type=Path, help="where to install; by default a directory that is removed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        packages = options.packages or Path(scratch) / "packages"
        sys.path.insert(0, str(packages))
        print(f"{'package':12} {'file':30} {'tensors':>7} {'planted':>7} {'units':>5} {'cosine':>14} beside     result")
        wrong = sum(not _row(name, SHIPPED[name], packages, Path(scratch)) for name in options.names)
    if wrong:
        raise SystemExit(f"{wrong} checkpoints were not brought back")


def _row(name: str, shipped: Shipped, packages: Path, scratch: Path) -> bool:
    """One checkpoint; whether it was brought back exactly."""
    if not all(map(is_installed, shipped.imports)):
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(packages)]
        subprocess.run([*pip, *shipped.requires], check=True)
        importlib.invalidate_caches()
    folder = scratch / name
    folder.mkdir()
    found = recover(shipped, folder)
    cosine = f"{found.result.cosine.before:.3f} -> {found.result.cosine.after:.3f}"
    beside = ", ".join(sibling.path for sibling in found.result.siblings if sibling.moved)
    said = "exact" if found.exact else f"wrong: {found.wrong[:3]}, outputs differ by {found.error:.1e}"
    print(
        f"{name:12} {shipped.file:30} {found.tensors:7} {found.planted:7} {found.result.units:5} {cosine:>14} "
        f"{beside:10} {said}",
        flush=True,
    )
    return found.exact


if __name__ == "__main__":
    main()
