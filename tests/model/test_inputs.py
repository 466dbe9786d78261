"""What a model is run on: said by the user, read from a file, or guessed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.errors import DataError, UsageError
from rebasin_cli.model.example_input import ExampleInput, as_example
from rebasin_cli.model.input_guess import candidates, first_accepted, refusal
from rebasin_cli.model.input_option import InputSpec, draw, given_input, parse_input, read_input_file
from rebasin_cli.model.transformers_inputs import transformers_inputs


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1,3,224,224", InputSpec(None, (1, 3, 224, 224), torch.float32)),
        ("1x3x8x8", InputSpec(None, (1, 3, 8, 8), torch.float32)),
        ("7,", InputSpec(None, (7,), torch.float32)),
        ("ids=1,16:int64", InputSpec("ids", (1, 16), torch.int64)),
        ("ids=1, 16:int64<1000", InputSpec("ids", (1, 16), torch.int64, 1000)),
        ("t=scalar:float64", InputSpec("t", (), torch.float64)),
        ("mask=2,2:bool", InputSpec("mask", (2, 2), torch.bool)),
    ],
)
def test_parse(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec


@pytest.mark.parametrize("text", ["", "1,a", "ids=", "1,2:int63", "1,2<5", "1,2:int64<0", "-1,3", "99999,99999,99999"])
def test_parse_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="--input"):
        parse_input(text)


def test_draw_is_seeded_named_and_bounded() -> None:
    specs = [parse_input(text) for text in ("2,3", "ids=1,500:int64", "few=1,500:int32<3", "mask=2:bool")]
    model = nn.Sequential(nn.Linear(2, 2), nn.Embedding(7, 2), nn.Embedding(3, 2))
    one, two, other = draw(specs, model), draw(specs, model), draw(specs, model, seed=1)
    torch.testing.assert_close((one.args, one.kwargs), (two.args, two.kwargs), rtol=0, atol=0)
    assert not torch.equal(one.args[0], other.args[0])
    assert one.kwargs["ids"].max() == 6
    assert one.kwargs["few"].max() == 2
    assert one.kwargs["few"].dtype is torch.int32
    assert one.kwargs["mask"].all()
    assert draw([parse_input("1,500:int64")]).args[0].max() == 1  # an index into an unknown table
    assert one.describe() == "2x3, ids=1x500:int64, few=1x500:int32, mask=2:bool"
    with pytest.raises(UsageError, match="ids is given twice"):
        draw([parse_input("ids=1"), parse_input("ids=2")])


def test_read_input_file(tmp_path: Path) -> None:
    file = tmp_path / "sample.npz"
    np.savez(file, np.ones((1, 3), np.float32), np.zeros(2), mask=np.array(True))
    example = read_input_file(file)
    assert [tuple(value.shape) for value in example.args] == [(1, 3), (2,)]
    assert example.args[1].dtype is torch.float64
    assert example.kwargs["mask"].item() is True
    np.savez(file, x=np.ones((1, 3), np.float16))
    assert read_input_file(file).args[0].dtype is torch.float16
    np.savez(file, pixel_values=np.ones(2))
    assert list(read_input_file(file).kwargs) == ["pixel_values"]


class _Marker:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_input_files_never_run_code(tmp_path: Path) -> None:
    file, marker = tmp_path / "bad.npz", tmp_path / "marker"
    np.savez(file, x=np.array([_Marker(marker)], dtype=object))
    with pytest.raises(DataError, match=r"bad\.npz: array 'x' cannot be read safely"):
        read_input_file(file)
    file.write_bytes(pickle.dumps(_Marker(marker)))
    with pytest.raises(DataError, match=r"not an \.npz file"):
        read_input_file(file)
    assert not marker.exists()
    np.savez(file, x=np.array(["text"]))
    with pytest.raises(DataError, match="not numbers"):
        read_input_file(file)
    np.savez(file)
    with pytest.raises(DataError, match="holds no arrays"):
        read_input_file(file)
    with pytest.raises(DataError, match="no such file"):
        read_input_file(tmp_path / "absent.npz")


def test_as_example() -> None:
    x = torch.zeros(1)
    assert as_example(x) == ExampleInput((x,))
    assert as_example((x, x)).args == (x, x)
    assert as_example({"x": x}).kwargs == {"x": x}
    assert as_example([x]).args == ([x],)


def test_to_moves_nested_tensors_and_leaves_integers() -> None:
    example = ExampleInput(([torch.zeros(1)], 3), {"ids": torch.zeros(1, dtype=torch.int64)}).to(torch.float64)
    assert example.args[0][0].dtype is torch.float64
    assert example.args[1] == 3
    assert example.kwargs["ids"].dtype is torch.int64


class Cifar(nn.Module):
    """Takes 32 x 32 alone: its last layer counts the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, stride=2)
        self.head = nn.Linear(8 * 16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).relu().flatten(1))
        return out


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7, 2))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w1).relu() @ self.w2


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.rnn = nn.GRU(4, 4, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.rnn(self.embed(ids))[0]
        return out


GUESSES = [
    (nn.Sequential(nn.Linear(6, 2)), "1x6"),
    (nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.AdaptiveAvgPool2d(1)), "1x4x32x32"),
    (Cifar(), "1x3x32x32"),
    (nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), "1x784"),
    (nn.Sequential(nn.Conv1d(2, 3, 5)), "1x2x1024"),
    (nn.Sequential(nn.Conv3d(3, 3, 3)), "1x3x8x112x112"),
    (Functional(), "1x5"),
    (Language(), "1x16:int64"),
    (nn.TransformerEncoderLayer(8, 2, batch_first=True), "1x16x8"),
    (nn.LSTM(3, 4), "1x16x3"),
]


