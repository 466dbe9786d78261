"""Between formats by the output's suffix: the state dict alone, whole, tied as it was, loaded by its library."""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from rebasin_cli.checkpoint import Checkpoint, check_output, open_checkpoint, write_like
from rebasin_cli.checkpoint.write import notes_on_output
from rebasin_cli.errors import CheckpointError, ModelError, OutputError


def state() -> dict[str, Tensor]:
    torch.manual_seed(0)
    whole = torch.randn(4, 6)
    return {
        "count": torch.tensor(7),
        "conv": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "half": torch.randn(4, 2, dtype=torch.float16),
        "brain": torch.randn(5, dtype=torch.bfloat16),
        "left": whole[:, :3],
        "mask": torch.tensor([True, False, True]),
        "eight": torch.randn(4).to(torch.float8_e4m3fn),
        "complex": torch.randn(3, dtype=torch.complex64),
        "unsigned": torch.tensor([1, 2], dtype=torch.uint16),
        "none": torch.empty(0, 3),
        "größe.w": torch.randn(2, dtype=torch.float64),
    }


def flipped(_key: str, tensor: Tensor) -> Tensor:
    return tensor.view(torch.uint8).flip(0).view(tensor.dtype) if tensor.itemsize == 1 else plain_flip(tensor)


def plain_flip(tensor: Tensor) -> Tensor:
    return tensor.flip(0) if tensor.ndim and tensor.dtype != torch.uint16 else tensor


def same(found: Tensor, expected: Tensor) -> bool:
    alike = (found.dtype, found.shape) == (expected.dtype, expected.shape)
    dense = (one.contiguous().reshape(-1) for one in (found, expected))
    left, right = (one.view(torch.uint8) if one.numel() else one for one in dense)
    return alike and left.equal(right)


def convert(source: Path, out: Path, **options: Any) -> Checkpoint:
    opened = open_checkpoint(source, **options)
    write_like(opened, out, flipped, provenance={"seed": "1"}, force=False)
    again = open_checkpoint(out)
    assert again.metadata["rebasin.seed"] == "1"
    for key in opened.infos:
        assert same(again.tensor(key), flipped(key, opened.tensor(key)))
    return again


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_training_file_becomes_safetensors_and_what_is_left_out_is_named(tmp_path: Path, zipped: bool) -> None:
    source, out = tmp_path / "b.ckpt", tmp_path / "o.safetensors"
    value = {"epoch": 3, "state_dict": state(), "optimizer": {"state": {0: {"m": torch.ones(2)}}, "param_groups": []}}
    torch.save(value, source, _use_new_zipfile_serialization=zipped)
    again = convert(source, out)
    assert again.kind == "safetensors"
    assert list(again.infos) == list(state())
    read = safetensors.torch.load_file(out)
    assert set(read) == set(state())
    assert same(read["brain"], state()["brain"].flip(0))
    (note,) = notes_on_output(open_checkpoint(source), out)
    assert "the state dict alone is written" in note
    assert "left out: 'epoch', 'optimizer'" in note
    assert sorted(os.listdir(tmp_path)) == ["b.ckpt", "o.safetensors"]


def test_safetensors_become_a_file_that_torch_loads(tmp_path: Path) -> None:
    source, out = tmp_path / "b.safetensors", tmp_path / "o.pt"
    safetensors.torch.save_file({key: tensor.contiguous() for key, tensor in state().items()}, source, {"format": "pt"})
    again = convert(source, out)
    assert again.kind == "torch"
    for mapped in (False, True):
        read = torch.load(out, weights_only=True, mmap=mapped)
        assert list(read) == list(again.infos)
        for key, tensor in state().items():
            assert same(read[key], flipped(key, tensor))
    archive = zipfile.ZipFile(out)
    assert archive.testzip() is None
    for info in archive.infolist():
        with open(out, "rb") as handle:
            handle.seek(info.header_offset + 26)
            lengths = handle.read(4)
        start = info.header_offset + 30 + int.from_bytes(lengths[:2], "little") + int.from_bytes(lengths[2:], "little")
        assert start % 64 == 0
    assert notes_on_output(open_checkpoint(source), out) == (
        f"{out}: the state dict alone is written, as a zip archive, as torch.save writes (.pt)",
    )


