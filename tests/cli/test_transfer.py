"""`rebasin transfer` as a user types it: exact between permuted copies; nothing is written where something is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.cli.conftest import Runner
from tests.cli.test_mismatched_sizes import NETS
from tests.cli.workshop import MODEL, permuted, state

TRANSFER = ["transfer", "old.safetensors", "tuned.safetensors", "new.safetensors"]
KEYS = {"old_base", "finetuned", "new_base", "scale", "lora", "aligned", "verified", "out", "change", "scores"}
CHANNELS, HIDDEN = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4]), torch.tensor([5, 0, 4, 1, 3, 2])


def write(path: Path, tensors: dict[str, Tensor], dtype: torch.dtype = torch.float32) -> None:
    found = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    safetensors.torch.save_file({key: value.contiguous() for key, value in found.items()}, path)


def tuned_from(base: dict[str, Tensor]) -> dict[str, Tensor]:
    other = state(9)
    tuned = {key: value + 0.1 * other[key] if value.is_floating_point() else value for key, value in base.items()}
    return {**tuned, "1.num_batches_tracked": torch.tensor(7)}


@pytest.fixture
def copies(place: Path) -> Path:
    """A base, its fine-tuning, and a permuted copy of the base."""
    base = state(0)
    write(place / "old.safetensors", base)
    write(place / "tuned.safetensors", tuned_from(base))
    write(place / "new.safetensors", permuted(base, CHANNELS, HIDDEN))
    return place


def test_between_permuted_copies_the_fine_tuning_arrives_bit_for_bit(run: Runner, copies: Path) -> None:
    done = run(*TRANSFER, *MODEL, "-o", "out.safetensors", "--json")
    data = json.loads(done.out)["data"]
    assert done.code == 0
    assert set(data) >= KEYS
    found = safetensors.torch.load_file(copies / "out.safetensors")
    wanted = permuted(tuned_from(state(0)), CHANNELS, HIDDEN)
    assert {key for key in wanted if not torch.equal(found[key], wanted[key])} == set()
    assert found["1.num_batches_tracked"] == 7
    assert data["lora"] is False
    assert data["verified"]["same"] is True
    assert data["aligned"]["cosine"]["after"] == 1.0
    assert not data["aligned"]["already_aligned"]
    assert data["aligned"]["moved_units"] == 13  # 7 of 8 channels and all 6 hidden units


def test_running_it_twice_gives_the_same_bytes(run: Runner, copies: Path) -> None:
    for name in ("one", "two"):
        assert run(*TRANSFER, *MODEL, "-o", f"{name}.safetensors", "-q").out == f"{name}.safetensors\n"
    assert (copies / "one.safetensors").read_bytes() == (copies / "two.safetensors").read_bytes()


def test_half_of_the_change_and_none_of_the_alignment(run: Runner, copies: Path) -> None:
    run(*TRANSFER, *MODEL, "-o", "out.safetensors", "--scale", "0.5", "--align", "none")
    found = safetensors.torch.load_file(copies / "out.safetensors")
    base, tuned, new = state(0), tuned_from(state(0)), permuted(state(0), CHANNELS, HIDDEN)
    for key in ("0.weight", "4.weight", "1.running_mean"):
        wanted = new[key].double() + 0.5 * (tuned[key].double() - base[key].double())
        assert torch.equal(found[key], wanted.float())


def test_a_variance_stays_positive(run: Runner, copies: Path) -> None:
    base, tuned = state(0), tuned_from(state(0))
    tuned["1.running_var"] = torch.full((8,), 1e-4)
    tuned_new = permuted(base, CHANNELS, HIDDEN)
    tuned_new["1.running_var"] = tuned_new["1.running_var"] / 100
    write(copies / "tuned.safetensors", tuned)
    write(copies / "new.safetensors", tuned_new)
    run(*TRANSFER, *MODEL, "-o", "out.safetensors")
    found = safetensors.torch.load_file(copies / "out.safetensors")["1.running_var"]
    assert torch.allclose(found, 0.01 * tuned_new["1.running_var"], rtol=1e-6)


def test_the_output_has_the_dtype_and_layout_of_the_new_base(run: Runner, copies: Path) -> None:
    new = permuted(state(0), CHANNELS, HIDDEN)
    tensors = {f"module.{key}": v.to(torch.bfloat16) if v.is_floating_point() else v for key, v in new.items()}
    torch.save({"state_dict": tensors, "epoch": 3}, copies / "new.pt")
    done = run("transfer", "old.safetensors", "tuned.safetensors", "new.pt", *MODEL, "-o", "out.pt")
    assert done.code == 0
    found = torch.load(copies / "out.pt", weights_only=True)
    assert found["epoch"] == 3
    assert list(found["state_dict"]) == list(tensors)
    assert found["state_dict"]["module.0.weight"].dtype == torch.bfloat16


def test_a_stranger_is_no_fine_tuning_and_that_is_said(run: Runner, place: Path) -> None:
    (place / "wide.py").write_text(WIDE)
    for number, name in enumerate(("old", "tuned", "new")):
        torch.manual_seed(number)
        write(place / f"{name}.safetensors", wide().state_dict())
    done = run(*TRANSFER, "--model", "wide.py:wide", "--input", "2,5", "--dry-run", "--effort", "fast")
    assert done.code == 0
    assert "does not look like a fine-tuning of old.safetensors" in done.err
    base = safetensors.torch.load_file(place / "old.safetensors")
    write(place / "tuned.safetensors", {key: value * 1.01 for key, value in base.items()})
    done = run(*TRANSFER, "--model", "wide.py:wide", "--input", "2,5", "--dry-run", "--effort", "fast")
    assert "does not look like" not in done.err


WIDE = """
from torch import nn

