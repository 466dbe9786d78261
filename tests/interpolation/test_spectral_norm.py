"""Networks with spectral norm: the average of two has the u and v of its own weight, on the line and in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.compat.lines import LineOfModels
from rebasin_cli.execution.spectral_norm import singular_vectors, spectral_sites
from tests.interpolation.conftest import Bench

NET = """
import warnings; warnings.simplefilter("ignore")
import torch
from torch import nn
from torch.nn.utils import parametrizations


class Copied(nn.Module):
    '''Spectral norm as it is copied from repository to repository.'''

    def __init__(self, layer):
        super().__init__()
        weight = layer.weight
        self.stride, self.bias = layer, layer.bias
        del layer._parameters["weight"]
        self.weight_bar = nn.Parameter(weight.data)
        for name, size in (("weight_u", weight.shape[0]), ("weight_v", weight[0].numel())):
            vector = nn.functional.normalize(torch.randn(size), dim=0)
            self.register_parameter(name, nn.Parameter(vector, requires_grad=False))

    def forward(self, x):
        w = self.weight_bar.flatten(1)
        return nn.functional.linear(x, self.weight_bar / (self.weight_u @ w @ self.weight_v), self.bias)


def make(norm):
    layers = nn.Linear(64, 16), nn.Linear(16, 16), nn.Linear(16, 10)
    return nn.Sequential(nn.Flatten(), norm(layers[0]), nn.ReLU(), norm(layers[1]), nn.ReLU(), layers[2])


def old():
    return make(torch.nn.utils.spectral_norm)


def new():
    return make(parametrizations.spectral_norm)


def copied():
    return make(Copied)
"""


def build(kind: str, seed: int) -> nn.Module:
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(seed)
    module: nn.Module = names[kind]()
    module.train()
    with torch.no_grad():
        for _ in range(3):  # some steps of power iteration, as in training
            module(torch.randn(4, 1, 8, 8))
    return module.eval()


@pytest.mark.parametrize("kind", ["old", "new", "copied"])
def test_the_average_is_divided_by_its_own_largest_singular_value(kind: str) -> None:
    a, b = build(kind, 0), build(kind, 1)
    sites = spectral_sites(a)
    assert len(sites) == 2
    middle = LineOfModels([a, b], None, "lerp", 2)
    state = {key: value.clone() for key, value in middle.load("line, lam 0.5").state_dict().items()}
    for site in sites:
        weight = (a.state_dict()[site.weight] + b.state_dict()[site.weight]) / 2
        torch.testing.assert_close(state[site.weight], weight)
        u, v = state[site.u], state[site.v]
        assert float(u @ weight @ v) == pytest.approx(float(torch.linalg.matrix_norm(weight, 2)), rel=1e-5)
        assert float(u.norm()) == pytest.approx(1, rel=1e-5)
        assert float(v.norm()) == pytest.approx(1, rel=1e-5)
    ends = middle.load("checkpoint 0").state_dict()
    assert all(torch.equal(ends[key], value) for key, value in a.state_dict().items())


@pytest.mark.parametrize("start", ["orthogonal", "zero"])
def test_the_vectors_are_found_whatever_the_checkpoints_hold(start: str) -> None:
    generator = torch.Generator().manual_seed(1)
    u = torch.linalg.qr(torch.randn(12, 12, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(20, 12, generator=generator)).Q
    sizes = torch.tensor([3.0, 2.9, *[1.0] * 10])
    weight = (u * sizes) @ v.T
    first = u[:, 1] if start == "orthogonal" else torch.zeros(12)
    found = singular_vectors(weight, 0, [first, -first])
    assert found is not None
    assert abs(float(found[0] @ u[:, 0].double())) == pytest.approx(1, abs=1e-4)
    assert float(found[0] @ weight.double() @ found[1]) == pytest.approx(3.0, rel=1e-5)


@pytest.mark.parametrize("shape", [(6, 4, 3, 3), (4, 6, 3, 3)])
def test_the_axis_of_a_transposed_convolution(shape: tuple[int, ...]) -> None:
    layer = nn.utils.parametrizations.spectral_norm(
        nn.Conv2d(4, 6, 3) if shape[0] == 6 else nn.ConvTranspose2d(4, 6, 3)
    )
    (site,) = spectral_sites(layer)
    assert site.axis == (0 if shape[0] == 6 else 1)
    weight = layer.state_dict()[site.weight]
    found = singular_vectors(weight, site.axis, [])
    assert found is not None
    assert [len(one) for one in found] == [6, 36]
    sigma = float(torch.linalg.matrix_norm(weight.movedim(site.axis, 0).flatten(1), 2))
    assert float(found[0].float() @ weight.movedim(site.axis, 0).flatten(1) @ found[1].float()) == pytest.approx(sigma)


def test_a_weight_of_zeros_has_no_vectors() -> None:
    assert singular_vectors(torch.zeros(3, 4), 0, [torch.zeros(3)]) is None


def state_of(path: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(path)
    return state


@pytest.mark.parametrize("kind", ["old", "new"])
def test_a_saved_average_of_spectrally_normed_networks_is_the_network_that_was_measured(
    bench: Bench, kind: str
) -> None:
    (bench.path / "sn.py").write_text(NET)
    for seed, letter in enumerate("ab"):
        torch.save(build(kind, seed).state_dict(), bench.path / f"{letter}.pt")
    words = ("interpolate", "a.pt", "b.pt", "--model", f"sn.py:{kind}", "--data", "test.npz", "--steps", "2")
    found = bench.run(*words, "--save-all", "all", "--mkdir")
    assert found.code == 0, found.err
    assert "u and v computed from each network's 2 weights" in found.out
    data = json.loads((bench.path / "b-interpolation.json").read_text())["data"]
    net = build(kind, 0)
    net.load_state_dict(state_of(bench.path / "all" / "naive-0.5000.pt"))
    arrays = np.load(bench.path / "test.npz")
    with torch.no_grad():
        scores = net(torch.from_numpy(arrays["x"]))
    loss = float(nn.functional.cross_entropy(scores, torch.from_numpy(arrays["y"])))
    assert loss == pytest.approx(data["curves"]["naive"][1]["loss"], rel=1e-5)
    # the checkpoints' own vectors are not converged, so the ends of the curve are not the checkpoints as loaded
    loaded, treated = (data["ends"][name]["naive"] for name in ("as_loaded", "as_treated"))
    assert data["curves"]["naive"][0] == treated[0]
    assert treated[0]["loss"] != loaded[0]["loss"]


LATER = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize


class Scaled(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("by", torch.linspace(0.5, 2.0, width))

    def forward(self, weight):
        return weight * self.by[:, None]


def scaled_first(layer):
    parametrize.register_parametrization(layer, "weight", Scaled(layer.weight.shape[0]))
    return parametrizations.spectral_norm(layer)


def weight_norm_first(layer):
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))
"""


