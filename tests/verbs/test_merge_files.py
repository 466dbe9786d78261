"""Outputs of `rebasin merge` are as loadable as its inputs: formats, shards, directories, dtypes, what lies beside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.interpolation.digits import trained
from tests.verbs.merge_bench import SHAPE, Desk, make_desk

MODEL = ("-m", "net.py:plain", *SHAPE)


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    monkeypatch.chdir(tmp_path)
    return make_desk(tmp_path, count=2)


def state(seed: int, kind: str = "plain") -> dict[str, Tensor]:
    return {key: value.clone() for key, value in trained(kind, seed).state_dict().items()}


def shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write a directory as transformers does: two shards, an index, a configuration and a tokenizer."""
    folder.mkdir()
    keys = list(tensors)
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, part in zip(names, (keys[:3], keys[3:]), strict=True):
        save_file({key: tensors[key] for key in part}, folder / name, metadata={"format": "pt"})
    places = {key: names[0] if key in keys[:3] else names[1] for key in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    (folder / "config.json").write_text(json.dumps({"model_type": "plain", "torch_dtype": "float32"}))
    (folder / "tokenizer.json").write_text("{}")


def mean(a: dict[str, Tensor], b: dict[str, Tensor], key: str) -> Tensor:
    return ((a[key].double() + b[key].double()) / 2).to(a[key].dtype)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin"])
def test_torch_files_are_merged_into_the_first_ones_layout(desk: Desk, suffix: str) -> None:
    for seed in range(2):
        torch.save(state(seed), desk.path / f"t{seed}{suffix}")
    assert desk.run(f"t0{suffix}", f"t1{suffix}", *MODEL, "--align", "none", "-o", f"o{suffix}").code == 0
    merged = torch.load(desk.path / f"o{suffix}", weights_only=True)
    assert list(merged) == list(state(0))
    assert all(torch.equal(value, mean(state(0), state(1), key)) for key, value in merged.items())


def test_a_directory_comes_out_whole_and_sharded(desk: Desk) -> None:
    for seed in range(2):
        shards(desk.path / f"d{seed}", state(seed))
    assert desk.run("d0", "d1", *MODEL, "-o", "merged").code == 0
    assert sorted(path.name for path in (desk.path / "merged").iterdir()) == sorted(
        path.name for path in (desk.path / "d0").iterdir()
    )
    assert (desk.path / "merged.json").is_file()
    module = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
    index = json.loads((desk.path / "merged" / "model.safetensors.index.json").read_text())
    found: dict[str, Tensor] = {}
    for name in set(index["weight_map"].values()):
        found |= load_file(desk.path / "merged" / name)
    module.load_state_dict(found)


def test_another_dtype_is_rounded_once_and_stated_in_the_configuration(desk: Desk) -> None:
    for seed in range(2):
        shards(desk.path / f"d{seed}", state(seed))
    assert desk.run("d0", "d1", *MODEL, "--align", "none", "--dtype", "bfloat16", "-o", "merged").code == 0
    index = json.loads((desk.path / "merged" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    found = load_file(desk.path / "merged" / "model-00001-of-00002.safetensors")
    for key, value in found.items():
        assert torch.equal(value, mean(state(0), state(1), key).to(torch.bfloat16))
    assert json.loads((desk.path / "merged" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_shards_have_the_size_that_was_asked_for(desk: Desk) -> None:
    files = ("plain-0.safetensors", "plain-1.safetensors")
    words = (*files, *MODEL, "--align", "none", "--max-shard-size", "5KB", "-o")
    refused = desk.run(*words, "one.safetensors")
    assert (refused.code, "larger than --max-shard-size" in refused.err) == (2, True)
    assert desk.run(*words, "many.safetensors.index.json").code == 0
    index = json.loads((desk.path / "many.safetensors.index.json").read_text())
    names = sorted(set(index["weight_map"].values()))
    assert len(names) > 2
    merged: dict[str, Tensor] = {}
    for name in names:
        part = load_file(desk.path / name)
        assert sum(value.nbytes for value in part.values()) <= 5000 or len(part) == 1
        merged |= part
    assert all(torch.equal(value, mean(state(0), state(1), key)) for key, value in merged.items())


def test_half_precision_is_averaged_wide_and_rounded_once(desk: Desk) -> None:
    halves = [{key: value.to(torch.bfloat16) for key, value in state(seed).items()} for seed in range(2)]
    for seed, tensors in enumerate(halves):
        desk.save(f"h{seed}.safetensors", tensors)
    done = desk.run("h0.safetensors", "h1.safetensors", *MODEL, "--align", "none", "-o", "o.safetensors")
    assert done.code == 0
    assert "rounded once to bfloat16" in done.err
    for key, value in desk.load("o.safetensors").items():
        exact = (halves[0][key].double() + halves[1][key].double()) / 2
        assert torch.equal(value, exact.float().to(torch.bfloat16))


def test_a_value_that_does_not_fit_is_refused(desk: Desk) -> None:
    large = {key: torch.full_like(value, 3e4) for key, value in state(0).items()}
    base = {key: torch.zeros_like(value) for key, value in state(0).items()}
    for name, tensors in (("a", large), ("b", large), ("base", base)):
        desk.save(f"{name}.safetensors", {key: value.half() for key, value in tensors.items()})
    words = ("a.safetensors", "b.safetensors", "--base", "base.safetensors", "--method", "task-arithmetic")
    done = desk.run(*words, *MODEL, "--align", "none", "--weights", "2,2", "-o", "o.safetensors")
    assert done.code == 7
    assert "does not fit torch.float16" in done.err
    assert not list(desk.path.glob("o.*"))


def test_what_lies_beside_the_first_weights_is_left_out_and_named(desk: Desk) -> None:
    module = trained("plain", 0)
    optimizer = torch.optim.Adam(module.parameters())
    torch.save({"state_dict": state(0), "optimizer": optimizer.state_dict(), "epoch": 3}, desk.path / "full.pt")
    torch.save(state(1), desk.path / "plain.pt")
    done = desk.run("full.pt", "plain.pt", *MODEL, "-o", "o.pt", "--align", "none")
    assert done.code == 0
    assert "o.pt: left out, because it is not of the result: " in done.err
    assert "optimizer" in done.err
    assert list(torch.load(desk.path / "o.pt", weights_only=True)) == list(state(0))


def test_counters_are_those_of_the_reference_and_may_be_missing(desk: Desk) -> None:
    tensors = [state(seed, "norm") for seed in range(2)]
    tensors[0]["1.num_batches_tracked"] = torch.tensor(7)
    tensors[1]["1.num_batches_tracked"] = torch.tensor(9)
    del tensors[1]["4.num_batches_tracked"]
    for seed in range(2):
        desk.save(f"n{seed}.safetensors", tensors[seed])
    words = ("n0.safetensors", "n1.safetensors", "-m", "net.py:norm", *SHAPE, "--reference", "n1.safetensors")
    assert desk.run(*words, "-o", "o.safetensors").code == 0
    merged = desk.load("o.safetensors")
    assert int(merged["1.num_batches_tracked"]) == 9
    assert int(merged["4.num_batches_tracked"]) == int(tensors[0]["4.num_batches_tracked"])


SPECTRAL = """
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm


def build():
    return nn.Sequential(spectral_norm(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 3))
"""


def test_the_vectors_of_a_spectral_norm_belong_to_the_merged_weight(desk: Desk) -> None:
    from torch.nn.utils.parametrizations import spectral_norm

    (desk.path / "spectral.py").write_text(SPECTRAL)
    for seed in range(3):
        torch.manual_seed(seed)
        module = nn.Sequential(spectral_norm(nn.Linear(8, 12)), nn.ReLU(), nn.Linear(12, 3))
        module(torch.randn(4, 8))
        desk.save(f"s{seed}.safetensors", module.state_dict())
    files = [f"s{seed}.safetensors" for seed in range(3)]
    assert desk.run(*files, "-m", "spectral.py:build", "--input", "2,8", "-o", "o.safetensors").code == 0
    merged = desk.load("o.safetensors")
    weight = merged["0.parametrizations.weight.original"].double()
    u, v = (merged[f"0.parametrizations.weight.0._{name}"].double() for name in "uv")
    assert float(u @ weight @ v) == pytest.approx(float(torch.linalg.svdvals(weight)[0]), rel=1e-5)


def refusal(desk: Desk, *words: str) -> tuple[int, str]:
    done = desk.run(*words, *MODEL, "-o", "o.safetensors")
    assert done.err.count("\n") == 1 or "reading" in done.err
    assert not (desk.path / "o.safetensors").exists()
    return done.code, done.err


def test_faults_of_one_input_name_it_and_leave_nothing(desk: Desk) -> None:
    good = "plain-0.safetensors"
    assert refusal(desk, good, "missing.safetensors")[0] == 3
    wide: dict[str, Any] = {**state(1), "3.weight": torch.zeros(40, 32)}
    desk.save("wide.safetensors", wide)
    code, said = refusal(desk, good, "wide.safetensors")
    assert (code, "wide.safetensors" in said, "3.weight" in said) == (4, True, True)
    bad = state(1)
    bad["1.bias"][3] = torch.nan
    desk.save("nan.safetensors", bad)
    code, said = refusal(desk, good, "nan.safetensors")
    assert (code, "nan.safetensors" in said, "1 NaN" in said) == (7, True, True)


def test_outputs_are_not_overwritten_and_inputs_never(desk: Desk) -> None:
    files = ("plain-0.safetensors", "plain-1.safetensors")
    before = (desk.path / files[0]).read_bytes()
    for words in (("-o", files[0]), ("-o", files[0], "--force"), ("-o", "./plain-1.safetensors", "-f")):
        assert desk.run(*files, *MODEL, *words).code == 6
    assert (desk.path / files[0]).read_bytes() == before
    assert desk.run(*files, *MODEL, "-o", "o.safetensors", "--align", "none").code == 0
    again = desk.run(*files, *MODEL, "-o", "o.safetensors", "--align", "none")
    assert (again.code, "exists" in again.err) == (6, True)


def test_tensors_that_only_a_further_file_has_are_named(desk: Desk) -> None:
    desk.save("more.safetensors", {**state(1), "extra.weight": torch.ones(3)})
    words = ("plain-0.safetensors", "more.safetensors", *MODEL, "--align", "none", "-f")
    done = desk.run(*words, "-o", "o.safetensors")
    said = "more.safetensors: not merged, because the model does not have them: 'extra.weight'"
    assert (done.code, said in done.err) == (0, True)
    assert "extra.weight" not in desk.load("o.safetensors")
    assert "extra.weight" not in desk.run(*words, "-o", "o.safetensors", "--ignore-extra").err


def test_a_dry_run_does_not_say_that_no_unit_moves(desk: Desk) -> None:
    done = desk.run("plain-0.safetensors", "plain-1.safetensors", *MODEL, "-o", "o.safetensors", "--dry-run")
    assert (done.code, " 0 of " in done.out) == (0, False)
    assert done.out.count("dry run") == 1


def test_without_labels_the_table_speaks_of_distance_and_agreement(desk: Desk) -> None:
    rng = np.random.default_rng(0)
    np.savez(desk.path / "inputs.npz", x=rng.normal(size=(20, 1, 8, 8)).astype("f4"))
    words = ("plain-0.safetensors", "plain-1.safetensors", *MODEL, "-o", "o.safetensors", "-f", "--align", "none")
    done = desk.run(*words, "--data", "inputs.npz")
    assert (done.code, "output distance" in done.out, "agreement" in done.out) == (0, True, True)
    assert "accuracy" not in done.out
    assert desk.run(*words, "--data", "inputs.npz", "--json").data["labelled"] is False


@pytest.mark.parametrize("align", ["reference", "merge-many", "cycle-consistent"])
def test_a_search_that_the_time_limit_ended_is_reported(desk: Desk, align: str) -> None:
    words = ("plain-0.safetensors", "plain-1.safetensors", *MODEL, "-o", "o.safetensors", "--align", align)
    done = desk.run(*words, "--time-limit", "0", "-f")
    assert (done.code, "the matching stopped without converging" in done.err) == (0, True)
    assert "without converging" not in desk.run(*words, "--effort", "fast", "-f").err
