"""How much of the similarity that matching gains is chance, on the four trained pairs.

    python -m tests.benchmarks.chance PAIRS

PAIRS is the directory of the pairs and their `cifar_models.py`. Prints the gains of a short search on each pair and on
shuffled weights, and their ratio; `rebasin_cli.matching.chance` and the advice of `align` quote it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rebasin_cli.execution.pair import Source, open_pair
from rebasin_cli.execution.subject import ModelChoice
from rebasin_cli.execution.understanding import understand
from rebasin_cli.matching.chance import gain_against_chance

ARGUMENTS: dict[str, dict[str, object]] = {"mlp": {}, "resnet20": {}, "vgg": {}, "vit": {"dim": 96}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path)
    pairs = parser.parse_args().pairs
    for name, arguments in ARGUMENTS.items():
        choice = ModelChoice(f"{pairs / 'cifar_models.py'}:{name}", arguments, ("2,3,32,32",))
        pair = open_pair(*(Source(pairs / f"{name}-{letter}.safetensors") for letter in "ab"), choice)
        spec = understand(pair.subject, choice).spec
        found = gain_against_chance(spec, pair.a, pair.b, parameters=pair.subject.parameters)
        print(f"{name:9} gain {found.gain:.4f}, by chance {found.gain_by_chance:.4f}, ratio {found.ratio:.2f}")


if __name__ == "__main__":
    main()
