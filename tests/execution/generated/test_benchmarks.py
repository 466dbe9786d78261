"""The benchmarks behind docs/generated.md, on networks of the tests."""

from __future__ import annotations

import numpy as np
import torch

from rebasin_cli.execution.generated.maker import InputMaker
from rebasin_cli.execution.generated.saved import contact_sheet
from rebasin_cli.model.example_input import ExampleInput
from tests.benchmarks.generated_cost import ratios
from tests.execution.generated.nets import normed


def test_the_cost_is_a_multiple_of_an_epoch() -> None:
    found = ratios(None, [], 64, (1, 8, 8))
    assert set(found) == {"noise", "leaves", "inverted"}
    assert 0 < found["leaves"] < found["inverted"]


def test_a_sheet_shows_the_first_images_side_by_side() -> None:
    example = ExampleInput((torch.rand(1, 1, 8, 8),))
    maker = InputMaker(lambda: [normed(0), normed(1)], example, torch.device("cpu"), cache=False)
    made = maker.make("leaves", 40, 0)
    sheet = contact_sheet(made)
    assert sheet.shape == (32, 64)
    assert sheet.dtype == np.uint8
    second = (made.leaves[0][9, 0] * 255).round()  # in the second row, the second column
    assert np.array_equal(sheet[8:16, 8:16], second.numpy().astype(np.uint8))
