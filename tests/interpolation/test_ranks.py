"""Under `torchrun` two processes share the batches and give the numbers of one; only the first prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.interpolation.conftest import Bench

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
NORM = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--data", "test.npz")
ALIGN = ("align", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--input", "2,1,8,8")
ACTIVATION = ("--method", "activation", "--data", "train.npz", "--limit", "500", "--batch-size", "64")


def data_of(path: Path) -> dict[str, Any]:
    document = json.loads(path.read_text())
    assert document["status"] == "ok"
    return document["data"]  # type: ignore[no-any-return]


def test_two_processes_give_the_numbers_of_one(bench: Bench) -> None:
    words = (*NORM, "--steps", "2", "--recalibrate", "train.npz", "--repair", "--batch-size", "50")
    assert bench.run(*words, "-o", "one.json").code == 0
    shared = bench.process(*words, "-o", "two.json", launcher=TORCHRUN)
    assert shared.code == 0, shared.err
    assert shared.out.count("\nbarrier ") == 1
    one, two = (data_of(bench.path / name) for name in ("one.json", "two.json"))
    assert two["barrier"]["naive"] == pytest.approx(one["barrier"]["naive"], rel=1e-6)
    assert one["barrier"]["naive"]["loss_standard_error"] > 0
    one, two = one["curves"]["naive"], two["curves"]["naive"]
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-6)
        assert (a["accuracy"], a["n"]) == (b["accuracy"], b["n"])


@pytest.mark.slow
def test_statistics_of_activations_are_shared_and_a_sweep_follows(bench: Bench) -> None:
    words = (*ALIGN, *ACTIVATION, "--interpolate", "test.npz", "--steps", "2", "--recalibrate", "train.npz")
    assert bench.run(*words, "-o", "one.safetensors").code == 0
    shared = bench.process(*words, "-o", "two.safetensors", launcher=TORCHRUN)
    assert shared.code == 0, shared.err
    assert shared.out.count("axis groups") == shared.out.count("barrier after alignment") == 1
    one, two = (data_of(bench.path / f"{name}.json") for name in ("one", "two"))
    assert two["method"] == "activation"
    for name in ("objective", "distance"):
        assert [two[name][when] for when in ("before", "after")] == pytest.approx(
            [one[name][when] for when in ("before", "after")], rel=1e-6
        )
    assert two["groups"] == one["groups"]
    one, two = (data_of(bench.path / f"{name}-interpolation.json")["curves"] for name in ("one", "two"))
    for curve in ("naive", "matched"):
        for ours, theirs in zip(two[curve], one[curve], strict=True):
            assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-6)
            assert ours["accuracy"] == theirs["accuracy"]


@pytest.mark.slow
def test_a_batch_that_one_of_them_cannot_read_ends_both_in_one_line(bench: Bench) -> None:
    with np.load(bench.path / "train.npz") as arrays:
        x, y = arrays["x"][:40].copy(), arrays["y"][:40]
    x[15] = np.nan  # in the second batch of ten, which the second process reads
    np.savez(bench.path / "bad.npz", x=x, y=y)
    words = (*ALIGN, "--method", "activation", "--data", "bad.npz", "--batch-size", "10", "-q")
    alone = bench.run(*words)
    assert (alone.code, alone.out) == (7, "")
    before = sorted(path.name for path in bench.path.iterdir())
    shared = bench.process(*words, launcher=TORCHRUN)
    assert shared.code != 0
    said = [line for line in shared.err.splitlines() if "non-finite" in line]
    assert len(said) == 1, shared.err
    assert sorted(path.name for path in bench.path.iterdir() if path.name != "__pycache__") == before


@pytest.mark.slow
def test_the_batches_of_a_learning_are_shared_and_give_the_numbers_of_one_process(bench: Bench) -> None:
    words = (*ALIGN, "--method", "learned", "--data", "train.npz", "--limit", "300", "--batch-size", "20")
    words = (*words, "--learning-steps", "30", "--step-batches", "3", "--effort", "fast")
    assert bench.run(*words, "-o", "alone.safetensors").code == 0
    shared = bench.process(*words, "-o", "both.safetensors", launcher=TORCHRUN)
    assert shared.code == 0, shared.err
    assert shared.out.count("axis groups") == 1
    one, two = (data_of(bench.path / f"{name}.json") for name in ("alone", "both"))
    assert len(one["learning"]["curve"]) == 4
    assert two["learning"] == one["learning"]
    assert two["criterion"] == one["criterion"]
    outputs = [(bench.path / f"{name}.safetensors").read_bytes() for name in ("alone", "both")]
    assert outputs[0] == outputs[1]
