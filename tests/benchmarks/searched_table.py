"""How good and how steady the search without data is, on trained pairs.

    python -m tests.benchmarks.searched_table --cache DIR [--only PATTERN] [--pairs 1] [--json FILE]

For every pair: similarity (cosine) at `--effort standard` over five seeds; of coordinate descents from the identity
over ten seeds; and of Frank–Wolfe from the barycentre, polished. Pairs: the four of `shared/data/pairs`, and small
networks of every kind of `small_pairs`, trained here from two seeds each and kept in DIR.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.execution.pair import Source, open_pair
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.methods import Matching, MatchTask, match
from rebasin_cli.matching.multistart import weight_matching
from rebasin_cli.matching.search import search
from tests.benchmarks.pair_table import PAIRS, SHARED
from tests.benchmarks.small_pairs import KINDS, load_images, trained

SEEDS, DESCENTS, MOST_SPREAD = 5, 10, 0.005


@dataclass(frozen=True, slots=True)
class Trained:
    """Two files of one architecture."""

    name: str
    files: tuple[Path, Path]
    choice: ModelChoice

    def searched(self) -> dict[str, Any]:
        """Similarities over seeds, beside those of simpler searches."""
        pair = open_pair(Source(self.files[0]), Source(self.files[1]), self.choice)
        understood = understand(pair.subject, self.choice)
        a, b = ({key: side[key] for key in side} for side in (pair.a, pair.b))
        keys, spec = pair.subject.parameters, understood.spec
        found = [
            match(
                MatchTask(
                    pair,
                    understood,
                    Matching("weight", "standard", None, None, None, None, seed, "cpu"),
                    self.choice.spec,
                    torch.device("cpu"),
                    lambda done: None,
                    ALONE,
                )
            )
            for seed in range(SEEDS)
        ]
        standard = [one.cosine_after for one in found]
        descents = [
            weight_matching(spec, a, b, parameters=keys, starts=["identity"], seed=seed).cosine_after
            for seed in range(DESCENTS)
        ]
        centre = search(spec, a, b, parameters=keys, starts=["barycentre"], restarts=0, effort="standard").cosine_after
        return {
            "pair": self.name,
            "standard": standard,
            "spread": (max(standard) - min(standard)) / max(standard),
            "descents": descents,
            "barycentre": centre,
        }


def pairs(shared: Path, cache: Path, count: int, only: str) -> Iterator[Trained]:
    for name, arguments in PAIRS.items() if (shared / "pairs").is_dir() else ():
        if fnmatchcase(name, only):
            files = [shared / "pairs" / f"{name}-{letter}.safetensors" for letter in "ab"]
            model = f"{shared / 'pairs' / 'cifar_models.py'}:{name}"
            yield Trained(name, (files[0], files[1]), ModelChoice(model, arguments, ("1,3,32,32",), None, 0))
    for kind in KINDS:
        if fnmatchcase(kind.name, only):
            train, _ = load_images(kind.data, shared, cache)
            shape = ",".join(map(str, (1, *train[0].shape[1:])))
            for number in range(count):
                first, second = (trained(kind, 2 * number + side, train, cache) for side in (0, 1))
                choice = ModelChoice(kind.model, kind.model_args, (shape,), None, 0)
                yield Trained(kind.name, (first, second), choice)


def line(row: dict[str, Any]) -> str:
    """A row of the table; *kept*: every seed is at least the best descent, and they differ by less than 0.5 %."""
    low, high = min(row["standard"]), max(row["standard"])
    worst, best = min(row["descents"]), max(row["descents"])
    kept = low >= best and row["spread"] < MOST_SPREAD
    cells = (
        f"{low:.4f} to {high:.4f}",
        f"{100 * row['spread']:.2f} %",
        f"{worst:.4f} to {best:.4f}",
        f"{row['barycentre']:.4f}",
        "yes" if kept else "NO",
    )
    return f"| {row['pair']} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", default="*", help="a pattern of names, for example 'digits*'")
    parser.add_argument("--pairs", type=int, default=1, help="of each kind that is trained here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    print("| pair | standard, five seeds | spread | descents, ten seeds | Frank-Wolfe, polished | kept |")
    print("|---|---|---|---|---|---|")
    rows = []
    for one in pairs(options.shared, options.cache, options.pairs, options.only):
        rows.append(one.searched())
        print(line(rows[-1]), flush=True)
        if options.json is not None:
            options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
