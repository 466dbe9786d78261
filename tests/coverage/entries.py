"""What the coverage ledger covers: a name, how to build it, what it is run on, and what is known to fall short."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from torch import nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.model.factory import ModelFactory, load_factory
from rebasin_cli.model.torchvision_import import import_torchvision
from tests.coverage.configurations import LLAMA_8B, TRANSFORMERS, UNETS, Args
from tests.coverage.modules import MODULES
from tests.coverage.shortfalls import SHORTFALLS
from tests.coverage.timm_models import TIMM
from tests.coverage.torchvision_kernels import provide_kernels

AUXILIARY = ("fcn", "deeplabv3")
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

QUICK = (
    "diffusers:U-Net of SD 1.5, small",
    "timm:botnet26t_256",
    "timm:coat_lite_tiny",
    "timm:levit_128s",
    "timm:res2net50_14w_8s",
    "torchvision:lraspp_mobilenet_v3_large",
    "torchvision:raft_small",
    "torchvision:ssdlite320_mobilenet_v3_large",
)
AS_TRACED = "as traced"
HEADS_ONLY = "all of it, without the choice of boxes"
ONE_BY_ONE = "as traced, one layer at a time"


@dataclass(frozen=True)
class Entry:
    """One row to be. `needs` names the package that has it."""

    name: str
    build: Callable[[], nn.Module]
    weightless: Callable[[], nn.Module]
    example: Callable[[nn.Module], ExampleInput]
    heads_only: bool = False
    needs: str = ""

    @property
    def execution(self) -> str:
        """What is run to prove the row: of a model that is small enough, at once."""
        return HEADS_ONLY if self.heads_only else AS_TRACED

    @property
    def shortfall(self) -> str:
        return SHORTFALLS.get(self.name, "")


def entries() -> Iterator[Entry]:
    """All of them, the quick ones of each zoo first."""
    for name, (build, example) in MODULES.items():
        yield Entry(f"modules:{name}", build, build, lambda _, example=example: example)
    yield from (_transformer(name, args) for name, args in TRANSFORMERS.items())
    yield from (_unet(name) for name in UNETS)
    yield _from_factory(
        "transformers:llama, 8 billion",
        partial(load_factory, "transformers:llama", LLAMA_8B),
        "transformers",
    )
    for name, args in TIMM.items():
        yield _from_factory(f"timm:{name}", partial(load_factory, f"timm:{name}", args), "timm")
    for name in OPEN_CLIP:
        yield _from_factory(f"open_clip:{name}", partial(load_factory, f"open_clip:{name}"), "open_clip")
    yield from (_torchvision(name) for name in _torchvision_names())


def _torchvision_names() -> list[str]:
    models = import_torchvision("models")
    parts = (models.segmentation, models.detection, models.video, models.optical_flow)
    return [name for part in parts for name in sorted(models.list_models(module=part))]


def _torchvision(name: str) -> Entry:
    args: Args = {"aux_loss": True} if name.startswith(AUXILIARY) else {}
    provide_kernels()
    models = import_torchvision("models")
    entry = _from_factory(f"torchvision:{name}", partial(load_factory, f"torchvision:{name}", args), "")
    detects = name in models.list_models(module=models.detection)
    return replace(entry, heads_only=True) if detects else entry


def _transformer(name: str, args: Args) -> Entry:
    return _from_factory(f"transformers:{name}", partial(load_factory, f"transformers:{name}", args), "transformers")


def unet_factory(name: str, **changes: object) -> ModelFactory:
    """A diffusion U-Net by its name in `UNETS`, some entries of its configuration changed."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps({**UNETS[name], **changes}))
        return load_factory(f"diffusers:{folder}")


def _unet(name: str) -> Entry:
    return _from_factory(f"diffusers:{name}", partial(unet_factory, name), "diffusers")


def _from_factory(name: str, factory: Callable[[], ModelFactory], needs: str) -> Entry:
    return Entry(
        name,
        lambda: factory().build(),
        lambda: factory().build_weightless(),
        lambda module: factory().example_input(module),
        needs=needs,
    )


def is_quick(name: str) -> bool:
    """Whether a row is derived and executed afresh by the tests."""
    slow = "experts in a loop" in name or name == "modules:nn.Transformer" or "billion" in name
    return name in QUICK or (name.startswith(("modules:", "transformers:")) and not slow)
