"""Learned matching: never worse than weight matching by its own measure, seeded, and bounded."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rebasin_cli import align
from rebasin_cli.errors import DataError, UsageError
from rebasin_cli.verbs.align import AlignResult
from tests.interpolation.digits import digits, trained

NETS = """
from torch import nn


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def norm():
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Flatten(), nn.Linear(192, 10),
    )
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trained networks of each kind, and digits to learn on, with labels and without."""
    place = tmp_path_factory.mktemp("straight-through")
    (place / "nets.py").write_text(NETS)
    for kind in ("plain", "norm"):
        for letter, seed in (("a", 0), ("b", 1)):
            state = trained(kind, seed).state_dict()
            save_file({key: value.contiguous() for key, value in state.items()}, place / f"{kind}-{letter}.safetensors")
    x, y = digits()
    np.savez(place / "digits.npz", x=x[:400], y=y[:400])
    np.savez(place / "unlabelled.npz", x=x[:200], y=x[:200].reshape(200, -1))
    return place


def learn(folder: Path, kind: str = "plain", data: str | None = "digits.npz", **options: Any) -> AlignResult:
    steps = {"learning_steps": 30} if options.get("method", "learned") == "learned" else {}
    return align(
        folder / f"{kind}-a.safetensors",
        folder / f"{kind}-b.safetensors",
        model=f"{folder / 'nets.py'}:{kind}",
        inputs=["1,1,8,8"],
        data=None if data is None else str(folder / data),
        **{"method": "learned", **steps, "dry_run": True, **options},
    )


@pytest.mark.parametrize("kind", ["plain", "norm"])
def test_it_is_never_worse_than_where_it_started(folder: Path, kind: str) -> None:
    found = learn(folder, kind)
    by = found.criterion
    assert (found.method, by.name) == ("learned", "midpoint loss")
    assert by.weight_matching is not None
    assert by.after <= by.weight_matching < by.before
    assert found.cosine.after >= found.cosine.before
    assert found.verified.same


def test_learning_lowers_the_loss_that_is_reported(folder: Path) -> None:
    """The loss of the midpoint, computed here anew from the file that was written."""
    found = learn(folder, out=folder / "learned.safetensors", dry_run=False, learning_steps=100)
    by = found.criterion
    assert by.weight_matching is not None
    assert by.after < by.weight_matching
    a, b = load_file(folder / "plain-a.safetensors"), load_file(folder / "learned.safetensors")
    net = deepcopy(trained("plain", 0))
    net.load_state_dict({key: (a[key] + b[key]) / 2 for key in a})
    order = np.random.default_rng(0).permutation(400)[:64]  # of seven batches, the first judges
    x, y = (torch.from_numpy(values[order]) for values in digits())
    assert by.after == pytest.approx(float(torch.nn.functional.cross_entropy(net(x), y).detach()), rel=1e-4)


def test_it_keeps_the_similarity_that_is_asked_for(folder: Path) -> None:
    """Between weight matching, which has the most, and free learning, which gives up a good part of it."""
    most = learn(folder, method="weight", data=None).cosine.after
    free, kept = (learn(folder, learning_steps=60, keep_similarity=share) for share in (None, 0.98))
    assert free.cosine.after < 0.98 * most <= kept.cosine.after < most
    assert kept.criterion.weight_matching is not None
    assert free.criterion.after < kept.criterion.after < kept.criterion.weight_matching


def test_a_share_above_one_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match=r"--keep-similarity 1\.5: must be between 0 and 1"):
        learn(folder, keep_similarity=1.5)


def test_the_earlier_name_is_accepted(folder: Path) -> None:
    found = learn(folder, method="straight-through", learning_steps=1)
    assert found.method == "learned"


def test_the_same_seed_learns_the_same(folder: Path) -> None:
    first, again = (learn(folder, "norm", seed=3) for _ in range(2))
    assert first.criterion == again.criterion
    assert first.objective == again.objective


def test_without_labels_it_learns_what_the_ends_say(folder: Path) -> None:
    by = learn(folder, data="unlabelled.npz").criterion
    assert by.weight_matching is not None
    assert 0 < by.after <= by.weight_matching < by.before


def test_without_time_weight_matching_is_what_there_is(folder: Path) -> None:
    found = learn(folder, time_limit=0.0)
    assert found.passes == 0
    assert not found.converged
    assert found.criterion.after <= found.criterion.before


def test_a_spec_from_a_file_leaves_weight_matching_to_start_from(folder: Path) -> None:
    learn(folder, out=folder / "any.safetensors", dry_run=False, save_spec=folder / "spec.json", force=True)
    found = learn(folder, spec=folder / "spec.json")
    assert found.start == "weight matching"
    assert found.criterion.weight_matching is not None
    assert found.criterion.after <= found.criterion.weight_matching


def test_activation_matching_without_data_goes_by_noise(folder: Path) -> None:
    found = learn(folder, "norm", data=None, method="activation", mix=0.2)
    assert found.method == "activation"
    assert found.cosine.after > found.cosine.before


def test_without_data_it_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="method learned needs data"):
        learn(folder, data=None)


def test_options_that_could_have_no_effect_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="--gradient-checkpointing has no effect"):
        learn(folder, gradient_checkpointing=True)
    (folder / "losses.py").write_text("def loss(output, target):\n    return output.square().mean()\n")
    with pytest.raises(UsageError, match="--unlabelled has no effect with --loss"):
        learn(folder, unlabelled=True, loss=f"{folder / 'losses.py'}:loss")
    with pytest.raises(UsageError, match="--patience has no effect with method weight"):
        learn(folder, method="weight", patience=3, data=None)


def test_labels_can_be_left_out_of_account(folder: Path) -> None:
    found = learn(folder, unlabelled=True)
    assert found.data is not None
    assert found.data["learned_on"] == "KL divergence from the mean of A's and B's logits (no labels)"
    by = found.criterion
    assert by.weight_matching is not None
    assert 0 < by.after <= by.weight_matching < by.before


def test_statistics_of_single_samples_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="no data to learn on"):
        learn(folder, "norm", batch_size=1, limit=3)