class OnlyU(nn.Module):
    """As in BigGAN: u is kept, v is computed in every pass, in training one step of power iteration each."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.register_buffer("u0", torch.randn(1, outputs))
        self.register_buffer("sv0", torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            v = nn.functional.normalize(self.u0 @ self.weight)
            u = nn.functional.normalize(v @ self.weight.T)
            if self.training:
                self.u0[:] = u
        return nn.functional.linear(x, self.weight / (u @ self.weight @ v.T))


@pytest.mark.parametrize("first", ["scaled_first", "weight_norm_first"])
def test_a_spectral_norm_after_another_parametrization_divides_what_that_one_makes(first: str) -> None:
    names: dict[str, Any] = {}
    exec(LATER, names)
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        nets.append(names[first](nn.Linear(9, 6)).eval())
    (site,) = spectral_sites(nets[0])
    layer = LineOfModels(nets, None, "lerp", 2).load("line, lam 0.5")
    assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, rel=1e-5)
    state = layer.state_dict()
    matrix = site.matrix(lambda key: state[key])
    assert float(state[site.u] @ matrix @ state[site.v]) == pytest.approx(
        float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-5
    )


def test_a_copy_that_keeps_u_alone_has_the_u_of_its_own_weight() -> None:
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = OnlyU(12, 20).train()
        for _ in range(30):
            net(torch.randn(2, 20))
        nets.append(net.eval())
    middle = LineOfModels(nets, None, "lerp", 2).load("line, lam 0.5")
    weight = middle.state_dict()["weight"]
    first = torch.linalg.svd(weight).U[:, 0]
    assert abs(float(middle.state_dict()["u0"].flatten() @ first)) == pytest.approx(1, abs=1e-5)


def test_a_vector_that_is_called_u_and_has_no_length_of_one_is_interpolated() -> None:
    nets = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = OnlyU(12, 20)
        net.u0.mul_(3)
        nets.append(net.eval())
    middle = LineOfModels(nets, None, "lerp", 2).load("line, lam 0.5").state_dict()
    torch.testing.assert_close(middle["u0"], (nets[0].u0 + nets[1].u0) / 2)
