"""Contact sheets of inverted inputs: docs/generated-resnet20.png and docs/generated-vit.png.

    python -m tests.benchmarks.generated_sheets SHARED [--folder docs]

SHARED has the pairs of checkpoints in `data/pairs`.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from rebasin_cli.execution.generated.maker import InputMaker
from rebasin_cli.execution.generated.saved import COLUMNS, ROWS, write_inputs
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import load_factory
from rebasin_cli.model.state import load_state

ROOT = Path(__file__).resolve().parents[2]
MODELS: Mapping[str, Mapping[str, Any]] = {"resnet20": {}, "vit": {"dim": 96}}


def networks(pairs: Path, name: str) -> list[nn.Module]:
    """A and B of a pair."""
    factory = load_factory(f"{pairs / 'cifar_models.py'}:{name}", MODELS[name])
    files = (load_file(pairs / f"{name}-{letter}.safetensors") for letter in "ab")
    return [load_state(factory.build_weightless(), tensors) for tensors in files]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path)
    parser.add_argument("--folder", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    example = ExampleInput((torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),))
    for name in MODELS:
        maker = InputMaker(
            lambda name=name: networks(options.shared / "data" / "pairs", name),  # type: ignore[misc]
            example,
            torch.device("cpu"),
        )
        made = maker.make("inverted", COLUMNS * ROWS, 0)
        print(f"{name}: {made.facts.describe()}", flush=True)
        write_inputs(made, options.folder / f"generated-{name}.png", force=True, mkdir=False)


if __name__ == "__main__":
    main()
