"""Maps of all classes: what is planted is recovered, and a trained pair of vision transformers merges better.

    python -m tests.benchmarks.symmetry_table --planted 20 [--net NAME] …
    python -m tests.benchmarks.symmetry_table [--shared DIR] --images DIR [--limit N] [--way NAME] … [--steps N]

Planted: B is A under random elements of all classes, in another network's gauge, with noise of 0, 0.1 and 0.3 of the
weights' deviation; a row counts how often the distance that is left, with norms folded, is at most that of the noise
and 1 % of the norm (the descent stops at a relative gain of 1e-4).
Trained: `vit-a` and `vit-b` of the shared pairs: accuracy of B as aligned and of the midpoint, in per cent, on all test
images or N of them. Learning sees 2,000 training images, or none.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rebasin_cli.checkpoint.read import open_checkpoint
from rebasin_cli.execution.subject import ModelChoice, open_subject
from rebasin_cli.maps import Gauges, Mapped, frame_of, random_maps
from rebasin_cli.matching.search import search
from rebasin_cli.matching.symmetries.forms import Forms, unmoved
from rebasin_cli.matching.symmetries.match import distance
from rebasin_cli.matching.symmetries.search import SymmetryStart, from_ends, from_permutations, search_maps
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.spec import PermutationSpec
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from rebasin_cli.verbs.align import AlignOptions, run_align
from tests.benchmarks.merged_scores import Judge
from tests.maps_nets import Pre, filled, nets

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
NOISES = (0.0, 0.1, 0.3)
WAYS: dict[str, dict[str, Any]] = {
    "permutations, weights": {},
    "all, weights and noise": {"symmetries": "all"},
    "all, best start on generated inputs": {"symmetries": "all", "method": "auto", "data": "generated"},
    "all, learned, labels": {"symmetries": "all", "method": "learned", "data": "train"},
    "all, learned, no labels": {"symmetries": "all", "method": "learned", "data": "train", "unlabelled": True},
    "all, learned, generated inputs": {"symmetries": "all", "method": "learned", "data": "generated"},
}
IMAGES = 2000


class Tied(nn.Module):
    """GPT-2-like: pre-norm blocks, learned positions, a head tied to the embedding."""

    def __init__(self, words: int = 31, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.body = Pre(width, 3, 40, 2, inputs=width, outputs=width)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.body.position
        for block in self.body.blocks:
            h = block(h)
        return self.body.norm(h) @ self.embed.weight.T


class Residual(nn.Module):
    """ResNet-like: convolutions, BatchNorm, a residual sum, ReLU."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(n, width, 3, padding=1, bias=False) for n in (3, width, width))
        self.norm0, self.norm1, self.norm2 = (nn.BatchNorm2d(width) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm0(self.stem(x)).relu()
        y = self.norm2(self.second(self.norm1(self.first(x)).relu()))
        return self.head((x + y).relu().mean((2, 3)))


DERIVED: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "gpt-2-like, tied": (Tied, lambda: torch.randint(0, 31, (1, 6))),
    "resnet-like": (Residual, lambda: torch.randn(1, 3, 8, 8)),
}


def derived_spec(net: nn.Module, sample: Tensor) -> PermutationSpec:
    """The classes that the trace of a network gives."""
    example = ExampleInput((sample.to(torch.float32) if sample.is_floating_point() else sample,), {})
    return derive(trace_model(copy.deepcopy(net).float().eval(), example)).classified


def planted_row(name: str, noise: float, tries: int) -> dict[str, Any]:
    """How often what was planted is recovered."""
    recovered, farthest = 0, 0.0
    for seed in range(tries):
        if name in DERIVED:
            make, sample = DERIVED[name]
            net = filled(make, seed)
            spec = derived_spec(net, sample())
        else:
            make, spec_of, _ = nets()[name]
            net = filled(make, seed)
            spec = spec_of(net)
        left, size, norm = _planted(net, spec, filled(make, seed + 1000), noise, seed)
        recovered += left <= size + 0.01 * norm
        farthest = max(farthest, left / norm)
    return {"net": name, "noise": noise, "recovered": f"{recovered} of {tries}", "farthest": round(farthest, 4)}


def _planted(
    net: nn.Module, spec: PermutationSpec, other: nn.Module, noise: float, seed: int
) -> tuple[float, float, float]:
    """The distance that is left, that of the noise, and the norm of A, with all norm scales folded into the readers.

    Files do not show it: beside a norm scale of A that is nearly zero, the smallest noise is large.
    """
    a = {key: tensor.detach() for key, tensor in net.state_dict().items()}
    keys = [key for key, _ in net.named_parameters()]
    maps = random_maps(spec, seed + 100)
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    torch.manual_seed(seed)
    noisy = {key: one + noise * one.std() * torch.randn_like(one) if one.dim() > 1 else one for key, one in a.items()}
    b = dict(Mapped(noisy, spec, maps, frame_of(gauges, other.state_dict().__getitem__)))
    forms = Forms(spec, a, b, keys)
    permuted = search(spec.permutable, a, b, parameters=keys, effort="fast").permutations
    starts = [from_ends(forms), SymmetryStart("identity", {}), from_permutations(forms, permuted)]
    found = search_maps(forms, [one for one in starts if one is not None])
    planted = Forms(spec, a, noisy, keys)
    norm = sum(planted.square_a.values()) ** 0.5
    return distance(forms, found.value), distance(planted, planted.value(unmoved(spec))), norm


def trained_row(way: str, shared: Path, images: Path, limit: int | None, steps: int) -> dict[str, Any]:
    """One way to align the trained pair."""
    how = dict(WAYS[way])
    pairs = shared / "pairs"
    model = f"{pairs / 'cifar_models.py'}:vit"
    if how.get("data") == "train":
        how.update(data=str(images / "train"), limit=IMAGES)
    if how.get("method") == "learned":
        how.update(learning_steps=steps, batch_size=128)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "aligned.safetensors"
        options = AlignOptions(
            pairs / "vit-a.safetensors",
            pairs / "vit-b.safetensors",
            model=model,
            model_args={"dim": 96},
            inputs=("1,3,32,32",),
            out=out,
            **how,
        )
        result = run_align(options)
        a, b = (_tensors(path) for path in (pairs / "vit-a.safetensors", out))
    judge = Judge(open_subject(ModelChoice(model, {"dim": 96})).factory.build(), model, images, limit, IMAGES)
    ends = [judge.end(a), judge.end(b)]
    middle = judge.midpoint(a, b, ends)["as it is"]
    return {
        "way": way,
        "start": result.start,
        "moved": {} if result.symmetries is None else {g.kind for g in result.symmetries.groups},
        "b": round(100 * float(ends[1][1].mean()), 2),
        "midpoint": middle,
        "cosine": round(result.cosine.after, 4),
    }


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(path)
    return {key: checkpoint.tensor(key).clone() for key in checkpoint.infos}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planted", type=int, default=0)
    parser.add_argument("--net", action="append", choices=[*nets(), *DERIVED])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--way", action="append", choices=list(WAYS))
    options = parser.parse_args()
    for name in (options.net or (*sorted(nets()), *DERIVED)) if options.planted else ():
        for noise in NOISES:
            print(json.dumps(planted_row(name, noise, options.planted)), flush=True)
    if options.images is not None:
        for way in options.way or WAYS:
            row = trained_row(way, options.shared, options.images, options.limit, options.steps)
            print(json.dumps(row, default=sorted), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
