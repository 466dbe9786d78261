"""Which models are aligned and verified in which precisions.

    python -m tests.benchmarks.dtype_table [--only PATTERN] [--torchvision]

Every model of `tests/zoo`, and with `--torchvision` one model of every family of torchvision, is aligned by
`rebasin align --effort fast` from two random initialisations, saved in float32, bfloat16, float16, and as a mixed pair
(A in float32, B in bfloat16). A cell says the largest difference between B and the aligned B in noise floors; a failure
is named by its error.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from rebasin_cli.errors import RebasinError
from rebasin_cli.model.factory import load_factory
from rebasin_cli.verbs.align import align
from tests.symmetry.small_zoo import FOLDER, zoo_names

PRECISIONS = {
    "float32": (torch.float32, torch.float32),
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "mixed": (torch.float32, torch.bfloat16),
}

FAMILIES = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_16",
]


def specs(*, torchvision: bool) -> Iterator[tuple[str, str]]:
    """Name and model spec of every row."""
    for name in zoo_names():
        yield name, f"{FOLDER / name}.py:build"
    if torchvision:
        yield from ((f"torchvision:{name}", f"torchvision:{name}") for name in FAMILIES)


def cell(model: str, precisions: tuple[torch.dtype, torch.dtype], folder: Path) -> str:
    """Align two initialisations saved in these precisions."""
    paths = []
    for seed, dtype in enumerate(precisions):
        module = load_factory(model, seed=seed).build()
        paths.append(folder / f"{seed}.pt")
        state = module.state_dict()
        torch.save({k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}, paths[-1])
    try:
        result = align(*paths, model=model, out=folder / "out.pt", effort="fast", starts=["identity"], force=True)
    except RebasinError as error:
        return f"exit {error.exit_code}: {error.message}"
    check = result.verified
    if check.spec is None or check.same is not True:
        return f"not verified: {check.left_out}"
    return f"{check.max_in_noise_floors or 0.0:.2f}"


def rows(only: str, *, torchvision: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and cells, by precision, of every row whose name matches."""
    with tempfile.TemporaryDirectory() as folder:
        for name, model in specs(torchvision=torchvision):
            if fnmatchcase(name, only):
                yield name, {kind: cell(model, pair, Path(folder)) for kind, pair in PRECISIONS.items()}


def is_verified(text: str) -> bool:
    return text.replace(".", "").isdigit()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", help="a pattern of names")
    parser.add_argument("--torchvision", action="store_true", help="one model of every family of torchvision too")
    options = parser.parse_args()
    print(f"| model | {' | '.join(PRECISIONS)} |\n|---|{'---|' * len(PRECISIONS)}")
    verified = total = 0
    for name, cells in rows(options.only, torchvision=options.torchvision):
        print(f"| {name} | {' | '.join(cells.values())} |", flush=True)
        verified += sum(is_verified(text) for text in cells.values())
        total += len(cells)
    print(f"\n{verified} of {total} pairs aligned and verified")


if __name__ == "__main__":
    main()
