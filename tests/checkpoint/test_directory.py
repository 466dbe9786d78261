"""Directories of models: weights are chosen as the library chooses them, all else stays, nothing stale is copied."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from rebasin_cli.checkpoint import Checkpoint, open_checkpoint, write_like
from rebasin_cli.checkpoint.directory import DirectoryCheckpoint
from rebasin_cli.errors import CheckpointError, OutputError

STATE = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2), "c": torch.zeros(4)}


def flipped(_key: str, tensor: Tensor) -> Tensor:
    return tensor.flip(0)


def folder(tmp_path: Path, name: str = "model") -> Path:
    """A directory with everything but weights."""
    made = tmp_path / name
    (made / "extra").mkdir(parents=True)
    (made / "config.json").write_text('{"model_type": "mine"}')
    (made / "tokenizer.json").write_text('{"vocab": "größer"}')
    (made / "extra" / "merges.txt").write_text("a b\n")
    (made / ".git").mkdir()
    return made


def shards(made: Path, stem: str, suffix: str) -> None:
    parts = [dict(list(STATE.items())[:2]), dict(list(STATE.items())[2:])]
    names = [f"{stem}-{number:05d}-of-00002{suffix}" for number in (1, 2)]
    for name, part in zip(names, parts, strict=True):
        save(part, made / name)
    places = {key: name for name, part in zip(names, parts, strict=True) for key in part}
    index = {"metadata": {"total_size": 48}, "weight_map": places}
    (made / f"{stem}{suffix}.index.json").write_text(json.dumps(index))


def save(state: dict[str, Tensor], path: Path) -> None:
    safetensors.torch.save_file(state, path, {"format": "pt"}) if path.suffix == ".safetensors" else torch.save(
        state, path
    )


def copied(opened: Checkpoint, out: Path) -> dict[str, Tensor]:
    """Write a copy with every tensor flipped; what the copy holds, after comparing it with that."""
    write_like(opened, out, flipped, provenance={"seed": "1"}, force=False)
    again = open_checkpoint(out)
    read = {key: again.tensor(key) for key in again.infos}
    assert list(read) == list(STATE)
    for key, tensor in STATE.items():
        assert read[key].equal(tensor.flip(0))
    return read


@pytest.mark.parametrize(
    "weights",
    [
        "model.safetensors",
        "pytorch_model.bin",
        "diffusion_pytorch_model.safetensors",
        "diffusion_pytorch_model.bin",
        "model.fp16.safetensors",
        "mine.safetensors",
        "mine.pth",
    ],
)
def test_a_directory_with_one_file_of_weights_comes_out_whole(tmp_path: Path, weights: str) -> None:
    made, out = folder(tmp_path), tmp_path / "out"
    save(STATE, made / weights)
    opened = open_checkpoint(made)
    assert (opened.path, [path.name for path in opened.files]) == (made, [weights])
    copied(opened, out)
    assert sorted(os.listdir(out)) == sorted(["config.json", "tokenizer.json", "extra", weights])
    for name in ("config.json", "tokenizer.json", "extra/merges.txt"):
        assert (out / name).read_bytes() == (made / name).read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]
    assert opened.notes == opened.notes_on_copy(out) == ()


@pytest.mark.parametrize(
    ("stem", "suffix"),
    [("model", ".safetensors"), ("diffusion_pytorch_model", ".safetensors"), ("pytorch_model", ".bin")],
)
def test_a_sharded_directory_comes_out_with_its_shards_and_all_else(tmp_path: Path, stem: str, suffix: str) -> None:
    made, out = folder(tmp_path), tmp_path / "out"
    shards(made, stem, suffix)
    copied(open_checkpoint(made), out)
    assert sorted(os.listdir(out)) == sorted(set(os.listdir(made)) - {".git"})
    index = json.loads((out / f"{stem}{suffix}.index.json").read_text())
    assert index["metadata"] == {"total_size": 48, "rebasin.seed": "1"}
    if suffix == ".bin":
        part = torch.load(out / "pytorch_model-00001-of-00002.bin", weights_only=True)
        assert part["a"].equal(STATE["a"].flip(0))


def test_an_index_of_torch_files_is_read_and_written(tmp_path: Path) -> None:
    made = folder(tmp_path)
    shards(made, "pytorch_model", ".bin")
    opened = open_checkpoint(made / "pytorch_model.bin.index.json")
    assert opened.kind == "sharded-torch"
    copied(opened, tmp_path / "o.bin.index.json")
    names = sorted(os.listdir(tmp_path))
    assert len(names) == 4
    assert names[0].startswith("model")
    assert names[1].startswith("o-")
    assert names[1].endswith("-00001-of-00002.bin")


def test_a_variant_with_its_own_index(tmp_path: Path) -> None:
    made = folder(tmp_path)
    shards(made, "model", ".safetensors")
    (made / "model.safetensors.index.json").rename(made / "model.safetensors.index.fp16.json")
    opened = open_checkpoint(made)
    assert opened.files[-1].name == "model.safetensors.index.fp16.json"
    copied(opened, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors.index.fp16.json").exists()


def test_of_several_copies_the_one_that_the_library_loads(tmp_path: Path) -> None:
    made, out = folder(tmp_path), tmp_path / "out"
    for name in ("model.safetensors", "pytorch_model.bin", "model.fp16.safetensors"):
        save(STATE, made / name)
    shards(made, "model", ".safetensors")
    opened = open_checkpoint(made)
    assert [path.name for path in opened.files] == ["model.safetensors"]
    assert "took model.safetensors" in opened.notes[0]
    assert "pytorch_model.bin" in opened.notes[0]
    copied(opened, out)
    assert not {"pytorch_model.bin", "model.fp16.safetensors", "model.safetensors.index.json"} & set(os.listdir(out))
    assert "pytorch_model.bin (other weights)" in opened.notes_on_copy(out)[0]


def test_a_trainers_directory_names_what_it_leaves_out(tmp_path: Path) -> None:
    made, out = folder(tmp_path, "checkpoint-500"), tmp_path / "out"
    save(STATE, made / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        torch.save({"state": {}}, made / name)
    (made / "global_step500").mkdir()
    torch.save({}, made / "global_step500" / "mp_rank_00_model_states.pt")
    opened = open_checkpoint(made)
    assert isinstance(opened, DirectoryCheckpoint)
    assert [one.name for one in opened.left_out()] == ["global_step500/"]
    left, kept = opened.notes_on_copy(out)
    assert "global_step500/" in left
    assert "scheduler.pt" in kept
    copied(opened, out)
    here = set(os.listdir(out))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin", "config.json"} <= here
    assert "global_step500" not in here


def test_under_the_name_of_a_file_the_weights_alone_are_written(tmp_path: Path) -> None:
    made, out = folder(tmp_path), tmp_path / "o.safetensors"
    save(STATE, made / "model.safetensors")
    opened = open_checkpoint(made)
    assert opened.notes_on_copy(out) == ()
    copied(opened, out)
    assert out.is_file()
    assert sorted(os.listdir(tmp_path)) == ["model", "o.safetensors"]


def test_links_into_a_download_cache_become_files(tmp_path: Path) -> None:
    made, blobs, out = folder(tmp_path), tmp_path / "blobs", tmp_path / "out"
    blobs.mkdir()
    save(STATE, made / "model.safetensors")
    for name in ("model.safetensors", "config.json"):
        os.rename(made / name, blobs / name)
        (made / name).symlink_to(blobs / name)
    copied(open_checkpoint(made), out)
    assert not any((out / name).is_symlink() for name in os.listdir(out))
    assert (out / "config.json").read_text() == '{"model_type": "mine"}'


def test_a_fault_leaves_no_directory(tmp_path: Path) -> None:
    made, out = folder(tmp_path), tmp_path / "out"
    save(STATE, made / "model.safetensors")

    def fail(_: Checkpoint) -> None:
        assert not out.exists()
        raise CheckpointError("no")

    with pytest.raises(CheckpointError):
        write_like(open_checkpoint(made), out, flipped, provenance={}, force=False, check=fail)
    assert os.listdir(tmp_path) == ["model"]


def test_a_directory_that_is_not_empty_is_never_replaced(tmp_path: Path) -> None:
    made, out = folder(tmp_path), tmp_path / "out"
    save(STATE, made / "model.safetensors")
    out.mkdir()
    copied(open_checkpoint(made), out)
    with pytest.raises(OutputError, match="not empty"):
        write_like(open_checkpoint(made), out, flipped, provenance={}, force=True)


def test_a_directory_without_weights_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"without a checkpoint; it holds 'config\.json', 'extra'"):
        open_checkpoint(folder(tmp_path))
