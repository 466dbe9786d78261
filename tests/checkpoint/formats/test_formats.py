"""The folder of formats: each is found, recognises its own bytes and no other's, and its dtypes are torch's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from rebasin_cli.checkpoint import all_formats, open_checkpoint, split_name
from rebasin_cli.checkpoint.checkpoint import ITEM_SIZES
from rebasin_cli.errors import CheckpointError

STATE = {"w": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}


def sharded(path: Path) -> Path:
    safetensors.torch.save_file(STATE, path.with_name("shard.safetensors"))
    path.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "shard.safetensors")}))
    return path


def sharded_torch(path: Path) -> Path:
    torch.save(STATE, path.with_name("shard.bin"))
    path.write_text(json.dumps({"weight_map": dict.fromkeys(STATE, "shard.bin")}))
    return path


def one_file(path: Path) -> Path:
    safetensors.torch.save_file(STATE, path)
    return path


def zipped(path: Path) -> Path:
    torch.save(STATE, path)
    return path


def legacy(path: Path) -> Path:
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    return path


WRITERS: dict[str, Callable[[Path], Path]] = {
    "safetensors": one_file,
    "sharded-safetensors": sharded,
    "sharded-torch": sharded_torch,
    "torch": zipped,
    "torch-legacy": legacy,
}


def test_every_format_is_tested_here() -> None:
    assert {form.name for form in all_formats()} == set(WRITERS)


@pytest.mark.parametrize("name", WRITERS)
def test_one_format_recognises_its_bytes_under_any_name(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / "weights")
    head = path.read_bytes()[:512]
    assert [form.name for form in all_formats() if form.recognises(path, head)] == [name]
    opened = open_checkpoint(path)
    assert opened.kind == name
    assert {key: info.dtype for key, info in opened.infos.items()} == {key: t.dtype for key, t in STATE.items()}
    for key, tensor in STATE.items():
        assert opened.tensor(key).equal(tensor)


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("suffix", [form.suffixes[0] for form in all_formats()])
def test_a_name_must_not_announce_another_format(tmp_path: Path, name: str, suffix: str) -> None:
    path = WRITERS[name](tmp_path / f"weights{suffix}")
    if any(form.name == name and form.announced_by(path) for form in all_formats()):
        assert open_checkpoint(path).kind == name
        return
    with pytest.raises(CheckpointError, match=r"weights\S+: .*(not|JSON)") as info:
        open_checkpoint(path)
    assert info.value.path == str(path)


def test_names_and_sizes_of_dtypes_are_those_of_torch() -> None:
    known = {
        str(value).removeprefix("torch."): value for value in vars(torch).values() if isinstance(value, torch.dtype)
    }
    assert {name: ITEM_SIZES.get(name) for name in known} == {name: value.itemsize for name, value in known.items()}


@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("a.safetensors", "a", ".safetensors"),
        ("a.safetensors.index.json", "a", ".safetensors.index.json"),
        ("a.b.pt", "a.b", ".pt"),
        ("a", "a", ""),
        ("model_best.pth.tar", "model_best", ".pth.tar"),
        ("model.tar", "model", ".tar"),
        ("resnet.v1.5.pt", "resnet.v1.5", ".pt"),
        ("resnet.v1.5", "resnet.v1.5", ""),
        ("epoch=3-loss=0.25", "epoch=3-loss=0.25", ""),
        ("B.PT", "B", ".PT"),
        ("B.SafeTensors", "B", ".SafeTensors"),
        ("p.bin.index.json", "p", ".bin.index.json"),
        (".pt", ".pt", ""),
    ],
)
def test_names_are_split_before_the_whole_suffix(name: str, stem: str, suffix: str) -> None:
    assert split_name(Path(name)) == (stem, suffix)
