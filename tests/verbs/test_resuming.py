"""Training resumed from an aligned checkpoint goes on as from B: whatever lies beside the weights moved with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from rebasin_cli import align
from rebasin_cli.verbs.align import AlignResult
from tests.verbs.resuming import INPUT, STEPS, assert_same_losses, furnish, moved, network, train

NETWORKS = ("convolutional", "attentive")
DTYPES = (torch.float32, torch.float64)
Make = Callable[[Any], Any]


def _transformers_adafactor(parameters: Any) -> Any:
    transformers = pytest.importorskip("transformers.optimization")
    return transformers.Adafactor(parameters, lr=1e-3, relative_step=False, scale_parameter=False, beta1=0.9)


OPTIMIZERS: dict[str, Make] = {
    "adam": lambda p: torch.optim.Adam(p, lr=1e-3),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-3, amsgrad=True),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5, centered=True),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=1e-3),
    "transformers-adafactor": _transformers_adafactor,
}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    furnish(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _align(place: Path, net: str, b: str, **more: Any) -> AlignResult:
    return align("a.pt", b, model=f"nets.py:{net}", inputs=INPUT[1:], out="out.pt", effort="fast", force=True, **more)


def _reference(place: Path, net: str, dtype: torch.dtype) -> None:
    torch.save(network(place, net, seed=1, dtype=dtype).state_dict(), place / "a.pt")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("net", NETWORKS)
def test_resumed_from_a_dict_of_model_optimizer_and_epoch(place: Path, net: str, name: str, dtype: torch.dtype) -> None:
    _reference(place, net, dtype)
    model = network(place, net, seed=2, dtype=dtype)
    optimizer = OPTIMIZERS[name](model.parameters())
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}, place / "b.pt")
    result = _align(place, net, "b.pt")
    assert [(one.path, one.kind, one.moved) for one in result.siblings] == [("optimizer", "optimizer", True)]
    assert not [text for text in result.warnings if "optimizer" in text]
    curves = []
    for file in ("b.pt", "out.pt"):
        saved = torch.load(place / file)
        resumed = network(place, net, seed=3, dtype=dtype)
        resumed.load_state_dict(saved["model"])
        again = OPTIMIZERS[name](resumed.parameters())
        again.load_state_dict(saved["optimizer"])
        curves.append(train(resumed, again))
    written = torch.load(place / "out.pt")
    assert moved(torch.load(place / "b.pt")["model"], written["model"]) > 5
    assert written["epoch"] == 3
    assert_same_losses(curves[1], curves[0], dtype)
    assert abs(curves[0][-1] - curves[0][0]) > 1e-4  # it did train


def test_the_losses_tell_an_optimizer_that_stayed_behind(place: Path) -> None:
    _reference(place, "convolutional", torch.float64)
    model = network(place, "convolutional", seed=2, dtype=torch.float64)
    optimizer = OPTIMIZERS["adam"](model.parameters())
    train(model, optimizer)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, place / "b.pt")
    _align(place, "convolutional", "b.pt")
    before = torch.load(place / "b.pt")
    torch.save({"model": torch.load(place / "out.pt")["model"], "optimizer": before["optimizer"]}, place / "mixed.pt")
    curves = []
    for file in ("b.pt", "mixed.pt"):
        saved = torch.load(place / file)
        model.load_state_dict(saved["model"])
        again = OPTIMIZERS["adam"](model.parameters())
        again.load_state_dict(saved["optimizer"])
        curves.append(train(model, again))
    assert abs(curves[0][-1] - curves[1][-1]) > 1e-6


@pytest.mark.parametrize("net", NETWORKS)
def test_resumed_from_a_lightning_checkpoint(place: Path, net: str) -> None:
    dtype = torch.float64

    class Task(nn.Module):  # a LightningModule holds the network in an attribute, and a loss with weights
        def __init__(self, seed: int) -> None:
            super().__init__()
            self.model = network(place, net, seed=seed, dtype=dtype)
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(3, dtype=dtype))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.model(x)
            return out

    _reference(place, net, dtype)
    task = Task(2)
    optimizer = torch.optim.AdamW(task.parameters(), lr=1e-3)
    average = AveragedModel(task.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    train(task, optimizer, after=lambda: average.update_parameters(task.model))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    torch.save(
        {
            "epoch": 4,
            "global_step": 10,
            "pytorch-lightning_version": "2.5.0",
            "state_dict": task.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 5}}}},
            "callbacks": {
                "ModelCheckpoint{'monitor': 'loss'}": {"best_model_score": torch.tensor(0.5)},
                "EMA": {"ema_weights": [p.detach().clone() for p in average.module.parameters()], "decay": 0.9},
                "EMAState": {"ema_state_dict": average.module.state_dict()},
            },
            "optimizer_states": [optimizer.state_dict()],
            "lr_schedulers": [scheduler.state_dict()],
            "hyper_parameters": {"lr": 1e-3},
        },
        place / "b.pt",
    )
    result = _align(place, net, "b.pt")
    assert {(one.path, one.kind, one.moved) for one in result.siblings} == {
        ("callbacks.EMA.ema_weights", "ema", True),
        ("callbacks.EMAState.ema_state_dict", "ema", True),
        ("optimizer_states.0", "optimizer", True),
    }
    assert result.warnings == () or not [text for text in result.warnings if "permuted" in text]
    curves, averaged = [], []
    for file in ("b.pt", "out.pt"):
        saved = torch.load(place / file)
        resumed = Task(3)
        resumed.load_state_dict(saved["state_dict"])
        again = torch.optim.AdamW(resumed.parameters(), lr=1e-3)
        again.load_state_dict(saved["optimizer_states"][0])
        curves.append(train(resumed, again))
        outputs = []
        for weights in (saved["callbacks"]["EMA"]["ema_weights"], saved["callbacks"]["EMAState"]["ema_state_dict"]):
            shadow = network(place, net, seed=3, dtype=dtype)
            if isinstance(weights, dict):
                shadow.load_state_dict(weights)
            else:
                for parameter, value in zip(shadow.parameters(), weights, strict=True):
                    parameter.data.copy_(value)
            outputs.append(shadow.train()(torch.ones(2, 2, 4, 4, dtype=dtype).cumsum(-1)))
        averaged.append(outputs)
    assert_same_losses(curves[1], curves[0], dtype)
    for before, after in zip(*averaged, strict=True):
        torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)


def test_resumed_from_an_averaged_model(place: Path) -> None:
    dtype = torch.float64
    _reference(place, "convolutional", dtype)
    model = network(place, "convolutional", seed=2, dtype=dtype)
    optimizer = OPTIMIZERS["sgd-momentum"](model.parameters())
    average = AveragedModel(model)
    train(model, optimizer, after=lambda: average.update_parameters(model))
    torch.save(
        {"model": model.state_dict(), "swa_model": average.state_dict(), "optimizer": optimizer.state_dict()},
        place / "b.pt",
    )
    result = _align(place, "convolutional", "b.pt")
    assert {(one.path, one.kind, one.moved) for one in result.siblings} == {
        ("swa_model", "average", True),
        ("optimizer", "optimizer", True),
    }
    curves, means = [], []
    for file in ("b.pt", "out.pt"):
        saved = torch.load(place / file)
        resumed = network(place, "convolutional", seed=3, dtype=dtype)
        resumed.load_state_dict(saved["model"])
        again = OPTIMIZERS["sgd-momentum"](resumed.parameters())
        again.load_state_dict(saved["optimizer"])
        mean = AveragedModel(resumed)
        mean.load_state_dict(saved["swa_model"])
        assert int(mean.n_averaged) == STEPS
        curves.append(train(resumed, again, after=lambda m=mean, r=resumed: m.update_parameters(r)))
        means.append(mean.train()(torch.ones(2, 2, 4, 4, dtype=dtype).cumsum(-1)))
    assert_same_losses(curves[1], curves[0], dtype)
    torch.testing.assert_close(means[1], means[0], rtol=1e-10, atol=1e-10)
