"""Random elements of all classes, and noise: what was planted is found again, to the noise."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rebasin_cli.maps import Gauges, Mapped, frame_of, random_maps
from rebasin_cli.matching.symmetries.descent import Descent, clusters_of
from rebasin_cli.matching.symmetries.forms import Forms, unmoved
from rebasin_cli.matching.symmetries.match import distance
from rebasin_cli.matching.symmetries.search import SymmetryStart, from_ends, search_maps
from rebasin_cli.spec import PermutationSpec
from tests.maps_nets import Llama, Pre, filled, mlp, nets

MAKERS = {
    "pre": lambda: Pre(16, 2, 32, 2),
    "layer scale": lambda: Pre(16, 2, 32, 2, layer_scale=True),
    "llama": lambda: Llama(16, 4, 2, 24, 2),
    "mlp": lambda: mlp(12, 24, 24, 10),
}


Tensors = dict[str, torch.Tensor]


def planted(name: str, noise: float, seed: int) -> tuple[Tensors, Tensors, float, nn.Module]:
    """A, B = A with noise under random maps and in another gauge, and the relative size of the noise."""
    net = filled(MAKERS[name], seed)
    a = {key: tensor.detach() for key, tensor in net.state_dict().items()}
    spec: PermutationSpec = nets()[name][1](net)
    maps = random_maps(spec, seed + 100)
    other = filled(MAKERS[name], seed + 1000).state_dict()
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    torch.manual_seed(seed)
    noisy = {
        key: tensor + noise * tensor.std() * torch.randn_like(tensor) if tensor.dim() > 1 else tensor
        for key, tensor in a.items()
    }
    b = dict(Mapped(noisy, spec, maps, frame_of(gauges, other.__getitem__)))
    square = sum(float((noisy[key] - a[key]).square().sum()) for key in a)
    return a, b, square**0.5, net


@pytest.mark.parametrize("name", sorted(MAKERS))
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_planted_maps_are_recovered_to_the_noise(name: str, noise: float) -> None:
    a, b, size, net = planted(name, noise, 5)
    spec = nets()[name][1](net)
    forms = Forms(spec, a, b, list(a))
    starts = [one for one in (from_ends(forms), SymmetryStart("identity", {})) if one is not None]
    found = search_maps(forms, starts)
    frame = frame_of(Gauges(spec, forms.gauges.mixing), a.__getitem__, b.__getitem__)
    mapped = Mapped(b, spec, found.maps, frame)
    norm = sum(float(tensor.square().sum()) for tensor in a.values()) ** 0.5
    left = sum(float((mapped[key] - a[key]).square().sum()) for key in a) ** 0.5
    assert left <= size + 0.02 * norm
    assert max(one.condition for one in found.maps.values()) < 30


def test_factors_of_neighbouring_layers_are_followed_to_the_end() -> None:
    a, b, _, net = planted("mlp", 0.0, 1)
    forms = Forms(nets()["mlp"][1](net), a, b, list(a))
    found = search_maps(forms, [SymmetryStart("identity", {})])
    norm = sum(forms.square_a.values()) ** 0.5
    assert distance(forms, found.value) < 0.003 * norm


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_no_visit_lowers_the_objective(name: str) -> None:
    make, spec_of, _ = nets()[name]
    a, b = (dict(filled(make, seed).state_dict()) for seed in (1, 2))
    forms = Forms(spec_of(make()), a, b, list(a))
    clusters = clusters_of(forms)
    descent = Descent(forms, clusters, unmoved(forms.spec))
    value = forms.value(descent.maps)
    for _ in range(2):
        for cluster in clusters:
            descent.visit(cluster)
            now = forms.value(descent.maps)
            assert now >= value - 1e-9 * abs(value)
            value = now


def test_the_same_seed_gives_the_same_maps() -> None:
    a, b, _, net = planted("mlp", 0.3, 3)
    spec = nets()["mlp"][1](net)
    one, other = (search_maps(Forms(spec, a, b, list(a)), [SymmetryStart("identity", {})], seed=4) for _ in range(2))
    assert one.value == other.value
    assert all(torch.equal(one.maps[name].scales[0], other.maps[name].scales[0]) for name in one.maps)
