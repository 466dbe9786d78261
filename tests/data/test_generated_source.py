"""`generated` as a value of --data: how it is named, and how its batches are given out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_flatten

from rebasin_cli.data.batch import Batch
from rebasin_cli.data.generated_kinds import GeneratedFacts, check_no_file, generated_kind, is_generated
from rebasin_cli.data.generated_source import GeneratedSet
from rebasin_cli.data.source import DataOptions, ModelView, open_data
from rebasin_cli.errors import DataError, UsageError


def made(kind: str, count: int, seed: int) -> GeneratedSet:
    leaves, structure = tree_flatten(((torch.arange(100.0).view(100, 1) + seed,), {"scale": 2}))
    facts = GeneratedFacts(kind or "inverted", 100, 0.97, 10, 1.0)
    return GeneratedSet(facts, tuple(leaves), (0,), structure, None, None, None, (), f"{kind} {seed}")


def view() -> ModelView:
    return ModelView(lambda batch: 3, generate=made)


def test_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert generated_kind("generated") == ""
    assert generated_kind("generated:leaves") == "leaves"
    for other in (None, "val", "./generated", "generated.npz", "generated/val", "generated.py:loader"):
        assert not is_generated(other)
    with pytest.raises(UsageError, match="did you mean leaves"):
        generated_kind("generated:leafs")


def test_a_folder_of_this_name_is_neither_read_nor_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "generated").mkdir()
    with pytest.raises(UsageError, match="also a file or folder") as caught:
        check_no_file("generated")
    assert "./generated" in str(caught.value.hint)
    for other in ("generated:inverted", "./generated", None):
        check_no_file(other)


def test_without_networks_there_is_nothing_to_make_inputs_from() -> None:
    with pytest.raises(DataError, match="no two networks"):
        open_data("generated", DataOptions(), ModelView(lambda batch: 3))


def test_batches_hold_every_input_once_and_the_arguments_that_are_no_samples() -> None:
    source = open_data("generated", DataOptions(limit=90, batch_size=40), view())
    batches = list(source.batches())
    assert [batch.size for batch in batches] == [40, 40, 10]
    assert source.batch_count == 3
    assert batches[0].kwargs == {"scale": 2}
    assert torch.equal(torch.cat([batch.args[0][:, 0] for batch in batches]), torch.arange(90.0))
    assert all(batch.target is None for batch in batches)


def test_processes_share_the_batches_and_a_pass_can_begin_in_the_middle() -> None:
    source = open_data("generated", DataOptions(limit=90, batch_size=20), view())

    def numbers(found: list[Batch]) -> list[int]:
        return [batch.index for batch in found]

    assert numbers(list(source.batches(rank=0, world=2))) == [0, 2, 4]
    assert numbers(list(source.batches(2, rank=1, world=2))) == [3]


def test_shuffled_batches_hold_the_same_inputs_in_another_order_and_another_fingerprint() -> None:
    plain, shuffled = (
        open_data("generated", DataOptions(limit=90, shuffle=shuffle), view()) for shuffle in (False, True)
    )
    order = torch.cat([batch.args[0][:, 0] for batch in shuffled.batches()])
    assert not torch.equal(order, torch.arange(90.0))
    assert torch.equal(order.sort().values, torch.arange(90.0))
    assert plain.fingerprint != shuffled.fingerprint


def test_the_description_says_that_there_are_no_data() -> None:
    source = open_data("generated", DataOptions(), view())
    assert source.generated is not None
    assert "no data" in source.description
    assert "agree on 97 %, 10 classes" in source.description


def test_at_least_two_inputs() -> None:
    with pytest.raises(DataError, match="at least 2"):
        open_data("generated", DataOptions(limit=1), view())
