"""Files with several states: the one that is meant is found or named, said in one line, and nothing else moves."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from tests.cli.conftest import Runner
from tests.cli.workshop import MODEL, state

PARTS = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 8), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(8, 3))

    def forward(self, x):
        return self.decoder(self.encoder(x))
"""


def parts(seed: int) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    return {"encoder": torch.nn.Sequential(torch.nn.Linear(5, 8)).state_dict(),
            "decoder": torch.nn.Sequential(torch.nn.Linear(8, 3)).state_dict()}  # fmt: skip


def test_the_state_that_was_taken_is_said_always(run: Runner, place: Path) -> None:
    torch.save({"state_dict": state(1), "state_dict_ema": state(2)}, place / "b.pt")
    done = run("align", "a.safetensors", "b.pt", *MODEL, "--ema-b")
    assert done.code == 0, done.err
    assert "state       the whole file of A, state_dict_ema of B; permuted with it: state_dict (copy)" in done.out
    read = torch.load(place / "b-aligned.pt", weights_only=True)
    assert not all(read["state_dict_ema"][key].equal(tensor) for key, tensor in state(2).items())
    torch.save(read["state_dict"], place / "raw.pt")
    torch.save(state(1), place / "raw-before.pt")
    assert not all(read["state_dict"][key].equal(tensor) for key, tensor in state(1).items())
    assert run("verify", "raw-before.pt", "raw.pt", *MODEL).code == 0


def test_a_part_of_a_gan_in_one_flat_file(run: Runner, place: Path) -> None:
    other = {f"discriminator.{key}": tensor for key, tensor in state(2).items()}
    torch.save({**{f"generator.{key}": tensor for key, tensor in state(1).items()}, **other}, place / "gan.pt")
    done = run("align", "a.safetensors", "gan.pt", *MODEL, "--key-b", "generator")
    assert done.code == 0, done.err
    assert "state       the whole file of A, generator of B; not permuted: discriminator (network)" in done.out
    read = torch.load(place / "gan-aligned.pt", weights_only=True)
    assert all(read[key].equal(tensor) for key, tensor in other.items())
    assert run("verify", "gan.pt", "gan-aligned.pt", *MODEL, "--key", "generator").code == 0


def test_the_encoder_and_the_decoder_of_one_model(run: Runner, place: Path) -> None:
    (place / "parts.py").write_text(PARTS)
    torch.save(parts(0), place / "a.pt")
    torch.save(parts(1), place / "b.pt")
    done = run("align", "a.pt", "b.pt", "--model", "parts.py:Net", "--input", "2,5")
    assert done.code == 0, done.err
    assert json.loads((place / "b-aligned.json").read_text())["data"]["moved_units"] > 0
    assert set(torch.load(place / "b-aligned.pt", weights_only=True)) == {"encoder", "decoder"}


def test_a_generator_and_a_discriminator_have_to_be_chosen_from(run: Runner, place: Path) -> None:
    torch.save({"generator": state(1), "discriminator": state(2)}, place / "gan.pt")
    done = run("align", "a.safetensors", "gan.pt", *MODEL)
    assert done.code == 3
    assert "several state dicts" in done.err
    assert "--key generator" in done.err
