"""What the coverage ledger covers: a name, how to build it, what it is run on, and what is known to fall short."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import ModelFactory, load_factory
from rebasin_cli.model.torchvision_import import import_torchvision
from tests.coverage.configurations import LLAMA_8B, TRANSFORMERS, UNETS, Args
from tests.coverage.modules import MODULES
from tests.coverage.timm_models import TIMM
from tests.coverage.torchvision_kernels import provide_kernels

AUXILIARY = ("fcn", "deeplabv3")
ONE_STAGE = ("retinanet", "fcos", "ssd")
OPEN_CLIP = (
    "ViT-B-32",
    "RN50",
    "coca_base",
    "ViT-B-16-SigLIP",
    "convnext_base",
    "EVA02-B-16",
    "MobileCLIP-S1",
    "PE-Core-T-16-384",
)

SHORTFALLS = {
    "transformers:longformer": "windows are strided views, which no rule follows: heads and stream are pinned",
    "transformers:fnet": "a Fourier transform mixes all units of the stream: it is pinned, and rightly",
    "transformers:wav2vec2": "weight norm on a grouped convolution: units inside the stream's groups move alike",
    "transformers:hubert": "weight norm on a grouped convolution: units inside the stream's groups move alike",
    "transformers:switch_transformers": "experts that the example did not reach are pinned, and the stream with them",
    "modules:experts in a loop, all hit": "experts that code tells apart by number keep their order; their units move",
    "modules:experts in a loop, some never hit": "the units of experts that were not reached follow the others'",
}


@dataclass(frozen=True)
class Entry:
    """One row to be. `execute` is false where execution in float64 takes too much; a small sibling is executed then."""

    name: str
    build: Callable[[], nn.Module]
    weightless: Callable[[], nn.Module]
    example: Callable[[nn.Module], ExampleInput]
    execute: bool = True
    heads_only: bool = False
    needs: str = ""

    @property
    def shortfall(self) -> str:
        return SHORTFALLS.get(self.name, "")


class Heads(nn.Module):
    """A one-stage detector without its choice of boxes: all that its parameters compute."""

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = detector.backbone, detector.head

    def forward(self, image: Tensor) -> object:
        features = self.backbone(image)
        return self.head([features] if isinstance(features, Tensor) else list(features.values()))


def entries() -> Iterator[Entry]:
    """All of them, the quick ones of each zoo first."""
    for name, (build, example) in MODULES.items():
        yield Entry(f"modules:{name}", build, build, lambda _, example=example: example)
    yield from (_transformer(name, args) for name, args in TRANSFORMERS.items())
    yield from (_unet(name, args) for name, args in UNETS.items())
    yield _from_factory(
        "transformers:llama, 8 billion", partial(load_factory, "transformers:llama", LLAMA_8B), "transformers", False
    )
    for name, args in TIMM.items():
        yield _from_factory(f"timm:{name}", partial(load_factory, f"timm:{name}", args), "timm")
    for name in OPEN_CLIP:
        small = name in ("ViT-B-32", "RN50", "MobileCLIP-S1", "PE-Core-T-16-384")
        yield _from_factory(f"open_clip:{name}", partial(load_factory, f"open_clip:{name}"), "open_clip", small)
    yield from (_torchvision(name) for name in _torchvision_names())


def _torchvision_names() -> list[str]:
    models = import_torchvision("models")
    parts = (models.segmentation, models.detection, models.video, models.optical_flow)
    return [name for part in parts for name in sorted(models.list_models(module=part))]


def _torchvision(name: str) -> Entry:
    args: Args = {"aux_loss": True} if name.startswith(AUXILIARY) else {}
    provide_kernels()
    large = name in (
        "mvit_v1_b",
        "mvit_v2_s",
        "swin3d_b",
        "swin3d_s",
        "raft_large",
        "deeplabv3_resnet101",
        "fcn_resnet101",
    )
    entry = _from_factory(f"torchvision:{name}", partial(load_factory, f"torchvision:{name}", args), "", not large)
    if not name.startswith(ONE_STAGE):
        return entry
    return Entry(entry.name, entry.build, entry.weightless, entry.example, heads_only=True)


def _transformer(name: str, args: Args) -> Entry:
    return _from_factory(f"transformers:{name}", partial(load_factory, f"transformers:{name}", args), "transformers")


def _unet(name: str, args: Args) -> Entry:
    def factory() -> ModelFactory:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(args))
            return load_factory(f"diffusers:{folder}")

    return _from_factory(f"diffusers:{name}", factory, "diffusers", "small" in name)


def _from_factory(name: str, factory: Callable[[], ModelFactory], needs: str, execute: bool = True) -> Entry:
    return Entry(
        name,
        lambda: factory().build(),
        lambda: factory().build_weightless(),
        lambda module: factory().example_input(module),
        execute,
        needs=needs,
    )


def heads_input() -> ExampleInput:
    return ExampleInput((torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(0)),))
