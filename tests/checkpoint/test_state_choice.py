"""Which tensors of a file are the model's: by name, by prefix in a flat file, or several dictionaries as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from rebasin_cli.checkpoint import open_checkpoint, write_like
from rebasin_cli.errors import CheckpointError

FLAT = {
    "model.w": torch.ones(2), "model.b": torch.zeros(1), "model_ema.w": torch.full((2,), 2.0),
    "model_ema.b": torch.ones(1), "generator.net.w": torch.full((2,), 3.0),
}  # fmt: skip


def flat(path: Path) -> Path:
    safetensors.torch.save_file(FLAT, path) if path.suffix == ".safetensors" else torch.save(FLAT, path)
    return path


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("options", "wrapper", "keys"),
    [
        ({"ema": True}, ("model_ema",), ["model_ema.w", "model_ema.b"]),
        ({"key": "model"}, ("model",), ["model.w", "model.b"]),
        ({"key": "generator.net"}, ("generator.net",), ["generator.net.w"]),
        ({}, None, list(FLAT)),
    ],
)
def test_a_prefix_of_flat_names_is_a_choice_in_every_format(
    tmp_path: Path, suffix: str, options: dict[str, Any], wrapper: Any, keys: list[str]
) -> None:
    path, out = flat(tmp_path / f"b{suffix}"), tmp_path / f"o{suffix}"
    opened = open_checkpoint(path, **options)
    assert (opened.wrapper, sorted(opened.infos)) == (wrapper, sorted(keys))
    write_like(opened, out, lambda _, t: t + 1, provenance={}, force=False)
    again = open_checkpoint(out)
    for key, tensor in FLAT.items():
        assert again.tensor(key).equal(tensor + 1 if key in keys else tensor)


def test_a_prefix_inside_a_wrapper(tmp_path: Path) -> None:
    path = tmp_path / "b.ckpt"
    torch.save({"state_dict": FLAT, "optimizer": {"state": {0: {"m": torch.ones(1)}}, "param_groups": []}}, path)
    for options in ({"ema": True}, {"key": "model_ema"}, {"key": "state_dict.model_ema"}):
        opened = open_checkpoint(path, **options)  # type: ignore[arg-type]
        assert opened.wrapper == ("state_dict", "model_ema")
        assert list(opened.infos) == ["model_ema.w", "model_ema.b"]
        assert opened.others == ("model", "generator", "optimizer")


def test_a_prefix_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    path = flat(tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"no state dict under --key 'student'"):
        open_checkpoint(path, key="student")
    torch.save({"w": torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=r"no averaged \(EMA\) weights"):
        open_checkpoint(path, ema=True)


@pytest.mark.parametrize("within", [(), ("model",)])
def test_two_dictionaries_of_one_model_are_joined_under_their_names(tmp_path: Path, within: tuple[str, ...]) -> None:
    path, out = tmp_path / "b.pt", tmp_path / "o.pt"
    parts: Any = {"encoder": {"w": torch.ones(2)}, "decoder": {"w": torch.zeros(3)}}
    torch.save({"model": parts, "epoch": 1} if within else parts, path)
    with pytest.raises(CheckpointError, match="several state dicts"):
        open_checkpoint(path)
    opened = open_checkpoint(path, key="*")
    assert (opened.wrapper, list(opened.infos), opened.others) == (within or None, ["encoder.w", "decoder.w"], ())
    write_like(opened, out, lambda _, t: t + 1, provenance={}, force=False)
    read = torch.load(out, weights_only=True)
    read = read["model"] if within else read
    assert read["encoder"]["w"].equal(torch.full((2,), 2.0))
    assert read["decoder"]["w"].equal(torch.ones(3))
