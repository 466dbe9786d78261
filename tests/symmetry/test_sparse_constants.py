"""Graph convolutions: a sparse adjacency matrix is a constant that is not searched for equal rows."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rebasin_cli.execution.soundness import verify_by_execution
from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model

NODES, UNITS = 7, 16


class GraphConvolution(nn.Module):
    """Two linear layers between which every node takes the mean of its neighbours."""

    neighbours: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(5, UNITS), nn.Linear(UNITS, 3)
        ring = (torch.eye(NODES) + torch.eye(NODES).roll(1, 0)) / 2
        self.register_buffer("neighbours", ring.to_sparse(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.relu(torch.sparse.mm(self.neighbours, self.up(x))))


def test_hidden_units_of_a_graph_convolution_move_and_compute_the_same() -> None:
    module, example = GraphConvolution().eval(), ExampleInput((torch.randn(NODES, 5),))
    found = derive(trace_model(module, example))
    assert not found.unknown_ops
    (group,) = found.spec.groups
    assert group.size == UNITS
    assert {(site.key, site.axis) for site in group.sites} == {("up.weight", 0), ("up.bias", 0), ("down.weight", 1)}
    assert verify_by_execution(lambda: module, example, found.spec).ok
