"""Activation matching as a user runs it: with data, without labels, on noise, within a time limit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rebasin_cli import align
from rebasin_cli.execution import activations
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.verbs.align import AlignResult
from tests.execution.planted_networks import Net, planted

NETS = """
import torch
from torch import nn
from tests.execution.planted_networks import Net


def net():
    return Net()


class OneByOne(Net):
    def forward(self, x):
        if len(x) > 1:
            raise RuntimeError("only one at a time")
        return super().forward(x)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """B is A permuted with a little noise, and inputs without labels."""
    place = tmp_path_factory.mktemp("activation")
    (place / "nets.py").write_text(NETS)
    torch.manual_seed(0)
    net = Net().eval()
    _, _, other, _ = planted(net, ExampleInput((torch.randn(1, 6),)))
    save_file(net.state_dict(), place / "a.safetensors")
    noisy = {key: value + 0.02 * torch.randn(value.shape) for key, value in other.state_dict().items()}
    save_file(noisy, place / "b.safetensors")
    np.savez(place / "inputs.npz", x=np.random.default_rng(0).standard_normal((300, 6)).astype(np.float32))
    return place


def match(folder: Path, net: str = "net", **options: Any) -> AlignResult:
    return align(
        folder / "a.safetensors",
        folder / "b.safetensors",
        model=f"{folder / 'nets.py'}:{net}",
        inputs=["1,6"],
        out=folder / "out.safetensors",
        force=True,
        **{"method": "activation", **options},
    )


def _recovered(folder: Path) -> bool:
    a, b = (load_file(folder / f"{name}.safetensors") for name in ("a", "out"))
    return all(float((a[key] - b[key]).abs().max()) < 0.2 for key in a)


@pytest.mark.parametrize("likeness", ["covariance", "correlation", "directions"])
@pytest.mark.parametrize("data", ["inputs.npz", None])
def test_a_planted_pair_is_recovered_by_activations_alone(folder: Path, data: str | None, likeness: str) -> None:
    found = match(folder, data=data and str(folder / data), likeness=likeness)
    assert _recovered(folder)
    assert found.moved_units > 30
    assert found.cosine.after > 0.99


def test_no_batch_is_begun_after_the_time_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    observe = activations._observe

    def counted(network: Any, batch: ExampleInput, *rest: Any) -> Any:
        runs.append(len(batch.args[0]))
        return observe(network, batch, *rest)

    monkeypatch.setattr(activations, "_observe", counted)
    found = match(folder, data=str(folder / "inputs.npz"), time_limit=0.0, batch_size=50)
    assert runs == [50, 50]
    assert found.timed_out


def test_a_model_that_takes_one_input_at_a_time_is_run_one_by_one(folder: Path) -> None:
    match(folder, "OneByOne", data=str(folder / "inputs.npz"), limit=100)
    assert _recovered(folder)


def test_a_start_from_activations_that_fails_is_left_out_and_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights need no activations, whatever goes wrong with them."""

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr(activations, "capture", fails)
    found = match(folder, method="weight", starts=("identity", "activations"), data=str(folder / "inputs.npz"))
    assert _recovered(folder)
    said = [warning for warning in found.warnings if "left out" in warning]
    assert len(said) == 2
    assert all("no kernel for this" in warning for warning in said)
