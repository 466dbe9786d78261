"""Index tensors and networks seen through them."""

from __future__ import annotations

import torch

from rebasin_cli.permutation import Permuted
from rebasin_cli.spec import AxisGroup, PermutationSpec, Site


def test_a_permuted_network_makes_each_tensor_when_asked_and_follows_ties() -> None:
    group = AxisGroup("h", 3, (Site("w", 0),))
    spec = PermutationSpec((group,), ())
    source = {"w": torch.tensor([[1.0], [2.0], [3.0]]), "same": torch.tensor([[4.0], [5.0], [6.0]])}
    network = Permuted(source, spec, {"h": torch.tensor([2, 0, 1])}, {"same": "w"})
    assert network["w"].flatten().tolist() == [3.0, 1.0, 2.0]
    assert network["same"].flatten().tolist() == [6.0, 4.0, 5.0]
    assert source["w"].flatten().tolist() == [1.0, 2.0, 3.0]
    assert list(network) == ["w", "same"]
    assert not network.moves_nothing
    assert Permuted(source, spec, {"h": torch.arange(3)}).moves_nothing
