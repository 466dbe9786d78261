"""Verdicts of `rebasin compare` on made pairs: what was fine-tuned, permuted, pruned, quantized, distilled or neither.

    python -m tests.benchmarks.compare_pairs [DIR] [--count N] [--effort LEVEL]

For each of N bases, small networks trained on scikit-learn's digits (an MLP, a residual network with BatchNorm, a
vision transformer, in turn), one pair of every kind. Networks and results are kept in DIR and not made again.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from rebasin_cli import PermutationSpec, compare, trace
from rebasin_cli.permutation import Permuted, random
from tests.benchmarks.small_pairs import BATCH, Images, Kind, load_images, read, trained

State = dict[str, Tensor]

KINDS = (
    Kind("digits MLP", "digits", "mlp", {"width": 64}),
    Kind("digits ResNet, BatchNorm", "digits", "resnet", {"norm": "batch"}),
    Kind("digits small ViT", "digits", "vit", {"width": 16, "depth": 2}, epochs=40),
)
EXPECTED = {
    "fine-tuned": "fine-tuned",
    "permuted and fine-tuned": "permuted-fine-tuned",
    "pruned by 10 %": "fine-tuned",
    "quantized to 8 bits and back": "fine-tuned",
    "distilled stranger": "unrelated",
    "trained apart": "unrelated",
    "trained apart, then aligned": "unrelated",
}


@dataclass(frozen=True)
class Made:
    """A base, and what the others are made from."""

    kind: Kind
    base: State
    seed: int
    train: Images
    spec: PermutationSpec


def fit(kind: Kind, start: State | None, x: Tensor, y: Tensor, *, epochs: int, rate: float, seed: int,
        teacher: Tensor | None = None) -> State:  # fmt: skip
    """A network trained from `start`, or from random weights; on the outputs of a teacher where those are given."""
    torch.manual_seed(seed)
    module: nn.Module = kind.build()
    if start is not None:
        module.load_state_dict(start)
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    module.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x)).split(BATCH):
            optimizer.zero_grad()
            output = module(x[rows])
            if teacher is None:
                loss = F.cross_entropy(output, y[rows])
            else:
                loss = F.kl_div(output.log_softmax(1), teacher[rows].softmax(1), reduction="batchmean")
            loss.backward()
            optimizer.step()
    return {key: value.detach().clone() for key, value in module.state_dict().items()}


def fine_tuned(made: Made) -> State:
    """Ten epochs on the digits turned by a quarter, at the rate of a third of the first training's peak."""
    x, y = made.train
    return fit(made.kind, made.base, x.rot90(1, (2, 3)), y, epochs=10, rate=1e-3, seed=made.seed)


def permuted(made: Made, state: State) -> State:
    return dict(Permuted(state, made.spec, random(made.spec, made.seed)))


