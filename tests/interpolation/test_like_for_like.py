"""A barrier compares networks that were treated alike, and says how exactly it was measured."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from rebasin_cli.compat.lines import LineOfModels, loader_source
from rebasin_cli.execution.dataset_pass import RunningSums
from rebasin_cli.execution.evaluation import Measure, evaluate
from rebasin_cli.interpolation.sweep import Sweep, SweepPoint, best, summarize
from tests.interpolation.conftest import Bench
from tests.interpolation.digits import batches, norm_net, plain_net, trained

NORM = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--data", "test.npz")
PLAIN = ("interpolate", "plain-a.safetensors", "plain-b.safetensors", "--model", "net.py:plain", "--data", "test.npz")


def measured(bench: Bench, *words: str) -> dict[str, Any]:
    found = bench.run(*words, "-o", "r.json", "-f", "--json")
    assert found.code == 0, found.err
    data: dict[str, Any] = json.loads(found.out)["data"]
    return data


def spoil(bench: Bench) -> None:
    """Running statistics of both checkpoints that belong to other data."""
    for name in "ab":
        file = bench.path / f"norm-{name}.safetensors"
        state = load_file(file)
        save_file({key: 9 * value if "running_var" in key else value for key, value in state.items()}, file)


@pytest.mark.parametrize("repair", [(), ("--repair",)])
def test_a_recalibrated_middle_is_held_against_recalibrated_ends(bench: Bench, repair: tuple[str, ...]) -> None:
    words = (*NORM, "--steps", "4", "--recalibrate", "train.npz", *repair)
    sound = measured(bench, *words)
    ends, row = sound["ends"], sound["curves"]["naive"]
    assert [point["loss"] for point in ends["as_treated"]["naive"]] == [row[0]["loss"], row[-1]["loss"]]
    straight = [row[0]["loss"] + lam * (row[-1]["loss"] - row[0]["loss"]) for lam in (0.25, 0.5, 0.75)]
    rises = [point["loss"] - line for point, line in zip(row[1:-1], straight, strict=True)]
    assert sound["barrier"]["naive"]["loss"] == pytest.approx(max(rises), rel=1e-9)
    assert max(rises) > 0.2
    spoil(bench)
    spoiled = measured(bench, *words)
    if not repair:  # what is treated does not depend on the statistics in the files
        assert spoiled["curves"] == sound["curves"]
        assert spoiled["barrier"] == sound["barrier"]
    for before, after in zip(ends["as_loaded"]["naive"], spoiled["ends"]["as_loaded"]["naive"], strict=True):
        assert after["loss"] > before["loss"] + 0.2


def test_the_ends_are_shown_both_ways_where_they_are_treated(bench: Bench) -> None:
    spoil(bench)
    shown = bench.run(*NORM, "--steps", "2", "--recalibrate", "train.npz").out
    assert "ends as loaded" in shown
    assert "ends as treated" in shown
    assert "ends as" not in bench.run(*PLAIN, "--steps", "2").out
    assert measured(bench, *PLAIN, "--steps", "2")["ends"]["as_treated"] is None


def losses(net: nn.Module, state: dict[str, torch.Tensor]) -> tuple[np.ndarray, np.ndarray]:
    net.load_state_dict(state)
    (x, y), *_ = batches(1200, 1797, 597)
    with torch.no_grad():
        scores = net.eval()(x)
    each = nn.functional.cross_entropy(scores, y, reduction="none")
    return each.double().numpy(), (scores.argmax(1) == y).double().numpy()


def test_the_standard_error_is_that_of_the_differences_within_each_sample(bench: Bench) -> None:
    a, b = (load_file(bench.path / f"plain-{name}.safetensors") for name in "ab")
    data = measured(bench, *PLAIN, "--steps", "2")
    middle = {key: torch.lerp(a[key], b[key], 0.5) for key in a}
    (loss_a, hits_a), (loss_m, hits_m), (loss_b, hits_b) = (losses(plain_net(), one) for one in (a, middle, b))
    rise, drop = loss_m - (loss_a + loss_b) / 2, (hits_a + hits_b) / 2 - hits_m
    found = data["barrier"]["naive"]
    assert found["loss"] == pytest.approx(rise.mean(), rel=1e-5)
    assert found["loss_standard_error"] == pytest.approx(rise.std(ddof=1) / len(rise) ** 0.5, rel=1e-5)
    assert found["accuracy"] == pytest.approx(drop.mean())
    assert found["accuracy_standard_error"] == pytest.approx(drop.std(ddof=1) / len(drop) ** 0.5)
    unpaired = np.hypot(loss_m.std(ddof=1), np.hypot(loss_a.std(ddof=1), loss_b.std(ddof=1)) / 2) / len(rise) ** 0.5
    assert found["loss_standard_error"] != pytest.approx(unpaired, rel=1e-3)
    point = data["curves"]["naive"][1]
    assert point["loss_standard_error"] == pytest.approx(loss_m.std(ddof=1) / len(loss_m) ** 0.5, rel=1e-5)


def swept(models: list[nn.Module], data: list[Any], measure: Measure) -> Sweep:
    line = LineOfModels(models, None, "lerp", 4)
    source = loader_source(data, "test")
    return summarize(line.networks, evaluate(line.slot, source, line.networks.all, measure, RunningSums()))


def test_the_error_does_not_depend_on_batches_or_on_a_loader_that_shuffles() -> None:
    models = [trained("plain", 0), trained("plain", 1)]
    reference = swept(models, batches(1200, 1797, 597), Measure()).barrier["line"]
    order = torch.randperm(597, generator=torch.Generator().manual_seed(3))
    (x, y), *_ = batches(1200, 1797, 597)
    for data in (batches(1200, 1797, 10), [(x[order], y[order])]):
        found = swept(models, data, Measure()).barrier["line"]
        assert found.loss_standard_error == pytest.approx(reference.loss_standard_error, rel=1e-5)
        assert found.accuracy_standard_error == pytest.approx(reference.accuracy_standard_error, rel=1e-9)


def test_a_loss_that_returns_one_mean_has_the_error_over_batches() -> None:
    models = [trained("plain", 0), trained("plain", 1)]
    each = swept(models, batches(1200, 1797, 597), Measure(loss=lambda o, t: nn.functional.cross_entropy(o, t)))
    assert each.barrier["line"].loss is not None
    assert each.barrier["line"].loss_standard_error is None  # one batch
    many = swept(models, batches(1200, 1790, 59), Measure(loss=lambda o, t: nn.functional.cross_entropy(o, t)))
    sample = swept(models, batches(1200, 1790, 59), Measure()).barrier["line"]
    assert many.barrier["line"].loss == pytest.approx(sample.loss, rel=1e-5)
    assert many.barrier["line"].loss_standard_error == pytest.approx(sample.loss_standard_error, rel=0.9)
    assert many.barrier["line"].loss_standard_error != sample.loss_standard_error
    assert all(point.batch_means for point in many.curves["line"])


def test_a_loss_per_pixel_has_samples_as_units() -> None:
    """Pixels of one image are not independent, so the image is the unit, weighted by its pixels that count."""
    torch.manual_seed(0)
    models = [nn.Conv2d(1, 3, 3, padding=1) for _ in range(2)]
    x = torch.randn(12, 1, 4, 4)
    y = torch.randint(0, 3, (12, 4, 4))
    y[::2, :2] = -100
    found = swept(models, [(x, y)], Measure())
    sums = []
    for lam in (0.0, 0.5, 1.0):
        net = nn.Conv2d(1, 3, 3, padding=1)
        ends = zip(models[0].parameters(), models[1].parameters(), strict=True)
        net.load_state_dict(dict(zip(("weight", "bias"), (torch.lerp(a, b, lam) for a, b in ends), strict=True)))
        each = nn.functional.cross_entropy(net(x), y, reduction="none", ignore_index=-100)
        sums.append(each.detach().double().flatten(1).sum(1).numpy())
    rise, weight = sums[1] - (sums[0] + sums[2]) / 2, (y != -100).flatten(1).sum(1).numpy()
    mean = rise.sum() / weight.sum()
    error = np.sqrt(12 / 11 * ((rise - mean * weight) ** 2).sum()) / weight.sum()
    assert found.curves["line"][2].rise_standard_error == pytest.approx(error, rel=1e-4)


def test_the_error_of_a_network_against_itself_is_zero() -> None:
    found = swept([trained("norm", 0), trained("norm", 0)], batches(1200, 1797, 100), Measure()).barrier["line"]
    assert (found.loss, found.loss_standard_error) == (0.0, 0.0)


def test_a_gate_leaves_two_standard_errors(bench: Bench) -> None:
    barrier = measured(bench, *PLAIN, "--steps", "2")["barrier"]["naive"]
    height, error = barrier["loss"], barrier["loss_standard_error"]
    assert bench.run(*PLAIN, "--steps", "2", "-o", "r.json", "--fail-above", f"{height - 1.9 * error}").code == 0
    failed = bench.run(*PLAIN, "--steps", "2", "-o", "r.json", "--fail-above", f"{height - 2.1 * error}")
    assert failed.code == 9
    assert "less two standard errors, exceeds" in failed.err
    for wrong in ("-0.1", "nan", "inf"):
        assert bench.run(*PLAIN, "--steps", "2", "-o", "r.json", "--fail-above", wrong).code == 2


def place(lam: float, loss: float | None, accuracy: float | None) -> SweepPoint:
    return SweepPoint(0, lam, loss, accuracy, None, None, 10, loss is not None)


def test_the_best_network_is_of_the_aligned_curve_and_by_what_was_asked() -> None:
    naive = [place(0, 0.1, 0.9), place(0.5, 0.01, 1.0), place(1, 0.1, 0.9)]
    matched = [place(0, 0.3, 0.8), place(0.5, 0.2, 0.8), place(1, 0.4, 0.9)]
    curves = {"naive": naive, "matched": matched}
    by_loss, by_accuracy = best(curves), best(curves, "accuracy")
    assert by_loss is not None
    assert by_accuracy is not None
    assert (by_loss.curve, by_loss.lam) == ("matched", 0.5)
    assert (by_accuracy.curve, by_accuracy.lam) == ("matched", 1)
    tied = [place(0, 0.3, 0.8), place(0.5, 0.2, 0.8), place(1, 0.2, 0.8)]
    first = best({"naive": tied}, "accuracy")
    assert first is not None
    assert first.lam == 0.5  # the lower loss, then the first along the line
    assert best({"naive": [place(0, 0.3, None)]}, "accuracy") is None


def test_best_by_accuracy_is_said_and_saved(bench: Bench) -> None:
    words = (*PLAIN, "--steps", "4", "-o", "r.json", "-f")
    for by in ("accuracy", "loss"):
        found = bench.run(*words, "--best-by", by, "--save-best", "best.safetensors")
        assert found.code == 0, found.err
        data = json.loads((bench.path / "r.json").read_text())["data"]
        values = [point[by] for point in data["curves"]["naive"]]
        assert data["best"][by] == (max(values) if by == "accuracy" else min(values))
        assert f"best by {by}" in found.out
    (bench.path / "mine.py").write_text("def loss(output, target):\n    return output.square().mean(1)\n")
    np.savez(bench.path / "x.npz", x=np.load(bench.path / "test.npz")["x"], y=np.zeros((597, 2), np.float32))
    words = (*PLAIN[:-1], "x.npz", "--loss", "mine.py:loss", "--steps", "2", "--best-by", "accuracy", "-o", "x.json")
    found = bench.run(*words, "--save-best", "none.safetensors")
    assert (found.code, "--best-by accuracy needs class numbers" in found.err) == (5, True), found.err


def test_the_best_recalibrated_network_has_its_statistics_in_the_file(bench: Bench) -> None:
    spoil(bench)
    words = (*NORM, "--steps", "2", "--recalibrate", "train.npz", "--save-best", "best.safetensors")
    data = measured(bench, *words)
    loss, _ = losses(norm_net(), load_file(bench.path / "best.safetensors"))
    assert loss.mean() == pytest.approx(data["best"]["loss"], rel=1e-5)
