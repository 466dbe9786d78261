"""What annealing finds for how many sweeps, beside descents and Frank–Wolfe.

    python -m tests.benchmarks.annealing_curve --cache DIR [--only PATTERN] [--sweeps 6 10 20 40]

For every pair of `searched_table`: similarity (cosine) after annealing without noise, polished by coordinate descent,
and in brackets the work of both in full sets of products; the same of the identity's descent and of Frank–Wolfe from
the barycentre.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rebasin_cli.execution.pair import Source, open_pair
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.annealing import anneal
from rebasin_cli.matching.arrangement import Arrangement
from rebasin_cli.matching.frank_wolfe import frank_wolfe, near_barycentre
from rebasin_cli.matching.polish import DescentRun, Settings
from rebasin_cli.matching.problem import Problem, prepare
from rebasin_cli.permutation import Permutations
from tests.benchmarks.pair_table import SHARED
from tests.benchmarks.searched_table import Trained, pairs


def polished(problem: Problem, start: Permutations | None, spent: int) -> str:
    """Cosine at the end of a descent, and the work in full passes, that of the start included."""
    run = DescentRun(problem, "start", 0, Settings(), start, spent=spent)
    run.advance(None)
    end = run.finish()
    return f"{end.value / problem.norms.scale:.4f} ({end.work / problem.full_pass:.0f})"


def annealed(problem: Problem, sweeps: int) -> str:
    found = anneal(problem, Settings(), sweeps=sweeps)
    arrangement = Arrangement(problem.families)
    arrangement.set(found.vertices[0])
    return polished(problem, arrangement.permutations(), found.work)


def row(one: Trained, sweeps: list[int]) -> str:
    pair = open_pair(Source(one.files[0]), Source(one.files[1]), one.choice)
    spec = understand(pair.subject, one.choice).spec
    a, b = ({key: side[key] for key in side} for side in (pair.a, pair.b))
    problem = prepare(spec, a, b, pair.subject.parameters)
    rounded, work = frank_wolfe(problem, Settings(), near_barycentre(problem, 0, 0.0))
    cells = [polished(problem, None, 0), polished(problem, rounded, work)]
    return f"| {one.name} | {' | '.join(cells + [annealed(problem, count) for count in sweeps])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--only", default="*", help="a pattern of names, for example 'digits*'")
    parser.add_argument("--sweeps", type=int, nargs="+", default=[6, 10, 20, 40])
    options = parser.parse_args()
    titles = [f"{count} sweeps" for count in options.sweeps]
    print(f"| pair | descent from the identity | Frank-Wolfe | {' | '.join(titles)} |")
    print("|---" * (3 + len(titles)) + "|")
    for one in pairs(options.shared, options.cache, 1, options.only):
        print(row(one, options.sweeps), flush=True)


if __name__ == "__main__":
    main()
