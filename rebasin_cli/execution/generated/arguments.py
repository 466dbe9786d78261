"""The arguments of a model's call as tensors that hold many samples: which can be drawn, which can be moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from rebasin_cli.errors import DataError
from rebasin_cli.execution.sample_inputs import sample_inputs
from rebasin_cli.model.example_input import ALSO, ExampleInput


@dataclass(frozen=True, slots=True)
class Range:
    """What values of a real input look like: mean and spread, and bounds where there are some."""

    mean: float
    spread: float
    low: float | None = None
    high: float | None = None

    def bounded(self, values: Tensor) -> Tensor:
        return values if self.low is None and self.high is None else values.clamp(self.low, self.high)

    def scaled(self, standard: Tensor) -> Tensor:
        """Values of zero mean and unit variance, in this range."""
        return self.bounded(standard * self.spread + self.mean)


class Arguments:
    """The arguments of the example, flattened.

    A tensor holds samples along its first axis where all tensors with axes have the same length there; other tensors
    and values are the same for every sample.

    Attributes:
        leaves: of the example; `structure` puts them together again.
        batched: the places that hold samples.
        real: the places that hold real numbers, which can be moved, each with its range.
    """

    def __init__(self, example: ExampleInput) -> None:
        kwargs = {name: value for name, value in example.kwargs.items() if name != ALSO}
        self.example = ExampleInput(example.args, kwargs).to(torch.float32)  # in which the networks run
        found: tuple[list[Any], TreeSpec] = tree_flatten((self.example.args, self.example.kwargs))
        self.leaves, self.structure = found
        sizes = {leaf.shape[0] for leaf in self.leaves if isinstance(leaf, Tensor) and leaf.dim()}
        same = len(sizes) == 1
        self.batched = tuple(
            place for place, leaf in enumerate(self.leaves) if same and isinstance(leaf, Tensor) and leaf.dim()
        )
        ranges = {place: _range_of(self.leaves[place]) for place in self.batched}
        self.real: dict[int, Range] = {place: one for place, one in ranges.items() if one is not None}

    @property
    def image(self) -> int | None:
        """The place of the only input, if that is an image (n, channels, height, width)."""
        tensors = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        if len(tensors) != 1 or tensors[0] not in self.real:
            return None
        shape = self.leaves[tensors[0]].shape
        return tensors[0] if len(shape) == 4 and min(shape[2:]) > 3 else None

    def shape(self, place: int) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.leaves[place].shape[1:])

    def call(self, network: nn.Module, leaves: Sequence[Any]) -> Any:
        """What a network gives for these arguments."""
        args, kwargs = tree_unflatten(list(leaves), self.structure)
        return network(*args, **kwargs)

    def random(self, count: int, seed: int, networks: Sequence[nn.Module]) -> list[Any]:
        """Random arguments like the example, each tensor with `count` samples.

        Integers that select rows of a table are drawn from all rows, where the networks give numbers for that.

        Raises:
            DataError: the example's tensors do not hold samples along their first axis.
        """
        if not self.batched:
            raise DataError(
                f"generated: the input {self.example.describe()} does not hold samples along its first axis",
                hint="give data",
                slug="generated",
            )
        each = len(self.leaves[self.batched[0]])
        drawn = sample_inputs(self.example, -(-count // each) + 1, seed).inputs[1:] or (self.example,)
        flat = [tree_flatten((one.args, one.kwargs))[0] for one in drawn]
        leaves = list(self.leaves)
        for place in self.batched:
            rows = torch.cat([one[place] for one in flat])
            leaves[place] = rows.repeat((-(-count // len(rows)), *[1] * (rows.dim() - 1)))[:count]
        generator = torch.Generator().manual_seed(seed)
        for place, rows_of_table in _table_rows(self, networks[0]).items():
            wider = list(leaves)
            shape = leaves[place].shape
            wider[place] = torch.randint(rows_of_table, shape, generator=generator).to(leaves[place].dtype)
            if all(self._accepts(network, wider) for network in networks):
                leaves = wider
        return leaves

    def _accepts(self, network: nn.Module, leaves: Sequence[Any]) -> bool:
        few = [leaf[:2] if place in self.batched else leaf for place, leaf in enumerate(leaves)]
        device = next((one.device for one in network.parameters()), torch.device("cpu"))
        try:
            with torch.no_grad():
                self.call(network, [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in few])
        except Exception:  # the model is the user's code
            return False
        return True


def _range_of(leaf: Tensor) -> Range | None:
    """The range of a tensor of real numbers; None for integers, masks, and numbers that look like those."""
    if not leaf.is_floating_point() or not leaf.numel():
        return None
    wide = leaf.double()
    low, high = float(wide.min()), float(wide.max())
    if not bool(torch.isfinite(wide).all()) or low == high or bool((wide == wide.round()).all()):
        return None
    mean, spread = float(wide.mean()), float(wide.std())
    if low >= 0.0 and high <= 1.0:
        return Range(0.5, 0.25, 0.0, 1.0)
    if low >= 0.0:
        return Range(mean, spread, 0.0)
    if abs(mean) < 0.25 and 0.75 < spread < 1.25:  # normalised
        return Range(0.0, 1.0)
    return Range(mean, spread)


def _table_rows(arguments: Arguments, network: nn.Module) -> dict[int, int]:
    """The number of rows of the smallest table that each integer argument selects from, by place."""
    integers = {
        place: leaf
        for place, leaf in ((place, arguments.leaves[place]) for place in arguments.batched)
        if not leaf.is_floating_point() and leaf.dtype is not torch.bool
    }
    rows: dict[int, int] = {}

    def look(table: nn.Module, inputs: tuple[Any, ...]) -> None:
        asked = inputs[0] if inputs else None
        for place, leaf in integers.items():
            if isinstance(asked, Tensor) and asked.shape == leaf.shape and torch.equal(asked.to(leaf), leaf):
                count = int(table.num_embeddings)  # type: ignore[arg-type]
                rows[place] = min(count, rows.get(place, count))

    tables = [one for one in network.modules() if isinstance(one, (nn.Embedding, nn.EmbeddingBag))]
    handles = [table.register_forward_pre_hook(look) for table in tables if integers]
    device = next((one.device for one in network.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            moved = [leaf.to(device) if isinstance(leaf, Tensor) else leaf for leaf in arguments.leaves]
            arguments.call(network, moved)
    except Exception:  # the model is the user's code; then the example's own range is all that is known
        rows.clear()
    finally:
        for handle in handles:
            handle.remove()
    return rows
