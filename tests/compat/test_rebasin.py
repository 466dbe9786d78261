"""The main class of the planned library, used as its plan shows it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rebasin_cli import Interpolation, Rebasin
from rebasin_cli.errors import UsageError
from tests.interpolation.digits import digits, trained


def loader(start: int, stop: int) -> DataLoader[tuple[torch.Tensor, ...]]:
    x, y = digits()
    return DataLoader(TensorDataset(torch.from_numpy(x[start:stop]), torch.from_numpy(y[start:stop])), batch_size=100)


def test_models_are_aligned_and_the_line_is_evaluated(tmp_path: Path) -> None:
    target, models = trained("norm", 0), [copy.deepcopy(trained("norm", seed)) for seed in (1, 2)]
    train, val = loader(0, 1200), loader(1200, 1797)
    before = Interpolation([target, *models], train, val)
    before.interpolate(steps=2)
    rebasin = Rebasin(target, models, train, val)
    rebasin.rebasin(method="weight")
    rebasin.interpolate(savedir=tmp_path / "kept", save_all=True, mode="lerp", steps=2, metric="accuracy")
    assert rebasin.results.shape == (6,)
    assert rebasin.results[1] > before.results[1]
    assert torch.allclose(rebasin.results[[0, 2, 5]], before.results[[0, 2, 5]], atol=1e-9)
    assert len(list((tmp_path / "kept").iterdir())) == 6
    assert rebasin.best_model is not None
    assert all(one.check.same for one in rebasin.alignments)
    assert [one.module for one in rebasin.alignments] == models


@pytest.mark.parametrize("method", ["activation", "straight through"])
def test_every_planned_method_keeps_the_function(method: str) -> None:
    target, model = trained("plain", 0), copy.deepcopy(trained("plain", 1))
    x = torch.from_numpy(digits()[0][:50])
    before = model(x)
    rebasin = Rebasin(target, [model], loader(0, 400), loader(1200, 1797))
    rebasin.rebasin(method=method)
    assert torch.allclose(model(x), before, atol=1e-5)
    assert not torch.equal(model[1].weight, trained("plain", 1)[1].weight)  # type: ignore[index]
    rebasin.interpolate(steps=2, metric="loss")
    assert rebasin.results.isfinite().all()


def test_what_is_not_planned_is_refused() -> None:
    data = loader(0, 100)
    with pytest.raises(UsageError, match="unknown"):
        Rebasin(nn.Linear(2, 2), [nn.Linear(2, 2)], data, data).rebasin(method="guess")
    with pytest.raises(UsageError, match="nothing to align"):
        Rebasin(nn.Linear(2, 2), [], data, data)


def test_one_module_instead_of_a_list_is_refused() -> None:
    with pytest.raises(UsageError, match="models is one module"):
        Rebasin(trained("plain", 0), trained("plain", 1), loader(0, 100), loader(0, 100))  # type: ignore[arg-type]