def pruned(made: Made) -> State:
    """The tenth of each matrix with the smallest magnitudes is zero."""
    found = dict(made.base)
    for key, value in made.base.items():
        if value.dim() > 1:
            limit = value.abs().flatten().kthvalue(max(1, value.numel() // 10)).values
            found[key] = value.masked_fill(value.abs() <= limit, 0)
    return found


def quantized(made: Made) -> State:
    """Each matrix in 255 levels between its largest magnitudes."""
    found = dict(made.base)
    for key, value in made.base.items():
        if value.dim() > 1:
            step = value.abs().max() / 127
            found[key] = (value / step).round() * step
    return found


def distilled(made: Made) -> State:
    """A network from other random weights, trained on the base's outputs alone."""
    x, y = made.train
    module = made.kind.build()
    module.load_state_dict(made.base)
    with torch.no_grad():
        teacher = torch.cat([module.eval()(part) for part in x.split(BATCH)])
    return fit(made.kind, None, x, y, epochs=30, rate=3e-3, seed=made.seed + 5000, teacher=teacher)


def apart(made: Made, cache: Path) -> State:
    return read(trained(made.kind, made.seed + 1000, made.train, cache))


def aligned(made: Made, cache: Path) -> State:
    """A network trained apart, aligned to the base by its whole weights, as `rebasin align` writes it."""
    from rebasin_cli.matching.search import search

    other = apart(made, cache)
    parameters = {key for key, _ in made.kind.build().named_parameters()}
    found = search(made.spec, made.base, other, parameters=parameters)
    return dict(Permuted(other, made.spec, found.permutations))


def pairs(made: Made, cache: Path) -> Mapping[str, Callable[[], State]]:
    """B by the kind of pair; A is the base."""
    return {
        "fine-tuned": lambda: fine_tuned(made),
        "permuted and fine-tuned": lambda: permuted(made, fine_tuned(made)),
        "pruned by 10 %": lambda: pruned(made),
        "quantized to 8 bits and back": lambda: quantized(made),
        "distilled stranger": lambda: distilled(made),
        "trained apart": lambda: apart(made, cache),
        "trained apart, then aligned": lambda: aligned(made, cache),
    }


def bases(count: int, cache: Path) -> Iterator[Made]:
    """So many bases, of every architecture in turn."""
    train, _ = load_images("digits", cache, cache)
    specs: dict[str, PermutationSpec] = {}
    for number in range(count):
        kind = KINDS[number % len(KINDS)]
        if kind.name not in specs:
            specs[kind.name] = trace(model=kind.model, model_args=kind.model_args, inputs=("1,1,8,8",)).spec
        yield Made(kind, read(trained(kind, number, train, cache)), number, train, specs[kind.name])


def judge(made: Made, cache: Path, effort: str) -> dict[str, dict[str, object]]:
    """The verdict of every pair of a base, with the figures that it stands on."""
    kept = cache / f"verdicts-{effort}-{made.kind.builder}-{made.seed}.json"
    found: dict[str, dict[str, object]] = json.loads(kept.read_text()) if kept.exists() else {}
    a, b = cache / "a.safetensors", cache / "b.safetensors"
    save_file({key: value.contiguous() for key, value in made.base.items()}, a)
    for name, make in pairs(made, cache).items():
        if name in found:
            continue
        save_file({key: value.contiguous() for key, value in make().items()}, b)
        result = compare(
            a, b, model=made.kind.model, model_args=made.kind.model_args, inputs=("1,1,8,8",), effort=effort
        )
        tests = result.tests
        in_order, matched = (None, None) if tests is None else (tests.in_order, tests.matched)
        found[name] = {
            "verdict": result.verdict,
            "p_value": result.p_value,
            "in_order": None if in_order is None else in_order.correlation,
            "p_order": None if in_order is None else in_order.p_order,
            "matched": None if matched is None else matched.correlation,
        }
    kept.write_text(json.dumps(found))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("cache", nargs="?", type=Path, default=Path("compare-pairs"))
    parser.add_argument("--count", type=int, default=21)
    parser.add_argument("--effort", default="fast", help="of the searches; the default costs minutes in all")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    results = [judge(made, given.cache, given.effort) for made in bases(given.count, given.cache)]
    lines = []
    for name, expected in EXPECTED.items():
        rows = [result[name] for result in results]
        right = sum(row["verdict"] == expected for row in rows)
        others = Counter(str(row["verdict"]) for row in rows if row["verdict"] != expected)
        lines.append(
            (name, expected, f"{right} of {len(rows)}", ", ".join(f"{n} {what}" for what, n in others.items()) or "-",
             spread([row["p_value"] for row in rows]), spread([row["in_order"] for row in rows]),
             spread([row["matched"] for row in rows]))
        )  # fmt: skip
    headings = ("pair", "expected", "right", "other verdicts", "p-value", "in order", "matched")
    for line in (headings, ("---",) * len(headings), *lines):
        print(f"| {' | '.join(line)} |")


def spread(values: list[object]) -> str:
    """The smallest and the largest of those that there are."""
    known = sorted(float(str(value)) for value in values if value is not None)
    return "-" if not known else f"{known[0]:.2g} to {known[-1]:.2g}"


if __name__ == "__main__":
    main()
