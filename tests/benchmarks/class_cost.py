"""What classes cost: their derivation beside that of the permutations, and of the trace before both.

    python -m tests.benchmarks.class_cost [MODEL …]

Ratios of processor time within one run, each the median of `--rounds`: deriving the classes to deriving the
permutations, and all of tracing and deriving with classes to the same without.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import process_time

from rebasin_cli.execution.subject import ModelChoice, example_for, open_subject
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model

MODELS = (
    "torchvision:vit_b_16",
    "torchvision:resnet18",
    "torchvision:vgg11_bn",
    "torchvision:swin_t",
    "torchvision:convnext_tiny",
    "torchvision:mobilenet_v3_small",
)


def measure(name: str, rounds: int) -> tuple[float, float]:
    """Ratios: classes to permutations, and the whole with classes to the whole without."""
    choice = ModelChoice(name)
    subject = open_subject(choice)
    example = example_for(choice, subject)
    ratios, whole = [], []
    for _ in range(rounds):
        start = process_time()
        trace = trace_model(subject.module, example, with_numbers=subject.factory.build)
        traced = process_time()
        found = derive(trace)
        derived = process_time()
        assert found.classified.groups
        done = process_time()
        ratios.append((done - derived) / (derived - traced))
        whole.append((done - start) / (derived - start))
    return median(ratios), median(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"{'model':34} classes / permutations   with / without, tracing included")
    for name in given.models:
        ratio, whole = measure(name, given.rounds)
        print(f"{name:34} {ratio:22.2f} {whole:33.2f}")


if __name__ == "__main__":
    main()