def wide():
    return nn.Sequential(nn.Linear(5, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(),
                         nn.Linear(24, 3))
"""


def wide() -> Any:
    space: dict[str, Any] = {}
    exec(WIDE, space)
    return space["wide"]()


def other_head(place: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """A base with four classes, its fine-tuning with seven, and a permuted copy of the base."""
    (place / "nets.py").write_text(NETS)
    space: dict[str, Any] = {}
    exec(NETS, space)
    torch.manual_seed(1)
    old = space["net"]().state_dict()
    tuned = {key: value + 0.1 for key, value in old.items()}
    tuned |= {"4.weight": torch.randn(7, 8), "4.bias": torch.randn(7)}
    first, second = torch.randperm(8), torch.randperm(8)
    new = {**old, "0.weight": old["0.weight"][first], "0.bias": old["0.bias"][first]}
    new |= {"2.weight": old["2.weight"][second][:, first], "2.bias": old["2.bias"][second]}
    new["4.weight"] = old["4.weight"][:, second]
    for name, tensors in (("old", old), ("tuned", tuned), ("new", new)):
        write(place / f"{name}.safetensors", tensors)
    tuned["4.weight"] = tuned["4.weight"][:, second]
    return old, tuned, new


def test_a_head_of_its_own_is_kept_and_permuted_where_that_is_asked_for(run: Runner, place: Path) -> None:
    _, tuned, _ = other_head(place)
    words = [*TRANSFER, "--model", "nets.py:net", "--input", "2,5", "-o", "out.safetensors"]
    refused = run(*words)
    assert refused.code == 4
    assert "4.weight" in refused.err
    assert "--ignore-mismatched-sizes" in refused.err
    done = run(*words, "--ignore-mismatched-sizes")
    assert done.code == 0
    assert "the fine-tuning's own, permuted like what they read: '4.weight', '4.bias'" in done.err
    found = safetensors.torch.load_file(place / "out.safetensors")
    assert torch.equal(found["4.weight"], tuned["4.weight"])
    assert torch.equal(found["4.bias"], tuned["4.bias"])


def test_a_head_that_the_bases_lack_is_kept_too(run: Runner, place: Path) -> None:
    other_head(place)
    for name in ("old", "new"):
        tensors = safetensors.torch.load_file(place / f"{name}.safetensors")
        write(place / f"{name}.safetensors", {key: v for key, v in tensors.items() if not key.startswith("4.")})
    words = [*TRANSFER, "--model", "nets.py:net", "--input", "2,5", "-o", "out.safetensors"]
    assert run(*words).code == 4
    done = run(*words, "--ignore-mismatched-sizes", "--json")
    data = json.loads(done.out)["data"]
    assert data["own"] == ["4.weight", "4.bias"]
    assert data["verified_finetuned"]["same"] is True
    assert list(safetensors.torch.load_file(place / "out.safetensors")) == list(
        safetensors.torch.load_file(place / "tuned.safetensors")
    )


def test_another_width_is_refused_even_so(run: Runner, place: Path) -> None:
    other_head(place)
    space: dict[str, Any] = {}
    exec(NETS, space)
    write(place / "new.safetensors", space["net"](width=9).state_dict())
    words = [*TRANSFER, "--model", "nets.py:net", "--input", "2,5", "-o", "out.safetensors"]
    assert run(*words, "--ignore-mismatched-sizes").code == 4
    assert not (place / "out.safetensors").exists()


def test_data_show_every_network(run: Runner, copies: Path) -> None:
    rng = np.random.default_rng(0)
    np.savez(copies / "d.npz", x=rng.normal(size=(40, 1, 4, 4)).astype("f4"), y=rng.integers(0, 4, 40))
    data = json.loads(run(*TRANSFER, *MODEL, "--dry-run", "--data", "d.npz", "--json").out)["data"]
    assert list(data["scores"]) == ["finetuned", "new_base", "naive", "transferred"]
    assert data["scores"]["transferred"]["loss"] == pytest.approx(data["scores"]["finetuned"]["loss"], rel=1e-5)
    assert data["scores"]["naive"]["loss"] != pytest.approx(data["scores"]["finetuned"]["loss"], rel=1e-3)
    assert data["out"] is None
    table = run(*TRANSFER, *MODEL, "--dry-run", "--data", "d.npz").out
    assert "NEW_BASE + change, aligned" in table


def test_an_output_is_needed_is_no_input_and_is_not_overwritten(run: Runner, copies: Path) -> None:
    missing = run(*TRANSFER, *MODEL)
    assert missing.code == 2
    assert "missing option -o" in missing.err
    before = (copies / "new.safetensors").read_bytes()
    assert run(*TRANSFER, *MODEL, "-o", "new.safetensors", "--force").code == 6
    assert (copies / "new.safetensors").read_bytes() == before
    (copies / "out.safetensors").write_text("mine")
    assert run(*TRANSFER, *MODEL, "-o", "out.safetensors").code == 6
    assert (copies / "out.safetensors").read_text() == "mine"
    assert run(*TRANSFER, *MODEL, "-o", "out.safetensors", "--force").code == 0


def test_numbers_that_do_not_fit_the_dtype_are_an_error(run: Runner, copies: Path) -> None:
    write(copies / "new.safetensors", permuted(state(0), CHANNELS, HIDDEN), torch.float16)
    done = run(*TRANSFER, *MODEL, "-o", "out.safetensors", "--scale", "1e9")
    assert done.code == 7
    assert "does not fit torch.float16" in done.err
    assert not (copies / "out.safetensors").exists()


def test_a_fine_tuning_without_a_change_is_reported(run: Runner, copies: Path) -> None:
    words = ["transfer", "old.safetensors", "old.safetensors", "new.safetensors", *MODEL, "-o", "out.safetensors"]
    done = run(*words)
    assert done.code == 0
    assert "there is no change to carry over" in done.out
    assert "no parameter differs from old.safetensors's" in done.err


@pytest.mark.parametrize("value", ["nan", "-nan"])
def test_a_scale_that_is_not_a_number_is_a_usage_error(run: Runner, copies: Path, value: str) -> None:
    done = run(*TRANSFER, *MODEL, "-o", "out.safetensors", f"--scale={value}")
    assert (done.code, "--scale nan: not a number" in done.err) == (2, True)


def test_an_adapter_without_its_configuration_is_called_an_adapter(run: Runner, copies: Path) -> None:
    write(copies / "tuned.safetensors", {"base_model.model.0.lora_A.weight": torch.ones(2, 3)})
    done = run(*TRANSFER, *MODEL, "-o", "out.safetensors")
    assert (done.code, "this is a LoRA adapter" in done.err) == (4, True)
