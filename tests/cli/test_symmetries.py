"""`align --symmetries`: transformers aligned by more than permutations; the maps are kept, and applied again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rebasin_cli.maps import Gauges, Mapped, frame_of, random_maps
from tests.cli.conftest import Runner
from tests.cli.workshop import read_safetensors, safetensors_bytes
from tests.maps_nets import Llama, Pre, filled, llama_spec, pre_spec

NETS = """
from tests.maps_nets import Llama, Pre


def pre():
    return Pre(16, 2, 24, 1)


def llama():
    return Llama(16, 4, 2, 24, 1)
"""
MAKERS: dict[str, Callable[[], nn.Module]] = {"pre": lambda: Pre(16, 2, 24, 1), "llama": lambda: Llama(16, 4, 2, 24, 1)}
INPUTS = {"pre": "1,6,7", "llama": "1,8:int64"}


@pytest.fixture
def nets(place: Path) -> Path:
    (place / "nets.py").write_text(NETS)
    return place


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    path.write_bytes(safetensors_bytes({key: tensor.detach() for key, tensor in tensors.items()}))


def planted(nets: Path, name: str, noise: float = 0.05) -> None:
    """A, and B: A with noise under random maps of all classes, in the gauge of another network."""
    net = filled(MAKERS[name], 1)
    spec = pre_spec(net) if isinstance(net, Pre) else llama_spec(net)  # type: ignore[arg-type]
    a, other = dict(net.state_dict()), filled(MAKERS[name], 2).state_dict()
    torch.manual_seed(5)
    noisy = {key: one + noise * one.std() * torch.randn_like(one) if one.dim() > 1 else one for key, one in a.items()}
    maps = random_maps(spec, 7)
    gauges = Gauges(spec, [group for group, one in maps.items() if one.matrix is not None])
    b = Mapped(noisy, spec, maps, frame_of(gauges, other.__getitem__))
    save(nets / "a.safetensors", {key: one.float() for key, one in a.items()})
    save(nets / "b.safetensors", {key: b[key].float() for key in a})


def command(name: str, *more: str) -> list[str]:
    model = ["--model", f"nets.py:{name}", "--input", INPUTS[name]]
    return ["align", "a.safetensors", "b.safetensors", *model, "--symmetries", "all", "-o", "c.safetensors", *more]


def output(name: str, path: Path) -> Tensor:
    net = MAKERS[name]().double()
    net.load_state_dict({key: tensor.double() for key, tensor in read_safetensors(path).items()})
    torch.manual_seed(11)
    x = torch.randn(3, 6, 7, dtype=torch.float64) if name == "pre" else torch.randint(0, 11, (3, 8))
    found: Tensor = net(x)
    return found.detach()


@pytest.mark.parametrize("name", ["pre", "llama"])
def test_planted_maps_are_undone_and_applied_again(run: Runner, nets: Path, name: str) -> None:
    planted(nets, name)
    done = run(*command(name, "--save-alignment", "maps.json", "--json"))
    assert done.code == 0, done.err
    data = json.loads(done.out)["data"]
    assert data["distance"]["after"] < 0.2 * data["distance"]["before"]
    mapped = data["symmetries"]
    assert mapped["searched"] == "all"
    assert {"rotated", "mapped linearly"} <= {group["kind"] for group in mapped["groups"]}
    assert mapped["rounding_error"] < 1e-5
    assert 1 < mapped["largest_condition"] < 1000
    before, after = output(name, nets / "b.safetensors"), output(name, nets / "c.safetensors")
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))

    done = run("apply", "maps.json", "b.safetensors", "-o", "again.safetensors")
    assert done.code == 0, done.err
    c, again = read_safetensors(nets / "c.safetensors"), read_safetensors(nets / "again.safetensors")
    assert all(torch.equal(c[key], again[key]) for key in c)

    later = {
        key: tensor + 0.01 * torch.randn_like(tensor)
        for key, tensor in read_safetensors(nets / "b.safetensors").items()
    }
    save(nets / "later.safetensors", later)
    assert run("apply", "maps.json", "later.safetensors", "-o", "later-c.safetensors").code == 0
    before, after = output(name, nets / "later.safetensors"), output(name, nets / "later-c.safetensors")
    assert torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))

    verified = run("verify", "b.safetensors", "c.safetensors", "--model", f"nets.py:{name}")
    assert verified.code == 0, verified.err


def test_the_report_says_in_words_what_moved(run: Runner, nets: Path) -> None:
    planted(nets, "pre")
    done = run(*command("pre"))
    assert done.code == 0, done.err
    assert "16 units rotated; 4 x 8 units mapped linearly" in done.out
    assert "condition" in done.out
    swept = run("interpolate", "--report", "c.json", "--steps", "2")
    assert swept.code in (0, 2), swept.err


def test_without_the_matrices_nothing_is_applied(run: Runner, nets: Path) -> None:
    planted(nets, "pre")
    assert run(*command("pre", "--save-alignment", "maps.json")).code == 0
    (nets / "maps.json.safetensors").write_bytes(b"else")
    done = run("apply", "maps.json", "b.safetensors", "-o", "again.safetensors")
    assert done.code != 0
    assert "maps.json.safetensors: not the matrices of this alignment" in done.err
    assert not (nets / "again.safetensors").exists()
    (nets / "maps.json.safetensors").unlink()
    assert "cannot be read" in run("apply", "maps.json", "b.safetensors", "-o", "again.safetensors").err


def test_signed_permutations_lose_no_bit(run: Runner, nets: Path) -> None:
    planted(nets, "llama")
    done = run(*[word if word != "all" else "signed" for word in command("llama", "--json")])
    assert done.code == 0, done.err
    data = json.loads(done.out)["data"]
    assert data["symmetries"]["largest_condition"] == 1.0
    assert data["symmetries"]["rounding_error"] is None
    assert data["distance"]["after"] <= data["distance"]["before"]
    b, c = read_safetensors(nets / "b.safetensors"), read_safetensors(nets / "c.safetensors")
    assert any(not torch.equal(b[key], c[key]) for key in b)
    for key in b:
        assert torch.equal(b[key].abs().flatten().sort().values, c[key].abs().flatten().sort().values)


def test_permutations_are_the_default_byte_for_byte(run: Runner, nets: Path) -> None:
    planted(nets, "pre")
    plain = [word for word in command("pre") if word not in ("--symmetries", "all")]
    assert run(*plain).code == 0
    default = (nets / "c.safetensors").read_bytes()
    assert run(*plain, "--symmetries", "permutation", "--force").code == 0
    assert (nets / "c.safetensors").read_bytes() == default


def test_a_method_that_finds_permutations_only_says_so(run: Runner, nets: Path) -> None:
    planted(nets, "pre")
    done = run(*command("pre", "--method", "activation", "--data", "a.safetensors"))
    assert done.code == 2
    assert "method activation finds permutations only" in done.err
