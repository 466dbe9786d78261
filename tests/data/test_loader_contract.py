"""What a user's loader returned, and what the user hears."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data import Batch, DataOptions, open_data
from rebasin_cli.data.contract import IGNORED, Takes, batch_from, taken_by
from rebasin_cli.data.source import ModelView
from rebasin_cli.errors import DataError, NumericalError

ONE = Takes(1, ("x",), integers=False)
X, Y = torch.randn(4, 6), torch.tensor([0, 1, 2, 1])

LOADERS = """
from collections import namedtuple
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

g = torch.Generator().manual_seed(0)
X, Y = torch.randn(8, 6, generator=g), torch.randint(0, 3, (8,), generator=g)
Pair = namedtuple("Pair", "image label")
once = iter([(X, Y)])

def pairs(): return DataLoader(TensorDataset(X, Y), 4)
def lists(): return [[X[:4], Y[:4]], [X[4:], Y[4:]]]
def named(): return [Pair(X[:4], Y[:4]), Pair(X[4:], Y[4:])]
def dicts(): return [{"x": X[:4], "labels": Y[:4]}, {"x": X[4:], "labels": Y[4:]}]
def other_name(): return [{"pixel_values": X, "labels": Y}]
def with_names(): return [{"x": X, "y": Y, "path": ["a.png"] * 8}]
def meta(): return [(X, Y, torch.arange(8))]
def arrays(): return [(X.numpy(), Y.numpy())]
def double(): return [(X.double(), Y)]
def y_list(): return [(X, Y.tolist())]
def y_int32(): return [(X, Y.int())]
def dataset(): return TensorDataset(X, Y)
def generator():
    yield X, Y
def samples(): return [(X[i], Y[i]) for i in range(8)]
def two_loaders(): return pairs(), pairs()
def two_datasets(): return dataset(), dataset()
def empty(): return []
def nothing(): return None
def number(): return 5
def texts(): return ["a", "b"]
def nan(): return [(torch.full((4, 6), float("nan")), Y[:4])]
def bytes_(): return [(torch.zeros(8, 6, dtype=torch.uint8), Y)]
def unequal(): return [(X, Y[:5])]
def extra(): return [{"x": X, "index": torch.arange(8), "y": Y}]
def used_up(): return once
def broken():
    yield X, Y
    raise KeyError("lost")
"""


def view(takes: Takes | None = ONE) -> ModelView:
    return ModelView(lambda batch: 3, takes=takes)


def batches(place: Path, name: str) -> list[Batch]:
    (place / "mine.py").write_text(LOADERS)
    return list(open_data(f"{place / 'mine.py'}:{name}", DataOptions(batch_size=4), view()).batches())


ACCEPTED = "pairs lists named dicts other_name with_names meta arrays double y_list y_int32 dataset generator"


@pytest.mark.parametrize("name", ACCEPTED.split())
def test_batches_of_every_accepted_form_give_the_same_samples(tmp_path: Path, name: str) -> None:
    found = batches(tmp_path, name)
    scope: dict[str, Tensor] = {}
    exec(LOADERS, scope)
    inputs = [one.args[0] if one.args else one.kwargs["x"] for one in found]
    assert torch.equal(torch.cat(inputs), scope["X"])
    assert torch.equal(torch.cat([one.target for one in found]).long(), scope["Y"])
    assert sum(one.size for one in found) == 8


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("samples", "batch 0 is a single sample", "DataLoader"),
        ("two_loaders", "batch 0 is a DataLoader", "several loaders"),
        ("two_datasets", "batch 0 is a TensorDataset", "several datasets"),
        ("empty", "the loader yields no batch", "not empty"),
        ("nothing", "returned NoneType, which is not iterable", "DataLoader"),
        ("number", "returned int, which is not iterable", "DataLoader"),
        ("texts", "batch 0 is a str", "yield"),
        ("bytes_", "inputs of batch 0 are uint8", "x.float"),
        ("unequal", "8 inputs and 5 targets", "one target for each"),
        ("extra", "'index', which the model does not take", "leave out"),
        ("broken", "KeyError", None),
    ],
)
def test_a_breach_of_the_contract_is_one_line_that_says_what_to_return(
    tmp_path: Path, name: str, words: str, hint: str | None
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        batches(tmp_path, name)
    assert "mine.py" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert hint is None or hint in str(caught.value.hint)


def test_an_iterator_that_is_used_up_is_told_and_not_taken_for_the_end_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no batch when it is read again"):
        batches(tmp_path, "used_up")


def test_nan_in_a_batch_is_a_fault_of_the_data(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"mine\.py:nan: the input of batch 0 is non-finite"):
        batches(tmp_path, "nan")


def test_what_is_left_out_of_a_batch_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(LOADERS)
    source = open_data(f"{tmp_path / 'mine.py'}:meta", DataOptions(), view())
    assert source.notes == (
        "a batch holds 3 values, and the model takes 1: the target is number 2, the rest is left out",
    )


def test_a_model_of_two_inputs_gets_two() -> None:
    two = Takes(2, ("a", "b"))
    for item in ((X, X, Y), ((X, X), Y), [[X, X], Y]):
        found = batch_from(item, 0, "d", two)
        assert len(found.args) == 2
        assert torch.equal(found.target, Y)
    assert batch_from((X, X), 0, "d", two).target is None


def test_inputs_alone_have_no_target() -> None:
    for item in (X, (X,), [X], X.numpy(), {"x": X}):
        found = batch_from(item, 0, "d", ONE)
        assert not isinstance(found.target, Tensor)
        assert found.size == 4


class Causal(nn.Module):
    config = None

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return input_ids


class TinyForCausalLM(Causal):
    """Its name is that of a causal language model of transformers."""


def test_labels_of_a_causal_language_model_are_shifted_and_that_is_said() -> None:
    ids = torch.tensor([[5, 6, 7, 8], [1, 2, 3, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    takes = taken_by(TinyForCausalLM(), [ids])
    shifted = [[6, 7, 8, IGNORED], [2, 3, 0, IGNORED]]
    assert batch_from({"input_ids": ids, "labels": ids}, 0, "d", takes).target.tolist() == shifted
    masked = batch_from({"input_ids": ids, "attention_mask": mask}, 0, "d", takes)
    assert masked.target.tolist() == [[6, 7, 8, IGNORED], [2, 3, IGNORED, IGNORED]]
    assert torch.equal(masked.kwargs["attention_mask"], mask)
    plain = batch_from({"input_ids": ids, "labels": ids}, 0, "d", taken_by(Causal(), [ids]))
    assert torch.equal(plain.target, ids)


@pytest.mark.parametrize("file", ["d.npz", "d.npy"])
def test_an_array_file_with_inputs_alone_is_taken(tmp_path: Path, file: str) -> None:
    x = np.random.default_rng(0).normal(size=(5, 6)).astype(np.float32)
    np.save(tmp_path / file, x) if file.endswith("npy") else np.savez(tmp_path / file, x=x)
    source = open_data(str(tmp_path / file), DataOptions(), view())
    assert "without labels" in source.description
    (found,) = source.batches()
    assert torch.equal(found.args[0], torch.from_numpy(x))
    assert found.target is None


def test_an_array_that_is_neither_inputs_nor_labels_is_said_to_be_left_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 3), np.float32), y=np.zeros(2, np.int64), weight=np.ones(2))
    (note,) = open_data(str(tmp_path / "d.npz"), DataOptions(), view()).notes
    assert "weight is not used" in note