def test_there_and_back_gives_the_same_tensors(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "b.pt")
    convert(tmp_path / "b.pt", tmp_path / "o.safetensors")
    convert(tmp_path / "o.safetensors", tmp_path / "back.pth")
    read = torch.load(tmp_path / "back.pth", weights_only=True)
    assert all(same(read[key], tensor.contiguous()) for key, tensor in state().items())


def test_ties_are_kept_in_both_directions(tmp_path: Path) -> None:
    shared = torch.randn(4, 2)
    torch.save({"a": shared, "x": torch.ones(1), "b": shared}, tmp_path / "b.pt")
    middle = convert(tmp_path / "b.pt", tmp_path / "o.safetensors")
    assert middle.ties == (("a", "b"),)
    assert set(safetensors.torch.load_file(tmp_path / "o.safetensors")) == {"a", "x"}
    assert middle.metadata["b"] == "a"
    last = convert(tmp_path / "o.safetensors", tmp_path / "back.pt")
    assert last.ties == (("a", "b"),)
    read = torch.load(tmp_path / "back.pt", weights_only=True)
    assert read["a"].data_ptr() == read["b"].data_ptr()
    assert read["b"].equal(shared)
    with pytest.raises(ModelError, match="not permuted alike"):
        write_like(
            open_checkpoint(tmp_path / "b.pt"),
            tmp_path / "torn.safetensors",
            lambda key, tensor: tensor.flip(0) if key == "a" else tensor,
            provenance={},
            force=False,
        )
    assert not (tmp_path / "torn.safetensors").exists()


def shards(folder: Path) -> Path:
    folder.mkdir()
    parts = {"one.safetensors": {"a": torch.arange(4.0)}, "two.safetensors": {"b": torch.arange(3.0)}}
    for name, part in parts.items():
        safetensors.torch.save_file(part, folder / name)
    places = {"a": "one.safetensors", "b": "two.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("out", ["o.safetensors", "o.pt"])
@pytest.mark.parametrize("given", ["model", "model/model.safetensors.index.json"])
def test_shards_become_one_file(tmp_path: Path, given: str, out: str) -> None:
    shards(tmp_path / "model")
    again = convert(tmp_path / given, tmp_path / out)
    assert list(again.infos) == ["a", "b"]
    assert sorted(os.listdir(tmp_path)) == sorted(["model", out])


@pytest.mark.parametrize("out", ["o.safetensors.index.json", "o.bin.index.json"])
@pytest.mark.parametrize("source", ["b.pt", "b.safetensors"])
def test_one_file_becomes_an_index_with_a_shard(tmp_path: Path, source: str, out: str) -> None:
    value = {"a": torch.arange(4.0), "b": torch.ones(2, dtype=torch.bfloat16)}
    path = tmp_path / source
    torch.save(value, path) if path.suffix == ".pt" else safetensors.torch.save_file(value, path)
    again = convert(path, tmp_path / out)
    assert list(again.infos) == ["a", "b"]
    index = json.loads((tmp_path / out).read_text())
    assert index["metadata"]["total_size"] == 20
    (shard,) = set(index["weight_map"].values())
    assert sorted(os.listdir(tmp_path)) == sorted([source, out, shard])


def test_a_prefix_that_was_chosen_is_all_that_is_written(tmp_path: Path) -> None:
    torch.save({"model.w": torch.ones(2), "model_ema.w": torch.arange(2.0)}, tmp_path / "b.pt")
    again = convert(tmp_path / "b.pt", tmp_path / "o.safetensors", ema=True)
    assert list(again.infos) == ["model_ema.w"]


def test_a_dtype_that_the_format_lacks_is_named_before_the_work(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, dtype=torch.complex32)}, tmp_path / "b.pt")
    opened = open_checkpoint(tmp_path / "b.pt")
    with pytest.raises(OutputError, match=r"no dtype complex32, which 'w' of .* has"):
        check_output(tmp_path / "o.safetensors", (), force=False, bytes_needed=1, like=opened)


def test_a_fault_leaves_nothing(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "b.pt")

    def fail(_: Checkpoint) -> None:
        raise CheckpointError("no")

    for name in ("o.safetensors", "o.safetensors.index.json", "o.bin.index.json"):
        with pytest.raises(CheckpointError):
            write_like(
                open_checkpoint(tmp_path / "b.pt"), tmp_path / name, flipped, provenance={}, force=False, check=fail
            )
    assert os.listdir(tmp_path) == ["b.pt"]
