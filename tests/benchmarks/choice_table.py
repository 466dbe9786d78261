"""Can the better of two alignments be told without data? Weights against a mixture with activations on noise.

    python -m tests.benchmarks.choice_table --cache DIR [--pairs 2] [--only PATTERN] [--json FILE]

Every pair of `small_pairs` (DIR keeps them, and the figures in a file there) is matched twice without data, at effort
`fast`: by weights, and by a mixture with the activations on noise. Both midpoints are judged on inputs that the two
networks make (`--data generated`): by the distance of their outputs from those of the ends, and by how often they give
another class than an end; and on test images, with running statistics measured on training images. A judgement predicts
a pair if the midpoint that it prefers has the lower loss (or the higher accuracy) on the test images. Pairs on which a
judgement or the truth has no preference are left out; p is that of the two-sided sign test.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from math import comb
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from rebasin_cli.data.held_back import Kept, held_back
from rebasin_cli.execution.midpoint_judge import MidpointJudge
from rebasin_cli.matching.method import Matching, data_of
from rebasin_cli.matching.methods.activation import ActivationOptions
from rebasin_cli.permutation import Permutations
from tests.benchmarks.objective_table import SHARED, Bench
from tests.benchmarks.small_pairs import KINDS, Kind, load_images

WAYS: dict[str, dict[str, Any]] = {
    "weights": {},
    "mixture": {"method": "activation", "options": ActivationOptions(mix=0.2)},
}
INPUTS = 512
JUDGES = ("distance", "disagreement")


def judged(bench: Bench, permutations: list[Permutations]) -> list[dict[str, float]]:
    """What the midpoints are worth on inputs that the networks make; less is better."""
    task = Matching("auto", "fast", None, None, None, None, 0, "cpu", data="generated", limit=INPUTS)
    room = data_of(bench.pair, bench.understood, task, bench.kind.model, labelled=True)
    held, rest = held_back(room.open(shuffle=True), INPUTS // 2)
    others = Kept.first(rest, INPUTS)
    judge = MidpointJudge(bench.pair, bench.understood.spec, held, others, torch.device("cpu"))
    scores = [judge.midpoint(one) for one in permutations]
    return [{"distance": one.loss or 0.0, "disagreement": 1 - (one.accuracy or 0.0)} for one in scores]


def measured(kind: Kind, number: int, cache: Path, shared: Path) -> dict[str, Any]:
    """The figures of one pair."""
    train, test = load_images(kind.data, shared, cache)
    bench = Bench(kind, number, train, test, cache)
    found = [bench.match({**how, "effort": "fast"}).permutations for how in WAYS.values()]
    barriers = [bench.barriers(one) for one in found]
    row: dict[str, Any] = {"kind": kind.name, "pair": number}
    for way, (loss, accuracy), guess in zip(WAYS, barriers, judged(bench, found), strict=True):
        row[way] = {"loss": loss, "accuracy": accuracy, **guess}
    return row


def report(rows: list[dict[str, Any]]) -> Iterator[str]:
    """How often each judgement predicts the truth, and what always taking one of the two gives."""
    for truth in ("loss", "accuracy"):
        gain = [row["weights"][truth] - row["mixture"][truth] for row in rows]
        better, count = sum(one > 0 for one in gain), sum(one != 0 for one in gain)
        yield f"mixture better by {truth}: {better} of {count} pairs (p {_p(gain)})"
        yield f"mean {truth} barrier: weights {_mean(rows, 'weights', truth)}, mixture {_mean(rows, 'mixture', truth)}"
        for judge in JUDGES:
            says = [row["weights"][judge] - row["mixture"][judge] for row in rows]
            right = [one * other for one, other in zip(says, gain, strict=True)]
            chosen = mean(row["mixture" if say > 0 else "weights"][truth] for row, say in zip(rows, says, strict=True))
            yield (
                f"{judge} predicts {truth}: {sum(one > 0 for one in right)} of {sum(one != 0 for one in right)} "
                f"(p {_p(right)}), mean barrier of its choice {chosen:.2f}"
            )


def _mean(rows: list[dict[str, Any]], way: str, what: str) -> str:
    return f"{mean(row[way][what] for row in rows):.2f}"


def _p(values: list[float]) -> str:
    """Of the sign test."""
    up, count = sum(value > 0 for value in values), sum(value != 0 for value in values)
    tail = sum(comb(count, k) for k in range(min(up, count - up) + 1)) / 2**count
    return f"{min(1.0, 2 * tail):.2g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for the trained pairs")
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder with the CIFAR-10 archives")
    parser.add_argument("--pairs", type=int, default=2, help="pairs of each kind on digits; one on CIFAR-10")
    parser.add_argument("--only", default="*", help="a pattern of names of kinds")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.cache.mkdir(parents=True, exist_ok=True)
    kept = options.cache / "choices.jsonl"
    done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for number in range(options.pairs):
        for kind in KINDS:
            wanted = fnmatchcase(kind.name, options.only) and not (number and kind.data == "cifar")
            if not wanted or any((row["kind"], row["pair"]) == (kind.name, number) for row in done):
                continue
            done.append(measured(kind, number, options.cache, options.shared))
            print(done[-1], flush=True)
            with kept.open("a") as stream:
                stream.write(json.dumps(done[-1]) + "\n")
    print("\n".join(report(done)))
    if options.json:
        options.json.write_text(json.dumps(done, indent=1) + "\n")


if __name__ == "__main__":
    main()
