"""Sample inputs are of the example's kind, and never what the model does not take."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rebasin_cli.execution.sample_inputs import larger_inputs, sample_inputs
from rebasin_cli.model.example_input import ExampleInput

SEED = torch.Generator().manual_seed(0)


def others(tensor: Tensor, samples: int = 5) -> list[Tensor]:
    drawn = sample_inputs(ExampleInput((tensor,)), samples, 0).inputs
    assert torch.equal(drawn[0].args[0], tensor)
    return [sample.args[0] for sample in drawn[1:]]


def test_positive_numbers_stay_in_their_range() -> None:
    example = torch.rand(3, 8, generator=SEED) + 0.1
    for drawn in others(example):
        assert float(drawn.min()) >= float(example.min())
        assert float(drawn.max()) <= float(example.max())
        assert not torch.equal(drawn, example)


def test_probabilities_keep_their_sums() -> None:
    for drawn in others(torch.rand(4, 6, generator=SEED).softmax(-1)):
        assert torch.allclose(drawn.sum(-1), torch.ones(4))
        assert float(drawn.min()) >= 0.0


def test_one_hot_rows_stay_one_hot() -> None:
    for drawn in others(torch.eye(5)[torch.tensor([0, 3, 1, 4])]):
        assert drawn.sum(-1).tolist() == [1.0] * 4
        assert set(drawn.flatten().tolist()) == {0.0, 1.0}


def test_sparse_rows_keep_their_zeros() -> None:
    example = torch.randn(6, 10, generator=SEED) * (torch.rand(6, 10, generator=SEED) < 0.2)
    for drawn in others(example):
        assert (drawn != 0).sum(-1).tolist() == (example != 0).sum(-1).tolist()


def test_whole_numbers_stay_whole_whatever_their_type() -> None:
    for drawn in others(torch.tensor([[0.0, 7.0, 255.0], [3.0, 9.0, 1.0]])):
        assert torch.equal(drawn, drawn.round())
        assert 0.0 <= float(drawn.min()) <= float(drawn.max()) <= 255.0
    for drawn in others(torch.tensor([[4, 9, 2]])):
        assert drawn.dtype is torch.int64
        assert 2 <= int(drawn.min()) <= int(drawn.max()) <= 9


def test_a_normalised_image_stays_within_its_bounds() -> None:
    example = (torch.rand(1, 3, 8, 8, generator=SEED) - 0.45) / 0.22
    for drawn in others(example):
        assert float(drawn.min()) >= float(example.min())
        assert float(drawn.max()) <= float(example.max())


def test_masks_and_halves_keep_their_types() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    assert all(torch.equal(drawn, mask) for drawn in others(mask))
    assert all(drawn.dtype is torch.bfloat16 for drawn in others(torch.randn(3, 4).bfloat16()))


def test_what_the_model_refuses_is_replaced_by_what_lies_nearer() -> None:
    table = ExampleInput((torch.tensor([[3, 1, 2], [999, 4, 11]]),))

    def columns_in_range(sample: ExampleInput) -> bool:
        if bool((sample.args[0].amax(0) >= torch.tensor([1000, 5, 12])).any()):
            raise IndexError("index out of range in self")
        return True

    samples = sample_inputs(table, 4, 0, columns_in_range)
    assert samples.kind == "near"
    assert len(samples.inputs) == 4
    assert samples.refused is not None
    assert "index out of range" in samples.refused


def test_where_only_the_example_works_it_is_used_and_said() -> None:
    example = ExampleInput((torch.rand(2, 3, generator=SEED),))

    def only_the_example(sample: ExampleInput) -> bool:
        return torch.equal(sample.args[0], example.args[0])

    samples = sample_inputs(example, 4, 0, only_the_example)
    assert (samples.kind, len(samples.inputs)) == ("example", 1)
    assert samples.refused == "its outputs are not finite"


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (((1, 3, 224, 224),), (2, 3, 256, 256)),
        (((2, 3, 4, 4),), (3, 3, 8, 8)),
        (((2, 1, 5),), (3, 2, 5)),
        (((4, 6),), (5, 6)),
    ],
)
def test_the_first_larger_input(shapes: tuple[tuple[int, ...], ...], expected: tuple[int, ...]) -> None:
    example = ExampleInput(tuple(torch.randn(shape) for shape in shapes))
    assert next(iter(larger_inputs(example))).args[0].shape == expected


def test_tensors_that_share_a_length_grow_together() -> None:
    example = ExampleInput((torch.randn(2, 7, 5),), {"mask": torch.ones(2, 7, dtype=torch.bool)})
    larger = next(iter(larger_inputs(example)))
    assert larger.args[0].shape == (3, 14, 5)
    assert larger.kwargs["mask"].shape == (3, 14)


def test_token_ids_get_a_longer_sequence_of_known_ids() -> None:
    ids = torch.tensor([[5, 9, 2, 7]])
    shapes = [tuple(sample.args[0].shape) for sample in larger_inputs(ExampleInput((ids,)))]
    assert shapes == [(2, 8), (1, 8), (2, 4)]
    assert all(set(sample.args[0].flatten().tolist()) <= {5, 9, 2, 7} for sample in larger_inputs(ExampleInput((ids,))))
