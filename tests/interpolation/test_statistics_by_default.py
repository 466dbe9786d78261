"""Without a word about statistics, a network with BatchNorm is judged with statistics that fit its weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rebasin_cli.data import Batch, DataOptions
from rebasin_cli.interpolation.statistics_part import Parts, set_apart
from tests.interpolation.conftest import Bench

ALIGN = ("align", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--input", "2,1,8,8", "-q")
NORM = ("interpolate", "norm-a.safetensors", "norm-b.safetensors", "--model", "net.py:norm", "--data", "test.npz")
PLAIN = ("interpolate", "plain-a.safetensors", "plain-b.safetensors", "--model", "net.py:plain", "--data", "test.npz")


def data_of(bench: Bench, name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((bench.path / name).read_text())["data"]
    return data


def test_the_two_plain_commands_on_a_network_with_batch_norm(bench: Bench) -> None:
    assert bench.run(*ALIGN).code == 0
    found = bench.run("interpolate", "--data", "test.npz", "--steps", "4")
    assert found.code == 0, found.err
    assert "The alignment lowers the barrier" in found.out
    assert (
        "running statistics (2 layers) are re-estimated on 128 samples of test.npz, which are not evaluated"
        in found.err
    )
    data = data_of(bench, "norm-b-aligned-interpolation.json")
    assert data["n"] == 597 - 128
    assert data["recalibration"]["data"] == "128 samples of test.npz that are not evaluated"
    off = bench.run("interpolate", "--data", "test.npz", "--steps", "4", "--no-recalibrate", "-o", "off.json")
    interpolated = data_of(bench, "off.json")
    assert interpolated["n"] == 597
    assert interpolated["recalibration"] is None
    assert data["barrier"]["matched"]["loss"] < 0.6 * interpolated["barrier"]["matched"]["loss"]
    assert "lower" not in off.out
    assert "running statistics (2 layers) were interpolated and do not fit" in " ".join(off.out.split())


def test_the_part_is_as_good_as_training_data(bench: Bench) -> None:
    assert bench.run(*NORM, "--steps", "2", "-o", "part.json").code == 0
    assert bench.run(*NORM, "--steps", "2", "--recalibrate", "train.npz", "-o", "train.json").code == 0
    part, train = (data_of(bench, f"{name}.json")["barrier"]["naive"] for name in ("part", "train"))
    assert part["loss"] == pytest.approx(train["loss"], rel=0.15)


def test_networks_without_statistics_are_told_nothing(bench: Bench) -> None:
    for words in ((), ("--no-recalibrate",)):
        found = bench.run(*PLAIN, "--steps", "2", "-o", "r.json", "-f", *words)
        assert found.code == 0
        assert "statistics" not in found.out + found.err
        assert data_of(bench, "r.json")["n"] == 597
    found = bench.run(*PLAIN, "--steps", "2", "--recalibrate", "train.npz", "-o", "r.json", "-f")
    assert "no effect" in found.err
    assert "statistics" not in found.out
    assert data_of(bench, "r.json")["recalibration"] is None


def test_too_few_samples_are_said_and_all_are_evaluated(bench: Bench) -> None:
    data = np.load(bench.path / "test.npz")
    np.savez(bench.path / "few.npz", x=data["x"][:100], y=data["y"][:100])
    found = bench.run(*NORM[:-1], "few.npz", "--steps", "2")
    assert found.code == 0, found.err
    assert "were not re-estimated, because the data have only 100 samples" in found.err
    assert "--recalibrate TRAINING_DATA" in found.err
    assert data_of(bench, "norm-b-interpolation.json")["n"] == 100


def test_both_options_at_once_are_refused(bench: Bench) -> None:
    assert bench.run(*NORM, "--recalibrate", "train.npz", "--no-recalibrate").code == 2


def test_a_limit_is_about_what_is_evaluated(bench: Bench) -> None:
    assert bench.run(*NORM, "--steps", "2", "--limit", "256").code == 0
    assert data_of(bench, "norm-b-interpolation.json")["n"] == 320 - 64


def test_the_curve_straight_after_the_alignment_is_that_of_the_second_command(bench: Bench) -> None:
    assert bench.run(*ALIGN, "--interpolate", "test.npz", "--steps", "2").code == 0
    one = data_of(bench, "norm-b-aligned-interpolation.json")
    assert bench.run("interpolate", "--data", "test.npz", "--steps", "2", "-o", "two.json").code == 0
    assert data_of(bench, "two.json")["barrier"] == one["barrier"]
    assert bench.run(*ALIGN, "-f", "--interpolate", "test.npz", "--steps", "2", "--no-recalibrate").code == 0
    assert data_of(bench, "norm-b-aligned-interpolation.json")["recalibration"] is None
    assert bench.run(*ALIGN, "-f", "--no-recalibrate").code == 2


LOADER = """
import numpy as np
import torch

