"""Which objective predicts the merged network best? Pairs of small networks, matched by each, their midpoints measured.

    python -m tests.benchmarks.objective_table --cache DIR [--table NAME] [--pairs 2] [--only digits] [--json FILE]

Every pair is trained from two seeds (see `small_pairs`; DIR keeps them, and the figures are added to a file there, so
that an interrupted run goes on). Barriers are the loss or the error of the midpoint less the mean of the ends, on test
images, BatchNorm measured anew on 1,000 training images. Ranks are within each pair: 1 is the best way; their means
over pairs have standard errors. "Against" the first way counts the pairs on which a way has the lower and the higher
barrier, with the two-sided p of the sign test (the chance of so uneven a count if neither were better); pairs of one
kind are alike, so the same is counted of the kinds' means. The table `activations` has activations alone, by what of
them is compared.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from math import comb
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import torch

from rebasin_cli.data.ranks import ALONE
from rebasin_cli.execution.pair import Pair, Source, open_pair
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.execution.understanding import Understanding, understand
from rebasin_cli.matching.methods import Matching, MatchTask, match
from rebasin_cli.matching.methods.activation import ActivationOptions
from rebasin_cli.matching.result import MatchResult
from rebasin_cli.permutation import Permutations, apply, identity
from tests.benchmarks.small_pairs import KINDS, Images, Kind, load_images, read, scores, trained

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "matrices": {"objective": "matrices"},
    "tensors": {"objective": "tensors"},
    "rows": {"objective": "rows"},
    "noise": {"method": "activation"},
    "noise and weights": {"method": "activation", "options": ActivationOptions(mix=0.2)},
    "data": {"method": "activation", "data": True},
    "data and weights": {"method": "activation", "data": True, "options": ActivationOptions(mix=0.2)},
    "straight-through": {"method": "learned", "data": True},
}
ACTIVATIONS: dict[str, dict[str, Any]] = {
    f"{inputs}, {likeness}": {
        "method": "activation",
        "options": ActivationOptions(likeness=likeness),
        "data": inputs == "data",
    }
    for inputs in ("data", "noise")
    for likeness in ("covariance", "correlation", "directions")
}
Ways = Mapping[str, dict[str, Any]]
TABLES: dict[str, Ways] = {"objectives": WAYS, "activations": ACTIVATIONS}
LEARNED_ON, RECALIBRATED_ON = 1000, 1000


class Bench:
    """One pair, opened and understood once, matched in every way."""

    def __init__(self, kind: Kind, number: int, train: Images, test: Images, cache: Path) -> None:
        self.kind, self.train, self.test = kind, train, test
        paths = [trained(kind, 2 * number + side, train, cache) for side in (0, 1)]
        self.a, self.b = (read(path) for path in paths)
        shape = ",".join(map(str, (1, *train[0].shape[1:])))
        choice = ModelChoice(kind.model, kind.model_args, (shape,), None, 0)
        self.pair: Pair = open_pair(Source(paths[0]), Source(paths[1]), choice)
        self.understood: Understanding = understand(self.pair.subject, choice)
        self.data = cache / f"{kind.data}-learned-on.npz"
        if not self.data.exists():
            np.savez(self.data, x=train[0][:LEARNED_ON].numpy(), y=train[1][:LEARNED_ON].numpy())
        self.ends = [scores(kind, one, test, None) for one in (self.a, self.b)]

    def match(self, how: dict[str, Any]) -> MatchResult:
        chosen = {"method": "weight", "objective": "plain", "effort": "standard", **how}
        matching = Matching(
            starts=None,
            restarts=None,
            max_passes=None,
            time_limit=None,
            seed=0,
            device="cpu",
            batch_size=100,
            **{**chosen, "data": str(self.data) if how.get("data") else None},
        )
        cpu = torch.device("cpu")
        return match(MatchTask(self.pair, self.understood, matching, self.kind.model, cpu, lambda done: None, ALONE))

    def barriers(self, permutations: Permutations) -> tuple[float, float]:
        """Of loss and of accuracy (in points) at the midpoint."""
        moved = apply(self.understood.spec, permutations, self.b)
        middle = {k: torch.lerp(v, moved[k], 0.5) if v.is_floating_point() else v for k, v in self.a.items()}
        few = (self.train[0][:RECALIBRATED_ON], self.train[1][:RECALIBRATED_ON])
        loss, accuracy = scores(self.kind, middle, self.test, few)
        return loss - mean(end[0] for end in self.ends), 100 * (mean(end[1] for end in self.ends) - accuracy)


def measured(kind: Kind, number: int, cache: Path, shared: Path, wanted: Ways) -> dict[str, Any]:
    """The figures of one pair."""
    train, test = load_images(kind.data, shared, cache)
    bench = Bench(kind, number, train, test, cache)
    row: dict[str, Any] = {
        "kind": kind.name,
        "pair": number,
        "ends": [round(100 * accuracy, 1) for _, accuracy in bench.ends],
        "naive": bench.barriers(identity(bench.understood.spec)),
    }
    for name, how in wanted.items():
        began = time.perf_counter()
        found = bench.match(how)
        seconds = time.perf_counter() - began
        row[name] = (*bench.barriers(found.permutations), found.cosine_after, seconds)
    return row


def table(rows: list[dict[str, Any]], wanted: Ways) -> Iterable[str]:
    """Accuracy barriers of every kind (mean over its pairs), then the means and ranks over all pairs."""
    ways, first = ["naive", *wanted], next(iter(wanted))
    yield f"| pairs | ends | {' | '.join(ways)} |"
    yield f"|---|---|{'---|' * len(ways)}"
    for name in dict.fromkeys(row["kind"] for row in rows):
        mine = [row for row in rows if row["kind"] == name]
        ends = mean(end for row in mine for end in row["ends"])
        cells = [f"{mean(row[way][1] for row in mine):.1f}" for way in ways]
        yield f"| {name} | {ends:.1f} | {' | '.join(cells)} |"
    for which, unit in ((1, "accuracy"), (0, "loss")):
        means = [f"{mean(row[way][which] for row in rows):.{1 if which else 2}f}" for way in ways]
        yield f"| **mean barrier, {unit}** | | {' | '.join(means)} |"
        yield f"| **mean rank by {unit}** | | {' | '.join(_rank(rows, way, which, wanted) for way in ways)} |"
        for among, some in (("pairs", rows), ("kinds", _means(rows, ways, which))):
            cells = [_signs(some, way, which, first) for way in ways]
            yield f"| **{unit} against {first}, {among}** | | {' | '.join(cells)} |"


def _rank(rows: list[dict[str, Any]], way: str, which: int, wanted: Ways) -> str:
    """Mean place of a way among all but the naive one; equals share their places."""
    if way == "naive":
        return ""
    places = []
    for row in rows:
        values = [row[other][which] for other in wanted]
        below = sum(value < row[way][which] for value in values)
        equal = sum(value == row[way][which] for value in values)
        places.append(below + (equal + 1) / 2)
    error = stdev(places) / len(places) ** 0.5 if len(places) > 1 else 0.0
    return f"{mean(places):.1f} ± {error:.1f}"


def _means(rows: list[dict[str, Any]], ways: list[str], which: int) -> list[dict[str, Any]]:
    """One row for each kind of network: means over its pairs."""
    kinds = dict.fromkeys(row["kind"] for row in rows)
    by_kind = ([row for row in rows if row["kind"] == kind] for kind in kinds)
    return [{way: {which: mean(row[way][which] for row in mine)} for way in ways} for mine in by_kind]


def _signs(rows: list[dict[str, Any]], way: str, which: int, first: str) -> str:
    """How often a way is better and worse than the first one, and the two-sided sign test's p."""
    if way in ("naive", first):
        return ""
    better = sum(row[way][which] < row[first][which] for row in rows)
    worse = sum(row[way][which] > row[first][which] for row in rows)
    count = better + worse
    tail = sum(comb(count, k) for k in range(min(better, worse) + 1)) / 2**count
    return f"{better}:{worse} (p {min(1.0, 2 * tail):.2g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the trained pairs")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with the CIFAR-10 archives")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of each kind on digits; one on CIFAR-10")
    parser.add_argument("--only", choices=["digits", "cifar"], help="one of the two data sets")
    parser.add_argument("--table", choices=list(TABLES), default="objectives")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    ways = TABLES[options.table]
    kept = options.cache / ("figures.jsonl" if ways is WAYS else f"{options.table}.jsonl")
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for number in range(options.pairs):
        for kind in KINDS:
            wanted = options.only in (None, kind.data) and not (number and kind.data == "cifar")
            if not wanted or any((row["kind"], row["pair"]) == (kind.name, number) for row in done):
                continue
            done.append(measured(kind, number, options.cache, options.shared, ways))
            print(kind.name, number, {name: f"{done[-1][name][1]:.1f}" for name in ("naive", *ways)}, flush=True)
            with kept.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
    order = [kind.name for kind in KINDS]
    done.sort(key=lambda row: order.index(row["kind"]))
    print("\n".join(table(done, ways)))
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
