"""Code written for the library `rebasin` works with the import changed."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli import Interpolation, PermutationCoordinateDescent, interpolation
from rebasin_cli.errors import UsageError
from tests.interpolation.digits import batches, trained

TRAIN, TEST = batches(0, 1200, 100), batches(1200, 1797, 100)


def loss_of(model: nn.Module, device: str | torch.device | None = None) -> float:
    with torch.no_grad():
        scores = [(model(x.to(device)), y.to(device)) for x, y in TEST]
    return sum(float(nn.functional.cross_entropy(s, y, reduction="sum")) for s, y in scores) / 597


def accuracy_of(model: nn.Module) -> float:
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in TEST) / 597


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_the_example_of_the_earlier_library_runs_with_the_import_changed() -> None:
    model_a, model_b = copy.deepcopy(trained("norm", 0)), copy.deepcopy(trained("norm", 1))
    before = interpolation.LerpSimple(
        models=[model_a, model_b],
        devices=["cpu", "cpu"],
        eval_fn=loss_of,
        eval_mode="min",
        train_dataloader=TRAIN,
    ).interpolate(steps=10)
    PermutationCoordinateDescent(model_a, model_b, TRAIN[0][0]).rebasin()
    lerp = interpolation.LerpSimple(
        models=[model_a, model_b],
        devices=["cpu", "cpu"],
        eval_fn=loss_of,
        eval_mode="min",
        train_dataloader=TRAIN,
    )
    after = lerp.interpolate(steps=10)
    assert len(after) == 11
    assert after[0, 0.5] < before[0, 0.5]
    assert after[0, 0.0] == loss_of(trained("norm", 0))
    assert after[0, 1.0] == pytest.approx(loss_of(trained("norm", 1)), rel=1e-5)
    assert lerp.best_model is not None
    assert loss_of(lerp.best_model) == lerp.best_value == min(after.values())
    assert same(model_a, trained("norm", 0))


def test_more_can_be_better_and_every_network_can_be_kept(tmp_path: Path) -> None:
    models = [trained("plain", 0), trained("plain", 1), trained("plain", 0)]
    lerp = interpolation.LerpSimple(
        models=models, eval_fn=accuracy_of, eval_mode="max", savedir=tmp_path / "kept", save_all=True
    )
    found = lerp.interpolate(steps=2)
    assert list(found) == [(0, 0.0), (0, 0.5), (0, 1.0), (1, 0.0), (1, 0.5), (1, 1.0)]
    assert found[0, 0.5] == found[1, 0.5]
    assert lerp.best_value == max(found.values()) > found[0, 0.5]
    middle = copy.deepcopy(models[0])
    middle.load_state_dict(torch.load(tmp_path / "kept" / "interpolated-0-0.5000.pt"))
    assert accuracy_of(middle) == found[0, 0.5]


def test_a_function_that_trains_does_not_change_what_follows() -> None:
    """Neither the weights, nor the statistics, nor the mode that it leaves behind."""

    def careless(model: nn.Module) -> float:
        found = loss_of(model)
        model.train()
        with torch.no_grad():
            model(TRAIN[0][0])
            for parameter in model.parameters():
                parameter.mul_(0.0)
        return found

    models = [trained("norm", 0), trained("norm", 1)]
    found = interpolation.LerpSimple(models=models, eval_fn=careless).interpolate(steps=4)
    assert found == interpolation.LerpSimple(models=models, eval_fn=loss_of).interpolate(steps=4)


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_the_planned_class_judges_by_accuracy_or_loss(metric: str, tmp_path: Path) -> None:
    models = [trained("norm", 0), trained("norm", 1)]
    line = Interpolation(models, TRAIN, TEST, tmp_path)
    line.interpolate(mode="lerp", steps=4, metric=metric)
    judge = accuracy_of if metric == "accuracy" else loss_of
    ends = [judge(model) for model in models]
    assert line.results.shape == (5,)
    assert line.results[[0, -1]].tolist() == pytest.approx(ends, rel=1e-5)
    wanted = line.results.max() if metric == "accuracy" else line.results.min()
    assert line.best_model is not None
    assert judge(line.best_model) == pytest.approx(float(wanted), rel=1e-5)
    (kept,) = tmp_path.iterdir()
    network = copy.deepcopy(models[0])
    network.load_state_dict(torch.load(kept))
    assert same(network, line.best_model)


def test_recalibration_is_done_where_training_data_are_given() -> None:
    models = [trained("norm", 0), trained("norm", 1)]
    found: list[Tensor] = []
    for train in (None, TRAIN):
        line = Interpolation(models, train, TEST)
        line.interpolate(steps=2, metric="loss")
        found.append(line.results)
    assert torch.equal(found[0][[0, 2]], found[1][[0, 2]])
    assert found[1][1] < found[0][1]


def test_what_cannot_be_meant_is_a_usage_error() -> None:
    model = trained("plain", 0)
    with pytest.raises(UsageError, match="at least two"):
        interpolation.LerpSimple(models=[model], eval_fn=loss_of)
    with pytest.raises(UsageError, match="eval_fn"):
        interpolation.LerpSimple(models=[model, model])
    with pytest.raises(UsageError, match="1 devices for 2 models"):
        interpolation.LerpSimple(models=[model, model], devices=["cpu"], eval_fn=loss_of)
    with pytest.raises(UsageError, match="neither"):
        Interpolation([model, model], None, TEST).interpolate(metric="f1")
