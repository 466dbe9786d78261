"""The maker: which kind a model gets, what is told of the inputs, and that they are made once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.data.contract import IGNORED
from rebasin_cli.data.text import Language
from rebasin_cli.errors import DataError
from rebasin_cli.execution.generated import kept
from rebasin_cli.execution.generated.maker import InputMaker
from rebasin_cli.model.example_input import ExampleInput
from tests.execution.generated.nets import Chain, Segmenter, Stepwise, normed

IMAGE = ExampleInput((torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2)),))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "rebasin" / "generated"


Networks = Callable[[], Sequence[nn.Module]]


def maker(networks: Networks, example: ExampleInput | None, *, cache: bool = True) -> InputMaker:
    return InputMaker(networks, example, torch.device("cpu"), cache=cache)


def pair() -> list[nn.Module]:
    return [normed(0), normed(1)]


def test_images_are_inverted_and_the_classes_are_those_of_both() -> None:
    made = maker(pair, IMAGE).make("", 40, 0)
    assert made.facts.kind == "inverted"
    assert made.facts.count == 40
    x = made.leaves[0]
    given = [network(x).argmax(1) for network in pair()]
    agree = given[0] == given[1]
    assert made.facts.agreement == pytest.approx(float(agree.float().mean()))
    assert made.facts.agreement > 0.9
    assert made.classes is not None
    assert torch.equal(made.classes, given[0].masked_fill(~agree, IGNORED))
    assert made.facts.classes == len(torch.unique(given[0][agree]))
    assert made.facts.seconds > 0
    assert made.batch(np.arange(8)).target is None
    assert torch.equal(made.batch(np.arange(8), labels=True).target, made.classes[:8])


def test_the_second_run_reads_the_cache_and_other_networks_do_not(cache: Path) -> None:
    first = maker(pair, IMAGE).make("leaves", 16, 0)
    (file,) = cache.iterdir()
    again = maker(pair, IMAGE).make("leaves", 16, 0)
    assert again.facts == first.facts  # the seconds too: those of making them
    assert torch.equal(again.leaves[0], first.leaves[0])
    assert list(cache.iterdir()) == [file]
    maker(lambda: [normed(0), normed(2)], IMAGE).make("leaves", 16, 0)
    maker(pair, IMAGE).make("leaves", 16, 1)
    maker(pair, IMAGE).make("noise", 16, 0)
    assert len(list(cache.iterdir())) == 4


def test_a_damaged_file_of_the_cache_counts_as_absent(cache: Path) -> None:
    first = maker(pair, IMAGE).make("leaves", 16, 0)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(maker(pair, IMAGE).make("leaves", 16, 0).leaves[0], first.leaves[0])


def test_without_the_cache_nothing_is_written(cache: Path) -> None:
    maker(pair, IMAGE, cache=False).make("leaves", 16, 0)
    assert not cache.exists()


def test_the_cache_does_not_grow_without_end(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = maker(pair, IMAGE)
    one.make("leaves", 16, 0)
    monkeypatch.setattr(kept, "MOST_BYTES", 2 * next(cache.iterdir()).stat().st_size + 100)
    for seed in range(1, 5):
        maker(pair, IMAGE).make("leaves", 16, seed)
    assert len(list(cache.iterdir())) == 2


def test_fewer_inputs_are_some_of_those_that_were_made() -> None:
    one = maker(pair, IMAGE)
    assert one.make("leaves", 16, 0) is one.make("leaves", 8, 0)
    assert one.make("leaves", 20, 0).facts.count == 20


def test_language_models_get_text_and_bytes_only_where_tokens_are_bytes() -> None:
    ids = ExampleInput((torch.arange(8).view(1, 8),))
    made = maker(lambda: [Chain(1), Chain(2)], ids).make("", 20, 0, Language(12, None, 8))
    assert made.facts.kind == "text"
    assert made.facts.classes is None
    assert made.text is None
    batch = made.batch(np.arange(20))
    assert torch.equal(batch.args[0][:, 1:], batch.target[:, :-1])
    made = maker(lambda: [Chain(1, 256), Chain(2, 256)], ids).make("", 20, 0, Language(256, None, 8))
    assert made.text is not None
    assert made.text.bytes_per_token == 1.0


class Pooled(nn.Module):
    """A classifier of token ids, which is no language model."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.last = nn.Embedding(50, 4), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.last(self.table(ids).mean(1))


def test_integers_are_drawn_from_the_whole_table() -> None:
    example = ExampleInput((torch.tensor([[0, 1, 2]]),))
    made = maker(lambda: [Pooled(0), Pooled(1)], example).make("", 300, 0)
    assert made.facts.kind == "noise"
    ids = made.leaves[0]
    assert ids.shape == (300, 3)
    assert int(ids.min()) == 0
    assert int(ids.max()) == 49
    assert made.facts.classes is not None


class TwoInputs(nn.Module):
    """Real numbers and integers at once, and a setting that is no tensor."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.last = nn.Embedding(5, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor, kind: Tensor, scale: float = 1.0) -> Tensor:
        return self.last(torch.tanh(x * scale + self.table(kind)))


def test_real_inputs_of_any_shape_are_inverted_beside_integers() -> None:
    example = ExampleInput((torch.randn(1, 6), torch.tensor([3])), {"scale": 0.5})
    made = maker(lambda: [TwoInputs(0), TwoInputs(1)], example).make("", 60, 0)
    assert made.facts.kind == "inverted"
    random = maker(lambda: [TwoInputs(0), TwoInputs(1)], example).make("noise", 60, 0)
    assert made.facts.agreement is not None
    assert random.facts.agreement is not None
    assert made.facts.agreement > random.facts.agreement
    batch = made.batch(np.arange(10, 20))
    assert batch.args[0].shape == (10, 6)
    assert batch.kwargs == {"scale": 0.5}
    assert len(torch.unique(made.leaves[1])) == 5


def test_outputs_that_score_no_classes_are_told_of() -> None:
    made = maker(lambda: [Segmenter(0), Segmenter(1)], IMAGE).make("", 16, 0)
    assert made.facts.agreement is None
    assert made.facts.classes is None
    assert "do not score classes" in made.notes[0]


def test_where_no_gradient_leads_the_inputs_stay_leaves_and_it_is_said() -> None:
    made = maker(lambda: [Stepwise(0), Stepwise(1)], IMAGE).make("", 16, 0)
    assert "stay random" in made.notes[0]
    leaves = maker(lambda: [Stepwise(0), Stepwise(1)], IMAGE).make("leaves", 16, 0)
    assert torch.equal(made.leaves[0], leaves.leaves[0])


@pytest.mark.parametrize(
    ("kind", "example", "networks", "words"),
    [
        ("text", IMAGE, pair, "not language models"),
        ("leaves", ExampleInput((torch.randn(1, 6), torch.tensor([3]))), lambda: [TwoInputs(0)], "leaves are images"),
        ("inverted", ExampleInput((torch.tensor([[0, 1, 2]]),)), lambda: [Pooled(0)], "no real numbers"),
        ("noise", None, pair, "the input of the model is not known"),
    ],
)
def test_kinds_that_do_not_fit_the_model(
    kind: str, example: ExampleInput | None, networks: Networks, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        maker(networks, example).make(kind, 8, 0)


def test_a_model_for_single_inputs_only() -> None:
    class Single(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(1, 64)[:, :4]

    with pytest.raises(DataError, match="several inputs at once"):
        maker(lambda: [Single(), Single()], IMAGE).make("noise", 8, 0)
