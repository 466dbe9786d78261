"""Files as their libraries write them: aligned, written, and loaded again by the library.

    python -m tests.benchmarks.library_files [--only PATTERN …]

Two networks of each type are built small with different seeds and saved by the library (transformers: `save_pretrained`
of every model type). They are aligned at effort `fast`, and the library loads the written file: it must have B's keys,
and compute B's function, and units must have moved. A row says `same`, or why not.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from rebasin_cli.model.names import is_installed
from tests.loading.library_pairs import Outcome, Pair, round_trip, transformers_pairs
from tests.loading.other_libraries import diffusers_pairs, open_clip_pairs, timm_pairs, torchvision_pairs

LIBRARIES = {
    "torchvision": torchvision_pairs,
    "transformers": transformers_pairs,
    "timm": timm_pairs,
    "open_clip": open_clip_pairs,
    "diffusers": diffusers_pairs,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="align files as their libraries write them")
    parser.add_argument("--only", nargs="+", default=["*"], help="patterns of names, for example 'transformers:m*'")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for pair, outcome in _rows(options.only):
        counts[outcome.kind] += 1
        moved = f"{outcome.moved}/{outcome.units}" if outcome.units else ""
        error = "" if outcome.error is None else f"{outcome.error:.1e}"
        print(
            f"{pair.name:44} {outcome.kind:12} {moved:>12} {error:>8} {outcome.layout:9} {outcome.reason}", flush=True
        )
    print("\n" + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
    if counts["failed"]:
        raise SystemExit(1)


def _rows(patterns: list[str]) -> Iterator[tuple[Pair, Outcome]]:
    wanted = [library for library in LIBRARIES if any(fnmatchcase(library, p.partition(":")[0]) for p in patterns)]
    for pair in (pair for library in wanted if is_installed(library) for pair in LIBRARIES[library]()):
        if any(fnmatchcase(pair.name, pattern) for pattern in patterns):
            with tempfile.TemporaryDirectory() as folder:
                yield pair, round_trip(pair, Path(folder))
            gc.collect()


if __name__ == "__main__":
    main()
