"""Pictures of models: what is drawn, in which colour, and that names are data in every format."""

from __future__ import annotations

import re
from functools import cache
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.model.example_input import ExampleInput
from rebasin_cli.report.graph.build import graph_of
from rebasin_cli.report.graph.dot import draw as dot
from rebasin_cli.report.graph.layout import layout_of
from rebasin_cli.report.graph.mermaid import draw as mermaid
from rebasin_cli.report.graph.model import Graph
from rebasin_cli.report.graph.svg import draw as svg
from rebasin_cli.symmetry.derive import derive
from rebasin_cli.tracing.tracer import trace_model
from tests.zoo import shared_block, transformer_encoder


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(self.act(self.up(x)))
        return out


class Stream(nn.Module):
    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(5, 8), nn.Linear(8, 3, bias=False)
        self.blocks = nn.Sequential(*[Block() for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.blocks(self.first(x)))
        return out


def drawn(model: nn.Module, *inputs: Tensor, title: str = "a model") -> Graph:
    trace = trace_model(model.eval(), ExampleInput(inputs, {}))
    return graph_of(trace, derive(trace).spec, title)


@cache
def stream(depth: int = 2) -> Graph:
    return drawn(Stream(depth), torch.randn(2, 5))


def ways(graph: Graph) -> dict[tuple[str, str], tuple[str, ...]]:
    return {(graph.nodes[e.source].name, graph.nodes[e.target].name): e.groups for e in graph.edges}


def test_edges_carry_the_group_that_travels_along_them() -> None:
    graph = stream()
    seen = ways(graph)
    assert seen["input", "first"] == ()
    assert seen["first", "blocks.0.up"] == ("first",)
    assert seen["blocks.0.up", "blocks.0.down"] == ("blocks.0.up",)
    assert seen["blocks.0.down", "add"] == ("first",)
    assert seen["add", "last"] == ("first",)
    assert seen["last", "output"] == ()
    assert len({group.colour for group in graph.groups}) == 3


def test_nodes_say_what_they_are_and_activations_are_folded_into_them() -> None:
    up = next(node for node in stream().nodes if node.name == "blocks.0.up")
    assert (up.label, up.detail, up.block) == ("up", "Linear  12x8 → ReLU", "blocks.0")
    assert (up.reads, up.makes) == (("first",), ("blocks.0.up",))
    assert stream().blocks == {"blocks.0": "Block", "blocks.1": "Block"}


def test_what_is_done_on_one_branch_only_is_not_folded() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.act, self.last = nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            out: Tensor = self.last(x + self.act(x))
            return out

    seen = ways(drawn(Branch(), torch.randn(2, 5)))
    assert seen["first", "act"] == seen["act", "add"] == seen["first", "add"] == ("first",)


def test_a_transformer_shows_one_stream_and_its_heads() -> None:
    graph = drawn(transformer_encoder.build(), transformer_encoder.example_input())
    seen = ways(graph)
    heads = seen["body.layers.0.self_attn", "body.layers.0.self_attn.out_proj"]
    assert len(heads) == 1
    shown = next(group for group in graph.groups if group.name == heads[0])
    assert (shown.size, shown.nested) == (3, 6)
    assert seen["body.layers.0.norm2", "body.layers.1.self_attn"] == ("first",)


def test_tables_carry_the_stream_through_and_indices_stay_pinned() -> None:
    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.where, self.out = nn.Embedding(11, 6), nn.Parameter(torch.randn(1, 4, 6)), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(self.table(x) + self.where)
            return out

    seen = ways(drawn(Table(), torch.zeros(2, 4, dtype=torch.long)))
    assert seen == {
        ("input", "table"): (), ("table", "where"): ("table",), ("where", "out"): ("table",), ("out", "output"): (),
    }  # fmt: skip


def test_a_module_called_again_is_one_node_with_a_way_back() -> None:
    graph = drawn(shared_block.build(), shared_block.example_input())
    assert [node.name for node in graph.nodes].count("block.1") == 1
    assert sum(edge.back for edge in graph.edges) == 2


def test_a_large_model_is_drawn_by_its_parts() -> None:
    graph = stream(60)
    assert len(graph.nodes) == 64
    part = next(node for node in graph.nodes if node.name == "blocks.7")
    assert (part.kind, part.reads, part.makes, part.inside) == ("part", ("first",), ("first",), ("blocks.7.up",))
    assert len(stream(12).nodes) == 12 * 3 + 4


@pytest.mark.parametrize("depth", [2, 12, 60])
def test_boxes_do_not_overlap_and_columns_keep_the_picture_together(depth: int) -> None:
    layout = layout_of(stream(depth))
    for place, box in enumerate(layout.boxes):
        assert -0.01 <= box.x <= box.x + box.width <= layout.width + 0.01
        for other in layout.boxes[place + 1 :]:
            apart = other.x >= box.x + box.width or box.x >= other.x + other.width
            assert apart or other.y >= box.y + box.height or box.y >= other.y + other.height
    assert layout.height < 3 * max(layout.width, 400)


def test_the_same_model_gives_the_same_text() -> None:
    again = drawn(Stream(2), torch.randn(2, 5))
    for write in (svg, dot, mermaid):
        assert write(stream()) == write(again)


def test_an_svg_is_readable_in_light_and_dark() -> None:
    text = svg(stream())
    root = ElementTree.fromstring(text)
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"up", "Linear  12x8 → ReLU", "blocks.0  Block", "pinned: not permuted"} <= set(words)
    assert "prefers-color-scheme: dark" in text
    assert 'class="page"' in text


def test_names_are_data_in_every_format() -> None:
    odd = 'a"]<b>&\\n\x1b[31m\n|'
    graph = drawn(_named(odd), torch.randn(2, 5), title=odd)
    ElementTree.fromstring(svg(graph))
    for write in (svg, dot, mermaid):
        assert "\x1b" not in write(graph)
    assert "<b>" not in svg(graph)
    for line in dot(graph).splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0, line
    for label in re.findall(r'\["(.*?)"\]', mermaid(graph)):
        assert not set(label.replace("<br/>", "")) & set('"<>&|[]'), label


def _named(name: str) -> nn.Module:
    model = nn.Sequential()
    model.add_module(name, nn.Linear(5, 4))
    model.add_module("last", nn.Linear(4, 3))
    return model