@pytest.mark.parametrize(("module", "described"), GUESSES, ids=[text for _, text in GUESSES])
def test_guesses(module: nn.Module, described: str) -> None:
    example, error = first_accepted(module.eval())
    assert error is None
    assert example is not None
    assert example.describe() == described
    with torch.no_grad():
        module(*example.args, **example.kwargs)


def test_no_guess_where_parameters_say_nothing() -> None:
    assert candidates(nn.Sequential(nn.ReLU())) == ()
    assert first_accepted(nn.Sequential(nn.ReLU())) == (None, None)


def test_a_refusal_is_what_the_module_says() -> None:
    error = refusal(nn.Linear(3, 3), ExampleInput((torch.zeros(1, 4),)))
    assert error is not None
    assert "[1, 4]" in str(error)


def test_a_module_that_needs_values_is_not_refused() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum().item() > 0 else -x

    assert refusal(Branches(), ExampleInput((torch.zeros(2),))) is None


def test_given_input_takes_one_way_of_saying_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones(3))
    assert given_input([]) is None
    file, text = given_input([], tmp_path / "x.npz"), given_input(["2,2", "y=1"])
    assert (file and file.describe(), text and text.describe()) == ("3:float64", "2x2, y=1")
    with pytest.raises(UsageError, match="exclude each other"):
        given_input(["2,2"], tmp_path / "x.npz")


class _Mixture(nn.Module):
    """What a model of `transformers` shows of itself."""

    main_input_name = "input_ids"

    def __init__(self, **config: int) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=50, **config)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return input_ids


def test_a_mixture_of_experts_is_given_tokens_for_all_of_them() -> None:
    def tokens(**config: int) -> int:
        found = transformers_inputs(_Mixture(**config), 0)[0]
        return int(found.kwargs["input_ids"].shape[1])

    assert tokens() == 16
    assert tokens(num_experts=1) > 16
    assert tokens(num_local_experts=8) == 8 * tokens(num_experts=1)
    assert tokens(num_local_experts=8, max_position_embeddings=100) == 100
    assert tokens(n_routed_experts=1000) < 10_000