arrays = np.load("test.npz")
order = np.argsort(arrays["y"], kind="stable")


def ordered():
    x, y = torch.from_numpy(arrays["x"][order]), torch.from_numpy(arrays["y"][order])
    for label in range(10):
        yield x[y == label], y[y == label]


def mixed():
    for start in range(0, 597, 40):
        yield torch.from_numpy(arrays["x"][start : start + 40]), torch.from_numpy(arrays["y"][start : start + 40])
"""


def test_a_loader_with_one_class_in_each_batch_gives_no_statistics(bench: Bench) -> None:
    (bench.path / "load.py").write_text(LOADER)
    found = bench.run(*NORM[:-1], "load.py:ordered", "--steps", "2")
    assert found.code == 0, found.err
    assert "batches have one class each" in found.err
    assert data_of(bench, "norm-b-interpolation.json")["recalibration"] is None
    found = bench.run(*NORM[:-1], "load.py:mixed", "--steps", "2", "-o", "mixed.json")
    data = data_of(bench, "mixed.json")
    assert data["recalibration"] is not None
    assert data["n"] == 597 - 120


class Numbered:
    """A source of so many batches of eight samples, the last of three; each batch's input is its number."""

    description = fingerprint = origin = "numbers"
    notes = ()
    text = None

    def __init__(self, count: int, known: bool) -> None:
        self.count, self.batch_count = count, count if known else None

    def batches(self, first: int = 0, *, rank: int = 0, world: int = 1) -> Iterator[Batch]:
        for number in range(first, self.count):
            if number % world == rank:
                size = 3 if number == self.count - 1 else 8
                yield Batch(number, (torch.full((size,), number),), size=size)


def numbers(source: Any, **how: int) -> list[tuple[int, int]]:
    return [(batch.index, int(batch.args[0][0])) for batch in source.batches(**how)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("count", "limit"), [(60, 2000), (60, 70), (23, 2000), (200, 100)])
def test_the_parts_are_the_whole_and_share_no_batch(count: int, limit: int, known: bool) -> None:
    parts = set_apart(lambda _: Numbered(count, known), DataOptions(), limit)
    assert isinstance(parts, Parts)
    apart, rest = numbers(parts.statistics), numbers(parts.evaluation)
    assert sorted(number for _, number in apart + rest) == list(range(count))
    assert len({number for _, number in apart}) == len(apart) > 7
    assert [index for index, _ in apart] == list(range(len(apart)))
    assert [index for index, _ in rest] == list(range(len(rest)))
    if known:
        assert parts.samples == sum(batch.size for batch in parts.statistics.batches())
        assert (parts.statistics.batch_count, parts.evaluation.batch_count) == (len(apart), len(rest))
        assert parts.samples <= max(64, limit + 7)
    for source, whole in ((parts.statistics, apart), (parts.evaluation, rest)):
        assert numbers(source, first=5) == whole[5:]
        shared = [numbers(source, first=3, rank=rank, world=3) for rank in range(3)]
        assert sorted(entry for row in shared for entry in row) == whole[3:]


def test_the_part_is_the_same_each_time_and_follows_the_seed(bench: Bench) -> None:
    found = []
    for name, seed in (("one", "0"), ("two", "0"), ("three", "1")):
        assert bench.run(*NORM, "--steps", "2", "-o", f"{name}.json", "--seed", seed).code == 0
        found.append(data_of(bench, f"{name}.json")["curves"])
    assert found[0] == found[1] != found[2]
